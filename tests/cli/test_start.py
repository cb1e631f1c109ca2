"""What a command does before torch is imported: it answers, or says what is wrong with what it was given."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROGRAM = """
import sys
from pabee_fast.cli import main
sys.argv[0] = "pabee-fast"
try:
    main()
finally:
    heavy = {"torch", "transformers", "scipy", "pandas"} & set(sys.modules)
    print(f"imported: {sorted(heavy)}", file=sys.stderr)
"""


def answer(*words: object) -> tuple[int, str]:
    """A command's exit status and all that it says, in a process of its own; fails if it imports what takes long."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stderr.endswith("imported: []\n"), done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr.removesuffix("imported: []\n")


@pytest.mark.parametrize(
    "words", ["--help", "--version", "score --help", "train --help", "fit --speed 3", "info extra"]
)
def test_what_is_asked_about_the_command_itself_is_answered_without_torch(words: str) -> None:
    status, said = answer(*words.split())
    assert status == (0 if "--" in words.split()[-1] else 2)
    assert said


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table with labels."""
    path = tmp_path / "in.csv"
    path.write_text("text,label\ngood,1\nbad,0\n")
    return path


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--policy patients:3", "full-depth"),
        ("--dtype int8", "dtype='int8'"),
        ("--device tpu", "device='tpu'"),
        ("--devices cpu,tpu", "device='tpu'"),
        ("--engine spark", "engine='spark'"),
        ("--workers 3", "workers are for engine=ray"),
        ("--log-format xml", "log_format='xml'"),
        ("--quoting all", "quoting='all'"),
        ("--max-length 0", "max_length=0"),
        ("--token-budget 0", "token_budget=0"),
        ("--part-rows 0", "part_rows=0"),
        ("--max-errors -1", "max_errors=-1"),
        ("--audit 2", "audit=2.0"),
        ("--format xlsx", "format='xlsx'"),
        ("--text-column body", "no column 'body'"),
        ("--model ./absent", "no such directory"),
        ("--output absent/out.csv", "absent"),
        ("--output there.csv", "--overwrite"),
        ("absent.csv", "absent.csv"),
    ],
)
def test_score_refuses_without_torch(options: str, says: str, table: Path) -> None:
    (table.parent / "there.csv").write_text("mine")
    words = options.replace("there.csv", str(table.parent / "there.csv")).split()
    output = [] if "--output" in words else ["--output", table.parent / "out.csv"]
    status, said = answer("score", table, "--model", "some/model", *output, *words)
    assert (status, said.count("\n")) == (2, 1), said
    assert says in said


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        ("fit", "--held-out 1", "held_out=1.0"),
        ("fit", "--alpha 2", "alpha=2.0"),
        ("fit", "--first-layer 0", "first_layer=0"),
        ("fit", "--seed -1", "seed=-1"),
        ("fit", "--output taken", "--overwrite"),
        ("fit", "--model ./absent", "no such directory"),
        ("train", "--epochs 0", "epochs=0"),
        ("train", "--schedule steps", "schedule='steps'"),
        ("train", "--teacher t --temperature 0", "temperature=0.0"),
        ("train", "--eval absent.csv", "absent.csv"),
    ],
)
def test_fit_and_train_refuse_without_torch(command: str, options: str, says: str, table: Path) -> None:
    taken = table.parent / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    words = options.replace("taken", str(taken)).split()
    output = [] if "--output" in words else ["--output", table.parent / "out"]
    status, said = answer(command, table, "--model", "some/model", *output, *words)
    assert (status, said.count("\n")) == (2, 1), said
    assert says in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("tune in.csv --model absent", "no model directory"),
        ("tune in.csv --model absent --epsilon 2", "epsilon=2.0"),
        ("tune in.csv --model absent --plot pdf", "plot='pdf'"),
        ("tune --model absent", "either a table"),
        ("report in.csv --model some/model --output page.pdf", "name it .html"),
        ("report absent.csv --model some/model --output page.html", "absent.csv"),
        ("info --dtype int8", "dtype='int8'"),
    ],
)
def test_tune_report_and_info_refuse_without_torch(words: str, says: str, table: Path) -> None:
    status, said = answer(*words.replace("in.csv", str(table)).split())
    assert (status, said.count("\n")) == (2, 1), said
    assert says in said


@pytest.mark.slow
def test_a_command_that_ran_ends_without_a_word_on_stderr() -> None:
    words = [sys.executable, "-m", "pabee_fast", "info", "--device", "cpu"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout and not done.stderr
