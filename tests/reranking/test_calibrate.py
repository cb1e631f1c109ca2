"""The promise on lists: what a shortlist loses, and how it is bounded, stored and used."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score
from transformers import PreTrainedTokenizerFast

import pabee_fast as pf
from pabee_fast.calibration.guarantee import store_guarantee
from pabee_fast.calibration.trace import Trace
from pabee_fast.reranking.calibrate import calibrate_lists
from pabee_fast.reranking.guarantee import ListGuarantee, ListRisk
from pabee_fast.reranking.margins import STRICTER, shortlists
from pabee_fast.reranking.replay import ListTrace, replay_lists
from pabee_fast.reranking.risks import lists_needed, losses, mean_p_value, ndcg
from pabee_fast.scoring.conditions import Conditions
from tests.conftest import tiny_model
from tests.reranking.texts import QUERIES, documents_of, trace_of

TEXTS = documents_of(len(QUERIES))


def made_trace(lists: int, candidates: int = 30, *, noise: float = 1.0, seed: int = 0) -> ListTrace:
    """Heads that see more of full depth's scores from layer to layer."""
    rng = np.random.default_rng(seed)
    full = rng.normal(size=lists * candidates) * 2
    each = [full + noise * spread * rng.normal(size=len(full)) for spread in (2, 1, 0.6, 0.3, 0)]
    trace = Trace(
        torch.tensor(np.stack(each), dtype=torch.float32)[..., None],
        torch.from_numpy(rng.integers(5, 40, len(full))),
        "value",
        Conditions("model", "tokenizer", "float32", 128, 2),
    )
    relevance = torch.tensor(np.maximum(full + rng.normal(size=len(full)), 0), dtype=torch.float32)
    return ListTrace(trace, torch.arange(lists).repeat_interleave(candidates), relevance=relevance)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("bert", num_labels=1, seed=1)


