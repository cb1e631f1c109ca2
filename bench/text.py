"""What every command here prints: plain-text tables, and figures as JSON, the last of them on the last line."""

import argparse
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

Tell = Callable[[Mapping[str, Any]], None]
"""What is given the figures each time that there are more."""


def columns(lines: Sequence[Sequence[object]], *, left: Collection[int] = (0,)) -> str:
    """Return lines of cells, aligned: the columns named by `left` to the left, the others to the right."""
    cells = [[str(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def aligned(line: Sequence[str]) -> str:
        pairs = enumerate(zip(line, widths, strict=True))
        return "  ".join(f"{cell:<{width}}" if i in left else f"{cell:>{width}}" for i, (cell, width) in pairs)

    return "\n".join(aligned(line).rstrip() for line in cells)


def add_so_far(parser: argparse.ArgumentParser) -> None:
    """Give a command the option whose value `teller` takes."""
    parser.add_argument("--so-far", action="store_true",
                        help="print the figures so far, a line of JSON, each time there are more: what a run that is "
                             "cut short leaves")  # fmt: skip


def teller(so_far: bool) -> Tell:
    """Return what prints figures that are not all yet, marked as such, or does nothing."""

    def tell(figures: Mapping[str, Any]) -> None:
        print(json.dumps({**figures, "partial": True}), flush=True)

    return tell if so_far else lambda figures: None
