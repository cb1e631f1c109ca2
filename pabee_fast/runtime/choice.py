"""Which kernels serve a packed batch on a GPU: what was measured (`tuned`), and of attention what was asked for."""

import functools
import logging

import torch
from torch import Tensor

from pabee_fast.kernels.checks import MAX_SHORT_ROW
from pabee_fast.kernels.checks_layer import has_descriptors
from pabee_fast.kernels.launch_attention import MAX_SHORT_HEAD
from pabee_fast.runtime.tuned import LINEAR_GELU, SHORT_ROWS

logger = logging.getLogger(__name__)

ATTENTIONS = ("library", "kernel", "short")
"""torch's own for rows of any lengths, our kernel for them, and our kernel for short rows, of which a tile holds
several. An engine that is asked for one takes it wherever it can serve; elsewhere the choice is as if nobody asked."""


def architecture(device: torch.device) -> str:
    """Return a GPU's architecture, "sm_90" say, by which measured choices are told apart; another device's type."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@functools.cache
def most_short(device: torch.device, dtype: torch.dtype, head_dim: int) -> int:
    """Return tokens of the longest row up to which the kernel for short rows is known to be the fastest; 0: none."""
    if device.type != "cuda" or not SHORT_ROWS:
        return 0
    return min(SHORT_ROWS.get((architecture(device), dtype, head_dim), 0), MAX_SHORT_ROW)


def takes_short(device: torch.device, dtype: torch.dtype, head_dim: int, longest: int, asked: str | None) -> bool:
    """Return whether the kernel for short rows serves rows of up to `longest` tokens, with heads of `head_dim`
    numbers."""
    if asked == "short":
        if longest <= MAX_SHORT_ROW and head_dim <= MAX_SHORT_HEAD.get(dtype, 0):
            return True
        _say_not_short(head_dim, dtype)
        return False
    return asked is None and longest <= most_short(device, dtype, head_dim)


@functools.cache
def _least_tokens(device: torch.device, dtype: torch.dtype, hidden_size: int) -> int | None:
    return LINEAR_GELU.get((architecture(device), dtype, hidden_size))


def takes_linear_gelu(hidden: Tensor, weight: Tensor) -> bool:
    """Return whether our product with GELU in its epilogue is known to be faster than the library's and a pass.

    Args:
        hidden: [tokens, hidden_size].
        weight: [width, hidden_size].
    """
    least = _least_tokens(hidden.device, hidden.dtype, hidden.shape[1])
    return least is not None and hidden.shape[0] >= least and has_descriptors(hidden, weight)


@functools.cache
def _say_not_short(head_dim: int, dtype: torch.dtype) -> None:
    logger.warning(
        "attention='short' cannot serve some batches, which get the usual one: it takes rows of up to %d tokens, and "
        "heads of up to %d numbers in %s (here %d)",
        MAX_SHORT_ROW, MAX_SHORT_HEAD.get(dtype, 0), dtype, head_dim,
    )  # fmt: skip
