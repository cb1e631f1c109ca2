"""Batches of any kind get the columns of a job."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import pabee_fast as pf
from tests.jobs.conftest import text_of

FIXED: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1}
TEXTS = [text_of(row) for row in range(8)]
RESULTS = [f"p_{name}" for name in ("prediction", "score", "exit_layer", "error", "score_bad", "score_so-so")]


@pytest.fixture(scope="module")
def scorer(small_model: Path) -> pf.BatchScorer:
    return pf.BatchScorer(small_model, pf.Patience(1), prefix="p_", all_scores=True, **FIXED)


def test_batches_of_every_kind_get_the_same_columns(scorer: pf.BatchScorer) -> None:
    pandas = pytest.importorskip("pandas")
    arrow = scorer(pa.table({"text": TEXTS}))
    assert arrow.column_names == ["text", *RESULTS, "p_score_good"]
    record = scorer(pa.RecordBatch.from_pydict({"text": TEXTS}))
    assert isinstance(record, pa.RecordBatch) and pa.Table.from_batches([record]).equals(arrow)
    numpy = scorer({"text": np.array(TEXTS, dtype=object)})
    lists = scorer({"text": TEXTS})
    frame = scorer(pandas.DataFrame({"text": TEXTS}, index=range(20, 28)))
    assert list(frame.index) == list(range(20, 28))
    for name in arrow.column_names:
        values = arrow[name].to_pylist()
        assert values == list(numpy[name]) == list(lists[name]) == list(frame[name].to_numpy())
    assert isinstance(lists["p_score"], np.ndarray)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_columns_have_one_dtype_whatever_rows_are_in_them(scorer: pf.BatchScorer, missing: Any) -> None:
    pandas = pytest.importorskip("pandas")
    whole, holed = (scorer(pandas.DataFrame({"text": ["good film", last]})) for last in ("bad film", missing))
    wide, deep = (scorer({"text": np.array(["good film", last], dtype=object)}) for last in ("bad film", None))
    for one, other in ((whole, holed), (wide, deep)):
        assert {name: one[name].dtype for name in RESULTS} == {name: other[name].dtype for name in RESULTS}
        assert one["p_exit_layer"].dtype == np.int32 and other["p_exit_layer"][1] == 0
        assert other["p_error"][1].startswith("the text is null")


def test_pairs_are_two_columns(small_model: Path) -> None:
    scorer = pf.BatchScorer(small_model, "full-depth", ["a", "b"], **FIXED)
    got = scorer({"a": ["good film"], "b": ["bad"]})
    (want,) = pf.Scorer.from_pretrained(small_model, "full-depth", device="cpu", dtype="float32").score(
        [("good film", "bad")]
    )
    assert got["prediction"][0] == want.prediction and got["score"][0] == pytest.approx(want.score)
    with pytest.raises(pf.InputError, match="two for pairs"):
        pf.BatchScorer(small_model, text_columns=("a", "b", "c"))


def test_batches_that_lack_the_text_have_the_results_or_are_none_are_refused(scorer: pf.BatchScorer) -> None:
    with pytest.raises(pf.InputError, match="no column text; its columns are other"):
        scorer({"other": np.array(["a"])})
    with pytest.raises(pf.InputError, match="p_score already"):
        scorer({"text": np.array(["a"], dtype=object), "p_score": np.array([1])})
    with pytest.raises(pf.InputError, match="the batch is a list: give a pyarrow table"):
        scorer(TEXTS)


def test_a_copy_is_loaded_anew_and_answers_the_same(scorer: pf.BatchScorer) -> None:
    sent = pickle.dumps(scorer)
    assert len(sent) < 2_000, "the model went with it"
    for again in (pickle.loads(sent), copy.copy(scorer)):
        assert again(pa.table({"text": TEXTS})).equals(scorer(pa.table({"text": TEXTS})))
