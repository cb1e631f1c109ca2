"""Killed at any moment, a job loses and doubles nothing: by SIGKILL, at named moments and random ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.kills import OF_A_TABLE, POINTS
from tests.conftest import ROOT
from tests.jobs.conftest import put_rows

pytestmark = pytest.mark.slow


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills children that were forked")
@pytest.mark.parametrize(("suffix", "options"), [(".csv", ["--random", "5"]), ("/", ["--random", "0"])])
def test_a_killed_job_goes_on_and_leaves_the_same_bytes(
    suffix: str, options: list[str], small_model: Path, tmp_path: Path
) -> None:
    source = put_rows(tmp_path / "in.jsonl", 130, row40=None)
    arguments = ["--model", small_model, "--input", source, "--work", tmp_path / "work", "--suffix", suffix, *options]
    command = [sys.executable, "-m", "bench.kills", *map(str, arguments), "--part-rows", "13"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["survived"] == figures["kills"]
    named = [record["kill"] for record in figures["records"] if record["kill"] != "random"]
    assert named == [point for point in POINTS if suffix != "/" or point not in OF_A_TABLE]
    assert suffix == "/" or figures["kills"] == len(POINTS) + 5
