"""Which attention serves the rows of a packed batch on a GPU: what was measured, and what was asked for."""

import functools
import logging

import torch

from pabee_fast.kernels.checks import MAX_SHORT_ROW
from pabee_fast.kernels.launch import MAX_SHORT_HEAD

logger = logging.getLogger(__name__)

ATTENTIONS = ("library", "kernel", "short")
"""torch's own for rows of any lengths, our kernel for them, and our kernel for short rows, of which a tile holds
several. An engine that is asked for one takes it wherever it can serve; elsewhere the choice is as if nobody asked."""

SHORT_ROWS: dict[tuple[str, torch.dtype, int], int] = {}
"""GPU, dtype and size of a head -> the most tokens of a batch's longest row with which the kernel for short rows is
faster than what else serves. Each line needs a record in bench/results that shows it; there is none yet, so that the
kernel is taken where it is asked for alone."""


@functools.cache
def most_short(device: torch.device, dtype: torch.dtype, head_dim: int) -> int:
    """Tokens of the longest row up to which the kernel for short rows is known to be the fastest; 0: none."""
    if device.type != "cuda" or not SHORT_ROWS:
        return 0
    return min(SHORT_ROWS.get((torch.cuda.get_device_name(device), dtype, head_dim), 0), MAX_SHORT_ROW)


def takes_short(device: torch.device, dtype: torch.dtype, head_dim: int, longest: int, asked: str | None) -> bool:
    """Whether the kernel for short rows serves rows of up to `longest` tokens, with heads of `head_dim` numbers."""
    if asked == "short":
        if longest <= MAX_SHORT_ROW and head_dim <= MAX_SHORT_HEAD.get(dtype, 0):
            return True
        _say_not_short(head_dim, dtype)
        return False
    return asked is None and longest <= most_short(device, dtype, head_dim)


@functools.cache
def _say_not_short(head_dim: int, dtype: torch.dtype) -> None:
    logger.warning(
        "attention='short' cannot serve some batches, which get the usual one: it takes rows of up to %d tokens, and "
        "heads of up to %d numbers in %s (here %d)",
        MAX_SHORT_ROW, MAX_SHORT_HEAD.get(dtype, 0), dtype, head_dim,
    )  # fmt: skip
