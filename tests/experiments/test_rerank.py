"""The study of reranking: the whole way on made-up rows and a tiny encoder."""

import json
import sys
from pathlib import Path

import pytest

from experiments.rerank import __main__ as study
from experiments.rerank.__main__ import candidates, overlap

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("heads", ["fit", "taught"])
def test_the_study_goes_from_rows_to_figures_and_repeats_no_step(
    heads: str,
    encoder: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = {
        "candidates": 12,
        "top-k": 3,
        "fit-queries": 8,
        "taught-queries": 8,
        "tune-queries": 30,
        "test-queries": 4,
        "rounds": 1,
    }
    words = [f"--{name}={value}" for name, value in {**sizes, "epsilon": 0.4, "delta": 0.4, "heads": heads}.items()]
    where = ["--data", str(data), "--encoder", str(encoder), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", ["rerank", *where, *words])
    study.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["guarantee"]["rows"] + found["guarantee"]["ordering_rows"] == 30
    clock = found["clock"]
    assert clock["full_depth_overlap_with_cross_encoder"] == 1.0 and 0 <= clock["overlap_with_cross_encoder"] <= 1
    assert sum(clock["exits"].values()) == clock["pairs"] == 48

    monkeypatch.setattr(study, "teach", lambda *args, **kwargs: pytest.fail("taught a second time"))
    monkeypatch.setattr(study.pf, "fit", lambda *args, **kwargs: pytest.fail("fitted a second time"))
    monkeypatch.setattr(study.pf, "trace", lambda *args, **kwargs: pytest.fail("traced a second time"))
    study.main()


def test_candidates_are_the_nearest_others_and_none_is_the_query(data: Path) -> None:
    lists = candidates(data, "test", 5, 7)
    assert [len(documents) for documents in lists.documents] == [7] * 5
    assert all(query not in documents for query, documents in zip(lists.queries, lists.documents, strict=True))
    assert candidates(data, "test", 5, 7) == lists


def test_overlap_is_the_share_of_the_expected_that_is_found() -> None:
    ranked = [[[{"corpus_id": place} for place in ids] for ids in each] for each in ([[1, 2], [3]], [[2, 1], [4]])]
    assert overlap(*ranked) == 0.5
