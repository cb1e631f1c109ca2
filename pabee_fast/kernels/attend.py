"""One block of keys, as a part of attention: a block of queries' running softmax in, the same with those keys out."""

import triton
import triton.language as tl


@triton.jit
def attend_block(
    query,
    query_idx,
    query_positions,
    key_offset,
    length,
    key_ptr,
    value_ptr,
    key_mask_ptr,
    positions_ptr,
    key_stride,
    value_stride,
    scaling,
    window,
    total,
    largest,
    weighted,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
):
    """Return total, largest and weighted, brought up to date with the keys from `key_offset` on.

    query: [queries, head]
    query_idx, query_positions: [queries], places in the row and in its padded layout
    key_ptr, value_ptr: of one head, from the row's first token on; [length, HEAD_DIM] and [length, VALUE_DIM]
    key_mask_ptr, positions_ptr: [length], likewise; None
    total, largest: [queries] float32, of the softmax so far, in powers of two
    weighted: [queries, value] float32
    """
    key_idx = key_offset + tl.arange(0, BLOCK_KEYS)
    key_mask = key_idx < length
    head_offs = tl.arange(0, BLOCK_HEAD)
    value_offs = tl.arange(0, BLOCK_VALUE)
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
    # [queries, keys]
    scores = tl.dot(query, key, input_precision="ieee") * scaling
    if key_mask_ptr is not None:
        key_mask &= tl.load(key_mask_ptr + key_idx, mask=key_mask, other=0) != 0
    # One comparison for each score, since a hidden key is as if beyond the row.
    if HAS_WINDOW:
        key_positions = key_idx
        if positions_ptr is not None:
            key_positions = tl.load(positions_ptr + key_idx, mask=key_idx < length, other=0)
        distance = query_positions[:, None] - tl.where(key_mask, key_positions, 2147483647)[None, :]
        # Without its sign, what is below 0 is above any window.
        seen = distance.to(tl.uint32, bitcast=True) < window.to(tl.uint32) if IS_CAUSAL else tl.abs(distance) < window
    elif IS_CAUSAL:
        seen = tl.where(key_mask, key_idx, 2147483647)[None, :] <= query_idx[:, None]
    else:
        seen = key_mask[None, :]
    scores = tl.where(seen, scores, float("-inf"))
    # [queries]; a query that has seen no key yet must not subtract -inf from -inf
    new_largest = tl.maximum(largest, tl.max(scores, axis=1))
    subtracted = tl.where(new_largest == float("-inf"), 0.0, new_largest)
    shrink = tl.exp2(largest - subtracted)
    weights = tl.exp2(scores - subtracted[:, None])
    total = total * shrink + tl.sum(weights, axis=1)
    weighted = tl.dot(weights.to(value.dtype), value, weighted * shrink[:, None], input_precision="ieee")
    return total, new_largest, weighted
