"""Compaction: plan lays the survivors of a packed batch end to end, gather copies their tokens there."""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_gather, check_on_device, check_plan
from .launch import Launch, Plan, gather_blocks, gather_grid, plan_blocks

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_STATE = ["keep_ptr", "cu_seqlens_ptr", "row_ids_ptr", "streak_ptr", "answer_ptr"]
_PLACES = ["starts_ptr", "cu_seqlens_ptr"]


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=_STATE)
def plan_kernel(
    keep_ptr,
    cu_seqlens_ptr,
    row_ids_ptr,
    streak_ptr,
    answer_ptr,
    new_cu_seqlens_ptr,
    new_row_ids_ptr,
    new_streak_ptr,
    new_answer_ptr,
    starts_ptr,
    counts_ptr,
    rows,
    WORDS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Scan keep flags and lengths once, and write the survivors' places, state and counts.

    keep_ptr: [rows] int8
    cu_seqlens_ptr: [rows + 1] int32
    row_ids_ptr: [rows] int64
    streak_ptr: [rows] int32
    answer_ptr: [rows, WORDS] int32
    new_cu_seqlens_ptr: [rows + 1] int32
    new_row_ids_ptr: [rows] int64
    new_streak_ptr: [rows] int32
    new_answer_ptr: [rows, WORDS] int32
    starts_ptr: [rows] int32
    counts_ptr: [3] int32
    """
    # The only program owns all rows, and takes them block by block with the sums of the blocks before.
    survivors = 0
    tokens = 0
    longest = 0
    tl.store(new_cu_seqlens_ptr, 0)
    # A while loop: with NumPy 2.5, Triton 3.6's interpreter takes no tensor as a bound of range().
    block_offset = tl.full([], 0, tl.int64)
    while block_offset < rows:
        # [rows]
        row_idx = block_offset + tl.arange(0, BLOCK_ROWS)
        row_mask = row_idx < rows
        kept = (tl.load(keep_ptr + row_idx, mask=row_mask, other=0) != 0).to(tl.int32)
        start = tl.load(cu_seqlens_ptr + row_idx, mask=row_mask, other=0)
        end = tl.load(cu_seqlens_ptr + row_idx + 1, mask=row_mask, other=0)
        length = (end - start) * kept
        # [rows]
        new_idx = (survivors + tl.cumsum(kept) - kept).to(tl.int64)
        is_kept = kept != 0
        tl.store(new_cu_seqlens_ptr + new_idx + 1, tokens + tl.cumsum(length), mask=is_kept)
        tl.store(starts_ptr + new_idx, start, mask=is_kept)
        tl.store(new_row_ids_ptr + new_idx, tl.load(row_ids_ptr + row_idx, mask=is_kept), mask=is_kept)
        tl.store(new_streak_ptr + new_idx, tl.load(streak_ptr + row_idx, mask=is_kept), mask=is_kept)
        for word_idx in range(0, WORDS):
            word = tl.load(answer_ptr + row_idx * WORDS + word_idx, mask=is_kept)
            tl.store(new_answer_ptr + new_idx * WORDS + word_idx, word, mask=is_kept)
        survivors += tl.sum(kept)
        tokens += tl.sum(length)
        longest = tl.maximum(longest, tl.max(length))
        block_offset += BLOCK_ROWS
    tl.store(counts_ptr, survivors)
    tl.store(counts_ptr + 1, tokens)
    tl.store(counts_ptr + 2, longest)


def plan(keep: Tensor, cu_seqlens: Tensor, row_ids: Tensor, streak: Tensor, answer: Tensor) -> Plan:
    """Do what `reference.plan` says, with its arguments, in one launch and without waiting for the device.

    The tensors are on a CUDA device, or anywhere under Triton's interpreter. Entries past the valid ones are undefined.

    Raises:
        ValueError: a shape, dtype, device or layout does not fit.
    """
    check_plan(keep, cu_seqlens, row_ids, streak, answer)
    check_on_device("keep", keep, not isinstance(plan_kernel, triton.JITFunction))
    result = Plan(
        cu_seqlens=torch.empty_like(cu_seqlens),
        row_ids=torch.empty_like(row_ids),
        streak=torch.empty_like(streak),
        answer=torch.empty_like(answer),
        starts=torch.empty_like(streak),
        counts=torch.empty(3, dtype=torch.int32, device=keep.device),
    )
    if len(keep):
        plan_launch(keep, cu_seqlens, row_ids, streak, answer, result).run()
    else:
        result.cu_seqlens.zero_()
        result.counts.zero_()
    return result


def plan_launch(
    keep: Tensor, cu_seqlens: Tensor, row_ids: Tensor, streak: Tensor, answer: Tensor, result: Plan
) -> Launch:
    """Return the launch that `plan` runs on checked arguments to fill `result`."""
    blocks, options = plan_blocks()
    arguments: dict[str, Any] = dict(
        keep_ptr=keep,
        cu_seqlens_ptr=cu_seqlens,
        row_ids_ptr=row_ids,
        streak_ptr=streak,
        answer_ptr=answer,
        new_cu_seqlens_ptr=result.cu_seqlens,
        new_row_ids_ptr=result.row_ids,
        new_streak_ptr=result.streak,
        new_answer_ptr=result.answer,
        starts_ptr=result.starts,
        counts_ptr=result.counts,
        rows=keep.shape[0],
        WORDS=answer.shape[1],
        **blocks,
    )
    return Launch(plan_kernel, (1,), arguments, {**options, "enable_fp_fusion": True})


@triton.jit(do_not_specialize_on_alignment=_PLACES)
def gather_kernel(
    hidden_ptr,
    out_ptr,
    starts_ptr,
    cu_seqlens_ptr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Copy every row's run of tokens from its old place to its new one.

    hidden_ptr: [old_tokens, WIDTH]
    out_ptr: [tokens, WIDTH]
    starts_ptr: [rows] int32
    cu_seqlens_ptr: [rows + 1] int32
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


def gather(hidden: Tensor, starts: Tensor, cu_seqlens: Tensor, *, rows: int, tokens: int, longest: int) -> Tensor:
    """Do what `reference.gather` says, with its arguments, in one launch and without waiting for the device.

    The tensors are on a CUDA device, or anywhere under Triton's interpreter.

    Raises:
        ValueError: a shape, dtype, device or layout does not fit, or the numbers contradict each other.
    """
    check_gather(hidden, starts, cu_seqlens, rows=rows, tokens=tokens, longest=longest)
    check_on_device("hidden", hidden, not isinstance(gather_kernel, triton.JITFunction))
    if hidden.dtype.itemsize not in _INTEGERS:
        raise ValueError(f"hidden is {hidden.dtype}; gather its real and imaginary parts apart")
    out = hidden.new_empty((tokens, *hidden.shape[1:]))
    if out.numel():
        gather_launch(hidden, out, starts, cu_seqlens, rows=rows, longest=longest).run()
    return out


def gather_launch(
    hidden: Tensor, out: Tensor, starts: Tensor, cu_seqlens: Tensor, *, rows: int, longest: int
) -> Launch:
    """Return the launch that `gather` runs on checked arguments to fill `out`, which is not empty."""
    width, itemsize = out[0].numel(), hidden.dtype.itemsize
    blocks, options = gather_blocks(width, itemsize)
    arguments: dict[str, Any] = dict(
        # Bits are copied, so that dtypes of one size share a kernel.
        hidden_ptr=hidden.view(_INTEGERS[itemsize]),
        out_ptr=out.view(_INTEGERS[itemsize]),
        starts_ptr=starts,
        cu_seqlens_ptr=cu_seqlens,
        WIDTH=width,
        **blocks,
    )
    grid = gather_grid(rows, longest, width, blocks["BLOCK"])
    return Launch(gather_kernel, grid, arguments, {**options, "enable_fp_fusion": True})


def specialisations() -> Iterator[tuple[str, Launch]]:
    """Yield, by name, launches that stand for what compaction makes Triton compile at BERT-base's hidden size.

    Their tensors have no storage: a launch says what would be compiled, and cannot run.
    """
    with torch.device("meta"):
        per_row, ends = torch.empty(1, dtype=torch.int32), torch.empty(2, dtype=torch.int32)
        keep, row_ids = torch.empty(1, dtype=torch.int8), torch.empty(1, dtype=torch.int64)
        for words in (1, 32):
            answer = torch.empty(1, words, dtype=torch.int32)
            result = Plan(ends, row_ids, per_row, answer, per_row, torch.empty(3, dtype=torch.int32))
            yield f"plan-{words}", plan_launch(keep, ends, row_ids, per_row, answer, result)
        for shape, dtype in (((768,), torch.float32), ((768,), torch.float16), ((), torch.bool)):
            hidden = torch.empty(1, *shape, dtype=dtype)
            name = "-".join(["gather", *map(str, shape), str(dtype).removeprefix("torch.")])
            yield name, gather_launch(hidden, hidden, per_row, ends, rows=1, longest=1)
