"""The job benchmark: its cases run, its table says what was measured, its last line is one JSON document."""

import json
import sys
from pathlib import Path

import pytest

from bench import job


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[str, dict]:
    monkeypatch.setattr(sys, "argv", ["job", *map(str, words)])
    job.main()
    *lines, last = capsys.readouterr().out.splitlines()
    return "\n".join(lines), json.loads(last)


@pytest.mark.filterwarnings("ignore:patience")
def test_resuming_is_timed_from_the_jobs_start_to_its_first_new_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told, figures = run(monkeypatch, capsys, "resume", "--work", tmp_path, "--parts", 4)
    assert figures["resume"]["rows_resumed"] == 4 * job.PART_ROWS
    assert 0 < figures["resume"]["seconds_to_first_new_row"] < 60
    assert "| first new row after 4 finished parts |" in told and figures["hardware"] in told


def test_whole_jobs_and_the_engine_alone_take_turns_on_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make = job.job_cases.make_model
    small = {**job.job_cases.TINY, "num_hidden_layers": 5}
    monkeypatch.setattr(job.job_cases, "make_model", lambda folder, **sizes: make(folder, **{**small, **sizes}))
    told, figures = run(monkeypatch, capsys, "ratio", "--work", tmp_path, "--rows", 40, "--rounds", 1)
    for policy in ("full-depth", "fixed-depth:4"):
        one = figures["ratio"][policy]
        assert min(one["ratio"], one["ratio_of_cpu_seconds"], one["job_rows_per_second"]) > 0
        assert 0 < one["device_busy"] <= 1
        assert policy in told
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 41
