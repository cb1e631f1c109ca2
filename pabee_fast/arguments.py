"""Checks of arguments that several functions take."""

import numbers
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pabee_fast.errors import InputError

DTYPE_NAMES = ("float32", "bfloat16", "float16")
"""Precisions that layers run in, by torch's names."""


def require_whole(name: str, value: Any, *, at_least: int, fix: str = "") -> None:
    """Raise InputError unless value is a whole number (no bool) >= at_least."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
        raise InputError(f"{name}={value!r}: give a whole number of at least {at_least}" + (f"; {fix}" if fix else ""))


def require_seed(seed: int) -> None:
    """Raise InputError unless NumPy and torch take it."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed={seed}: give a whole number from 0 to {2**32 - 1}")


def require_share(name: str, value: float) -> None:
    """Raise InputError unless value is a number between 0 and 1, and neither of them."""
    if not (isinstance(value, numbers.Real) and 0 < value < 1):
        raise InputError(f"{name}={value!r}: give a number between 0 and 1")


def require_between(name: str, value: float, low: float, high: float) -> None:
    """Raise InputError unless value is low, high or between them."""
    if not low <= value <= high:
        raise InputError(f"{name}={value!r}: give a number from {low} to {high}")


def require_positive(name: str, value: float) -> None:
    """Raise InputError unless value is above 0 and finite."""
    if not 0 < value < float("inf"):
        raise InputError(f"{name}={value!r}: give a positive number")


def require_one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise InputError unless value is one of these words."""
    if value not in choices:
        raise InputError(f"{name}={value!r}: give {', '.join(choices[:-1])} or {choices[-1]}")


def require_device(name: str) -> None:
    """Raise InputError unless a device can have this name, whether or not it is here."""
    kind, _, index = name.partition(":")
    if name not in ("auto", "cpu", "cuda") and not (kind == "cuda" and index.isdecimal()):
        raise InputError(f"device={name!r}: give auto, cpu or cuda (cuda:1 for the second one)")


def require_dtype(name: str) -> None:
    """Raise InputError unless it is auto or the name of a precision that layers run in."""
    if name not in ("auto", *DTYPE_NAMES):
        raise InputError(f"dtype={name!r}: give auto, {', '.join(DTYPE_NAMES)}")


def require_model(name: str) -> None:
    """Raise InputError for a model that is no directory here, nor can be on the hub: MODEL or OWNER/MODEL."""
    if not Path(name).exists() and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise InputError(f"{name} cannot be loaded: there is no such directory")


def require_single_texts(stride: int | None, texts: int | None) -> None:
    """Raise InputError for pairs (2 texts a row) that would be read in stretches."""
    if stride is not None and texts == 2:
        raise InputError(
            f"stride={stride}: single texts are read in stretches, and these are pairs; leave it out, and pairs are cut"
        )
