"""The scorer by name: which policy it takes, what it says of it, and where a stored guarantee is void."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import pabee_fast as pf
from pabee_fast.calibration.guarantee import store_guarantee
from pabee_fast.calibration.risks import Risk
from pabee_fast.jobs.recipe import Recipe
from pabee_fast.scoring.conditions import Conditions
from tests import zoo
from tests.conftest import tiny_model

POLICY = pf.Patience(1)
TEXTS = ["good film", "a very long and bad film", "not bad", "this film was good, very good!"]
PAIRS = [(text, "good film") for text in TEXTS]
PLACE: dict[str, Any] = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def plain(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with heads, in which no policy is stored."""
    folder = tmp_path_factory.mktemp("plain")
    labels = {0: "bad", 1: "so-so", 2: "good"}
    tiny_model("bert", vocab_size=len(tiny_tokenizer), id2label=labels).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tuned(plain: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a policy that is guaranteed for single texts."""
    folder = tmp_path_factory.mktemp("tuned")
    pf.from_pretrained(plain).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    conditions = pf.Scorer.from_pretrained(folder, pf.FullDepth(), **PLACE).conditions()
    of = dataclasses.replace(conditions, texts=1)
    store_guarantee(folder, pf.Guarantee(POLICY, Risk("disagreement"), 0.05, 0.05, 100, 1, 50, 0.5, of))
    return folder


def test_the_stored_policy_is_used_and_its_promise_told(
    tuned: Path, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    scorer = pf.Scorer.from_pretrained(tuned, **PLACE)
    assert isinstance(scorer, pf.Scorer)
    assert scorer.policy == POLICY and not scorer.is_void and not caplog.records
    assert scorer.guarantee is not None and scorer.guarantee.epsilon == 0.05
    assert scorer.policy_reason == f"stored with the model; {scorer.guarantee.statement()}"
    other = pf.Scorer(pf.from_pretrained(tuned, dtype=torch.float32), tiny_tokenizer, policy=POLICY)
    results = list(scorer.score(TEXTS))
    assert results == list(other.score(TEXTS))
    assert scorer.predict(TEXTS) == [result.prediction for result in results]


@pytest.mark.parametrize(
    ("options", "says"),
    [({"dtype": torch.bfloat16}, "give dtype float32"), ({"max_length": 16}, "cut at 48"), ({"texts": 2}, "pairs")],
)
def test_where_the_promise_is_void_no_row_leaves_early_and_a_warning_says_so_once(
    tuned: Path, options: dict[str, Any], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    scorer = pf.Scorer.from_pretrained(tuned, **PLACE | options)
    assert scorer.policy == pf.FullDepth() and scorer.guarantee is None and scorer.is_void
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "void here" in record.message and says in record.message and says in scorer.policy_reason
    assert {result.exit_layer for result in scorer.score(PAIRS if "texts" in options else TEXTS)} == {6}


@pytest.mark.parametrize("policy", [None, POLICY])
def test_a_worker_hashes_the_weights_once(tuned: Path, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Any] = []
    real = Conditions.of
    monkeypatch.setattr(Conditions, "of", lambda *args: (hashed.append(args), real(*args))[1])
    worker, about = Recipe(str(tuned), policy, device="cpu", dtype="float32").worker()
    worker.stop()
    assert len(hashed) == 1 and about.identity["policy"] == str(POLICY)


def test_rows_that_the_promise_does_not_speak_of_are_refused(tuned: Path) -> None:
    scorer = pf.Scorer.from_pretrained(tuned, **PLACE)
    with pytest.raises(pf.InputError, match=r"of single texts, and these are pairs of texts: .*texts=2"):
        list(scorer.score(PAIRS))
    assert scorer.predict([None], on_error="none") == [None]
    scorer.policy = POLICY
    assert scorer.guarantee is None and scorer.policy_reason == "asked for"
    assert len(scorer.predict(PAIRS)) == 4


def test_what_was_chosen_without_a_stored_policy_is_said(plain: Path, tuned: Path, tiny_tokenizer: Any) -> None:
    named = pf.Scorer.from_pretrained(tuned, "patience:2", **PLACE)
    assert (named.policy, named.policy_reason, named.guarantee) == (pf.Patience(2), "asked for", None)
    default = pf.Scorer.from_pretrained(plain, **PLACE)
    assert default.policy == pf.FullDepth() and "leaves nowhere in 6 layers" in default.policy_reason
    assert not default.is_void
    model = pf.from_pretrained(tuned)
    own = pf.Scorer(model, tiny_tokenizer)
    assert own.policy == pf.FullDepth() and "no policy was named; Scorer.from_pretrained" in own.policy_reason
    pf.accelerate(model, pf.FixedDepth(2))
    assert "accelerated" in pf.Scorer(model, tiny_tokenizer).policy_reason


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"policy": "patiens:6"}, "patiens"),
        ({"policy": pf.Scheduled((1, 2))}, "pf.accelerate"),
        ({"window": 0}, "window=0"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"dtype": torch.int8}, "dtype='int8'"),
    ],
)
def test_what_cannot_be_used_is_refused(plain: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(pf.InputError, match=says):
        pf.Scorer.from_pretrained(plain, **PLACE | options)


def test_predict_gives_labels_values_and_sets_of_single_texts_and_of_pairs(plain: Path, tiny_tokenizer: Any) -> None:
    scorer = pf.Scorer.from_pretrained(plain, "full-depth", **PLACE)
    for rows in (TEXTS, PAIRS):
        assert scorer.predict(rows) == [result.prediction for result in scorer.score(rows)]
    assert set(scorer.predict(TEXTS)) <= {"bad", "so-so", "good"}
    value = pf.Scorer(zoo.stock_model("bert", num_labels=1, vocab_size=len(tiny_tokenizer)), tiny_tokenizer)
    assert all(isinstance(answer, float) for answer in value.predict(TEXTS))
    assert value.predict([]) == []


def test_predict_raises_or_leaves_out_rows_that_cannot_be_scored(plain: Path) -> None:
    scorer = pf.Scorer.from_pretrained(plain, "full-depth", **PLACE)
    with pytest.raises(pf.InputError, match=r'row 1: the text is null; .*on_error="none"'):
        scorer.predict(["good film", None])
    assert scorer.predict(["good film", None], on_error="none") == [*scorer.predict(["good film"]), None]
    with pytest.raises(pf.InputError, match="on_error='skip': give raise or none"):
        scorer.predict([], on_error="skip")  # type: ignore[arg-type]
    with pytest.raises(pf.InputError, match="rows is one text"):
        scorer.predict("good film")
