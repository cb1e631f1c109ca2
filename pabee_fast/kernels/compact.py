"""Compaction: plan lays the survivors of a packed batch end to end, gather copies their tokens there."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_gather, check_on_device, check_plan
from .launch import PLAN_CONSTANTS, Launch, Plan, gather_constants, gather_grid
from .prepared import UNKNOWN, repeat

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_STATE = ["keep_ptr", "cu_seqlens_ptr", "row_ids_ptr", "streak_ptr"]
_CUT = ["new_cu_seqlens_ptr", "new_streak_ptr", "sources_ptr", "starts_ptr", "counts_ptr"]
_PLACES = ["starts_ptr", "cu_seqlens_ptr", "memory_ptr", "new_memory_ptr", "sources_ptr"]


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=[*_STATE, *_CUT])
def plan_kernel(
    keep_ptr,
    cu_seqlens_ptr,
    row_ids_ptr,
    streak_ptr,
    new_cu_seqlens_ptr,
    new_row_ids_ptr,
    new_streak_ptr,
    sources_ptr,
    starts_ptr,
    counts_ptr,
    rows,
    BLOCK_ROWS: tl.constexpr,
):
    """Scan keep flags and lengths once, and write the survivors' places, streaks and counts.

    keep_ptr: [rows] int8
    cu_seqlens_ptr: [rows + 1] int32
    row_ids_ptr: [rows] int64
    streak_ptr: [rows] int32
    new_cu_seqlens_ptr: [rows + 1] int32
    new_row_ids_ptr: [rows] int64
    new_streak_ptr: [rows] int32
    sources_ptr: [rows] int32
    starts_ptr: [rows] int32
    counts_ptr: [3] int32
    """
    # A program owns BLOCK_ROWS rows, and sums up the rows before them by itself: five bytes a row are read sooner than
    # another program's sum could be waited for.
    own_offset = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    # [rows]
    earlier_rows = tl.zeros([BLOCK_ROWS], dtype=tl.int32)
    earlier_tokens = tl.zeros([BLOCK_ROWS], dtype=tl.int32)
    longest = tl.zeros([BLOCK_ROWS], dtype=tl.int32)
    # A while loop: with NumPy 2.5, Triton 3.6's interpreter takes no tensor as a bound of range().
    block_offset = tl.full([], 0, tl.int64)
    while block_offset < own_offset:
        row_idx = block_offset + tl.arange(0, BLOCK_ROWS)
        kept = (tl.load(keep_ptr + row_idx) != 0).to(tl.int32)
        length = (tl.load(cu_seqlens_ptr + row_idx + 1) - tl.load(cu_seqlens_ptr + row_idx)) * kept
        earlier_rows += kept
        earlier_tokens += length
        longest = tl.maximum(longest, length)
        block_offset += BLOCK_ROWS
    survivors = tl.sum(earlier_rows)
    tokens = tl.sum(earlier_tokens)

    # [rows]
    row_idx = own_offset + tl.arange(0, BLOCK_ROWS)
    row_mask = row_idx < rows
    kept = (tl.load(keep_ptr + row_idx, mask=row_mask, other=0) != 0).to(tl.int32)
    start = tl.load(cu_seqlens_ptr + row_idx, mask=row_mask, other=0)
    end = tl.load(cu_seqlens_ptr + row_idx + 1, mask=row_mask, other=0)
    length = (end - start) * kept
    is_kept = kept != 0
    new_idx = (survivors + tl.cumsum(kept) - kept).to(tl.int64)
    tl.store(new_cu_seqlens_ptr + new_idx + 1, tokens + tl.cumsum(length), mask=is_kept)
    tl.store(starts_ptr + new_idx, start, mask=is_kept)
    tl.store(sources_ptr + new_idx, row_idx.to(tl.int32), mask=is_kept)
    tl.store(new_row_ids_ptr + new_idx, tl.load(row_ids_ptr + row_idx, mask=is_kept), mask=is_kept)
    tl.store(new_streak_ptr + new_idx, tl.load(streak_ptr + row_idx, mask=is_kept), mask=is_kept)
    if own_offset == 0:
        tl.store(new_cu_seqlens_ptr, 0)
    if own_offset + BLOCK_ROWS >= rows:
        tl.store(counts_ptr, survivors + tl.sum(kept))
        tl.store(counts_ptr + 1, tokens + tl.sum(length))
        tl.store(counts_ptr + 2, tl.max(tl.maximum(longest, length)))


def plan(keep: Tensor, cu_seqlens: Tensor, row_ids: Tensor, streak: Tensor) -> Plan:
    """Do what `reference.plan` says, with its arguments, in one launch and without waiting for the device.

    The tensors are on a CUDA device, or anywhere under Triton's interpreter. Entries past the valid ones are undefined.

    Raises:
        ValueError: a shape, dtype, device or layout does not fit.
    """
    check_plan(keep, cu_seqlens, row_ids, streak)
    check_on_device("keep", keep, not isinstance(plan_kernel, triton.JITFunction))
    return Planner()(keep=keep, cu_seqlens=cu_seqlens, row_ids=row_ids, streak=streak)


class Planner:
    """`plan` of one engine's waves, again and again; its arguments were checked where they were made."""

    def __init__(self) -> None:
        self._repeated = UNKNOWN

    def __call__(self, *, keep: Tensor, cu_seqlens: Tensor, row_ids: Tensor, streak: Tensor) -> Plan:
        rows = keep.shape[0]
        result = Plan(streak.new_empty(4 * rows + 4), row_ids.new_empty(rows))
        if not rows:
            result.memory.zero_()
            return result
        new = result.memory.data_ptr()
        per_row = [new + 4 * (1 + times * rows) for times in range(1, 5)]  # streak, sources, starts; counts
        given = (keep.data_ptr(), cu_seqlens.data_ptr(), row_ids.data_ptr(), streak.data_ptr())
        grid, values = _plan_grid(rows), (*given, new, result.row_ids.data_ptr(), *per_row, rows)
        if not self._repeated.again(keep, result.row_ids.data_ptr(), rows, grid, values):
            self._repeated = repeat(plan_launch(keep, cu_seqlens, row_ids, streak, result), grid, values)
        return result


