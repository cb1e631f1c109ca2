"""Attention by content and by relative place within packed rows, in one launch: scores as they come, never stored."""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import find_tile
from .checks import check_on_device
from .checks_attention import check_disentangled_attention
from .launch import Launch
from .launch_attention import MAX_PLACE_HEAD, PlaceHeads, attention_tiles, disentangled_attention_constants

# As in `attention`, they change with the number of tokens; lines do with the longest row.
NUMBERS = [
    "rows",
    "lines",
    "query_token_stride",
    "query_head_stride",
    "key_token_stride",
    "key_head_stride",
    "value_token_stride",
    "value_head_stride",
]
MARKS = ["cu_seqlens_ptr", "key_mask_ptr"]
_LOG2_E = math.log2(math.e)


@triton.jit
def load_lines(
    table_ptr,
    line_offset,
    lines,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_LINES: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
):
    """Return BLOCK_LINES lines of one head's table from `line_offset` on, [lines, head]; zeros beyond its ends.

    table_ptr: of one head in [lines, HEADS, HEAD_DIM]
    """
    line_idx = line_offset + tl.arange(0, BLOCK_LINES)
    head_offs = tl.arange(0, BLOCK_HEAD)
    return tl.load(
        table_ptr + line_idx.to(tl.int64)[:, None] * (HEADS * HEAD_DIM) + head_offs[None, :],
        mask=((line_idx >= 0) & (line_idx < lines))[:, None] & (head_offs < HEAD_DIM)[None, :],
        other=0.0,
    )


