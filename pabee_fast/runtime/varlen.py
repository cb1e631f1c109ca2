"""torch's own variable-length attention, FlashAttention 2: what it takes, and how it is asked."""

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from pabee_fast.layout import Layout

logger = logging.getLogger(__name__)


_KNOWN = (
    "query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal", "return_debug_mask",
    "scale", "window_size_left", "window_size_right",
)  # fmt: skip
"""What the operator below the public function must take, in this order; anything more must have a default."""

_FLASH_ALONE = 128
"""Tokens of the longest row up to which the public function asks no other library (torch 2.14: cuDNN above)."""


@functools.cache
def why_not(device: torch.device, dtype: torch.dtype, head_dim: int, is_grouped: bool) -> str | None:
    """Return why it does not take such tensors of rows without hidden tokens, in words; None where it does."""
    if device.type != "cuda":
        return "not on CUDA"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"the library's is for half precision, not {dtype}"
    if head_dim % 8 or head_dim > 256:
        return f"the library's is for multiples of 8 up to 256, not heads of {head_dim}"
    if not torch.backends.cuda.is_flash_attention_available():
        return "this torch is built without FlashAttention"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the library's needs a GPU of compute capability 8.0"
    from torch.nn.attention.varlen import varlen_attn

    if is_grouped and "enable_gqa" not in inspect.signature(varlen_attn).parameters:
        return "this torch's variable-length attention promises nothing for grouped heads; 2.12 does"
    return None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    scaling: float | None,
    is_causal: bool,
    window: int | None,
) -> Tensor:
    """See `ops.attention`, for tensors of which `why_not` says nothing and a layout that hides no token."""
    reach = -1 if window is None else window - 1  # its windows count the keys on each side; -1 is all of them
    sides = (reach, 0 if is_causal else reach)
    ends, longest = layout.cu_seqlens, layout.max_seqlen
    if longest <= _FLASH_ALONE and (flash := operator()) is not None:
        out, *_ = flash(
            query, key, value, ends, ends, longest, longest, 0.0, sides == (-1, 0), False, scale=scaling,
            window_size_left=sides[0], window_size_right=sides[1],
        )  # fmt: skip
        return cast(Tensor, out)
    from torch.nn.attention.varlen import varlen_attn

    grouped: dict[str, Any] = {"enable_gqa": True} if query.shape[1] != key.shape[1] else {}
    out = varlen_attn(query, key, value, ends, ends, longest, longest, scale=scaling, window_size=sides, **grouped)
    return cast(Tensor, out)


@functools.cache
def operator() -> Callable[..., Any] | None:
    """Return the operator that the public function calls, whose wrapper takes the host 10 to 36 us and a kernel that
    fills zeros; None where this torch has it not, or not as it is known, which is said once."""
    found = getattr(torch.ops.aten, "_flash_attention_forward", None)
    arguments = found.default._schema.arguments if found is not None else []
    if (
        found is None
        or tuple(each.name for each in arguments[: len(_KNOWN)]) != _KNOWN
        or not all(each.has_default_value() for each in arguments[len(_KNOWN) :])
    ):
        logger.warning("attention is called by torch's public function: the operator below it is not as it was")
        return None
    return cast(Callable[..., Any], found)
