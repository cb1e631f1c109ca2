"""Checks of arguments that several functions take."""

import numbers
from typing import Any

from pabee_fast.errors import InputError


def require_whole(name: str, value: Any, *, at_least: int, fix: str = "") -> None:
    """Raises InputError unless value is a whole number (no bool) >= at_least."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
        raise InputError(f"{name}={value!r}: give a whole number of at least {at_least}" + (f"; {fix}" if fix else ""))


def require_seed(seed: int) -> None:
    """Raises InputError unless NumPy and torch take it."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed={seed}: give a whole number from 0 to {2**32 - 1}")