@triton.jit
def meet_block(
    query,
    query_offset,
    is_hidden,
    key_offset,
    length,
    lines,
    key_ptr,
    value_ptr,
    place_keys_ptr,
    place_queries_ptr,
    key_mask_ptr,
    key_stride,
    value_stride,
    scaling,
    total,
    largest,
    weighted,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
):
    """Return total, largest and weighted, brought up to date with the keys from `key_offset` on.

    query: [queries, head]
    is_hidden: [queries] bool, where there is a key_mask
    key_ptr, value_ptr, key_mask_ptr: of one head, from the row's first token on
    place_keys_ptr, place_queries_ptr: of one head in [lines, HEADS, HEAD_DIM], or None
    total, largest: [queries] float32, of the softmax so far, in powers of two
    weighted: [queries, value] float32
    """
    # Queries and keys meet at BLOCK_QUERIES + BLOCK_KEYS - 1 distances.
    BLOCK_LINES: tl.constexpr = BLOCK_QUERIES + BLOCK_KEYS
    query_offs, key_offs = tl.arange(0, BLOCK_QUERIES), tl.arange(0, BLOCK_KEYS)
    key_idx = key_offset + key_offs
    key_mask = key_idx < length
    head_offs, value_offs = tl.arange(0, BLOCK_HEAD), tl.arange(0, BLOCK_VALUE)
    # [head, keys]
    key = tl.load(
        key_ptr + key_idx.to(tl.int64)[None, :] * key_stride + head_offs[:, None],
        mask=key_mask[None, :] & (head_offs < HEAD_DIM)[:, None],
        other=0.0,
    )
    # [keys, value]; 0 past the row, since a neighbour's NaN would not be lost in a product with 0
    value = tl.load(
        value_ptr + key_idx.to(tl.int64)[:, None] * value_stride + value_offs[None, :],
        mask=key_mask[:, None] & (value_offs < VALUE_DIM)[None, :],
        other=0.0,
    )
    # What places add comes first, so that the last product leaves the scores as the softmax takes them.
    scores = tl.zeros([BLOCK_QUERIES, BLOCK_KEYS], dtype=tl.float32)
    ahead = key_offset - query_offset
    if place_keys_ptr is not None:
        first = lines // 2 + ahead - (BLOCK_QUERIES - 1)
        table = load_lines(place_keys_ptr, first, lines, HEADS, HEAD_DIM, BLOCK_LINES, BLOCK_HEAD)
        met = tl.dot(query, tl.trans(table), input_precision="ieee")  # [queries, lines]
        scores += tl.gather(met, key_offs[None, :] - query_offs[:, None] + (BLOCK_QUERIES - 1), 1)
    if place_queries_ptr is not None:
        first = lines // 2 - ahead - (BLOCK_KEYS - 1)
        table = load_lines(place_queries_ptr, first, lines, HEADS, HEAD_DIM, BLOCK_LINES, BLOCK_HEAD)
        met = tl.dot(table, key, input_precision="ieee")  # [lines, keys]
        scores += tl.gather(met, query_offs[:, None] - key_offs[None, :] + (BLOCK_KEYS - 1), 0)
    # [queries, keys]
    scores = tl.dot(query, key, scores, input_precision="ieee")
    scores *= scaling
    seen = key_mask[None, :]
    if key_mask_ptr is not None:
        is_visible = tl.load(key_mask_ptr + key_idx, mask=key_mask, other=0) != 0
        scores = tl.where(is_hidden[:, None], 0.0, scores)
        seen = seen & (is_visible[None, :] | is_hidden[:, None])
    scores = tl.where(seen, scores, float("-inf"))
    # [queries]; a query that has seen no key yet must not subtract -inf from -inf
    new_largest = tl.maximum(largest, tl.max(scores, axis=1))
    subtracted = tl.where(new_largest == float("-inf"), 0.0, new_largest)
    shrink = tl.exp2(largest - subtracted)
    weights = tl.exp2(scores - subtracted[:, None])
    total = total * shrink + tl.sum(weights, axis=1)
    weighted = tl.dot(weights.to(value.dtype), value, weighted * shrink[:, None], input_precision="ieee")
    return total, new_largest, weighted


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=MARKS)
def disentangled_attention_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    out_ptr,
    cu_seqlens_ptr,
    place_keys_ptr,
    place_queries_ptr,
    key_mask_ptr,
    rows,
    lines,
    scaling,
    query_token_stride,
    query_head_stride,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    STRIDE_UNIT: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    IS_INTERPRETED: tl.constexpr,
):
    """Attend from a block of one row's queries to the keys of the same row, for one head.

    query_ptr: [tokens, HEADS, HEAD_DIM]
    key_ptr: [tokens, HEADS, HEAD_DIM]
    value_ptr: [tokens, HEADS, VALUE_DIM]
    out_ptr: [tokens, HEADS, VALUE_DIM]
    cu_seqlens_ptr: [rows + 1] int32
    place_keys_ptr: [lines, HEADS, HEAD_DIM] or None
    place_queries_ptr: [lines, HEADS, HEAD_DIM] or None
    key_mask_ptr: [tokens] bool or None
    scaling: times log2(e)
    *_stride: in STRIDE_UNIT elements, so that the compiler knows what divides them
    """
    # A program owns BLOCK_QUERIES queries of one row, counted from its first token, and one head: what it adds up, and
    # in which order, does not depend on other rows.
    head = tl.program_id(0) % HEADS
    row, query_offset = find_tile(cu_seqlens_ptr, tl.program_id(0) // HEADS, rows, BLOCK_QUERIES)
    begin = tl.load(cu_seqlens_ptr + row).to(tl.int64)
    length = (tl.load(cu_seqlens_ptr + row + 1) - begin).to(tl.int32)
    if query_offset >= length:
        return
    head = head.to(tl.int64)
    query_stride = query_token_stride.to(tl.int64) * STRIDE_UNIT
    key_stride = key_token_stride.to(tl.int64) * STRIDE_UNIT
    value_stride = value_token_stride.to(tl.int64) * STRIDE_UNIT
    query_ptr += begin * query_stride + head * (query_head_stride.to(tl.int64) * STRIDE_UNIT)
    key_ptr += begin * key_stride + head * (key_head_stride.to(tl.int64) * STRIDE_UNIT)
    value_ptr += begin * value_stride + head * (value_head_stride.to(tl.int64) * STRIDE_UNIT)
    if place_keys_ptr is not None:
        place_keys_ptr += head * HEAD_DIM
    if place_queries_ptr is not None:
        place_queries_ptr += head * HEAD_DIM

    # [queries, head]
    query_idx = query_offset + tl.arange(0, BLOCK_QUERIES)
    query_mask = query_idx < length
    head_offs = tl.arange(0, BLOCK_HEAD)
    query = tl.load(
        query_ptr + query_idx.to(tl.int64)[:, None] * query_stride + head_offs[None, :],
        mask=query_mask[:, None] & (head_offs < HEAD_DIM)[None, :],
        other=0.0,
    )
    is_hidden = query_idx < 0
    if key_mask_ptr is not None:
        key_mask_ptr += begin
        is_hidden = tl.load(key_mask_ptr + query_idx, mask=query_mask, other=1) == 0

    total = tl.zeros([BLOCK_QUERIES], dtype=tl.float32)
    largest = tl.full([BLOCK_QUERIES], float("-inf"), dtype=tl.float32)
    weighted = tl.zeros([BLOCK_QUERIES, BLOCK_VALUE], dtype=tl.float32)
    if IS_INTERPRETED:
        # With NumPy 2.5, Triton 3.6's interpreter takes no tensor as a bound of range().
        key_offset = tl.full([], 0, tl.int32)
        while key_offset < length:
            total, largest, weighted = meet_block(
                query, query_offset, is_hidden, key_offset, length, lines, key_ptr, value_ptr, place_keys_ptr,
                place_queries_ptr, key_mask_ptr, key_stride, value_stride, scaling, total, largest, weighted,
                HEADS, HEAD_DIM, VALUE_DIM, BLOCK_QUERIES, BLOCK_KEYS, BLOCK_HEAD, BLOCK_VALUE,
            )  # fmt: skip
            key_offset += BLOCK_KEYS
    else:
        for key_offset in tl.range(0, length, BLOCK_KEYS):
            total, largest, weighted = meet_block(
                query, query_offset, is_hidden, key_offset, length, lines, key_ptr, value_ptr, place_keys_ptr,
                place_queries_ptr, key_mask_ptr, key_stride, value_stride, scaling, total, largest, weighted,
                HEADS, HEAD_DIM, VALUE_DIM, BLOCK_QUERIES, BLOCK_KEYS, BLOCK_HEAD, BLOCK_VALUE,
            )  # fmt: skip

    # [queries, value]
    value_offs = tl.arange(0, BLOCK_VALUE)
    out = weighted / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(
        out_ptr + ((begin + query_idx)[:, None] * HEADS + head) * VALUE_DIM + value_offs[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=query_mask[:, None] & (value_offs < VALUE_DIM)[None, :],
    )


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
    """Do what `reference.disentangled_attention` says, with its arguments, in one launch and without waiting for the
    device.

    The tensors are on a CUDA device, or anywhere under Triton's interpreter. Products are summed in float32, and
    float32 ones are not rounded to TF32.

    Raises:
        ValueError: a shape, dtype, device, layout or option does not fit, or a head is larger than MAX_PLACE_HEAD.
    """
    check_disentangled_attention(
        query, key, value, cu_seqlens, longest=longest, place_keys=place_keys, place_queries=place_queries,
        key_mask=key_mask,
    )  # fmt: skip
    is_interpreted = not isinstance(disentangled_attention_kernel, triton.JITFunction)
    check_on_device("query", query, is_interpreted)
    if is_interpreted and query.dtype == torch.bfloat16:
        raise ValueError("query is torch.bfloat16, which Triton's interpreter multiplies wrongly; use torch.float32")
    if max(query.shape[2], value.shape[2]) > MAX_PLACE_HEAD:
        raise ValueError(
            f"query is {list(query.shape)} and value {list(value.shape)}; the kernel takes heads of up to "
            f"{MAX_PLACE_HEAD} numbers, so call pabee_fast.kernels.reference.disentangled_attention"
        )
    return disentangled_attention_unchecked(
        query, key, value, cu_seqlens, longest=longest, place_keys=place_keys, place_queries=place_queries,
        scaling=scaling, key_mask=key_mask,
    )  # fmt: skip


def disentangled_attention_unchecked(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, **options: Any
) -> Tensor:
    """Do what `disentangled_attention` does, for arguments that were checked where they were made."""
    out = query.new_empty((*query.shape[:2], value.shape[2]))
    if out.numel():
        disentangled_attention_launch(query, key, value, out, cu_seqlens, **options).run()
    return out


def disentangled_attention_launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    cu_seqlens: Tensor,
    *,
    longest: int,
    place_keys: Tensor | None = None,
    place_queries: Tensor | None = None,
    scaling: float | None = None,
    key_mask: Tensor | None = None,
) -> Launch:
    """Return the launch that `disentangled_attention` runs on checked arguments to fill `out`, not empty."""
    tokens, heads, head_dim = query.shape
    lines = next((len(table) for table in (place_keys, place_queries) if table is not None), 0)
    (query_token, query_head, _), (key_token, key_head, _) = query.stride(), key.stride()
    value_token, value_head, _ = value.stride()
    unit = math.gcd(16 // query.dtype.itemsize, query_token, query_head, key_token, key_head, value_token, value_head)
    rows = cu_seqlens.shape[0] - 1
    arguments: dict[str, Any] = dict(
        query_ptr=query,
        key_ptr=key,
        value_ptr=value,
        out_ptr=out,
        cu_seqlens_ptr=cu_seqlens,
        place_keys_ptr=place_keys,
        place_queries_ptr=place_queries,
        key_mask_ptr=key_mask,
        rows=rows,
        lines=lines,
        scaling=(head_dim**-0.5 if scaling is None else scaling) * _LOG2_E,
        query_token_stride=query_token // unit,
        query_head_stride=query_head // unit,
        key_token_stride=key_token // unit,
        key_head_stride=key_head // unit,
        value_token_stride=value_token // unit,
        value_head_stride=value_head // unit,
    )
    is_interpreted = not isinstance(disentangled_attention_kernel, triton.JITFunction)
    of_heads = PlaceHeads(heads, head_dim, value.shape[2], query.dtype, unit)
    constants = disentangled_attention_constants(of_heads, is_interpreted)
    tiles = attention_tiles(rows, tokens, constants.values["BLOCK_QUERIES"])
    return Launch(disentangled_attention_kernel, (tiles * heads,), arguments, constants)
