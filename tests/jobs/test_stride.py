"""A job whose long texts are read whole: counted, resumed, and never taken for one whose texts are cut."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import pabee_fast as pf
from pabee_fast.cli import app
from tests.jobs.conftest import put_rows, text_of

FIXED: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1, "max_length": 10, "part_rows": 20}


def score(table: Path, model: Path, output: Path, *options: object) -> Any:
    words = ["score", table, "--model", model, "--output", output, "--policy", "patience:1", "--max-length", 10]
    return CliRunner().invoke(app, [str(word) for word in (*words, "--device", "cpu", "--dtype", "float32", *options)])


def test_a_table_has_the_answers_of_a_scorer_and_the_summary_counts(small_model: Path, tmp_path: Path) -> None:
    source, told = put_rows(tmp_path / "in.jsonl", 60, row7=None), list[int]()
    summary = pf.score_table(
        source, tmp_path / "out.jsonl", small_model, "patience:1", stride=2, audit=0.5,
        on_part=lambda progress: told.append(progress.tally.rows), **FIXED,
    )  # fmt: skip
    scorer = pf.Scorer.from_pretrained(
        small_model, "patience:1", device="cpu", dtype="float32", max_length=10, stride=2
    )
    rows = [None if row == 7 else text_of(row) for row in range(60)]
    wanted, found = list(scorer.score(rows)), list(map(json.loads, (tmp_path / "out.jsonl").open()))
    assert [row["prediction"] for row in found] == [result.prediction for result in wanted]
    assert [row["exit_layer"] for row in found] == [result.exit_layer for result in wanted]
    assert (summary.rows, summary.errors, summary.truncated) == (60, 1, 0) and told == [0, 20, 40, 60]
    assert (summary.long, summary.stretches) == (scorer.tally.long, scorer.tally.stretches)
    assert summary.long > 20 and summary.stretches > 2 * summary.long
    assert summary.exits == dict(sorted(scorer.tally.exits.items()))


def test_the_summary_says_what_became_of_long_texts_and_what_to_do(small_model: Path, tmp_path: Path) -> None:
    source = put_rows(tmp_path / "in.jsonl", 30)
    cut = score(source, small_model, tmp_path / "cut.csv").output
    assert "rows were longer than the limit and were cut at 10 tokens: --stride reads texts whole" in cut
    done = score(source, small_model, tmp_path / "whole.csv", "--stride", 2)
    assert "stretches that overlap by 2" in done.output and "were cut" not in done.output
    end = json.loads(
        score(source, small_model, tmp_path / "json.csv", "--stride", 2, "--log-format", "json").stderr.splitlines()[-1]
    )
    assert end["long"] > 0 and end["stretches"] > end["long"] and end["settings"]["stride"] == "2"


def test_a_begun_job_goes_on_with_its_stride_alone(small_model: Path, tmp_path: Path) -> None:
    source, output = put_rows(tmp_path / "in.jsonl", 60), tmp_path / "out.csv"

    def stop(progress: Any) -> None:
        if progress.parts == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pf.score_table(source, output, small_model, "patience:1", stride=2, on_part=stop, **FIXED)
    for other, says in ((None, "stride was 2 and is unset"), (3, "stride was 2 and is 3")):
        with pytest.raises(pf.InputError, match=says):
            pf.score_table(source, output, small_model, "patience:1", stride=other, **FIXED)
    summary = pf.score_table(source, output, small_model, "patience:1", stride=2, **FIXED)
    assert summary.resumed == 20
    pf.score_table(source, tmp_path / "whole.csv", small_model, "patience:1", stride=2, **FIXED)
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_batches_read_long_texts_whole_and_pairs_are_refused(small_model: Path) -> None:
    texts = [text_of(row) for row in range(20)]
    options = {name: value for name, value in FIXED.items() if name != "part_rows"} | {"stride": 2}
    found = pf.BatchScorer(small_model, "patience:1", **options)({"text": texts})
    scorer = pf.Scorer.from_pretrained(
        small_model, "patience:1", device="cpu", dtype="float32", max_length=10, stride=2
    )
    assert found["exit_layer"].tolist() == [result.exit_layer for result in scorer.score(texts)]
    with pytest.raises(pf.InputError, match="stride=2: single texts are read in stretches, and these are pairs"):
        pf.BatchScorer(small_model, "patience:1", ("a", "b"), **options)


def test_standard_input_is_read_so_too(small_model: Path, tmp_path: Path) -> None:
    source = put_rows(tmp_path / "in.jsonl", 12)
    words = ["score", "-", "--output", "-", "--model", small_model, "--policy", "patience:1", "--max-length", "10"]
    done = subprocess.run(
        [sys.executable, "-m", "pabee_fast", *map(str, words), "--stride", "2", "--device", "cpu"],
        input=source.read_text(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 12
    assert "stretches that overlap by 2" in done.stderr
