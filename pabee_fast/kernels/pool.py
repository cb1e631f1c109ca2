"""What heads read of a packed row: its first token, its last, or the mean of all."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .checks import check_on_device, check_pool
from .launch import Launch, pool_constants
from .prepared import UNKNOWN, Constants, Repeated, repeat


@triton.jit
def token_tile(features_ptr, begin, length, hidden_offs, HIDDEN_SIZE: tl.constexpr, POOLING: tl.constexpr):
    """Return a block of columns of the first or last token of a block of rows, [rows, hidden], dtype of the features.

    features_ptr: [tokens, HIDDEN_SIZE]
    begin, length: [rows]; a row of length 0 reads nothing and gets 0
    hidden_offs: [hidden]
    """
    token_idx = begin + length - 1 if POOLING == "last" else begin
    return tl.load(
        features_ptr + token_idx[:, None] * HIDDEN_SIZE + hidden_offs[None, :],
        mask=(length > 0)[:, None] & (hidden_offs < HIDDEN_SIZE)[None, :],
        other=0.0,
    )


@triton.jit
def mean_line(
    features_ptr, key_mask_ptr, begin, length, hidden_offs, HIDDEN_SIZE: tl.constexpr, BLOCK_TOKENS: tl.constexpr
):
    """Return a block of columns of the mean of one row's visible tokens, [hidden] float32.

    features_ptr: [tokens, HIDDEN_SIZE]
    key_mask_ptr: [tokens] bool or None
    begin, length: numbers
    hidden_offs: [hidden]
    """
    total = tl.zeros([hidden_offs.shape[0]], dtype=tl.float32)
    visible = length
    if key_mask_ptr is not None:
        visible = length * 0
    token_offset = 0
    # Several tokens a turn, so that enough loads are under way to fill the memory's latency.
    while token_offset < length:
        token_idx = token_offset + tl.arange(0, BLOCK_TOKENS)
        # [tokens]
        token_mask = token_idx < length
        if key_mask_ptr is not None:
            token_mask &= tl.load(key_mask_ptr + begin + token_idx, mask=token_mask, other=0) != 0
            visible += tl.sum(token_mask.to(tl.int32))
        # [tokens, hidden]
        tile = tl.load(
            features_ptr + (begin + token_idx)[:, None] * HIDDEN_SIZE + hidden_offs[None, :],
            mask=token_mask[:, None] & (hidden_offs < HIDDEN_SIZE)[None, :],
            other=0.0,
        )
        total += tl.sum(tile.to(tl.float32), axis=0)
        token_offset += BLOCK_TOKENS
    return total / visible.to(tl.float32)


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
    # A program owns BLOCK_HIDDEN columns of BLOCK_ROWS rows; those of the same rows follow each other, as in memory.
    BLOCKS: tl.constexpr = (HIDDEN_SIZE + BLOCK_HIDDEN - 1) // BLOCK_HIDDEN
    hidden_offs = tl.program_id(0) % BLOCKS * BLOCK_HIDDEN + tl.arange(0, BLOCK_HIDDEN)
    if POOLING == "mean":
        row = (tl.program_id(0) // BLOCKS).to(tl.int64)
        begin = tl.load(cu_seqlens_ptr + row).to(tl.int64)
        length = (tl.load(cu_seqlens_ptr + row + 1) - begin).to(tl.int32)
        # [hidden]
        mean = mean_line(features_ptr, key_mask_ptr, begin, length, hidden_offs, HIDDEN_SIZE, BLOCK_TOKENS)
        mean = tl.where(length > 0, mean, 0.0).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + row * HIDDEN_SIZE + hidden_offs, mean, mask=hidden_offs < HIDDEN_SIZE)
    else:
        row_idx = (tl.program_id(0) // BLOCKS).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        row_mask = row_idx < rows
        # [rows]
        begin = tl.load(cu_seqlens_ptr + row_idx, mask=row_mask, other=0).to(tl.int64)
        length = (tl.load(cu_seqlens_ptr + row_idx + 1, mask=row_mask, other=0) - begin).to(tl.int32)
        tl.store(
            out_ptr + row_idx[:, None] * HIDDEN_SIZE + hidden_offs[None, :],
            token_tile(features_ptr, begin, length, hidden_offs, HIDDEN_SIZE, POOLING),
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
    return Pool()(features=features, cu_seqlens=cu_seqlens, pooling=pooling, key_mask=key_mask)


class Pool:
    """`pool` at one place, again and again; its arguments were checked where they were made."""

    def __init__(self) -> None:
        self._repeated: dict[tuple[str, bool, int], Repeated] = {}

    def __call__(self, *, features: Tensor, cu_seqlens: Tensor, pooling: str, key_mask: Tensor | None = None) -> Tensor:
        rows, hidden_size = cu_seqlens.shape[0] - 1, features.shape[1]
        out = features.new_empty((rows, hidden_size))
        if not rows or not hidden_size:
            return out
        source, target, mask = features.data_ptr(), out.data_ptr(), 0 if key_mask is None else key_mask.data_ptr()
        grid = (_programs(rows, hidden_size, pool_constants(hidden_size, features.dtype, pooling)), 1)
        kind, values = (pooling, key_mask is None, hidden_size), (source, target, cu_seqlens.data_ptr(), mask, rows)
        if not self._repeated.get(kind, UNKNOWN).again(features, source | target, rows, grid, values):
            launch = pool_launch(features, out, cu_seqlens, pooling=pooling, key_mask=key_mask)
            self._repeated[kind] = repeat(launch, grid, values)
        return out


def pool_launch(features: Tensor, out: Tensor, cu_seqlens: Tensor, *, pooling: str, key_mask: Tensor | None) -> Launch:
    """Return the launch that `pool` runs on checked arguments to fill `out`."""
    rows, hidden_size = out.shape
    constants = pool_constants(hidden_size, features.dtype, pooling)
    arguments: dict[str, Any] = dict(
        features_ptr=features,
        out_ptr=out,
        cu_seqlens_ptr=cu_seqlens,
        key_mask_ptr=key_mask,
        rows=rows,
    )
    return Launch(pool_kernel, (_programs(rows, hidden_size, constants),), arguments, constants)


def _programs(rows: int, hidden_size: int, constants: Constants) -> int:
    blocks = constants.values
    return -(-rows // blocks["BLOCK_ROWS"]) * -(-hidden_size // blocks["BLOCK_HIDDEN"])
