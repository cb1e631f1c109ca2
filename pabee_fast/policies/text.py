"""Policies as a command line names them: the inverse of `str(policy)`."""

from dataclasses import MISSING, fields
from typing import Any

from pabee_fast.errors import InputError
from pabee_fast.policies.base import Policy, spelling
from pabee_fast.policies.exiting import (
    Confidence,
    Entropy,
    Exiting,
    Patience,
    PatientConfidence,
    PatientDivergence,
    Vote,
)
from pabee_fast.policies.given import FixedDepth, FullDepth
from pabee_fast.policies.listwise import Shortlist

COMMAND_LINE: tuple[type[Policy], ...] = (
    Patience,
    Confidence,
    Entropy,
    PatientConfidence,
    PatientDivergence,
    Vote,
    FullDepth,
    FixedDepth,
)
"""The policies a user can name in a string for any rows; Scheduled needs a value for each row, Shortlist lists."""


def parse_policy(text: str) -> Policy:
    """Read `name:value,option=value`, as in `patience:6,first_layer=4`, `patience:3,threshold=0.1`, `full-depth`.

    Raises:
        InputError: an unknown name or option (naming the valid ones), or a value that is not a number.
    """
    name, _, rest = text.strip().partition(":")
    by_name = {spelling(cls): cls for cls in (*COMMAND_LINE, Shortlist)}
    cls = by_name.get(name.strip().lower().replace("_", "-"))
    if cls is None:
        raise InputError(f"policy {text!r}: unknown name {name!r}; give one of {', '.join(by_name)}")
    own = [f for f in fields(cls) if not f.kw_only]
    options = own + [f for f in fields(cls) if f.kw_only]
    takes = f"{name} takes {', '.join(f.name for f in options) or 'no options'}"
    given: dict[str, Any] = {}
    for position, word in enumerate(filter(None, (w.strip() for w in rest.split(",")))):
        key, equals, value = (part.strip() for part in word.partition("="))
        if not equals:
            key, value = own[0].name if own and position == 0 else "", key
        if key not in {f.name for f in options} or key in given:
            raise InputError(
                f"policy {text!r}: cannot use {word!r}; {takes}, each once, as in {spelling(Patience)}:6,first_layer=4"
            )
        given[key] = _number(text, key, value)
    missing = [f.name for f in options if f.default is MISSING and f.name not in given]
    if missing:
        raise InputError(f"policy {text!r}: {missing[0]} is missing; {takes}")
    return cls(**given)


def _number(text: str, key: str, value: str) -> int | float | tuple[float, ...]:
    try:
        if key == "margins":
            return tuple(map(float, value.split("/")))
        return float(value) if key in Exiting._RANGES else int(value)
    except ValueError:
        kind = "number" if key in Exiting._RANGES else "list such as 1.5/0.8" if key == "margins" else "whole number"
        raise InputError(f"policy {text!r}: {key}={value!r} is not a {kind}") from None
