"""Attention by content and place within packed rows, by what the runtime takes and by gathering, padded, as DeBERTa."""

import functools

import numpy as np
import torch
from torch import Tensor

from bench import cases
from bench.micro.compact import packed
from bench.micro.subject import TOLERANCE, Case, Subject, same, serving, size_of
from pabee_fast.layout import Layout
from pabee_fast.runtime import ops

OP = "disentangled_attention"


def build(lengths: np.ndarray, heads: int, head_dim: int, device: torch.device, dtype: torch.dtype) -> Subject:
    """With what both sides meet of places."""
    generator, tokens, longest = torch.Generator(device).manual_seed(0), int(lengths.sum()), int(lengths.max())
    # Three views into one joined projection, as a layer hands them over.
    joined = torch.randn(tokens, 3, heads, head_dim, generator=generator, device=device).to(dtype)
    query, key, value = joined.unbind(1)
    keys, queries = torch.randn(2, 2 * longest - 1, heads, head_dim, generator=generator, device=device).to(dtype)
    cu_seqlens = packed(lengths, device)
    layout, scaling = Layout(cu_seqlens, longest), (3 * head_dim) ** -0.5
    seen = torch.arange(longest, device=device) < cu_seqlens.diff()[:, None]
    padded = [joined.new_zeros(len(lengths), longest, heads, head_dim) for _ in range(3)]
    for target, source in zip(padded, (query, key, value), strict=True):
        target[seen] = source
    q, k, v = (tensor.transpose(1, 2) for tensor in padded)
    places = torch.arange(longest, device=device)
    ahead = (places[None, :] - places[:, None] + longest - 1).expand(len(lengths), heads, longest, longest)

    def rectangle() -> Tensor:
        of_keys = (q @ keys.permute(1, 2, 0)).gather(-1, ahead)
        of_queries = (k @ queries.permute(1, 2, 0)).gather(-1, ahead).transpose(-1, -2)
        scores = (q @ k.transpose(-1, -2) + of_keys + of_queries) * scaling
        return scores.masked_fill(~seen[:, None, None], float("-inf")).softmax(-1) @ v

    runtime = functools.partial(
        ops.disentangled_attention, query, key, value, layout, place_keys=keys, place_queries=queries, scaling=scaling
    )
    options = {"longest": longest, "place_keys": keys, "place_queries": queries, "scaling": scaling}
    calls = {"runtime": runtime} | {
        name: functools.partial(function, query, key, value, cu_seqlens, **options)
        for name, function in serving(OP, device).items()
    }

    def agree() -> None:
        found = {name: (call(),) for name, call in calls.items()}
        found["torch, padded"] = (rectangle().transpose(1, 2)[seen],)
        same(found, tolerance=TOLERANCE[dtype])

    # Scores by content and what they weigh; each side meets twice as many places as tokens.
    flops = 12 * heads * head_dim * int((lengths.astype(np.int64) ** 2).sum())
    moved = size_of(joined, query, keys, queries, cu_seqlens)
    return Subject(calls | {"torch, padded": rectangle}, moved, flops, waiting=frozenset({"reference"}), agree=agree)


def _case(name: str, lengths: np.ndarray, heads: int = 12, head_dim: int = 64) -> Case:
    rows = len(lengths)
    return Case(
        op=OP,
        size=f"{name}, {rows} rows, {heads} heads of {head_dim}",
        rows=rows,
        build=lambda device, dtype: build(lengths, heads, head_dim, device, dtype),
        is_small=rows <= 64,
    )


def _sst2(rows: int) -> np.ndarray:
    # As in a wave: longest first, rows of one length side by side.
    return -np.sort(-cases.sst2_lengths(rows))


# What the smallest set holds; waves of 65,536 tokens.
CASES = [
    _case("sst2-like", _sst2(12)),
    _case("sst2-like", _sst2(2600)),
    _case("128 tokens", np.full(512, 128)),
    _case("512 tokens", np.full(128, 512)),
]
