"""Candidates that are compared: who leaves, and that it depends on the list alone."""

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pabee_fast as pf
from pabee_fast.policies import Among
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.layers import Layers
from pabee_fast.runtime.lists import bars, scores_of, staying
from pabee_fast.runtime.pack import PackedBatch, pack
from pabee_fast.runtime.schedule import plan_lists
from pabee_fast.runtime.state import Results, Wave
from tests import zoo
from tests.conftest import padded_rows, tiny_model
from tests.tolerances import TOLERANCES, assert_close

SIZES = [1, 13, 4, 8, 3]
LISTS = np.repeat(np.arange(len(SIZES)), SIZES)
SHORTLIST = pf.Shortlist(3, (0.9, 0.6, float("inf"), 0.3, 0.1))


@functools.cache
def subject() -> tuple[Any, dict[str, torch.Tensor]]:
    """A model of one output with heads, and candidates of 1 to 40 tokens."""
    lengths = np.random.default_rng(3).integers(2, 40, len(LISTS) - 2).tolist()
    return tiny_model("bert", num_labels=1, seed=1), padded_rows([1, *lengths, 40])


def candidates(rows: np.ndarray | None = None) -> PackedBatch:
    model, batch = subject()
    rows = np.arange(len(LISTS)) if rows is None else rows
    chosen = torch.from_numpy(rows)
    return replace(pack(model, **{name: values[chosen] for name, values in batch.items()}), lists=LISTS[rows])


@functools.cache
def every_head() -> np.ndarray:
    """[layers, rows], in double precision from here on."""
    return Engine(subject()[0]).every_head(candidates())[:, :, 0].double().numpy()


def alone(policy: pf.Shortlist) -> tuple[np.ndarray, np.ndarray]:
    """Exit layers by the definition, list by list; and by how much each list's closest comparison was decided."""
    scores, exits = every_head(), np.full(len(LISTS), 6)
    decided = np.full(len(SIZES), np.inf)
    for number in range(len(SIZES)):
        kept = np.flatnonzero(number == LISTS)
        for layer, margin in enumerate(policy.margins, 1):
            if margin == np.inf or len(kept) < policy.top_k:
                continue
            below = np.sort(scores[layer - 1, kept])[-policy.top_k] - scores[layer - 1, kept] - margin
            decided[number] = min(decided[number], np.abs(below).min())
            exits[kept[below > 0]] = layer
            kept = kept[below <= 0]
    return exits, decided


def run(batch: PackedBatch, policy: pf.Policy = SHORTLIST, **options: Any) -> Results:
    return Engine(subject()[0], **options).run(batch, policy)


def test_candidates_leave_where_the_definition_says() -> None:
    exits, decided = alone(SHORTLIST)
    assert decided.min() > TOLERANCES[torch.float32], "a comparison hangs on rounding; take another seed"
    assert len(set(exits.tolist())) == 5, "candidates leave at all tested layers"
    found = run(candidates())
    assert found.exit_layers.tolist() == exits.tolist()
    assert_close(found.logits[:, 0], torch.from_numpy(every_head()[exits - 1, np.arange(len(LISTS))]).float())


@pytest.mark.parametrize("top_k", [1, 3, 100])
def test_the_best_of_a_list_reach_full_depth(top_k: int) -> None:
    found = run(candidates(), pf.Shortlist(top_k, (0.0,) * 5))
    reached = np.bincount(LISTS[found.exit_layers.numpy() == 6], minlength=len(SIZES))
    assert reached.tolist() == [min(size, top_k) for size in SIZES]


@settings(max_examples=40)
@given(data=st.data())
def test_results_do_not_depend_on_other_lists_order_budget_waves_under_way_or_compaction(data: st.DataObject) -> None:
    margins = data.draw(st.lists(st.sampled_from([0.0, 0.1, 0.4, 1.0, float("inf")]), min_size=5, max_size=5))
    policy = pf.Shortlist(data.draw(st.integers(1, 5)), tuple(margins))
    chosen = data.draw(st.sets(st.integers(0, len(SIZES) - 1), min_size=1))
    rows = np.array(data.draw(st.permutations(np.flatnonzero(np.isin(LISTS, list(chosen))).tolist())))
    options = {
        "token_budget": data.draw(st.integers(40, 900)),
        "under_way": data.draw(st.integers(1, 3)),
        "gather_cost": data.draw(st.sampled_from([0.0, 0.03, 2.0, float("inf")])),
    }
    exits, distance = alone(policy)
    decided = distance[LISTS[rows]] > TOLERANCES[torch.float32]
    found = run(candidates(rows), policy, **options)
    assert found.exit_layers[decided].tolist() == exits[rows][decided].tolist()
    expected = torch.from_numpy(every_head()[found.exit_layers.numpy() - 1, rows]).float()
    assert_close(found.logits[:, 0], expected)


