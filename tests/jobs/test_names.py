"""Names that are not UTF-8, or that hold what steers a terminal: read, written, and shown without harm."""

import gzip
import logging
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pabee_fast import cli
from pabee_fast.calibration.audit import chosen
from pabee_fast.cli.show import show_plainly
from pabee_fast.jobs.executors import Executor
from pabee_fast.shown import plain
from pabee_fast.tables.open import open_table
from tests.jobs.conftest import RunJob, put_rows
from tests.jobs.test_job import begin
from tests.tables.cases import SUFFIXES, put, texts_of

ODD = "bad\udcff"
"""What Python makes of a name with the byte 255, which UTF-8 lacks."""
TEXTS = ["good film", "bad"]


def put_odd(path: Path) -> Path:
    """A table under a name that is not UTF-8, renamed to it from one that is."""
    named = path.parent.parent / f"plain{''.join(path.suffixes)}"
    if path.suffix == ".arrow":
        table = pa.table({"text": TEXTS})
        with pa.ipc.new_file(named, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".gz":
        named.write_bytes(gzip.compress(put(named.with_name("plain.csv"), TEXTS).read_bytes()))
    else:
        put(named, TEXTS)
    return named.rename(path)


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder in which such names can be."""
    try:
        (tmp_path / ODD).mkdir()
    except OSError:
        pytest.skip("this file system takes no names that are not UTF-8")
    return tmp_path / ODD


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".arrow", ".csv.gz"])
def test_a_table_whose_name_is_not_utf8_is_read(suffix: str, odd: Path) -> None:
    assert texts_of(open_table(put_odd(odd / f"{ODD}{suffix}"), ["text"])) == TEXTS


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_job_whose_names_are_not_utf8_is_stopped_goes_on_and_is_audited(
    suffix: str, odd: Path, local: Executor, run_job: RunJob
) -> None:
    source, target = put_rows(odd / f"{ODD}.jsonl", 40), odd / f"out{ODD}{suffix}"
    begin(source, target, local, parts=2)
    assert run_job(source, target, part_rows=10).resumed == 20
    assert len(texts_of(open_table(target, ["text"]))) == 40
    run_job(source, f"{odd}/parts{ODD}/", part_rows=10)
    assert chosen(source.name, 0, 40, 0.5).any()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("caf\xe9 \u65e5", "caf\xe9 \u65e5"),
        ("a\x1b[31m\x07b", r"a\x1b[31m\x07b"),
        ("a\nb\tc\x7f\x9b", r"a\nb\tc\x7f\x9b"),
        ("a\u202egpj.csv", r"a\u202egpj.csv"),
        (ODD, r"bad\udcff"),
    ],
)
def test_what_steers_a_terminal_is_shown_as_an_escape(name: str, shown: str) -> None:
    assert plain(name) == shown


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pabee-fast", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_shows_names_without_letting_them_steer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], odd: Path, small_model: Path
) -> None:
    score: tuple[Any, ...] = ("score", put_odd(odd / f"{ODD}.csv"), "--model", small_model, "--policy", "full-depth")
    assert run(monkeypatch, *score, "--output", odd / f"{ODD}\x1b[31m.csv") == 0
    assert r"bad\udcff\x1b[31m.csv" in capsys.readouterr().out.splitlines()[-1]
    assert (
        run(
            monkeypatch,
            "score",
            odd / f"{ODD}\x1b[31m.csv",
            *score[2:],
            "--output",
            odd / "o.csv",
            "--text-column",
            "\x1b",
        )
        == 2
    )
    assert run(monkeypatch, "score", odd / "absent\x1b[31m.csv", *score[2:], "--output", odd / "o.csv") == 2
    told = capsys.readouterr().err
    assert "\x1b" not in told and r"absent\x1b[31m.csv" in told


def test_a_warning_shows_names_without_letting_them_steer() -> None:
    show_plainly()
    assert logging.lastResort is not None
    record = logging.LogRecord("x", logging.WARNING, "x.py", 1, "%s: told", ("a\x1b[31m",), None)
    assert logging.lastResort.format(record) == r"a\x1b[31m: told"
