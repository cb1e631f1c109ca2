"""Attention within packed rows in one launch: softmax of the products as they come, never stored (FlashAttention)."""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attend import attend_block
from .checks import check_on_device
from .checks_attention import check_attention
from .launch import Launch
from .launch_attention import MAX_HEAD_DIM, Heads, attention_constants, attention_tiles

# Strides follow from the number of tokens where a layer lays its heads out first, so that they change with it.
NUMBERS = [
    "rows",
    "window",
    "query_token_stride",
    "query_head_stride",
    "key_token_stride",
    "key_head_stride",
    "value_token_stride",
    "value_head_stride",
]
MARKS = ["cu_seqlens_ptr", "key_mask_ptr", "positions_ptr"]
# Farther than any two tokens of a row, nearer than a hidden one, and small enough to be added to a place in int32.
_ANY_DISTANCE = 1 << 30
_LOG2_E = math.log2(math.e)


@triton.jit
def find_tile(cu_seqlens_ptr, tile, rows, BLOCK_QUERIES: tl.constexpr):
    """Return the row that a tile is of, and the tile's first query as a place in that row, not below the row's length
    where the tile is empty.

    cu_seqlens_ptr: [rows + 1] int32
    """
    # Row i has its tiles from cu_seqlens[i] // BLOCK_QUERIES + i on: that is room enough for each, since a row of
    # `length` tokens gets at least length // BLOCK_QUERIES + 1 of them.
    row = tl.full([], 0, tl.int32)
    beyond = tl.full([], 0, tl.int32) + rows
    while beyond - row > 1:
        middle = (row + beyond) // 2
        is_before = tl.load(cu_seqlens_ptr + middle) // BLOCK_QUERIES + middle <= tile
        row = tl.where(is_before, middle, row)
        beyond = tl.where(is_before, beyond, middle)
    return row, (tile - tl.load(cu_seqlens_ptr + row) // BLOCK_QUERIES - row) * BLOCK_QUERIES


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=MARKS)
def attention_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    out_ptr,
    cu_seqlens_ptr,
    key_mask_ptr,
    positions_ptr,
    rows,
    window,
    scaling,
    query_token_stride,
    query_head_stride,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    STRIDE_UNIT: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    IS_INTERPRETED: tl.constexpr,
):
    """Attend from a block of one row's queries to the keys of the same row, for one head.

    query_ptr: [tokens, HEADS, HEAD_DIM]
    key_ptr: [tokens, HEADS / GROUP, HEAD_DIM]
    value_ptr: [tokens, HEADS / GROUP, VALUE_DIM]
    out_ptr: [tokens, HEADS, VALUE_DIM]
    cu_seqlens_ptr: [rows + 1] int32
    key_mask_ptr: [tokens] bool or None
    positions_ptr: [tokens] int32, or None where windows count places in the packed row
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
    kv_head = (head // GROUP).to(tl.int64)
    query_stride = query_token_stride.to(tl.int64) * STRIDE_UNIT
    key_stride = key_token_stride.to(tl.int64) * STRIDE_UNIT
    value_stride = value_token_stride.to(tl.int64) * STRIDE_UNIT
    query_ptr += begin * query_stride + head.to(tl.int64) * (query_head_stride.to(tl.int64) * STRIDE_UNIT)
    key_ptr += begin * key_stride + kv_head * (key_head_stride.to(tl.int64) * STRIDE_UNIT)
    value_ptr += begin * value_stride + kv_head * (value_head_stride.to(tl.int64) * STRIDE_UNIT)

    # [queries, head]
    query_idx = query_offset + tl.arange(0, BLOCK_QUERIES)
    query_mask = query_idx < length
    head_offs = tl.arange(0, BLOCK_HEAD)
    query = tl.load(
        query_ptr + query_idx.to(tl.int64)[:, None] * query_stride + head_offs[None, :],
        mask=query_mask[:, None] & (head_offs < HEAD_DIM)[None, :],
        other=0.0,
    )
    query_positions = query_idx
    if positions_ptr is not None:
        positions_ptr += begin
        query_positions = tl.load(positions_ptr + query_idx, mask=query_mask, other=0)
    if key_mask_ptr is not None:
        key_mask_ptr += begin

    # Blocks of keys of which no query sees any are left out; in the padded layout tokens are no nearer than here.
    first = tl.full([], 0, tl.int32)
    last = length
    if IS_CAUSAL:
        last = tl.minimum(last, query_offset + BLOCK_QUERIES)
    if HAS_WINDOW:
        first = tl.maximum(query_offset - window + 1, 0) // BLOCK_KEYS * BLOCK_KEYS
        last = tl.minimum(last, query_offset + BLOCK_QUERIES + window - 1)

    total = tl.zeros([BLOCK_QUERIES], dtype=tl.float32)
    largest = tl.full([BLOCK_QUERIES], float("-inf"), dtype=tl.float32)
    weighted = tl.zeros([BLOCK_QUERIES, BLOCK_VALUE], dtype=tl.float32)
    if IS_INTERPRETED:
        # With NumPy 2.5, Triton 3.6's interpreter takes no tensor as a bound of range().
        key_offset = first
        while key_offset < last:
            total, largest, weighted = attend_block(
                query, query_idx, query_positions, key_offset, length, key_ptr, value_ptr, key_mask_ptr, positions_ptr,
                key_stride, value_stride, scaling, window, total, largest, weighted, HEAD_DIM, VALUE_DIM, IS_CAUSAL,
                HAS_WINDOW, BLOCK_KEYS, BLOCK_HEAD, BLOCK_VALUE,
            )  # fmt: skip
            key_offset += BLOCK_KEYS
    else:
        # Only a range is pipelined: the next block's keys and values arrive while this one's are multiplied.
        for key_offset in tl.range(first, last, BLOCK_KEYS):
            total, largest, weighted = attend_block(
                query, query_idx, query_positions, key_offset, length, key_ptr, value_ptr, key_mask_ptr, positions_ptr,
                key_stride, value_stride, scaling, window, total, largest, weighted, HEAD_DIM, VALUE_DIM, IS_CAUSAL,
                HAS_WINDOW, BLOCK_KEYS, BLOCK_HEAD, BLOCK_VALUE,
            )  # fmt: skip

    # [queries, value]
    value_offs = tl.arange(0, BLOCK_VALUE)
    out = weighted / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(
        out_ptr + ((begin + query_idx)[:, None] * HEADS + head) * VALUE_DIM + value_offs[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=query_mask[:, None] & (value_offs < VALUE_DIM)[None, :],
    )


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
    """Do what `reference.attention` says, with its arguments, in one launch and without waiting for the device.

    The tensors are on a CUDA device, or anywhere under Triton's interpreter. Products are summed in float32, and
    float32 ones are not rounded to TF32.

    Raises:
        ValueError: a shape, dtype, device, layout or option does not fit, or a head is larger than MAX_HEAD_DIM.
    """
    check_attention(query, key, value, cu_seqlens, window=window, key_mask=key_mask, positions=positions)
    is_interpreted = not isinstance(attention_kernel, triton.JITFunction)
    check_on_device("query", query, is_interpreted)
    if is_interpreted and query.dtype == torch.bfloat16:
        raise ValueError("query is torch.bfloat16, which Triton's interpreter multiplies wrongly; use torch.float32")
    if max(query.shape[2], value.shape[2]) > MAX_HEAD_DIM:
        raise ValueError(
            f"query is {list(query.shape)} and value {list(value.shape)}; the kernel takes heads of up to "
            f"{MAX_HEAD_DIM} numbers, so call pabee_fast.kernels.reference.attention"
        )
    return attention_unchecked(
        query, key, value, cu_seqlens, scaling=scaling, is_causal=is_causal, window=window, key_mask=key_mask,
        positions=positions,
    )  # fmt: skip


def attention_unchecked(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, **options: Any) -> Tensor:
    """Do what `attention` does, for arguments that were checked where they were made."""
    out = query.new_empty((*query.shape[:2], value.shape[2]))
    if out.numel():
        attention_launch(query, key, value, out, cu_seqlens, **options).run()
    return out


def attention_launch(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, cu_seqlens: Tensor, **options: Any
) -> Launch:
    """Return the launch that `attention` runs on checked arguments to fill `out`, not empty."""
    arguments, heads = attention_arguments(query, key, value, out, cu_seqlens, **options)
    constants = attention_constants(heads, not isinstance(attention_kernel, triton.JITFunction))
    tiles = attention_tiles(arguments["rows"], query.shape[0], constants.values["BLOCK_QUERIES"])
    return Launch(attention_kernel, (tiles * heads.heads,), arguments, constants)


def attention_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    cu_seqlens: Tensor,
    *,
    scaling: float | None = None,
    is_causal: bool = False,
    window: int | None = None,
    key_mask: Tensor | None = None,
    positions: Tensor | None = None,
    **biases: Tensor | None,
) -> tuple[dict[str, Any], Heads]:
    """Return the tensors and numbers that a kernel of attention is given, and what else it is compiled for.

    Args:
        biases: by the name of the kernel's parameter.
    """
    _, heads, head_dim = query.shape
    _, kv_heads, value_dim = value.shape
    (query_token, query_head, _), (key_token, key_head, _) = query.stride(), key.stride()
    value_token, value_head, _ = value.stride()
    dtype, has_window = query.dtype, window is not None
    unit = math.gcd(16 // dtype.itemsize, query_token, query_head, key_token, key_head, value_token, value_head)
    arguments: dict[str, Any] = dict(
        query_ptr=query,
        key_ptr=key,
        value_ptr=value,
        out_ptr=out,
        cu_seqlens_ptr=cu_seqlens,
        key_mask_ptr=key_mask,
        positions_ptr=positions if has_window else None,
        **biases,
        rows=cu_seqlens.shape[0] - 1,
        window=min(window or 0, _ANY_DISTANCE),
        scaling=(head_dim**-0.5 if scaling is None else scaling) * _LOG2_E,
        query_token_stride=query_token // unit,
        query_head_stride=query_head // unit,
        key_token_stride=key_token // unit,
        key_head_stride=key_head // unit,
        value_token_stride=value_token // unit,
        value_head_stride=value_head // unit,
    )
    return arguments, Heads(heads, kv_heads, head_dim, value_dim, dtype, is_causal, has_window, unit)