def plan_launch(keep: Tensor, cu_seqlens: Tensor, row_ids: Tensor, streak: Tensor, result: Plan) -> Launch:
    """Return the launch that `plan` runs on checked arguments to fill `result`."""
    arguments: dict[str, Any] = dict(
        keep_ptr=keep,
        cu_seqlens_ptr=cu_seqlens,
        row_ids_ptr=row_ids,
        streak_ptr=streak,
        new_cu_seqlens_ptr=result.cu_seqlens,
        new_row_ids_ptr=result.row_ids,
        new_streak_ptr=result.streak,
        sources_ptr=result.sources,
        starts_ptr=result.starts,
        counts_ptr=result.counts,
        rows=keep.shape[0],
    )
    return Launch(plan_kernel, _plan_grid(keep.shape[0]), arguments, PLAN_CONSTANTS)


def _plan_grid(rows: int) -> tuple[int, int]:
    return -(-rows // PLAN_CONSTANTS.values["BLOCK_ROWS"]), 1


@triton.jit(do_not_specialize_on_alignment=_PLACES)
def gather_kernel(
    hidden_ptr,
    out_ptr,
    starts_ptr,
    cu_seqlens_ptr,
    memory_ptr,
    new_memory_ptr,
    sources_ptr,
    WIDTH: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
):
    """Copy every row's run of tokens, and its memory, from the old place to the new one.

    hidden_ptr: [old_tokens, WIDTH]
    out_ptr: [tokens, WIDTH]
    starts_ptr: [rows] int32
    cu_seqlens_ptr: [rows + 1] int32
    memory_ptr: [old_rows, WORDS] int32 or None
    new_memory_ptr: [rows, WORDS] int32 or None
    sources_ptr: [rows] int32 or None
    """
    # A program owns every num_programs(1)-th block of one row's run, which is contiguous in both places.
    row_idx = tl.program_id(0)
    source_offset = tl.load(starts_ptr + row_idx).to(tl.int64) * WIDTH
    begin = tl.load(cu_seqlens_ptr + row_idx).to(tl.int64) * WIDTH
    end = tl.load(cu_seqlens_ptr + row_idx + 1).to(tl.int64) * WIDTH
    # A while loop, for the reason plan_kernel gives; Triton sees the alignment of a range's steps, but not of these.
    block_offset = tl.program_id(1).to(tl.int64) * BLOCK
    while block_offset < end - begin:
        # [elements]
        run_offs = tl.multiple_of(block_offset, BLOCK) + tl.arange(0, BLOCK)
        run_mask = run_offs < end - begin
        values = tl.load(hidden_ptr + source_offset + run_offs, mask=run_mask)
        tl.store(out_ptr + begin + run_offs, values, mask=run_mask)
        block_offset += tl.num_programs(1).to(tl.int64) * BLOCK
    if memory_ptr is not None:
        # [words]; the first of a row's programs moves them
        word_idx = tl.arange(0, BLOCK_WORDS)
        word_mask = word_idx < tl.where(tl.program_id(1) == 0, WORDS, 0)
        source_row = tl.load(sources_ptr + row_idx).to(tl.int64)
        words = tl.load(memory_ptr + source_row * WORDS + word_idx, mask=word_mask)
        tl.store(new_memory_ptr + row_idx.to(tl.int64) * WORDS + word_idx, words, mask=word_mask)


def gather(
    hidden: Tensor,
    starts: Tensor,
    cu_seqlens: Tensor,
    *,
    rows: int,
    tokens: int,
    longest: int,
    memory: Tensor | None = None,
    sources: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Do what `reference.gather` says, with its arguments, in one launch and without waiting for the device.

    The tensors are on a CUDA device, or anywhere under Triton's interpreter.

    Raises:
        ValueError: a shape, dtype, device or layout does not fit, or the numbers contradict each other.
    """
    check_gather(hidden, starts, cu_seqlens, rows=rows, tokens=tokens, longest=longest, memory=memory, sources=sources)
    check_on_device("hidden", hidden, not isinstance(gather_kernel, triton.JITFunction))
    if hidden.dtype.itemsize not in _INTEGERS:
        raise ValueError(f"hidden is {hidden.dtype}; gather its real and imaginary parts apart")
    return gather_unchecked(
        hidden, starts, cu_seqlens, rows=rows, tokens=tokens, longest=longest, memory=memory, sources=sources
    )


def gather_unchecked(
    hidden: Tensor,
    starts: Tensor,
    cu_seqlens: Tensor,
    *,
    rows: int,
    tokens: int,
    longest: int,
    memory: Tensor | None = None,
    sources: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Do what `gather` does, for arguments that were checked where they were made."""
    out = hidden.new_empty((tokens, *hidden.shape[1:]))
    new_memory = None if memory is None else memory.new_empty((rows, memory.shape[1]))
    if out.numel() or (new_memory is not None and new_memory.numel()):
        gather_launch(
            hidden, out, starts, cu_seqlens, rows=rows, longest=longest, memory=memory, new_memory=new_memory,
            sources=sources,
        ).run()  # fmt: skip
    return out, new_memory


def gather_launch(
    hidden: Tensor,
    out: Tensor,
    starts: Tensor,
    cu_seqlens: Tensor,
    *,
    rows: int,
    longest: int,
    memory: Tensor | None,
    new_memory: Tensor | None,
    sources: Tensor | None,
) -> Launch:
    """Return the launch that `gather` runs on checked arguments to fill `out` and `new_memory`, not both empty."""
    width, itemsize = hidden.shape[1:].numel(), hidden.dtype.itemsize
    words = 0 if memory is None else memory.shape[1]
    constants = gather_constants(width, itemsize, words)
    arguments: dict[str, Any] = dict(
        # Bits are copied, so that dtypes of one size share a kernel.
        hidden_ptr=hidden.view(_INTEGERS[itemsize]),
        out_ptr=out.view(_INTEGERS[itemsize]),
        starts_ptr=starts,
        cu_seqlens_ptr=cu_seqlens,
        memory_ptr=memory if words else None,
        new_memory_ptr=new_memory if words else None,
        sources_ptr=sources if words else None,
    )
    grid = gather_grid(rows, longest, width, constants.values["BLOCK"])
    return Launch(gather_kernel, grid, arguments, constants)