@settings(max_examples=25)
@given(
    margins=st.lists(st.sampled_from([0.0, 0.2, 0.5, 1.0, float("inf")]), min_size=5, max_size=5),
    top_k=st.integers(1, 6),
)
def test_replay_is_what_the_runtime_does(
    margins: list[float], top_k: int, model: Any, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    policy = pf.Shortlist(top_k, tuple(margins))
    traced = ListTrace(*trace_of(model, tiny_tokenizer, QUERIES, TEXTS))
    reranker = pf.Reranker(model, tiny_tokenizer, top_k=top_k, policy=policy)
    ranked = reranker.rerank(QUERIES, TEXTS)
    replayed = replay_lists(traced, policy)
    assert {int(layer): int(n) for layer, n in zip(*replayed.exit_layers.unique(return_counts=True), strict=True)} == (
        reranker.tally.exits
    )
    full = pf.Reranker(model, tiny_tokenizer, top_k=top_k).rerank(QUERIES, TEXTS)
    lost = [
        1 - len({one["corpus_id"] for one in early} & {one["corpus_id"] for one in late}) / len(late)
        for early, late in zip(ranked, full, strict=True)
        if late
    ]
    assert losses(ListRisk("overlap", top_k), traced, replayed).tolist() == pytest.approx(lost)


def test_full_depth_loses_nothing_and_all_margins_at_infinity_are_full_depth() -> None:
    traced = made_trace(5)
    for policy in (pf.FullDepth(), pf.Shortlist(3, (float("inf"),) * 4)):
        found = replay_lists(traced, policy)
        assert found.exit_layers.tolist() == [5] * 150
        for risk in (ListRisk("overlap", 3), ListRisk("ndcg", 3)):
            assert losses(risk, traced, found).tolist() == [0.0] * 5


def test_ndcg_is_scikit_learns() -> None:
    traced = made_trace(8)
    assert traced.relevance is not None
    scores, relevance = traced.scores[1].view(8, 30).numpy(), traced.relevance.view(8, 30).numpy()
    expected = [ndcg_score(relevance[i : i + 1], scores[i : i + 1], k=10) for i in range(8)]
    assert ndcg(traced, traced.scores[1], 10).tolist() == pytest.approx(expected)
    nothing = ListTrace(traced.trace, traced.lists, relevance=torch.zeros(240))
    assert ndcg(nothing, traced.scores[1], 10).tolist() == [0.0] * 8


def test_what_ndcg_loses_is_what_ranking_without_the_dropped_loses() -> None:
    traced = made_trace(8)
    assert traced.relevance is not None
    found = replay_lists(traced, pf.Shortlist(10, (0.1, 0.1, 0.1, 0.1)))
    reached = (found.exit_layers == 5).view(8, 30)
    expected = []
    for number in range(8):
        truth, full = (values.view(8, 30)[number].double().numpy() for values in (traced.relevance, traced.scores[-1]))
        left = np.where(reached[number].numpy(), full, -100.0)
        expected.append(max(0.0, ndcg_score([truth], [full], k=10) - ndcg_score([truth], [left], k=10)))
    assert max(expected) > 0
    assert losses(ListRisk("ndcg", 10), traced, found).tolist() == pytest.approx(expected)


def test_shorter_lists_and_copies_count_as_they_are() -> None:
    conditions = Conditions("model", "tokenizer", "float32", 128, 2)
    logits = torch.tensor([[[3.0], [1.0], [1.0], [2.0]], [[1.0], [2.0], [2.0], [0.0]]])
    traced = ListTrace(Trace(logits, torch.ones(4, dtype=torch.int64), "value", conditions), torch.tensor([0, 0, 0, 1]))
    assert traced.best(2).tolist() == [False, True, True, True]
    assert traced.deficits(1).tolist() == [[0.0, 2.0, 2.0, 0.0]]
    assert traced.deficits(2).tolist() == [[0.0, 0.0, 0.0, 0.0]], "in a list of one none is below the bar of two"
    found = replay_lists(traced, pf.Shortlist(1, (1.0,)))
    assert found.exit_layers.tolist() == [2, 1, 1, 2]
    assert losses(ListRisk("overlap", 1), traced, found).tolist() == [1.0, 0.0]


def test_the_chain_begins_strictly_and_falls_in_cost() -> None:
    traced = made_trace(60)
    chain = shortlists(traced, 5)
    found = [replay_lists(traced, policy) for policy in chain]
    lost = [float(losses(ListRisk("overlap", 5), traced, one).mean()) for one in found]
    costs = [1 / one.layer_ratio for one in found]
    assert len(chain) >= 4 and lost[0] == 0 and lost == sorted(lost)
    assert costs == sorted(costs, reverse=True) and costs[len(STRICTER)] < 0.95 and costs[-1] < 0.5


def test_the_walk_begins_stricter_than_what_the_choosing_lists_lose_nothing_by() -> None:
    traced = made_trace(220)
    chain = shortlists(traced.select(torch.arange(len(traced)) < 20), 5)
    lost = [float(losses(ListRisk("overlap", 5), traced, replay_lists(traced, policy)).mean()) for policy in chain]
    first = len(STRICTER)
    assert chain[0].margins == pytest.approx([STRICTER[0] * margin for margin in chain[first].margins], rel=1e-3)
    assert lost[0] < 0.002 < 0.01 < lost[first]


def test_layers_without_a_head_are_not_asked() -> None:
    traced = made_trace(40)
    trace = Trace(traced.trace.logits, traced.trace.lengths, "value", traced.trace.conditions, first_layer=3)
    trace.logits[:2] = float("nan")
    chain = shortlists(ListTrace(trace, traced.lists), 5)
    assert chain and all(policy.margins[:2] == (float("inf"),) * 2 for policy in chain)


@pytest.mark.parametrize("loss", [0.01, 0.05])
def test_a_mean_at_the_bound_is_rejected_no_more_often_than_promised(loss: float) -> None:
    rng = np.random.default_rng(0)
    draws = (rng.random((1_500, 200)) < loss / 0.2) * 0.2
    rejected = np.mean([mean_p_value(one, loss, 0.1) <= 0.1 for one in draws])
    assert rejected <= 0.1 + 3 * (0.1 * 0.9 / 1_500) ** 0.5


def test_the_p_value_falls_with_lists_that_lose_nothing_and_rises_with_losses() -> None:
    assert mean_p_value(np.zeros(500), 0.01, 0.05) < mean_p_value(np.zeros(300), 0.01, 0.05) < 0.06
    few, many = np.zeros(500), np.zeros(500)
    few[::100], many[::20] = 0.1, 0.2
    assert mean_p_value(np.zeros(500), 0.01, 0.05) < mean_p_value(few, 0.01, 0.05) < 0.5
    assert mean_p_value(many, 0.01, 0.05) > 0.5
    assert mean_p_value(np.ones(10), 0.01, 0.05) == 1.0
    needed = lists_needed(0.02, 0.1)
    assert mean_p_value(np.zeros(needed), 0.02, 0.1) <= 0.1 < mean_p_value(np.zeros(needed - 1), 0.02, 0.1)


def test_a_promise_is_kept_on_lists_of_the_same_kind() -> None:
    found = calibrate_lists(made_trace(300), 5, epsilon=0.03, delta=0.1)
    assert isinstance(found.policy, pf.Shortlist)
    assert found.guarantee.loss <= 0.03 and found.guarantee.cost < 0.8
    assert [step.passed for step in found.tested[:-1]] == [True] * (len(found.tested) - 1)
    unseen = made_trace(400, seed=1)
    assert float(losses(found.guarantee.risk, unseen, replay_lists(unseen, found.policy)).mean()) <= 0.03  # type: ignore[arg-type]


def test_heads_that_see_nothing_are_promised_nothing() -> None:
    found = calibrate_lists(made_trace(120, noise=200.0), 5, epsilon=0.05, delta=0.1)
    assert found.policy == pf.FullDepth() or found.guarantee.cost > 0.95


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epsilon": 0.01}, "90 of 120 lists are left to test with, and epsilon=0.01 with delta=0.05 needs 308"),
        ({"epsilon": 1.5}, "epsilon=1.5: give a number between 0 and 1"),
        ({"risk": "disagreement", "epsilon": 0.05}, "of lists .* it is one of overlap, ndcg"),
        ({"risk": "ndcg", "epsilon": 0.05}, "needs the candidates' relevance"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(options: Any, says: str) -> None:
    made = made_trace(120)
    with pytest.raises(pf.InputError, match=says):
        calibrate_lists(ListTrace(made.trace, made.lists), 5, **options)


def guarantee_for(model: Any, tokenizer: Any, policy: pf.Policy, *, max_length: int = 48) -> ListGuarantee:
    conditions = Conditions.of(model, tokenizer, max_length, 2)
    return ListGuarantee(policy, ListRisk("overlap", 3), 0.01, 0.05, 400, 3, 100, 0.5, conditions, 0.002)  # type: ignore[arg-type]


@pytest.fixture
def saved(model: Any, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_stored_promise_is_used_for_as_many_and_void_for_others(
    model: Any, tiny_tokenizer: PreTrainedTokenizerFast, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = pf.Shortlist(3, (float("inf"), 1.0, 0.5, 0.25, 0.125))
    store_guarantee(saved, stored := guarantee_for(model, tiny_tokenizer, policy))
    reranker = pf.Reranker.from_pretrained(saved, top_k=3, device="cpu")
    assert reranker.policy == policy and reranker.guarantee == stored
    assert "at most 0.01 with probability at least 0.95 (0.200% over the 400 lists" in reranker.policy_reason
    assert not caplog.records
    other = pf.Reranker.from_pretrained(saved, top_k=2, device="cpu")
    assert other.policy == pf.FullDepth() and "made for the best 3, and 2 are wanted" in caplog.text
    shorter = pf.Reranker.from_pretrained(saved, top_k=3, max_length=20, device="cpu")
    assert shorter.policy == pf.FullDepth() and "rows cut at 48 tokens" in shorter.policy_reason
    caplog.clear()
    everything = pf.Reranker.from_pretrained(saved, top_k=None, device="cpu")
    assert everything.policy == pf.FullDepth() and not caplog.records, "who wants all asks for full depth"


def test_a_promise_on_lists_leaves_that_on_rows_as_it_is(
    model: Any, tiny_tokenizer: PreTrainedTokenizerFast, saved: Path
) -> None:
    before = Conditions.of(pf.from_pretrained(saved), tiny_tokenizer, 48)
    store_guarantee(saved, guarantee_for(model, tiny_tokenizer, pf.Shortlist(3, (1.0,) * 5)))
    again = pf.from_pretrained(saved)
    assert Conditions.of(again, tiny_tokenizer, 48) == before
    assert pf.guarantee_of(again) is None and pf.list_guarantee_of(again) is not None


@pytest.mark.parametrize("change", [{"policy": "patience:3"}, {"risk": "distance"}, {"rows": None, "more": 1}])
def test_a_broken_entry_is_a_checkpoint_error(
    change: dict[str, Any], model: Any, tiny_tokenizer: PreTrainedTokenizerFast, saved: Path
) -> None:
    store_guarantee(saved, guarantee_for(model, tiny_tokenizer, pf.Shortlist(3, (1.0,) * 5)))
    config = json.loads((saved / "config.json").read_text())
    config["pabee_fast"]["list_guarantee"] |= change
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(pf.CheckpointError, match="run `pabee-fast tune --top-k` again"):
        pf.Reranker.from_pretrained(saved, top_k=3, device="cpu")
