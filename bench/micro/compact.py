"""Compaction: plan of the survivors' places, and gather of their tokens."""

import functools
import itertools

import numpy as np
import torch
from torch import Tensor

from bench import cases
from bench.graphs import Call
from bench.micro.subject import Case, Subject, same, serving, size_of
from pabee_fast.kernels import reference
from pabee_fast.kernels.launch import Plan


def packed(lengths: np.ndarray, device: torch.device) -> Tensor:
    """cu_seqlens, [rows + 1] int32."""
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)).to(device)


def flags(rows: int, share: float, device: torch.device) -> Tensor:
    """Keep flags, [rows] int8, of a random `share` of rows and at least one."""
    keep = np.zeros(rows, dtype=np.int8)
    keep[np.random.default_rng(1).permutation(rows)[: max(1, round(share * rows))]] = 1
    return torch.from_numpy(keep).to(device)


def plan_in_plain_torch(keep: Tensor, cu_seqlens: Tensor, row_ids: Tensor, streak: Tensor) -> Plan:
    """By cumulative sums and scatters, with one place more for the rows that have left; nothing is read back."""
    rows, kept = len(keep), keep != 0
    places = torch.where(kept, kept.cumsum(0) - 1, rows)
    lengths = cu_seqlens.diff() * kept
    ends = cu_seqlens.new_zeros(rows + 2)
    ends[places + 1] = lengths.cumsum(0, dtype=torch.int32)

    def moved(values: Tensor) -> Tensor:
        return values.new_empty(rows + 1).scatter_(0, places, values)[:rows]

    ends[:1].zero_()  # a number would be copied to the device, which no graph may hold
    sources = torch.arange(rows, device=keep.device, dtype=torch.int32)
    counts = torch.stack([kept.sum(), lengths.sum(), lengths.max()]).int()
    return Plan.of(ends[: rows + 1], moved(row_ids), moved(streak), moved(sources), moved(cu_seqlens[:-1]), counts)


def build_plan(rows: int, share: float, device: torch.device) -> Subject:
    lengths = cases.sst2_lengths(rows)
    arguments = (
        flags(rows, share, device),
        packed(lengths, device),
        torch.arange(rows, device=device),
        torch.zeros(rows, dtype=torch.int32, device=device),
    )
    functions = serving("plan", device) | {"torch": plan_in_plain_torch}
    survivors = int(arguments[0].sum())

    def agree() -> None:
        found = {name: function(*arguments) for name, function in functions.items()}
        lengths = (survivors + 1, survivors, survivors, survivors, survivors, 3)
        same({name: [t[:length] for t, length in zip(p, lengths, strict=True)] for name, p in found.items()})

    # Flags and lengths of all rows; of survivors id and streak in, and these, place, start and length out.
    moved = size_of(*arguments[:2]) + survivors * (8 + 4) + 4 + survivors * (8 + 4 + 4 + 4 + 4) + 12
    calls = {name: functools.partial(function, *arguments) for name, function in functions.items()}
    return Subject(calls, moved, waiting=frozenset({"reference"}), agree=agree)


def build_gather(lengths: np.ndarray, hidden: int, share: float, device: torch.device, dtype: torch.dtype) -> Subject:
    generator = torch.Generator(device).manual_seed(0)
    keep, cu_seqlens, rows = flags(len(lengths), share, device), packed(lengths, device), len(lengths)
    per_row = torch.zeros(rows, dtype=torch.int32, device=device)
    plan = reference.plan(keep, cu_seqlens, per_row.long(), per_row)
    size = dict(zip(("rows", "tokens", "longest"), plan.counts.tolist(), strict=True))
    states = torch.randn(int(lengths.sum()), hidden, generator=generator, device=device).to(dtype)
    memory = torch.zeros(rows, 1, dtype=torch.int32, device=device)
    kept = (keep != 0).repeat_interleave(cu_seqlens.diff())
    token_idx, row_idx, target = kept.nonzero()[:, 0], keep.nonzero()[:, 0], states.new_empty(size["tokens"], hidden)
    places = (states, plan.starts, plan.cu_seqlens)
    movers: dict[str, Call] = {
        name: functools.partial(function, *places, **size, memory=memory, sources=plan.sources)
        for name, function in serving("gather", device).items()
    }
    movers |= {
        "torch": lambda: (states[kept], memory[keep != 0]),
        "torch, indices ready": lambda: (states.index_select(0, token_idx), memory.index_select(0, row_idx)),
    }

    def agree() -> None:
        same({name: move() for name, move in movers.items()})

    calls = movers | {"copy of as much": lambda: target.copy_(states[: len(target)])}
    moved = 2 * size_of(target) + size["rows"] * (4 + 4 + 4 + 2 * 4) + 4
    return Subject(calls, moved, waiting=frozenset({"torch"}), agree=agree)


def _gather_case(name: str, rows: int, tokens: int | None, hidden: int, share: float) -> Case:
    lengths = cases.sst2_lengths(rows) if tokens is None else np.full(rows, tokens)
    return Case(
        op="gather",
        size=f"{name}, {rows} rows, {hidden} wide, {share:.0%} stay",
        rows=rows,
        build=lambda device, dtype: build_gather(lengths, hidden, share, device, dtype),
        is_small=rows == 64,
    )


def _plan_case(rows: int) -> Case:
    return Case(
        "plan", f"{rows} rows", rows, lambda device, dtype: build_plan(rows, 0.5, device), is_small=rows <= 1024
    )


# A row in four leaves at the most eager layer of cases.EXITS, and few stay at last; a wave of 65,536 tokens, of short
# rows and of long ones, and what the smallest one holds.
CASES = [
    *(_plan_case(rows) for rows in (64, 1024, 4096, 16384)),
    *(
        _gather_case(name, rows, tokens, hidden, share)
        for (name, rows, tokens), hidden, share in itertools.product(
            (("sst2-like", 64, None), ("sst2-like", 2600, None), ("128 tokens", 512, 128)), (768, 1024), (0.9, 0.5, 0.1)
        )
        if hidden == 768 or rows > 64
    ),
]
