"""Attention within packed rows, by what the runtime takes and by a padded rectangle."""

import functools
import itertools
from dataclasses import replace

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


def build(op: str, lengths: np.ndarray, heads: int, head_dim: int, device: torch.device, dtype: torch.dtype) -> Subject:
    """By the function `op`, beside what else could serve."""
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

    calls: dict[str, Call] = {"runtime": lambda: ops.attention(query, key, value, layout)}
    if op == "short_attention":
        calls["one row a tile"] = lambda: ops.attention(query, key, value, replace(layout, attention="kernel"))
    options = {"longest": longest} if op == "short_attention" else {}
    calls |= {
        name: functools.partial(function, query, key, value, cu_seqlens, **options)
        for name, function in serving(op, device).items()
    }

    def agree() -> None:
        found = {name: (call(),) for name, call in calls.items()}
        found["torch, padded"] = (rectangle().transpose(1, 2)[seen],)
        same(found, tolerance=TOLERANCE[dtype])

    flops = 4 * heads * head_dim * int((lengths.astype(np.int64) ** 2).sum())
    moved = size_of(joined, query, cu_seqlens)
    return Subject(calls | {"torch, padded": rectangle}, moved, flops, waiting=frozenset({"reference"}), agree=agree)


def _case(op: str, name: str, lengths: np.ndarray, heads: int, head_dim: int = 64) -> Case:
    rows = len(lengths)
    return Case(
        op=op,
        size=f"{name}, {rows} rows, {heads} heads of {head_dim}",
        rows=rows,
        build=lambda device, dtype: build(op, lengths, heads, head_dim, device, dtype),
        is_small=rows <= 64,
    )


def _sst2(rows: int, longest: int = 64) -> np.ndarray:
    # As in a wave: longest first, rows of one length side by side.
    return -np.sort(-np.minimum(cases.sst2_lengths(rows), longest))


# What the smallest set holds, and waves of 65,536 tokens; the heads of BERT-base and BERT-large.
CASES = [
    _case("attention", "sst2-like", cases.sst2_lengths(64), 12),
    _case("attention", "128 tokens", np.full(16, 128), 12),
    *(
        _case("attention", name, lengths, heads)
        for heads, (name, lengths) in itertools.product(
            (12, 16), (("sst2-like", cases.sst2_lengths(2600)), ("128 tokens", np.full(512, 128)))
        )
    ),
    # Tiles of 64 and of 32; a wave of 131,072 tokens, its last layers' few survivors, and the heads of MiniLM.
    _case("short_attention", "sst2-like", _sst2(64), 12),
    *(_case("short_attention", "sst2-like", _sst2(rows), 12) for rows in (256, 1300, 5200)),
    _case("short_attention", "sst2-like", _sst2(5200), 12, 32),
    _case("short_attention", "sst2-like, 32 at most", _sst2(5200, 32), 12),
    _case("short_attention", "64 tokens", np.full(2048, 64), 12),
]
