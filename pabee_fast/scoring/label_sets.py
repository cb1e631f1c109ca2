"""A set of labels as one cell of a table says it: names joined by "|", as `score` writes them, or a JSON list."""

import json
from collections.abc import Collection
from typing import Any

from pabee_fast.errors import InputError

BETWEEN = "|"
"""Stands between the names of a set."""
_WAYS = f'a set is names joined by "{BETWEEN}", or a JSON list of names or ids'


def looks_like_list(cell: str) -> bool:
    """Return whether a cell is meant as a JSON list."""
    return cell.lstrip().startswith("[") and cell.rstrip().endswith("]")


def set_of(cell: str, names: Collection[str], where: str) -> list[Any]:
    """Return the labels that a cell says are a row's; an empty cell says that none is.

    Args:
        cell: "a|b", '["a", "b"]', or "[0, 1]".
        names: the model's labels; (): not known yet. A cell that is one of them is that label.
        where: what messages call the cell.

    Returns:
        Names, or what the JSON list holds.

    Raises:
        InputError: a list that is not JSON, a name that is empty or no label, or a cell that can be read in two ways.
    """
    if not cell:
        return []
    pieces = cell.split(BETWEEN)
    if cell in names:
        if len(pieces) > 1 and all(piece in names for piece in pieces):
            raise InputError(
                f"{where}: label {cell!r} is the name of a label and of a set of others; write a JSON list of names"
            )
        return [cell]
    if looks_like_list(cell):
        try:
            found: list[Any] = json.loads(cell)
        except (ValueError, RecursionError):
            raise InputError(f"{where}: label {cell!r} is no JSON list; {_WAYS}") from None
        return found
    if "" in pieces:
        raise InputError(f'{where}: label {cell!r} has a "{BETWEEN}" without a name on each side; {_WAYS}')
    if names and (others := [piece for piece in pieces if piece not in names]):
        fix = _WAYS
        if any(BETWEEN in name for name in names):
            fix = f'a label\'s own name holds "{BETWEEN}", so write sets as JSON lists of names or ids'
        known = ", ".join(names)
        raise InputError(f"{where}: label {cell!r} holds {others[0]!r}, none of the model's ({known}); {fix}")
    return pieces
