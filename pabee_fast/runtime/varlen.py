"""torch's own variable-length attention, FlashAttention 2: what it takes, and how it is asked."""

import functools
import inspect
from typing import Any, cast

import torch
from torch import Tensor

from pabee_fast.layout import Layout


@functools.cache
def why_not(device: torch.device, dtype: torch.dtype, head_dim: int, is_grouped: bool) -> str | None:
    """Why it does not take such tensors of rows without hidden tokens, in words; None where it does."""
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
    from torch.nn.attention.varlen import varlen_attn

    reach = -1 if window is None else window - 1  # its windows count the keys on each side; -1 is all of them
    grouped: dict[str, Any] = {"enable_gqa": True} if query.shape[1] != key.shape[1] else {}
    ends, longest = layout.cu_seqlens, layout.max_seqlen
    out = varlen_attn(
        query, key, value, ends, ends, longest, longest, scale=scaling,
        window_size=(reach, 0 if is_causal else reach), **grouped,
    )  # fmt: skip
    return cast(Tensor, out)
