"""What the heads read of every row: its first token, its last, or the mean of all."""

import functools
import itertools

import numpy as np
import torch
from torch import Tensor

from bench import cases
from bench.micro.compact import packed
from bench.micro.subject import Case, Subject, same, serving, size_of

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""One rounding of the mean, as a share of the largest."""


def in_plain_torch(features: Tensor, cu_seqlens: Tensor, *, pooling: str) -> Tensor:
    """Return an index, or torch's own segmented mean."""
    if pooling == "mean":
        return torch.segment_reduce(features.float(), "mean", offsets=cu_seqlens.long()).to(features.dtype)
    return features[cu_seqlens[:-1] if pooling == "first" else cu_seqlens[1:] - 1]


def build(lengths: np.ndarray, hidden: int, pooling: str, device: torch.device, dtype: torch.dtype) -> Subject:
    generator = torch.Generator(device).manual_seed(0)
    features = torch.randn(int(lengths.sum()), hidden, generator=generator, device=device).to(dtype)
    cu_seqlens = packed(lengths, device)
    functions = serving("pool", device) | {"torch": in_plain_torch}
    calls = {
        name: functools.partial(function, features, cu_seqlens, pooling=pooling) for name, function in functions.items()
    }

    def agree() -> None:
        tolerance = TOLERANCE[dtype] if pooling == "mean" else 0.0
        same({name: (call(),) for name, call in calls.items()}, tolerance=tolerance)

    out = len(lengths) * hidden * features.element_size()
    moved = out + size_of(cu_seqlens) + (size_of(features) if pooling == "mean" else out)
    # Its mean counts rows by a repeat_interleave whose size only the device knows.
    return Subject(calls, moved, waiting=frozenset({"reference"} if pooling == "mean" else ()), agree=agree)


def _case(rows: int, pooling: str) -> Case:
    lengths = cases.sst2_lengths(rows)
    return Case(
        op=f"pool, {pooling}",
        size=f"{rows}x768, sst2-like",
        rows=rows,
        build=lambda device, dtype: build(lengths, 768, pooling, device, dtype),
        is_small=rows == 64,
    )


CASES = [_case(rows, pooling) for pooling, rows in itertools.product(("first", "mean"), (64, 1024, 4096, 16384))]
