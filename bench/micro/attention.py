"""Attention within packed rows, by what the runtime takes and by a padded rectangle."""

import functools
import itertools

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench import cases
from bench.graphs import Call
from bench.micro.compact import packed
from bench.micro.subject import TOLERANCE, Case, Subject, same, serving, size_of
from pabee_fast.layout import Layout
from pabee_fast.runtime import ops


def build(lengths: np.ndarray, heads: int, head_dim: int, device: torch.device, dtype: torch.dtype) -> Subject:
    generator, tokens, longest = torch.Generator(device).manual_seed(0), int(lengths.sum()), int(lengths.max())
    # Three views into one joined projection, as a layer hands them over.
    joined = torch.randn(tokens, 3, heads, head_dim, generator=generator, device=device).to(dtype)
    query, key, value = joined.unbind(1)
    cu_seqlens = packed(lengths, device)
    layout = Layout(cu_seqlens, longest)
    seen = torch.arange(longest, device=device) < cu_seqlens.diff()[:, None]
    padded = [joined.new_zeros(len(lengths), longest, heads, head_dim) for _ in range(3)]
    for target, source in zip(padded, (query, key, value), strict=True):
        target[seen] = source
    q, k, v = (tensor.transpose(1, 2) for tensor in padded)

    def rectangle() -> Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None])

    calls: dict[str, Call] = {"runtime": lambda: ops.attention(query, key, value, layout)} | {
        name: functools.partial(function, query, key, value, cu_seqlens)
        for name, function in serving("attention", device).items()
    }

    def agree() -> None:
        found = {name: (call(),) for name, call in calls.items()}
        found["torch, padded"] = (rectangle().transpose(1, 2)[seen],)
        same(found, tolerance=TOLERANCE[dtype])

    flops = 4 * heads * head_dim * int((lengths.astype(np.int64) ** 2).sum())
    moved = size_of(joined, query, cu_seqlens)
    return Subject(calls | {"torch, padded": rectangle}, moved, flops, waiting=frozenset({"reference"}), agree=agree)


def _case(name: str, rows: int, tokens: int | None, heads: int) -> Case:
    lengths = cases.sst2_lengths(rows) if tokens is None else np.full(rows, tokens)
    return Case(
        op="attention",
        size=f"{name}, {rows} rows, {heads} heads of 64",
        rows=rows,
        build=lambda device, dtype: build(lengths, heads, 64, device, dtype),
        is_small=rows <= 64,
    )


# What the smallest set holds, and waves of 65,536 tokens; the heads of BERT-base and BERT-large.
CASES = [
    _case("sst2-like", 64, None, 12),
    _case("128 tokens", 16, 128, 12),
    *(
        _case(name, rows, tokens, heads)
        for heads, (name, rows, tokens) in itertools.product(
            (12, 16), (("sst2-like", 2600, None), ("128 tokens", 512, 128))
        )
    ),
]
