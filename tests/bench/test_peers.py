"""The benchmark of whole jobs on one device: answers first, what bounds a job, and stock's ways beside it."""

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import cases, job_cases, peers

pytestmark = pytest.mark.slow

SMALL = {**job_cases.TINY, "num_hidden_layers": 5}
OPTIONS = "--model bert-tiny --rows 40 --rounds 1 --stock-rows 8 --stock-batches 2 4 --device cpu --so-far"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cases.MODELS, "bert-tiny", SMALL)


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    monkeypatch.setattr(sys, "argv", ["peers", *OPTIONS.split()])
    peers.main()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


def test_jobs_are_held_against_the_slower_of_engine_and_tokenizer_and_told_as_they_come(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(
        peers, "stock_ways", lambda *args: {"a way": lambda texts, size: asked.append((len(texts), size))}
    )
    lines = run(monkeypatch, capsys)
    assert [list(line["jobs"]) for line in (lines[0], lines[1], lines[-1])] == [[], ["full-depth"], [*peers.POLICIES]]
    assert lines[-2]["partial"] and "partial" not in lines[-1]
    raw = max(lines[-1]["tokenizer_rows_per_second"].values())
    for figures in lines[-1]["jobs"].values():
        least = min(raw, figures["engine_rows_per_second"])
        assert figures["of_its_bound"] == pytest.approx(figures["job_rows_per_second"] / least)
    assert list(lines[-1]["stock_ways"]) == ["a way, batch 2", "a way, batch 4"]
    assert asked == [(2, 2), (8, 2), (4, 4), (8, 4)]  # a batch to warm each


def test_a_job_with_other_answers_than_the_engine_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = SimpleNamespace(to_pylist=lambda: [4] * 40)
    monkeypatch.setattr(peers.pq, "read_table", lambda path: {"exit_layer": table})
    args = argparse.Namespace(
        device="cpu", model="bert-tiny", rows=40, rounds=1, stock_rows=0, stock_batches=[], so_far=False
    )
    with pytest.raises(SystemExit, match="full-depth: the job's rows left at other layers"):
        peers.measure(args, tmp_path, lambda figures: None)


def test_stock_s_ways_score_every_text(tmp_path: Path) -> None:
    model = job_cases.make_model(tmp_path / "model", **SMALL)
    ways = peers.stock_ways(model, torch.device("cpu"), torch.float32)
    assert list(ways)[:2] == ["pipeline, sorted", "pipeline, input order"]
    for way in ways.values():
        assert len(way(["w1 w2", "w3", "w4 w5 w6"], 2)) == 3
