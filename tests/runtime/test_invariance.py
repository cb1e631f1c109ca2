"""Rule 1: a row's result does not depend on its batch-mates, their order, the token budget or the compaction."""

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

import pabee_fast as pf
from pabee_fast.runtime import ops
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.packed import pack
from pabee_fast.runtime.schedule import plan_waves
from pabee_fast.runtime.state import Results, Wave
from pabee_fast.training.objective import every_head
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
    packed = pack(functools.partial(engine.family.position_ids, model), **{k: v[rows] for k, v in batch.items()})
    return engine.run(packed, policy)


@functools.cache
def independent(
    family: str, patience: int, first_layer: int = 1, every: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each row alone through the stock layers, unpadded: exit layers, logits, and the least margin of any of its
    answers up to there, relative to its largest logit."""
    model, batch = subject(family)
    exits, logits, margins = [], [], []
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        with torch.no_grad():
            forward = functools.partial(type(model).forward.__wrapped__, model)  # type: ignore[attr-defined]
            _, heads = every_head(model, forward, input_ids=ids[None, : int(mask.sum())])
        streak, seen = 0, []
        for layer, head in enumerate(heads, start=1):
            if layer < len(heads) and (layer < first_layer or (layer - first_layer) % every):
                continue
            streak = streak + 1 if seen and seen[-1].argmax() == head[0].argmax() else 0
            seen.append(head[0])
            if streak == patience:
                break
        top = torch.stack(seen).topk(2, dim=1).values
        exits.append(layer)
        logits.append(seen[-1])
        margins.append(((top[:, 0] - top[:, 1]) / torch.stack(seen).abs().amax(dim=1)).min())
    return torch.tensor(exits), torch.stack(logits), torch.stack(margins)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("patience", "first_layer", "every"), [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)])
def test_exits_and_logits_equal_an_independent_batch_of_one(
    family: str, patience: int, first_layer: int, every: int
) -> None:
    exits, logits, margins = independent(family, patience, first_layer, every)
    decided = margins > TOLERANCES[torch.float32]
    assert decided.sum() >= ROWS - 1, "the rows' answers hang on rounding; take another seed"
    out = run(family, list(range(ROWS)), pf.Patience(patience, first_layer=first_layer, every=every))
    assert out.exit_layers[decided].tolist() == exits[decided].tolist()
    assert len(set(exits.tolist())) > 1, "every row left at one layer, so that compaction was not tested"
    assert (out.logits - logits)[decided].abs().max() / logits.abs().max() <= TOLERANCES[torch.float32]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_results_do_not_depend_on_batching_budget_or_compaction(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(FAMILIES))
    policy = pf.Patience(
        data.draw(st.integers(1, 4)), first_layer=data.draw(st.integers(1, 3)), every=data.draw(st.integers(1, 2))
    )
    order = data.draw(st.permutations(range(ROWS)))
    cuts = sorted(data.draw(st.sets(st.integers(1, ROWS - 1), max_size=5)))
    budget = data.draw(st.integers(40, 400))
    gather_cost = data.draw(st.sampled_from([0.0, 0.03, 2.0, float("inf")]))
    together = run(family, list(range(ROWS)), policy)
    _, _, margins = independent(family, 6)
    for first, last in itertools.pairwise([0, *cuts, ROWS]):
        rows = order[first:last]
        apart = run(family, rows, policy, token_budget=budget, gather_cost=gather_cost)
        decided = margins[rows] > TOLERANCES[torch.float32]
        assert apart.exit_layers[decided].tolist() == together.exit_layers[rows][decided].tolist()
        same = apart.exit_layers == together.exit_layers[rows]
        difference = (apart.logits - together.logits[rows])[same].abs().max() / together.logits.abs().max()
        assert difference <= TOLERANCES[torch.float32]


@given(st.lists(st.integers(1, 50), max_size=80), st.integers(50, 300))
def test_waves_hold_every_row_once_within_the_budget_and_longest_first(lengths: list[int], budget: int) -> None:
    sizes = np.array(lengths, dtype=np.int64)
    waves = plan_waves(sizes, budget)
    assert sorted(itertools.chain(*waves)) == list(range(len(lengths)))
    assert all(sizes[wave].sum() <= budget for wave in waves)
    in_order = [int(sizes[row]) for wave in waves for row in wave]
    assert in_order == sorted(in_order, reverse=True)
    for wave, following in itertools.pairwise(waves):
        assert sizes[wave].sum() + sizes[following[0]] > budget, "a row was left out although it would have fitted"


def test_a_row_longer_than_the_budget_is_refused_by_name() -> None:
    with pytest.raises(pf.InputError, match="row 1 has 9 tokens"):
        plan_waves(np.array([3, 9]), 8)


def test_out_of_memory_halves_the_budget_and_repeats_only_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = subject("bert")
    engine = Engine(model, token_budget=200)
    packed = pack(functools.partial(engine.family.position_ids, model), **batch)
    expected = engine.run(packed, pf.Patience(2))
    seen, real = [], engine._advance

    def scarce(wave: Wave, *args: object) -> None:
        tokens = wave.hidden.shape[1]
        seen.append(tokens)
        if len(seen) > 1 and tokens > 90:  # the first wave still fits
            raise torch.OutOfMemoryError("injected")
        real(wave, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "_advance", scarce)
    out = engine.run(packed, pf.Patience(2))
    assert engine.token_budget <= 100
    assert max(seen[3:]) <= 100, "a later wave ignored the lowered budget"
    assert sum(seen) - sum(s for s in seen[1:] if s > 90) == packed.lengths.sum(), "a wave that had run was repeated"
    assert out.exit_layers.tolist() == expected.exit_layers.tolist()
    assert_close(out.logits, expected.logits)


def test_a_row_longer_than_a_lowered_budget_is_still_computed() -> None:
    model, batch = subject("bert")
    engine = Engine(model, token_budget=200)
    packed = pack(functools.partial(engine.family.position_ids, model), **batch)
    expected = engine.run(packed, pf.Patience(2))
    engine.token_budget = 25  # as out-of-memory errors would leave it; rows have up to 40 tokens
    assert engine.run(packed, pf.Patience(2)).exit_layers.tolist() == expected.exit_layers.tolist()
    with pytest.raises(pf.InputError, match="token_budget=25"):
        Engine(model, token_budget=25).run(packed, pf.Patience(2))


def test_one_row_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = subject("bert")
    engine = Engine(model)
    packed = pack(functools.partial(engine.family.position_ids, model), **batch)

    def none_left(*args: object) -> None:
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(engine, "_advance", none_left)
    with pytest.raises(torch.OutOfMemoryError, match="injected"):
        engine.run(packed, pf.Patience(2))


class Counting:
    """Counts the calls of the runtime's seam to the kernels."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.layers_with_head: list[int] = []
        self.calls = {"plan": 0, "gather": 0, "read_back": 0}
        real_step = ops.exit_step

        def step(*args: object, **kwargs: object) -> None:
            self.layers_with_head.append(int(kwargs["layer"]))  # type: ignore[call-overload]
            real_step(*args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(ops, "exit_step", step)
        for name in self.calls:
            self._count(name, monkeypatch)

    def _count(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        real = getattr(ops, name)

        def counted(*args: object, **kwargs: object) -> object:
            self.calls[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(ops, name, counted)


def test_nothing_is_read_back_or_moved_before_a_row_can_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = subject("bert")
    engine = Engine(model)
    packed = pack(functools.partial(engine.family.position_ids, model), **batch)
    batched = packed.select(np.arange(ROWS), torch.device("cpu"))
    seen = Counting(monkeypatch)
    selecting = len(batched.inputs)  # moves of the inputs themselves, once a wave

    engine.run(packed, pf.Patience(6))
    assert seen.layers_with_head == [6], "a policy that cannot leave early needs the last head alone"
    assert seen.calls == {"plan": 0, "gather": selecting, "read_back": 0}

    seen.layers_with_head.clear()
    engine.run(packed, pf.Scheduled((6,) * ROWS))
    assert seen.layers_with_head == [1, 2, 3, 4, 5, 6]
    assert seen.calls == {"plan": 0, "gather": 2 * selecting, "read_back": 0}

    engine.run(packed, pf.Scheduled((4,) * (ROWS // 2) + (6,) * (ROWS // 2)))
    assert seen.calls["plan"] == seen.calls["read_back"] == 2, "layers 4 and 5"
    assert seen.calls["gather"] == 3 * selecting + 1, "one compaction, at layer 4; at 5 nobody leaves"

    engine.run(packed, pf.Scheduled((2,) * ROWS))
    assert seen.layers_with_head[-2:] == [1, 2], "the loop went on although nobody was left"
