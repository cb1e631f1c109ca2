"""Outcomes of tests that are kept as they come, so that a run that is cut short leaves them."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench import kept

ROOT = Path(__file__).parents[2]

TESTS = """
import os, pytest

def test_a():
    pass

def test_b():
    assert 3 == 4

@pytest.mark.skip
def test_c():
    pass

@pytest.fixture
def broken():
    raise ValueError("in set-up")

def test_d(broken):
    pass

class Benchmark:
    extra_info = {"variants": {"kernel": {"op": "gather"}}}

@pytest.fixture
def benchmark():
    return Benchmark()

def test_e(benchmark):
    pass

def test_f():
    os._exit(9)  # as when it is killed
"""


@pytest.mark.parametrize("processes", [0, 2])
def test_each_outcome_is_there_though_the_run_was_killed(tmp_path: Path, processes: int) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    options = ["-p", "bench.kept", "--kept", "kept", "-p", "no:benchmark", "-p", "no:cacheprovider"]
    if processes:
        options += ["-n", str(processes), "--max-worker-restart", "0"]
    command = [sys.executable, "-m", "pytest", "-q", *options, "test_it.py"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, env={"PYTHONPATH": str(ROOT), "PATH": ""}, check=False)
    found = {line["test"].removeprefix("test_it.py::"): line for line in kept.read(tmp_path / "kept")}
    outcomes = {name: line["outcome"] for name, line in found.items() if name != "test_f"}
    expected = {"a": "passed", "b": "failed", "c": "skipped", "d": "failed", "e": "passed"}
    assert outcomes == {f"test_{name}": outcome for name, outcome in expected.items()}
    assert "assert 3 == 4" in found["test_b"]["message"] and "in set-up" in found["test_d"]["message"]
    assert found["test_e"]["variants"] == {"kernel": {"op": "gather"}}


def test_a_line_that_was_not_finished_and_a_file_that_is_not_there_say_nothing(tmp_path: Path) -> None:
    assert list(kept.read(tmp_path / "kept")) == []
    (tmp_path / "kept").write_text('{"test": "a", "outcome": "passed"}\n{"test": "b", "outc')
    assert [line["test"] for line in kept.read(tmp_path / "kept")] == ["a"]
