"""Disentangled attention within packed rows in plain torch: the ground truth of its kernel's tests, and the path on a
CPU."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .checks_attention import check_disentangled_attention
from .reference_attention import runs

WORK = 1 << 19
"""Numbers of an array of products with places: as many heads at once as stay below it. Two of them in float32 fill 4
MiB; one row of 512 tokens takes 1.7 times as long with all its 12 heads at once (AMD EPYC, one core)."""


@torch.no_grad()
def disentangled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    *,
    longest: int,
    place_keys: Tensor | None = None,
    place_queries: Tensor | None = None,
    scaling: float | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Attend within each row by content and by relative place (DeBERTa, He et al. 2021, section 3.1).

    A query q at place i of its row and a key k at place j meet with the score
    scaling * (q k + q place_keys[m + j - i] + k place_queries[m + i - j]), where m is the middle line: each looks up
    how far the other is ahead of it. A query of a token that `key_mask` hides attends to all keys of its row alike, as
    DeBERTa's mask of pairs makes it.

    Args:
        query: [tokens, heads, head_dim]; float32, float16 or bfloat16. Here and in key and value only the last
            dimension need be contiguous, so that views into one joined projection serve.
        key: [tokens, heads, head_dim].
        value: [tokens, heads, value_dim].
        cu_seqlens: [rows + 1] int32: cumulative lengths in tokens, from 0 to all of them.
        longest: tokens of the longest row, or more.
        place_keys: [lines, heads, head_dim], an odd number of lines and at least 2 * longest - 1: what queries meet of
            the distance to a key (content to position); None: nothing.
        place_queries: likewise, with as many lines: what keys meet of it (position to content).
        scaling: of the score; None: head_dim ** -0.5.
        key_mask: [tokens] bool: False for tokens that are hidden; None: there are none.

    Returns:
        [tokens, heads, value_dim], contiguous, dtype of `query`.

    Raises:
        ValueError: a shape, dtype, device, layout or option does not fit.
    """
    check_disentangled_attention(
        query, key, value, cu_seqlens, longest=longest, place_keys=place_keys, place_queries=place_queries,
        key_mask=key_mask,
    )  # fmt: skip
    scaling = query.shape[2] ** -0.5 if scaling is None else scaling
    out = query.new_empty((*query.shape[:2], value.shape[2]))
    for start, rows, length in runs(cu_seqlens.tolist()):
        if length > longest:
            raise ValueError(f"longest is {longest}, and a row has {length} tokens; give the longest row's")
        run = slice(start, start + rows * length)
        visible = None if key_mask is None else key_mask[run].view(rows, 1, length)
        size = max(1, WORK // (rows * length * (2 * length - 1)))
        for first in range(0, query.shape[1], size):
            heads = slice(first, first + size)
            q, k, v = (each[run, heads].unflatten(0, (rows, length)).transpose(1, 2) for each in (query, key, value))
            of_places = [
                _by_place(states[run, heads], table[:, heads], rows, scaling, is_by_key=is_by_key)
                for states, table, is_by_key in ((query, place_keys, False), (key, place_queries, True))
                if table is not None
            ]  # each [rows, heads, queries, keys]
            bias = sum(of_places[1:], start=of_places[0]).contiguous() if of_places else None
            attended = _attend(q, k, v, bias, visible, scaling)
            out[run, heads].unflatten(0, (rows, length)).copy_(attended.transpose(1, 2))
    return out


def _by_place(states: Tensor, table: Tensor, rows: int, scaling: float, *, is_by_key: bool) -> Tensor:
    """Return what queries, or keys, of rows of one length meet of places, [rows, heads, queries, keys].

    A place's products with all distances stand in one line, and that of the next place is the same but for a shift by
    one: what belongs to a pair of places is a matter of strides, and nothing is gathered.
    """
    length, middle = states.shape[0] // rows, table.shape[0] // 2
    lines = table[middle - length + 1 : middle + length].permute(1, 2, 0)  # [heads, head_dim, 2 * length - 1]
    met = torch.baddbmm(lines.new_zeros(1, 1, 1), states.transpose(0, 1), lines, beta=0, alpha=scaling)
    of_head, of_place, _ = met.stride()
    places = (1, of_place - 1) if is_by_key else (of_place - 1, 1)
    return met.as_strided((rows, met.shape[0], length, length), (length * of_place, of_head, *places), length - 1)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, visible: Tensor | None, scaling: float) -> Tensor:
    """Attend within rows of one length, all [rows, heads, length, ...], with `visible` [rows, 1, length] or None."""
    if visible is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scaling)
    bias = q.new_zeros(*q.shape[:3], k.shape[2]) if bias is None else bias
    bias = bias.masked_fill(~visible[..., None, :], float("-inf"))
    attended = scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scaling)
    return torch.where(visible[..., None], attended, v.mean(2, keepdim=True))
