"""Where all rows leave, the layer's feed-forward part runs on the tokens that heads read, and on no others."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import pabee_fast as pf
from bench import work
from pabee_fast.runtime import bound
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.pack import pack
from tests.conftest import padded_rows, tiny_model
from tests.tolerances import assert_close

LENGTHS = [7, 40, 1, 19, 12]


@pytest.fixture
def inner(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens went through each feed-forward part, in turn."""
    seen, real = [], bound.linear_act

    def counted(*args: Any, **options: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        act = real(*args, **options)

        def call(hidden: torch.Tensor) -> torch.Tensor:
            seen.append(len(hidden))
            return act(hidden)

        return call

    monkeypatch.setattr(bound, "linear_act", counted)
    return seen


def run(model: object, policy: pf.Policy, **options: str) -> tuple[Engine, torch.Tensor]:
    engine = Engine(model, **options)  # type: ignore[arg-type]
    return engine, engine.run(pack(model, **padded_rows(LENGTHS)), policy).logits  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", [pf.FullDepth(), pf.FixedDepth(3)], ids=str)
def test_the_last_layer_feeds_one_token_of_each_row_forward(inner: list[int], policy: pf.Policy) -> None:
    model = tiny_model("bert", num_labels=2, seed=1)
    depth = policy.depth(6)
    _, logits = run(model, policy)
    assert inner == [*[sum(LENGTHS)] * (depth - 1), len(LENGTHS)]
    assert_close(logits, Engine(model).every_head(pack(model, **padded_rows(LENGTHS)))[depth - 1])


def test_rows_that_others_outlive_are_fed_forward_whole(inner: list[int]) -> None:
    exits = (2, 2, 2, 4, 6)
    run(tiny_model("bert", num_labels=2, seed=1), pf.Scheduled(exits), gather_cost=0.0)  # type: ignore[arg-type]
    assert inner == [sum(LENGTHS)] * 2 + [LENGTHS[3] + LENGTHS[4]] * 2 + [LENGTHS[4], 1]


def test_all_tokens_are_fed_forward_where_a_head_reads_them(inner: list[int]) -> None:
    run(tiny_model("bert", num_labels=2, seed=1, head="linear", pooling="mean"), pf.FixedDepth(3))
    assert inner == [sum(LENGTHS)] * 3


def test_layers_of_transformers_own_compute_all_tokens() -> None:
    engine, _ = run(tiny_model("bert", num_labels=2, seed=1), pf.FullDepth(), layers="stock")
    assert work.spared(engine) == 0


def test_what_exits_can_save_counts_a_last_layer_as_what_it_computes() -> None:
    engine, _ = run(tiny_model("bert", num_labels=2, seed=1), pf.FullDepth())
    lengths, exits = np.array([10, 10]), np.array([6, 3])
    hidden, width = 32, 48
    spared = (hidden + 2 * width) / (4 * hidden + 2 * width)
    assert work.spared(engine) == pytest.approx(spared)
    full = 2 * (60 - 9 * spared)
    assert work.most(engine, lengths, exits) == pytest.approx(full / (60 - 9 * spared + 30))
