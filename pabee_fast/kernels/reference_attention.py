"""Attention within packed rows in plain torch: the ground truth of its kernel's tests, and the path on a CPU."""

from collections.abc import Iterator
from itertools import groupby, pairwise

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .checks_attention import check_attention, check_short_attention


@torch.no_grad()
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    *,
    scaling: float | None = None,
    is_causal: bool = False,
    window: int | None = None,
    key_mask: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Attend within each row: softmax(scaling * q k^T) v over the keys that a query sees.

    A query at place i of its row sees the key at place j of the same row if `key_mask` does not hide it, j <= i where
    `is_causal`, and |i - j| < `window`; a query that sees no key gets zeros.

    Args:
        query: [tokens, heads, head_dim]; float32, float16 or bfloat16. Here and in key and value only the last
            dimension need be contiguous, so that views into one joined projection serve.
        key: [tokens, kv_heads, head_dim]; kv_heads divides heads, and each serves heads / kv_heads neighbouring ones.
        value: [tokens, kv_heads, value_dim].
        cu_seqlens: [rows + 1] int32: cumulative lengths in tokens, from 0 to all of them.
        scaling: of the products; None: head_dim ** -0.5.
        is_causal: whether a query sees only its own token and those before it.
        window: places; None: any distance.
        key_mask: [tokens] bool: False for tokens that nobody attends to; None: there are none.
        positions: [tokens] int32, each above the one before in its row: what a window measures by; None: places in the
            packed row.

    Returns:
        [tokens, heads, value_dim], contiguous, dtype of `query`.

    Raises:
        ValueError: a shape, dtype, device, layout or option does not fit.
    """
    check_attention(query, key, value, cu_seqlens, window=window, key_mask=key_mask, positions=positions)
    out = query.new_empty((*query.shape[:2], value.shape[2]))
    is_grouped = query.shape[1] != key.shape[1]
    for start, rows, length in runs(cu_seqlens.tolist()):
        run = slice(start, start + rows * length)
        q, k, v = (tensor[run].unflatten(0, (rows, length)).transpose(1, 2) for tensor in (query, key, value))
        own_positions = None if positions is None else positions[run].view(rows, length)
        seen = _seen(length, query.device, is_causal=is_causal, window=window, positions=own_positions)
        if key_mask is not None:
            visible = key_mask[run].view(rows, 1, length)
            if is_causal and seen is None:
                seen = _causal(length, query.device)
            seen = visible if seen is None else seen & visible
        attended = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if seen is None else seen[..., None, :, :],
            is_causal=is_causal and seen is None,
            scale=scaling,
            enable_gqa=is_grouped,
        )  # [rows, heads, length, value_dim]
        out[run].unflatten(0, (rows, length)).copy_(attended.transpose(1, 2))
    return out


def short_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    *,
    longest: int,
    scaling: float | None = None,
    is_causal: bool = False,
    window: int | None = None,
    key_mask: Tensor | None = None,
    positions: Tensor | None = None,
    query_bias: Tensor | None = None,
    value_bias: Tensor | None = None,
) -> Tensor:
    """Attend within each of some short rows: `attention`, with its arguments and results.

    Args:
        longest: tokens of the longest row, or more; at most MAX_SHORT_ROW.
        query_bias: [heads, head_dim], added to every query; None.
        value_bias: [kv_heads, value_dim], added to every value; None. A bias of keys would change nothing: it adds the
            same to all of a query's products.

    Raises:
        ValueError: a shape, dtype, device, layout or option does not fit.
    """
    check_short_attention(
        query, key, value, cu_seqlens, longest=longest, window=window, key_mask=key_mask, positions=positions,
        query_bias=query_bias, value_bias=value_bias,
    )  # fmt: skip
    query = query if query_bias is None else query + query_bias
    value = value if value_bias is None else value + value_bias
    return attention(
        query, key, value, cu_seqlens, scaling=scaling, is_causal=is_causal, window=window, key_mask=key_mask,
        positions=positions,
    )  # fmt: skip


def runs(ends: list[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (first token, rows, length) of every run of neighbouring rows of one length: one rectangular call each."""
    start = 0
    for length, run in groupby(end - begin for begin, end in pairwise(ends)):
        rows = len(list(run))
        if length:
            yield start, rows, length
        start += rows * length


def _seen(
    length: int, device: torch.device, *, is_causal: bool, window: int | None, positions: Tensor | None
) -> Tensor | None:
    """Return which keys each query of a row sees, [length, length] or [rows, length, length] bool; None where the flag
    `is_causal` says it all."""
    if window is None or (positions is None and window >= length):
        return None
    places = torch.arange(length, device=device) if positions is None else positions
    seen = (places[..., :, None] - places[..., None, :]).abs() < window
    return seen & _causal(length, device) if is_causal else seen


def _causal(length: int, device: torch.device) -> Tensor:
    return torch.ones((length, length), dtype=torch.bool, device=device).tril()
