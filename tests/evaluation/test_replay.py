"""Traces and replay: the runtime's own answers, policy by policy, without the model."""

import functools
import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

import pabee_fast as pf
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.packed import pack
from tests.conftest import FAMILIES, padded_rows, tiny_model
from tests.tolerances import assert_close

TEXTS = ["a bad film", "good", "this was not what the film is and it was long", "", "very very", "a a a", "the , it !"]
POLICIES = [
    *(pf.Patience(patience) for patience in (1, 2, 6)),
    pf.Patience(1, first_layer=2, every=2),
    pf.Confidence(0.7),
    pf.Entropy(0.6, first_layer=2),
    pf.PatientConfidence(2, 0.9),
    pf.PatientDivergence(1, 0.03),
    pf.PatientDivergence(2, 0.1, every=2),
    pf.Vote(1.4),
    pf.FullDepth(),
    pf.FixedDepth(3),
    pf.Scheduled((6, 2, 1, 5, 3, 4, 2), every=2),
]


def made_up(rows: int = 40, layers: int = 6, classes: int = 3, seed: int = 0, kind: str = "label") -> pf.Trace:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, rows, classes, generator=generator).cumsum(0)
    return pf.Trace(logits, torch.randint(1, 30, (rows,), generator=generator), kind, "made up")  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_replay_equals_the_runtime(family: str, policy: pf.Policy, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer
    found = pf.replay(pf.trace(model, tokenizer, TEXTS), policy)
    scorer = pf.Scorer(model, tokenizer, policy=policy)
    results = list(scorer.score(TEXTS))
    assert found.exit_layers.tolist() == [result.exit_layer for result in results]
    assert found.logits.argmax(dim=1).tolist() == [model.config.label2id[result.prediction] for result in results]


@pytest.mark.parametrize(("outputs", "problem_type"), [(1, "regression"), (3, "multi_label_classification")])
def test_replay_equals_the_runtime_for_other_answers(outputs: int, problem_type: str) -> None:
    model = tiny_model("bert", num_labels=outputs)
    model.config.problem_type = problem_type
    policy = pf.Patience(1, threshold=0.3 if outputs == 1 else None)
    engine, lengths = Engine(model), [5, 9, 2, 14, 7, 3]
    batch = pack(functools.partial(engine.family.position_ids, model), **padded_rows(lengths))
    out = engine.run(batch, policy)
    made = pf.Trace(engine.every_head(batch), torch.tensor(lengths), engine.kind, "")
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


def test_a_policy_that_is_stricter_never_leaves_earlier() -> None:
    replayer = pf.Replayer(made_up(rows=200))
    exits = [replayer.replay(pf.Confidence(threshold)).exit_layers for threshold in (0.5, 0.7, 0.9, 0.99)]
    assert all((later >= earlier).all() for earlier, later in itertools.pairwise(exits))
    assert exits[0].float().mean() < exits[-1].float().mean()


def test_layer_ratio_weighs_rows_by_their_tokens() -> None:
    made = made_up(rows=2, layers=6)
    made = pf.Trace(made.logits, torch.tensor([10, 30]), "label", "")
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
    assert back.labels is not None
    assert back.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    back.check_model(model)
    with pytest.raises(pf.InputError, match="another model"):
        back.check_model(tiny_model("bert", seed=5))


@pytest.mark.parametrize(
    ("labels", "says"),
    [([0, 1], r"labels is \[2\] for 7 rows"), ([0, 1, 2, 3, 0, 0, 0], "from 0 to 2"), ([0.5] * 7, "whole numbers")],
)
def test_labels_that_do_not_fit_are_refused(
    labels: list[float], says: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(pf.InputError, match=says):
        pf.trace(tiny_model("bert"), tiny_tokenizer, TEXTS, labels=labels)


def test_nothing_to_trace_and_rows_without_text_are_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model, tokenizer = tiny_model("bert"), tiny_tokenizer
    with pytest.raises(pf.InputError, match="rows is empty"):
        pf.trace(model, tokenizer, [])
    with pytest.raises(pf.InputError, match="row 1: the text is null"):
        pf.trace(model, tokenizer, ["one", None])


def test_a_policy_that_does_not_fit_the_trace_is_refused() -> None:
    with pytest.raises(pf.InputError, match="one output"):
        pf.replay(made_up(classes=1, kind="value"), pf.Confidence(0.9))
    with pytest.raises(pf.InputError, match="2 exit layers for 40 rows"):
        pf.replay(made_up(), pf.Scheduled((1, 2)))
