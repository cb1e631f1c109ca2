"""Rule 1: a row's result does not depend on its batch-mates, their order, the token budget or the compaction."""

import functools
import itertools
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

import pabee_fast as pf
from pabee_fast import transfer
from pabee_fast.modeling.loss import every_head
from pabee_fast.runtime import engine as engine_module
from pabee_fast.runtime import ops
from pabee_fast.runtime.bound import HeadStep
from pabee_fast.runtime.budget import LAUNCHES, TOKEN_BUDGETS
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.pack import pack
from pabee_fast.runtime.schedule import plan_waves
from pabee_fast.runtime.state import Results, Wave
from tests.alone import POLICIES, exit_alone
from tests.conftest import FAMILIES, padded_rows, tiny_model
from tests.tolerances import TOLERANCES, assert_close

ROWS = 24


@functools.cache
def subject(family: str) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """A model, and rows of every length from 1 token to the longest."""
    model = tiny_model(family, num_labels=2, seed=1)
    lengths = np.random.default_rng(7).integers(1, 40, ROWS).tolist()
    return model, padded_rows([1, 40, *lengths[2:]], family=family)


def run(family: str, rows: list[int], policy: pf.Policy, **options: float) -> Results:
    model, batch = subject(family)
    engine = Engine(model, **options)  # type: ignore[arg-type]
    packed = pack(model, **{k: v[rows] for k, v in batch.items()})
    return engine.run(packed, policy)


@functools.cache
def head_logits(family: str) -> torch.Tensor:
    """Every head's logits of each row alone through the stock layers, unpadded: [rows, layers, classes]."""
    model, batch = subject(family)
    rows = []
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        with torch.no_grad():
            forward = functools.partial(type(model).forward.__wrapped__, model)  # type: ignore[attr-defined]
            _, heads = every_head(model, forward, input_ids=ids[None, : int(mask.sum())])
        rows.append(torch.cat(heads))
    return torch.stack(rows)


@functools.cache
def independent(family: str, policy: pf.Policy) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every row's exit layer, logits there, and whether no comparison on the way hung on rounding."""
    logits = head_logits(family)
    exits, margins = zip(*(exit_alone(row, policy) for row in logits), strict=True)
    layers = torch.tensor(exits)
    return layers, logits[torch.arange(ROWS), layers - 1], torch.tensor(margins) > TOLERANCES[torch.float32]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_exits_and_logits_equal_an_independent_batch_of_one(family: str, policy: pf.Policy) -> None:
    exits, logits, decided = independent(family, policy)
    assert decided.sum() >= ROWS - 1, "the rows' answers hang on rounding; take another seed"
    out = run(family, list(range(ROWS)), policy)
    assert out.exit_layers[decided].tolist() == exits[decided].tolist()
    assert len(set(exits.tolist())) > 1, "every row left at one layer, so that compaction was not tested"
    assert (out.logits - logits)[decided].abs().max() / logits.abs().max() <= TOLERANCES[torch.float32]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_results_do_not_depend_on_batching_budget_waves_under_way_or_compaction(data: st.DataObject) -> None:
    family, policy = data.draw(st.sampled_from(FAMILIES)), data.draw(st.sampled_from(POLICIES))
    order = data.draw(st.permutations(range(ROWS)))
    cuts = sorted(data.draw(st.sets(st.integers(1, ROWS - 1), max_size=5)))
    options = {
        "token_budget": data.draw(st.integers(40, 400)),
        "under_way": data.draw(st.integers(1, 3)),
        "gather_cost": data.draw(st.sampled_from([0.0, 0.03, 2.0, float("inf"), None])),
    }
    launches = mock.patch.dict(LAUNCHES, cpu=data.draw(st.sampled_from([0.0, 1e6, 1e7])))
    together = run(family, list(range(ROWS)), policy)
    _, _, decided_rows = independent(family, policy)
    for first, last in itertools.pairwise([0, *cuts, ROWS]):
        rows = order[first:last]
        with launches:
            apart = run(family, rows, policy, **options)
        decided = decided_rows[rows]
        assert apart.exit_layers[decided].tolist() == together.exit_layers[rows][decided].tolist()
        same = apart.exit_layers == together.exit_layers[rows]
        difference = (apart.logits - together.logits[rows])[same].abs().max() / together.logits.abs().max()
        assert difference <= TOLERANCES[torch.float32]


