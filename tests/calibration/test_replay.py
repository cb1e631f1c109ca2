"""Traces and replay: the runtime's own answers, policy by policy, without the model."""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

import pabee_fast as pf
from pabee_fast.policies import COMMAND_LINE, AnswerKind
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.pack import PackedBatch, pack
from tests.calibration.traces import CONDITIONS, made_up
from tests.conftest import FAMILIES, padded_rows, tiny_model
from tests.tolerances import assert_close

TEXTS = ["a bad film", "good", "this was not what the film is and it was long", "", "very very", "a a a", "the , it !"]
LENGTHS = [5, 9, 2, 14, 7, 3, 9, 1, 11, 6, 4, 8]
LAYERS = 6
"""Of the tiny models."""
POLICIES = [
    *(pf.Patience(patience) for patience in (1, 2, 6)),
    pf.Patience(1, first_layer=2, every=2),
    pf.Confidence(0.7),
    pf.Confidence(0.7, first_layer=3, every=2),
    pf.Entropy(0.6, first_layer=2),
    pf.PatientConfidence(2, 0.9),
    pf.PatientConfidence(1, 0.9, first_layer=2, every=3),
    pf.PatientDivergence(1, 0.03),
    pf.PatientDivergence(2, 0.1, every=2),
    pf.Vote(1.4),
    pf.Vote(0.8, 0.9, first_layer=2, every=2),
    pf.FullDepth(),
    pf.FixedDepth(3),
    pf.Scheduled((6, 2, 1, 5, 3, 4, 2), every=2),
]
OTHER_ANSWERS: list[tuple[int, str, AnswerKind]] = [
    (1, "regression", "value"),
    (3, "multi_label_classification", "label_set"),
]


@st.composite
def policies(draw: st.DrawFn, kind: AnswerKind, rows: int) -> pf.Policy:
    """Any policy that a model of such answers takes, on any grid of layers."""
    grid = {"first_layer": draw(st.integers(1, LAYERS)), "every": draw(st.integers(1, 3))}
    patience, share = st.integers(1, LAYERS), st.floats(0.02, 0.98)
    if kind == "label":
        rules = [
            st.builds(pf.Patience, patience, **_given(grid)),
            st.builds(pf.Confidence, st.floats(0.35, 0.98), **_given(grid)),
            st.builds(pf.Entropy, st.floats(0.05, 1.0), **_given(grid)),
            st.builds(pf.PatientConfidence, patience, share, **_given(grid)),
            st.builds(pf.PatientDivergence, patience, st.floats(1e-3, 0.5), **_given(grid)),
            st.builds(pf.Vote, st.floats(0.3, 2.5), st.floats(0.1, 1.0), **_given(grid)),
        ]
    else:
        threshold = st.floats(0.05, 1.5) if kind == "value" else st.none()
        rules = [st.builds(pf.Patience, patience, threshold, **_given(grid))]
    exits = st.lists(st.integers(1, LAYERS), min_size=rows, max_size=rows).map(tuple)
    rules += [st.just(pf.FullDepth()), st.builds(pf.FixedDepth, patience)]
    rules.append(st.builds(pf.Scheduled, exits, **_given(grid)))
    return draw(st.one_of(rules))


def _given(grid: dict[str, int]) -> dict[str, Any]:
    return {name: st.just(value) for name, value in grid.items()}


@functools.cache
def run_and_trace(kind: AnswerKind) -> tuple[Engine, PackedBatch, pf.Trace]:
    """A model in which one head overflows for some rows and one token is NaN at every layer."""
    outputs, problem_type = {"value": (1, "regression"), "label_set": (3, "multi_label_classification")}.get(
        kind, (3, "single_label_classification")
    )
    model = tiny_model("bert", num_labels=outputs, problem_type=problem_type)
    with torch.no_grad():
        model.exit_heads[2].weight[0] *= 2e38
        model.bert.embeddings.word_embeddings.weight[SPOILT] = float("nan")
    engine, rows = Engine(model), padded_rows(LENGTHS)
    rows["input_ids"][3, 0] = SPOILT
    batch = pack(model, **rows)
    return engine, batch, pf.Trace(engine.every_head(batch), torch.tensor(LENGTHS), engine.kind, CONDITIONS)


SPOILT = 3
"""A token that no row has by chance."""


