"""Attention within packed rows: every path computes the same, and what it does not know it refuses."""

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

import pabee_fast as pf
from pabee_fast.runtime.attention import NAME, _attend_padded, _attend_runs, packed_attention, packed_attention_in
from pabee_fast.runtime.packed import Layout
from tests.conftest import tiny_stock
from tests.tolerances import assert_close

HEADS, HEAD_DIM = 3, 8


def layout(lengths: list[int], *, hide_first_of: tuple[int, ...] = ()) -> Layout:
    ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    mask = None
    if hide_first_of:
        mask = torch.ones(sum(lengths), dtype=torch.bool)
        mask[ends[list(hide_first_of)]] = False
    return Layout(ends, max(lengths), mask)


def rowwise(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, where: Layout, scaling: float) -> torch.Tensor:
    """softmax(q k^T * scaling) v of each row by itself, as the formula says."""
    out = torch.empty_like(q)
    for start, end in itertools.pairwise(where.cu_seqlens.tolist()):
        scores = torch.einsum("qhd,khd->hqk", q[start:end], k[start:end]) * scaling
        if where.key_mask is not None:
            scores = scores.masked_fill(~where.key_mask[start:end], float("-inf"))
        out[start:end] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[start:end])
    return out


# Runs of one length, a single token, primes, and a row whose first token is hidden among its own kind.
CASES = [
    layout([5, 5, 5, 2, 2, 1]),
    layout([1]),
    layout([13]),
    layout([7, 3, 7, 7]),
    layout([4, 4, 4], hide_first_of=(1,)),
]


@pytest.mark.parametrize("attend", [_attend_runs, _attend_padded])
@pytest.mark.parametrize("where", CASES)
def test_each_path_is_attention_within_rows(attend: Any, where: Layout) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(int(where.cu_seqlens[-1]), HEADS, HEAD_DIM, generator=generator) for _ in range(3))
    assert_close(attend(q, k, v, where, 0.3), rowwise(q, k, v, where, 0.3))


def test_runs_are_neighbouring_rows_of_one_length() -> None:
    assert layout([5, 5, 5, 2, 2, 1, 2]).runs == [(0, 3, 5), (15, 2, 2), (19, 1, 1), (20, 1, 2)]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"softcap": 30.0}, "softcap"),
        ({"sliding_window": 128, "s_aux": torch.ones(3)}, "sliding_window, s_aux"),
        ({"dropout": 0.1}, "dropout"),
        ({"attention_mask": torch.ones(1, 1, 5, 5)}, "attention_mask"),
    ],
)
def test_an_argument_that_packed_attention_does_not_know_is_named(asked: dict[str, Any], says: str) -> None:
    q = torch.randn(1, HEADS, 5, HEAD_DIM)
    options = {"attention_mask": None, "layout": layout([5]), **asked}
    with pytest.raises(pf.UnsupportedError, match=says):
        packed_attention(nn.Identity(), q, q, q, **options)


def test_causal_layers_are_refused() -> None:
    causal, q = nn.Identity(), torch.randn(1, HEADS, 5, HEAD_DIM)
    causal.is_causal = True  # type: ignore[assignment]
    with pytest.raises(pf.UnsupportedError, match="is_causal"):
        packed_attention(causal, q, q, q, None, layout=layout([5]))


def test_the_route_is_registered_for_masks_too_and_taken_back() -> None:
    config = tiny_stock("bert").config
    with pytest.raises(KeyboardInterrupt), packed_attention_in(config):
        assert config._attn_implementation == NAME
        raise KeyboardInterrupt
    assert config._attn_implementation == "sdpa"
    # A name without a mask function would get no mask at all, silently.
    assert NAME in AttentionInterface().keys() and NAME in AttentionMaskInterface().keys()  # noqa: SIM118