def test_a_default_budget_refuses_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = subject("bert")
    packed = pack(model, **batch)
    expected = Engine(model).run(packed, pf.Patience(2))
    monkeypatch.setitem(TOKEN_BUDGETS, "cpu", 25)  # rows have up to 40 tokens
    engine = Engine(model)
    results = engine.run(packed, pf.Patience(2))
    assert results.exit_layers.tolist() == expected.exit_layers.tolist()
    assert_close(results.logits, expected.logits)
    assert_close(engine.every_head(packed)[-1], engine.run(packed, pf.FullDepth()).logits)


@pytest.mark.parametrize("under_way", [1, 2])
def test_out_of_memory_halves_the_budget_and_repeats_only_what_is_left(
    under_way: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = subject("bert")
    engine = Engine(model, token_budget=200, under_way=under_way)
    packed = pack(model, **batch)
    expected = engine.run(packed, pf.Patience(2))
    seen, real = [], engine._embed

    def scarce(*args: object) -> Wave:
        wave = real(*args)  # type: ignore[arg-type]
        tokens = wave.tokens
        seen.append(tokens)
        if len(seen) > 1 and tokens > 90:  # the first wave still fits
            raise torch.OutOfMemoryError("injected")
        return wave

    monkeypatch.setattr(engine, "_embed", scarce)
    out = engine.run(packed, pf.Patience(2))
    assert engine.token_budget <= 100
    assert max(seen[3:]) <= 100, "a later wave ignored the lowered budget"
    assert sum(seen) - sum(s for s in seen[1:] if s > 90) == packed.lengths.sum(), "a wave that had run was repeated"
    assert out.exit_layers.tolist() == expected.exit_layers.tolist()
    assert_close(out.logits, expected.logits)


def test_what_every_head_says_survives_an_out_of_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = subject("bert")
    engine = Engine(model, token_budget=200)
    packed = pack(model, **batch)
    logits = engine.every_head(packed)
    features, answers = engine.every_feature(packed, "mean")
    real, failed = engine._layer, []

    def scarce(layer: int, wave: Wave) -> torch.Tensor:
        if layer == 4 and wave.tokens > 90:
            failed.append(layer)
            raise torch.OutOfMemoryError("injected")
        return real(layer, wave)

    monkeypatch.setattr(engine, "_layer", scarce)
    assert_close(engine.every_head(packed), logits)
    engine.token_budget = 200
    again, last = engine.every_feature(packed, "mean")
    assert_close(again, features)
    assert_close(last, answers)
    assert len(failed) >= 2 and engine.token_budget <= 100


def test_a_row_longer_than_a_lowered_budget_is_still_computed() -> None:
    model, batch = subject("bert")
    engine = Engine(model, token_budget=200)
    packed = pack(model, **batch)
    expected = engine.run(packed, pf.Patience(2))
    engine.token_budget = 25  # as out-of-memory errors would leave it; rows have up to 40 tokens
    assert engine.run(packed, pf.Patience(2)).exit_layers.tolist() == expected.exit_layers.tolist()
    with pytest.raises(pf.InputError, match="token_budget=25"):
        Engine(model, token_budget=25).run(packed, pf.Patience(2))


def test_one_row_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = subject("bert")
    engine = Engine(model)
    packed = pack(model, **batch)

    def none_left(*args: object) -> None:
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(engine, "_embed", none_left)
    with pytest.raises(torch.OutOfMemoryError, match="injected"):
        engine.run(packed, pf.Patience(2))


class Counting:
    """Counts the calls of the runtime's seam to the kernels."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.layers_with_head: list[int] = []
        self.calls = {"_plan": 0, "gather": 0, "ReadBack": 0}
        real_step = HeadStep.__call__

        def step(bound: HeadStep, rows: ops.ExitRows, rule: ops.ExitRule) -> None:
            self.layers_with_head.append(rule.layer)
            real_step(bound, rows, rule)

        monkeypatch.setattr(HeadStep, "__call__", step)
        for home, name in ((Engine, "_plan"), (ops, "gather"), (engine_module, "ReadBack")):
            self._count(home, name, monkeypatch)

    def _count(self, home: object, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        real = getattr(home, name)

        def counted(*args: object, **kwargs: object) -> object:
            self.calls[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(home, name, counted)


def test_another_wave_runs_while_the_counts_of_the_first_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    events = watched_run(monkeypatch, 300, (6,) * (ROWS - 1) + (1,), under_way=2)
    assert [event.split(":")[0] for event in events[:6]] == ["layer 1", "layer 1", "wait", "layer 2", "wait", "layer 2"]


def test_survivors_of_several_waves_join_at_their_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each wave one row stays: together they run the layers that are left once, not wave by wave."""
    model, batch = subject("bert")
    lengths = pack(model, **batch).lengths
    waves = plan_waves(lengths, 200)
    assert len(waves) > 2
    stay = {int(wave[-1]) for wave in waves}
    events = watched_run(monkeypatch, 200, tuple(6 if row in stay else 2 for row in range(ROWS)), under_way=1)
    survivors = sum(int(lengths[row]) for row in stay)
    late = [event for event in events if event.startswith(("layer 3", "layer 4", "layer 5", "layer 6"))]
    assert sum(int(event.split()[2]) for event in late) == 4 * survivors
    assert len(late) < 4 * len(waves), "each wave went on alone, which is four layers for every one"


def test_a_wave_too_small_to_gain_by_a_compaction_is_asked_after_now_and_then_and_ends_with_its_last_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(LAUNCHES, "cpu", 1e12)
    exits = tuple(1 + row % 3 for row in range(ROWS))
    events = watched_run(monkeypatch, 2000, exits, under_way=1)
    model, batch = subject("bert")
    tokens = int(pack(model, **batch).lengths.sum())
    assert events == [*(f"layer {number}: {tokens} tokens" for number in range(1, 4)), "wait"]


def watched_run(monkeypatch: pytest.MonkeyPatch, budget: int, exits: tuple[int, ...], *, under_way: int) -> list[str]:
    """What a run does, in order: layers with their tokens, and waits for counts."""
    model, batch = subject("bert")
    engine = Engine(model, token_budget=budget, under_way=under_way)
    packed, events, real_layer = pack(model, **batch), [], engine._layer

    def layer(number: int, wave: Wave, pooling: str | None) -> torch.Tensor:
        events.append(f"layer {number}: {wave.tokens} tokens")
        return real_layer(number, wave, pooling)

    class ReadBack(transfer.ReadBack):
        def wait(self) -> list[int]:
            events.append("wait")
            return super().wait()

    monkeypatch.setattr(engine, "_layer", layer)
    monkeypatch.setattr("pabee_fast.runtime.engine.ReadBack", ReadBack)
    out = engine.run(packed, pf.Scheduled(exits))
    assert out.exit_layers.tolist() == list(exits)
    return events


def test_a_joined_wave_that_runs_out_of_memory_begins_again_in_smaller_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = subject("bert")
    exits = tuple(2 if row % 3 else 6 for row in range(ROWS))
    packed = pack(model, **batch)
    expected = Engine(model).run(packed, pf.Scheduled(exits))
    engine = Engine(model, token_budget=200)
    real, seen = engine._layer, []

    def scarce(number: int, wave: Wave, pooling: str | None) -> torch.Tensor:
        seen.append((number, wave.tokens))
        if number == 4 and wave.tokens > 90:
            raise torch.OutOfMemoryError("injected")
        return real(number, wave, pooling)

    monkeypatch.setattr(engine, "_layer", scarce)
    out = engine.run(packed, pf.Scheduled(exits))
    assert any(number == 4 and tokens > 90 for number, tokens in seen), "no wave was too large"
    assert out.exit_layers.tolist() == list(exits)
    assert_close(out.logits, expected.logits)


def test_nothing_is_read_back_or_moved_before_a_row_can_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = subject("bert")
    engine = Engine(model)
    packed = pack(model, **batch)
    batched = packed.select(np.arange(ROWS), torch.device("cpu"))
    seen = Counting(monkeypatch)
    selecting = len(batched.inputs)  # moves of the inputs themselves, once a wave

    engine.run(packed, pf.Patience(6))
    assert seen.layers_with_head == [6], "a policy that cannot leave early needs the last head alone"
    assert seen.calls == {"_plan": 0, "gather": selecting, "ReadBack": 0}

    seen.layers_with_head.clear()
    engine.run(packed, pf.Scheduled((6,) * ROWS))
    assert seen.layers_with_head == [1, 2, 3, 4, 5, 6]
    assert seen.calls == {"_plan": 0, "gather": 2 * selecting, "ReadBack": 0}

    engine.run(packed, pf.Scheduled((4,) * (ROWS // 2) + (6,) * (ROWS // 2)))
    assert seen.calls["_plan"] == seen.calls["ReadBack"] == 2, "layers 4 and 5"
    assert seen.calls["gather"] == 3 * selecting + 1, "one compaction, at layer 4; at 5 nobody leaves"

    engine.run(packed, pf.Scheduled((2,) * ROWS))
    assert seen.layers_with_head[-2:] == [1, 2], "the loop went on although nobody was left"
