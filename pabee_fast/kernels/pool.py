"""What heads read of a packed row: its first token, its last, or the mean of all."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .checks import check_on_device, check_pool
from .launch import Launch, pool_constants


@triton.jit
def count_visible(key_mask_ptr, begin, length, BLOCK_TOKENS: tl.constexpr):
    """Return how many tokens of each row count in its mean, [rows] int32.

    key_mask_ptr: [tokens] bool or None
    begin, length: [rows]
    """
    visible = length
    if key_mask_ptr is not None:
        visible = length * 0
        token_offset = 0
        longest = tl.max(length)
        while token_offset < longest:
            token_idx = token_offset + tl.arange(0, BLOCK_TOKENS)
            # [rows, tokens]
            token_mask = token_idx[None, :] < length[:, None]
            flags = tl.load(key_mask_ptr + begin[:, None] + token_idx[None, :], mask=token_mask, other=0)
            visible += tl.sum((flags != 0).to(tl.int32), axis=1)
            token_offset += BLOCK_TOKENS
    return visible


@triton.jit
def pooled_tile(
    features_ptr,
    key_mask_ptr,
    begin,
    length,
    visible,
    hidden_offs,
    HIDDEN_SIZE: tl.constexpr,
    POOLING: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    """Return a block of columns of what the heads of a block of rows read, [rows, hidden], dtype of the features.

    features_ptr: [tokens, HIDDEN_SIZE]
    key_mask_ptr: [tokens] bool or None
    begin, length, visible: [rows]; a row of length 0 reads nothing and gets 0
    hidden_offs: [hidden]
    """
    hidden_mask = hidden_offs < HIDDEN_SIZE
    if POOLING == "mean":
        total = tl.zeros([length.shape[0], hidden_offs.shape[0]], dtype=tl.float32)
        token_offset = 0
        longest = tl.max(length)
        # Several tokens a turn, so that enough loads are under way to fill the memory's latency.
        while token_offset < longest:
            token_idx = token_offset + tl.arange(0, BLOCK_TOKENS)
            # [rows, tokens]
            token_mask = token_idx[None, :] < length[:, None]
            line_idx = begin[:, None] + token_idx[None, :]
            if key_mask_ptr is not None:
                token_mask &= tl.load(key_mask_ptr + line_idx, mask=token_mask, other=0) != 0
            # [rows, tokens, hidden]
            tile = tl.load(
                features_ptr + line_idx[:, :, None] * HIDDEN_SIZE + hidden_offs[None, None, :],
                mask=token_mask[:, :, None] & hidden_mask[None, None, :],
                other=0.0,
            )
            total += tl.sum(tile.to(tl.float32), axis=1)
            token_offset += BLOCK_TOKENS
        mean = total / visible.to(tl.float32)[:, None]
        feature = tl.where((length > 0)[:, None], mean, 0.0).to(features_ptr.dtype.element_ty)
    else:
        only_idx = begin + length - 1 if POOLING == "last" else begin
        # [rows, hidden]
        feature = tl.load(
            features_ptr + only_idx[:, None] * HIDDEN_SIZE + hidden_offs[None, :],
            mask=(length > 0)[:, None] & hidden_mask[None, :],
            other=0.0,
        )
    return feature


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["cu_seqlens_ptr", "key_mask_ptr"])
def pool_kernel(
    features_ptr,
    out_ptr,
    cu_seqlens_ptr,
    key_mask_ptr,
    rows,
    HIDDEN_SIZE: tl.constexpr,
    POOLING: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    """Write what the heads read of every row.

    features_ptr: [tokens, HIDDEN_SIZE]
    out_ptr: [rows, HIDDEN_SIZE]
    cu_seqlens_ptr: [rows + 1] int32
    key_mask_ptr: [tokens] bool or None
    """
    # A program owns BLOCK_HIDDEN columns of BLOCK_ROWS rows.
    row_idx = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    hidden_offs = tl.program_id(1) * BLOCK_HIDDEN + tl.arange(0, BLOCK_HIDDEN)
    row_mask = row_idx < rows
    # [rows]
    begin = tl.load(cu_seqlens_ptr + row_idx, mask=row_mask, other=0).to(tl.int64)
    length = (tl.load(cu_seqlens_ptr + row_idx + 1, mask=row_mask, other=0) - begin).to(tl.int32)
    visible = length
    if POOLING == "mean":
        visible = count_visible(key_mask_ptr, begin, length, BLOCK_TOKENS)
    feature = pooled_tile(
        features_ptr, key_mask_ptr, begin, length, visible, hidden_offs, HIDDEN_SIZE, POOLING, BLOCK_TOKENS
    )
    tl.store(
        out_ptr + row_idx[:, None] * HIDDEN_SIZE + hidden_offs[None, :],
        feature,
        mask=row_mask[:, None] & (hidden_offs < HIDDEN_SIZE)[None, :],
    )


def pool(features: Tensor, cu_seqlens: Tensor, *, pooling: str, key_mask: Tensor | None = None) -> Tensor:
    """Do what `reference.pool` says, with its arguments, in one launch and without waiting for the device.

    The tensors are on a CUDA device, or anywhere under Triton's interpreter.

    Raises:
        ValueError: a shape, dtype, device, layout or option does not fit.
    """
    check_pool(features, cu_seqlens, rows=cu_seqlens.shape[0] - 1, pooling=pooling, key_mask=key_mask)
    check_on_device("features", features, not isinstance(pool_kernel, triton.JITFunction))
    return pool_unchecked(features, cu_seqlens, pooling=pooling, key_mask=key_mask)


def pool_unchecked(features: Tensor, cu_seqlens: Tensor, *, pooling: str, key_mask: Tensor | None = None) -> Tensor:
    """Do what `pool` does, for arguments that were checked where they were made."""
    out = features.new_empty((cu_seqlens.shape[0] - 1, features.shape[1]))
    if out.numel():
        pool_launch(features, out, cu_seqlens, pooling=pooling, key_mask=key_mask).run()
    return out


def pool_launch(features: Tensor, out: Tensor, cu_seqlens: Tensor, *, pooling: str, key_mask: Tensor | None) -> Launch:
    """Return the launch that `pool` runs on checked arguments to fill `out`."""
    rows, hidden_size = out.shape
    constants = pool_constants(hidden_size, features.dtype, pooling)
    blocks = constants.values
    arguments: dict[str, Any] = dict(
        features_ptr=features,
        out_ptr=out,
        cu_seqlens_ptr=cu_seqlens,
        key_mask_ptr=key_mask,
        rows=rows,
    )
    grid = (-(-rows // blocks["BLOCK_ROWS"]), -(-hidden_size // blocks["BLOCK_HIDDEN"]))
    return Launch(pool_kernel, grid, arguments, constants)