def test_a_list_of_more_tokens_than_the_budget_runs_in_pieces_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = [], Layers.__call__

    def watched(self: Layers, layer: int, hidden: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        seen.append(hidden.shape[0])
        return real(self, layer, hidden, *rest, **options)

    monkeypatch.setattr(Layers, "__call__", watched)
    batch = candidates()
    found = run(batch, token_budget=60)
    assert batch.lengths[LISTS == 1].sum() > 3 * 60
    assert max(seen) <= 60
    assert found.exit_layers.tolist() == alone(SHORTLIST)[0].tolist()


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "modernbert"])
def test_pieces_change_nothing_in_families_that_lie_otherwise(kind: str) -> None:
    model = zoo.model_with_heads(kind, num_labels=1)
    lengths = [7, 3, 12, 9, 12, 5]
    batch = replace(pack(model, **zoo.rows(kind, lengths)), lists=np.zeros(6, np.int64))
    policy = pf.Shortlist(2, (0.0,) * (model.config.num_hidden_layers - 1))
    whole, apart = (Engine(model, token_budget=budget).run(batch, policy) for budget in (1_000, 13))
    assert apart.exit_layers.tolist() == whole.exit_layers.tolist()
    assert_close(apart.logits, whole.logits)


@pytest.mark.parametrize("budget", [900, 150])
def test_out_of_memory_loses_no_candidate(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(subject()[0], token_budget=budget)
    real, failed = Layers.__call__, []

    def scarce(self: Layers, layer: int, hidden: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        if layer == 3 and hidden.shape[0] > 70:
            failed.append(layer)
            raise torch.OutOfMemoryError("injected")
        return real(self, layer, hidden, *rest, **options)

    monkeypatch.setattr(Layers, "__call__", scarce)
    found = engine.run(candidates(), SHORTLIST)
    assert failed and engine.token_budget <= budget // 2
    assert found.exit_layers.tolist() == alone(SHORTLIST)[0].tolist()


def test_out_of_memory_while_heads_are_asked_loses_no_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(subject()[0], token_budget=900)
    real, failed = engine._exit_step, []

    def scarce(wave: Wave, layer: int, *rest: Any) -> None:
        real(wave, layer, *rest)
        if layer == 2 and not failed:
            failed.append(layer)
            raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(engine, "_exit_step", scarce)
    found = engine.run(candidates(), SHORTLIST)
    assert failed and found.exit_layers.tolist() == alone(SHORTLIST)[0].tolist()


def test_a_list_that_does_not_fit_in_pieces_of_one_row_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(Layers, "__call__", none_left)
    with pytest.raises(torch.OutOfMemoryError, match="injected"):
        run(candidates())


def test_rows_are_compared_only_where_they_have_lists() -> None:
    with pytest.raises(pf.InputError, match=r"use it with pf\.rerank"):
        run(replace(candidates(), lists=None))
    with pytest.raises(pf.InputError, match=r"use it with pf\.rerank"):
        pf.accelerate(tiny_model("bert", num_labels=1), SHORTLIST)


def test_policies_that_look_at_each_row_alone_see_no_lists() -> None:
    policy = pf.Patience(1, threshold=0.2)
    with_lists, without = run(candidates(), policy), run(replace(candidates(), lists=None), policy)
    assert with_lists.exit_layers.tolist() == without.exit_layers.tolist()


@settings(max_examples=60)
@given(data=st.data())
def test_waves_hold_whole_lists_within_the_budget(data: st.DataObject) -> None:
    rows = data.draw(st.integers(0, 30))
    lengths = np.array(data.draw(st.lists(st.integers(1, 9), min_size=rows, max_size=rows)), np.int64)
    lists = np.array(data.draw(st.lists(st.integers(0, 6), min_size=rows, max_size=rows)), np.int64)
    waves = plan_lists(lengths, lists, budget := data.draw(st.integers(9, 40)), budget)
    assert sorted(row for wave in waves for row in wave.tolist()) == list(range(rows))
    held = [set(lists[wave].tolist()) for wave in waves]
    assert sum(map(len, held)) == len(set(lists.tolist())), "a list is in two waves"
    assert all(lengths[wave].sum() <= budget or len(of) == 1 for wave, of in zip(waves, held, strict=True))
    assert all((np.diff(lengths[wave]) <= 0).all() for wave in waves)


def test_a_candidate_longer_than_the_budget_asked_for_is_refused() -> None:
    with pytest.raises(pf.InputError, match=f"token_budget=39, but row {len(LISTS) - 1} has 40 tokens"):
        run(candidates(), token_budget=39)


def test_scores_that_are_not_finite_stay_and_set_no_bar() -> None:
    scores = torch.tensor([float("nan"), float("inf"), 3.0, 2.0, 1.0, float("-inf")])
    keep, lists = torch.ones(6, dtype=torch.int8), torch.zeros(6, dtype=torch.int64)
    assert bars(scores, keep, lists, 1, 2).tolist() == [2.0]
    assert staying(scores, keep, lists, 1, Among(2, 0.5)).tolist() == [1, 1, 1, 1, 0, 0]


def test_candidates_that_have_left_stay_away_and_set_no_bar() -> None:
    scores, keep = torch.tensor([9.0, 3.0, 2.0, 1.0]), torch.tensor([0, 1, 1, 1], dtype=torch.int8)
    assert staying(scores, keep, torch.zeros(4, dtype=torch.int64), 1, Among(2, 0.0)).tolist() == [0, 1, 1, 0]


def test_of_equal_scores_at_the_bar_all_stay() -> None:
    scores, keep = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0]), torch.ones(5, dtype=torch.int8)
    assert staying(scores, keep, torch.zeros(5, dtype=torch.int64), 1, Among(2, 0.0)).tolist() == [1, 1, 1, 1, 0]


def test_the_score_of_a_label_is_its_log_odds() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    p = logits.softmax(dim=1)[0, 1]
    assert_close(scores_of(logits, 1), torch.logit(p)[None])
    assert scores_of(torch.tensor([[4.0]])).tolist() == [4.0]
