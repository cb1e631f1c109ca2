"""What a job reads, and what it is told when that is not what it was."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pytest

from pabee_fast.errors import InputError
from pabee_fast.jobs.executor import Executor
from pabee_fast.jobs.job import Columns, Job, JobOptions
from pabee_fast.tables.open import Reading
from pabee_fast.tables.write import check_columns
from tests.jobs.conftest import RunJob, put_rows
from tests.jobs.test_job import begin


def test_an_input_that_was_written_again_is_refused_unless_it_gets_its_time_back(
    local: Executor, run_job: RunJob, tmp_path: Path
) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 9_000), tmp_path / "out.csv"
    begin(source, target, local, parts=2)
    before, content = source.stat(), source.read_bytes()
    middle = len(content) // 3  # which no sample sees
    source.write_bytes(content[:middle] + content[middle : middle + 9].swapcase() + content[middle + 9 :])
    with pytest.raises(InputError, match=r"in.jsonl was written again meanwhile.*touch -d @\d+\.\d{9} FILE"):
        run_job(source, target, part_rows=10)
    source.write_bytes(content)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    begin(source, target, local, parts=3)  # it goes on


def test_a_directory_that_holds_the_output_is_scored_stopped_and_resumed(
    local: Executor, run_job: RunJob, tmp_path: Path
) -> None:
    folder, apart = tmp_path / "in", tmp_path / "apart.csv"
    folder.mkdir()
    put_rows(folder / "a.jsonl", 40)
    run_job(folder, apart, part_rows=10)
    begin(folder, folder / "out.csv", local, parts=2)
    assert run_job(folder, folder / "out.csv", part_rows=10).resumed == 20
    assert (folder / "out.csv").read_bytes() == apart.read_bytes()
    assert run_job(folder, folder / "out.csv", part_rows=10, overwrite=True).rows == 40


def test_a_column_that_the_outputs_format_cannot_hold_is_named_before_any_row(run_job: RunJob, tmp_path: Path) -> None:
    spans = pa.array([(1, 2, 3), None], pa.month_day_nano_interval())
    table = pa.table({"text": ["good film", "bad"], "span": spans})
    for kind in (pa.dictionary(pa.int32(), pa.list_(pa.int32())), pa.binary(0)):  # one fails with a row alone
        with pytest.raises(InputError, match="column 'span' is of type"):
            check_columns("parquet", pa.schema([("span", kind)]))
    with pa.ipc.new_file(tmp_path / "in.arrow", table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match=r"column 'span' is of type month_day_nano_interval.*write jsonl"):
        run_job(tmp_path / "in.arrow", tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet.parts").exists()
    run_job(tmp_path / "in.arrow", tmp_path / "out.jsonl")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = put_rows(tmp_path / "in.jsonl", 3)
    # Told by path: the superuser, whom some test runs have, may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    for output in ("out.csv", "out/"):
        with pytest.raises(InputError, match="cannot be written: no permission"):
            Job([str(source)], f"{tmp_path}/{output}", Columns(["text"]))
    (tmp_path / "out.csv").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "out.csv")
    Job([str(source)], f"{tmp_path}/out.csv", Columns(["text"]), JobOptions(overwrite=True))  # by a new name, renamed


def test_a_struct_without_fields_is_written_as_one(run_job: RunJob, tmp_path: Path) -> None:
    table = pa.table({"text": ["good film", "bad"], "meta": pa.array([{}, None], pa.struct([]))})
    with pa.ipc.new_file(tmp_path / "in.arrow", table.schema) as writer:
        writer.write_table(table)
    run_job(tmp_path / "in.arrow", tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["meta"] for row in rows] == [{}, None]


def test_a_job_goes_on_only_with_the_reading_it_was_begun_with(local: Executor, tmp_path: Path) -> None:
    source, target = tmp_path / "in.csv", str(tmp_path / "out.csv")
    source.write_text("id;text\n" + "".join(f"{row};good film\n" for row in range(40)), encoding="utf-8")

    def columns(*reading: str) -> Columns:
        return Columns(["text"], reading=Reading(*reading))

    begin(source, target, local, parts=2, columns=columns(";"))
    for other, told in (
        ((";", "none"), "quoting was unset and is 'none'"),
        ((";", "auto", "cp1252"), "encoding was un"),
    ):
        with pytest.raises(InputError, match=told):
            Job([str(source)], target, columns(*other), JobOptions(part_rows=10)).run(local)
    assert Job([str(source)], target, columns(";"), JobOptions(part_rows=10)).run(local).resumed == 20
