"""Attention within the rows of a packed batch, as a function that transformers' layers call by name."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.masking_utils import sdpa_mask

from pabee_fast.errors import UnsupportedError
from pabee_fast.runtime.packed import Layout

NAME = "pabee_fast_packed"


@contextlib.contextmanager
def packed_attention_in(config: PretrainedConfig) -> Iterator[None]:
    """Routes the layers of a model to `packed_attention` meanwhile; the stock forward finds its own again after."""
    _register()
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


@functools.cache
def _register() -> None:
    """Both interfaces need the name: without a mask function, a stock forward would silently get no mask."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Softmax(q k^T * scaling) v within each row.

    Args:
        module: the layer's attention module.
        query, key, value: [1, heads, tokens, head_dim].
        attention_mask: must be None; a packed batch has `layout` instead.
        layout: where the rows lie.
        scaling: of the products; None: head_dim ** -0.5.
        dropout: must be 0, since packed layers only infer.
        **kwargs: anything that is not None raises, since ignoring it would change the result.

    Returns:
        [1, tokens, heads, head_dim] and None (no attention weights).

    Raises:
        UnsupportedError: an argument that packed attention does not know, causal attention, or dropout.
    """
    unknown = {name: given for name, given in kwargs.items() if given is not None}
    unknown |= {"attention_mask": attention_mask} if attention_mask is not None else {}
    unknown |= {"dropout": dropout} if dropout else {}
    unknown |= {"is_causal": True} if getattr(module, "is_causal", False) else {}
    if unknown:
        raise UnsupportedError(f"packed attention cannot honour {', '.join(unknown)}; restore the model (pf.restore)")
    attend = _choose(query, layout)
    out = attend(query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), layout, scaling)
    return out[None], None


def attention_in_use(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """In words: which attention serves, and why."""
    if device.type != "cuda":
        return "scaled_dot_product_attention over runs of rows of one length (not on CUDA)"
    if _varlen_serves(dtype, head_dim):
        return "torch.nn.attention.varlen (half precision on CUDA)"
    return f"scaled_dot_product_attention over a padded copy ({dtype}, head size {head_dim}: no library kernel serves)"


def _choose(query: Tensor, layout: Layout) -> Any:
    if not query.is_cuda:
        return _attend_runs
    serves = layout.key_mask is None and _varlen_serves(query.dtype, query.shape[-1])
    return _attend_varlen if serves else _attend_padded


def _varlen_serves(dtype: torch.dtype, head_dim: int) -> bool:
    return dtype in (torch.float16, torch.bfloat16) and head_dim % 8 == 0 and head_dim <= 256


def _attend_runs(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None) -> Tensor:
    """Rows of one length side by side are one rectangular call. Tensors are [tokens, heads, head_dim]."""
    out = query.new_empty((query.shape[0], query.shape[1], value.shape[2]))
    for start, rows, length in layout.runs:
        run = slice(start, start + rows * length)
        q, k, v = (t[run].unflatten(0, (rows, length)).transpose(1, 2) for t in (query, key, value))
        mask = None if layout.key_mask is None else layout.key_mask[run].view(rows, 1, 1, length)
        attended = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)  # [rows, heads, length, dim]
        out[run].unflatten(0, (rows, length)).copy_(attended.transpose(1, 2))
    return out


def _attend_varlen(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None) -> Tensor:
    """The library's variable-length kernel, for half precision on CUDA."""
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = layout.cu_seqlens, layout.max_seqlen
    return cast(Tensor, varlen_attn(query, key, value, ends, ends, longest, longest, scale=scaling))


def _attend_padded(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None) -> Tensor:
    """Through a padded copy; reads nothing back, since the host knows rows and longest row."""
    starts, ends = layout.cu_seqlens[:-1, None], layout.cu_seqlens[1:, None]
    where = starts + torch.arange(layout.max_seqlen, device=query.device)  # [rows, longest]
    seen = where < ends
    where = where.clamp(max=query.shape[0] - 1)
    keys = seen if layout.key_mask is None else seen & layout.key_mask[where]
    q, k, v = (t[where].transpose(1, 2) for t in (query, key, value))  # [rows, heads, longest, head_dim]
    attended = scaled_dot_product_attention(q, k, v, attn_mask=keys[:, None, None], scale=scaling).transpose(1, 2)
    row = torch.searchsorted(layout.cu_seqlens, torch.arange(query.shape[0], device=query.device), right=True) - 1
    column = torch.arange(query.shape[0], device=query.device) - layout.cu_seqlens[row]
    return attended[row, column]
