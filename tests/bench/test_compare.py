"""Two commits held against each other: a made-up repository whose one function sleeps for longer or less."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bench import compare
from bench.compare import Verdict

SOURCE = """
import time

def work():
    print("what a case prints goes elsewhere")
    time.sleep({seconds})

{more}
"""
# Lies beside the harness's `bench` for the measuring processes alone.
CASES = """
import pabee_fast

def cases(device):
    return {"work": lambda: pabee_fast.work, "newer": lambda: pabee_fast.newer}
"""


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three commits: fast, slow, and one that has another function."""
    folder = tmp_path_factory.mktemp("repository")
    git(folder, "init", "--quiet")
    (folder / "pabee_fast").mkdir()
    versions = {"fast": (0.01, ""), "slow": (0.03, ""), "other": (0.01, "newer = work")}
    for name, (seconds, more) in versions.items():
        (folder / "pabee_fast" / "__init__.py").write_text(SOURCE.format(seconds=seconds, more=more))
        (folder / "made_up_cases.py").write_text(CASES)
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message", name)
        git(folder, "tag", name)
    return folder


def run(repository: Path, *revisions: str) -> int:
    options = ["--pairs", "2", "--rounds", "3", "--cases", "made_up_cases", "--repository", str(repository)]
    return compare.main([*revisions, *options])


def test_a_slower_commit_is_an_error_and_a_faster_one_is_not(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(repository, "fast", "slow") == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["slower"] == ["work"]
    assert 2 < found["ratios"]["work"]["ratio"] < 4
    assert run(repository, "slow", "fast") == 0
    assert "faster" in capsys.readouterr().out
    worktrees = subprocess.run(["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True)
    assert len(worktrees.stdout.splitlines()) == 1, "its checkouts were left behind"


def test_a_case_that_one_commit_cannot_run_is_named_and_left_out(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(repository, "fast", "other")
    out = capsys.readouterr().out
    assert "newer: not compared, fast: AttributeError" in out
    assert "newer" not in json.loads(out.splitlines()[-1])["ratios"]


def test_an_unknown_revision_is_git_s_error(repository: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        run(repository, "fast", "nowhere")


def made_up(ratio: float, noise: float, pairs: int = 5, rounds: int = 9) -> list[list[float]]:
    rng = np.random.default_rng(1)
    return (ratio * np.exp(noise * (rng.normal(size=(pairs, 1)) + rng.normal(size=(pairs, rounds))))).tolist()


@pytest.mark.parametrize(
    ("ratio", "noise", "word"),
    [
        (1.0, 0.02, "same"),
        (1.0, 0.3, "same"),
        (1.03, 0.005, "same"),  # less than what is called noise
        (1.2, 0.02, "slower"),
        (1.2, 0.5, "same"),  # drowned in it
        (0.8, 0.02, "faster"),
    ],
)
def test_a_difference_counts_where_its_whole_interval_lies_beyond_noise(ratio: float, noise: float, word: str) -> None:
    verdict = Verdict.of(made_up(ratio, noise))
    assert verdict.word == word
    assert verdict.low <= verdict.ratio <= verdict.high


def test_rounds_of_one_pair_do_not_pass_for_independent() -> None:
    # Two processes that happened to run slow, and three that did not: no number of rounds makes that a regression.
    verdict = Verdict.of([[1.3] * 100, [1.3] * 100, *[[1.0] * 100] * 3])
    assert verdict.word == "same"