def test_the_rows_that_hypothesis_is_given_hold_every_kind_of_trouble() -> None:
    _, _, made = run_and_trace("label")
    finite = made.logits.isfinite().all(dim=2)
    assert not finite[:, 3].any()
    assert 0 < int((~finite[2]).sum()) < len(LENGTHS)
    assert finite[[0, 1, 3, 4, 5]].sum() == 5 * (len(LENGTHS) - 1)


@pytest.mark.parametrize("kind", ["label", "value", "label_set"])
@settings(max_examples=60, derandomize=True, deadline=None)
@given(data=st.data())
def test_replay_equals_the_runtime_for_any_policy(kind: AnswerKind, data: st.DataObject) -> None:
    engine, batch, made = run_and_trace(kind)
    policy = data.draw(policies(kind, len(LENGTHS)))
    out, found = engine.run(batch, policy), pf.replay(made, policy)
    assert found.exit_layers.tolist() == out.exit_layers.tolist()
    finite = out.logits.isfinite()
    assert torch.equal(found.logits.isfinite(), finite)
    assert_close(found.logits[finite & (out.logits.abs() < 1e30)], out.logits[finite & (out.logits.abs() < 1e30)])


def test_the_policies_replayed_are_all_there_are() -> None:
    assert {type(policy) for policy in POLICIES} == {*COMMAND_LINE, pf.Scheduled}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_replay_equals_the_runtime(family: str, policy: pf.Policy, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer
    found = pf.replay(pf.trace(model, tokenizer, TEXTS), policy)
    scorer = pf.Scorer(model, tokenizer, policy=pf.FullDepth())
    results = scorer.engine.run(scorer.batch(TEXTS), policy)
    assert found.exit_layers.tolist() == results.exit_layers.tolist()
    assert found.logits.argmax(dim=1).tolist() == results.logits.argmax(dim=1).tolist()


@pytest.mark.parametrize(("outputs", "problem_type", "kind"), OTHER_ANSWERS)
def test_replay_equals_the_runtime_for_other_answers(outputs: int, problem_type: str, kind: AnswerKind) -> None:
    model = tiny_model("bert", num_labels=outputs, problem_type=problem_type)
    policy = pf.Patience(1, threshold=0.3 if outputs == 1 else None)
    engine, lengths = Engine(model), [5, 9, 2, 14, 7, 3]
    batch = pack(model, **padded_rows(lengths))
    out = engine.run(batch, policy)
    assert engine.kind == kind
    made = pf.Trace(engine.every_head(batch), torch.tensor(lengths), engine.kind, CONDITIONS)
    found = pf.replay(made, policy)
    assert found.exit_layers.tolist() == out.exit_layers.tolist()
    assert len(set(found.exit_layers.tolist())) > 1, "one exit layer says little"
    assert_close(found.logits, out.logits)


def test_a_row_whose_logits_are_not_finite_settles_where_the_runtime_would_settle_it() -> None:
    trace = made_up(rows=1, layers=5, classes=2)
    trace.logits[:, 0] = torch.tensor([[1, 0], [float("nan"), 0], [1, 0], [1, 0], [1, 0]])
    assert pf.replay(trace, pf.Patience(1)).exit_layers.tolist() == [4]
    assert pf.replay(trace, pf.Vote(1.4)).exit_layers.tolist() == [4]


@given(first_layer=st.integers(1, 4), every=st.integers(1, 3), seed=st.integers(0, 50))
def test_one_replayer_answers_as_a_new_one_for_every_policy(first_layer: int, every: int, seed: int) -> None:
    trace = made_up(seed=seed)
    replayer = pf.Replayer(trace, remembered=2)
    grid = {"first_layer": first_layer, "every": every}
    policies = [pf.Confidence(0.6, **grid), pf.Entropy(0.5), pf.Patience(1, **grid), pf.Confidence(0.9, **grid)]
    for policy in itertools.chain(policies, reversed(policies)):
        again = pf.replay(trace, policy)
        assert torch.equal(replayer.replay(policy).exit_layers, again.exit_layers)


def test_replaying_leaves_the_number_of_threads_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    try:
        pf.replay(made_up(), pf.Confidence(0.7))
        assert torch.get_num_threads() == 2
        monkeypatch.setattr("pabee_fast.runtime.ops.count", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pf.replay(made_up(), pf.Confidence(0.7))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_policy_that_is_stricter_never_leaves_earlier() -> None:
    replayer = pf.Replayer(made_up(rows=200))
    exits = [replayer.replay(pf.Confidence(threshold)).exit_layers for threshold in (0.5, 0.7, 0.9, 0.99)]
    assert all((later >= earlier).all() for earlier, later in itertools.pairwise(exits))
    assert exits[0].float().mean() < exits[-1].float().mean()


def test_layer_ratio_weighs_rows_by_their_tokens() -> None:
    made = made_up(rows=2, layers=6)
    made = pf.Trace(made.logits, torch.tensor([10, 30]), "label", CONDITIONS)
    found = pf.replay(made, pf.Scheduled((6, 2)))
    assert found.mean_exit_layer == 4
    assert found.layer_ratio == pytest.approx((40 * 6) / (10 * 6 + 30 * 2))


def test_a_trace_says_what_the_model_says_and_comes_back_from_its_file(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model, tokenizer = tiny_model("bert"), tiny_tokenizer
    made = pf.trace(model, tokenizer, TEXTS, labels=[0, 1, 2, 0, 1, 2, 0], window=3)
    with torch.no_grad():
        stock = model(**tokenizer(TEXTS, return_tensors="pt", padding=True)).logits
    assert_close(made.logits[-1], stock)
    assert (made.layers, len(made), made.classes) == (model.config.num_hidden_layers, len(TEXTS), 3)
    made.save(tmp_path / "trace.safetensors")
    back = pf.Trace.load(tmp_path / "trace.safetensors")
    assert torch.equal(back.logits, made.logits)
    assert torch.equal(back.lengths, made.lengths)
    assert back.conditions == made.conditions
    assert back.labels is not None
    assert back.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert (back.conditions.texts, repr(back)) == (1, "Trace(7 rows, 6 layers, 3 outputs, label answers, labels)")
    back.check_model(model)
    with pytest.raises(pf.InputError, match="another model"):
        back.check_model(tiny_model("bert", seed=5))


def test_traces_are_joined_with_what_is_known_of_the_rows_of_both() -> None:
    one, other = made_up(rows=5), made_up(rows=7, seed=1)
    both = one + dataclasses.replace(other, learned=torch.zeros(7, dtype=torch.int8))
    assert (len(both), both.layers, both.learned) == (12, 6, None)
    assert torch.equal(both.logits[:, 5:], other.logits) and torch.equal(both.lengths[:5], one.lengths)
    assert one.labels is not None and other.labels is not None and both.labels is not None
    assert both.labels.tolist() == [*one.labels.tolist(), *other.labels.tolist()]
    elsewhere = dataclasses.replace(other, conditions=dataclasses.replace(CONDITIONS, max_length=8))
    with pytest.raises(pf.InputError, match="cannot be joined: it was made with rows cut at 32 tokens"):
        one + elsewhere
    with pytest.raises(pf.InputError, match="cannot be joined: other heads"):
        one + made_up(rows=5, layers=4)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([0, 1], r"labels is \[2\] for 7 rows"),
        ([0, 1, 2, 3, 0, 0, 0], "from 0 to 2"),
        ([0.5] * 7, "whole numbers"),
        ([None] * 7, "as numbers"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    labels: list[float], says: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(pf.InputError, match=says):
        pf.trace(tiny_model("bert"), tiny_tokenizer, TEXTS, labels=labels)


def test_nothing_to_trace_and_rows_without_text_are_refused(
    tiny_tokenizer: PreTrainedTokenizerFast, bare_tokenizer: PreTrainedTokenizerFast
) -> None:
    model, tokenizer = tiny_model("bert"), tiny_tokenizer
    with pytest.raises(pf.InputError, match="rows is empty"):
        pf.trace(model, tokenizer, [])
    with pytest.raises(pf.InputError, match="row 3: the text is null"):
        pf.trace(model, tokenizer, ["one", "two", "three", None], window=2)
    with pytest.raises(pf.InputError, match=r"rows is one text \('one'\)"):
        pf.trace(model, tokenizer, "one")
    with pytest.raises(pf.InputError, match="row 1: the tokenizer gives the text no token"):
        pf.trace(model, bare_tokenizer, ["one", ""])


def test_a_policy_that_does_not_fit_the_trace_is_refused() -> None:
    with pytest.raises(pf.InputError, match="one output"):
        pf.replay(made_up(classes=1, kind="value"), pf.Confidence(0.9))
    with pytest.raises(pf.InputError, match="2 exit layers for 40 rows"):
        pf.replay(made_up(), pf.Scheduled((1, 2)))
