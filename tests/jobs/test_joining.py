"""The table of a job's parts, made while they are: the bytes that joining them at the end makes, and no trace of it
where the job ends otherwise."""

import queue
import threading
from pathlib import Path
from typing import Any

import pytest

from pabee_fast.jobs import joining as joining_module
from pabee_fast.jobs import output as output_module
from pabee_fast.jobs.executor import Executor
from pabee_fast.jobs.manifest import Manifest
from pabee_fast.jobs.output import Output
from pabee_fast.scoring.tally import Tally
from pabee_fast.tables import write
from pabee_fast.tables.bytes import compressed, compression
from pabee_fast.tables.durable import sha256_of
from pabee_fast.tables.open import open_table
from pabee_fast.tables.source import Part
from pabee_fast.tables.write import join_tables
from tests.jobs.conftest import RunJob, put_rows
from tests.jobs.test_job import Stop, begin, names_in
from tests.tables.cases import RESULTS, results_of


def threads_that_join() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("join")]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl", ".csv.gz", ".jsonl.zst"])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1], [3, 2, 1, 0]])
def test_a_table_made_while_parts_finish_in_any_order_has_the_bytes_of_one_made_at_the_end(
    order: list[int], suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: queue.SimpleQueue[str] = queue.SimpleQueue()
    monkeypatch.setattr(joining_module, "reached", added.put)
    monkeypatch.setattr(write, "_GROUP_ROWS", 12)  # more than one part, less than two
    source = open_table(put_rows(tmp_path / "in.jsonl", 40, row7='a "quoted",\n\tfilm'), ["text"], chunk_rows=10)
    chunks = list(source)
    output = Output.choose(str(tmp_path / f"out{suffix}"), [], None, overwrite=False)
    output.prepare()
    with Manifest(output.directory) as manifest:
        manifest.begin({})
        with output.joining(manifest, is_done=False) as joining:
            assert joining is not None
            ready = 0
            for index in order:
                part = Part(index, 0, 10 * index, 10, chunks[index].end)
                output.write_part(manifest, part, chunks[index], results_of(chunks[index]), RESULTS, Tally())
                joining.look()
                while ready in manifest.parts:
                    added.get(timeout=30)  # before the job's end
                    ready += 1
            output.finish(manifest, joining, is_done=False, overwrite=False, keep_parts=True)
        parts = [output.directory / manifest.parts[index].name for index in range(4)]
        assert manifest.tables[-1]["hash"] == sha256_of(tmp_path / f"out{suffix}")
    with (tmp_path / f"wanted{suffix}").open("wb") as file, compressed(file, compression(suffix)) as packed:
        join_tables(output.format, parts, packed)
    assert (tmp_path / f"out{suffix}").read_bytes() == (tmp_path / f"wanted{suffix}").read_bytes()
    assert threads_that_join() == []


def test_a_job_that_goes_on_joins_the_parts_of_its_earlier_run_as_it_begins(
    local: Executor, run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, added = put_rows(tmp_path / "in.jsonl", 45), queue.SimpleQueue[str]()
    begin(source, tmp_path / "out.csv", local, parts=3)
    with Manifest(tmp_path / "out.csv.parts") as manifest:
        earlier = next(index for index in range(4) if index not in manifest.parts)
    monkeypatch.setattr(joining_module, "reached", added.put)
    write_part, awaited = Output.write_part, ["a part"] * earlier

    def after_the_earlier(self: Output, *args: Any) -> None:
        while awaited:
            added.get(timeout=30)
            awaited.pop()
        write_part(self, *args)

    monkeypatch.setattr(Output, "write_part", after_the_earlier)
    run_job(source, tmp_path / "out.csv", part_rows=10)
    run_job(source, tmp_path / "whole.csv", part_rows=10)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize("is_broken", [False, True])
@pytest.mark.parametrize("suffix", [".parquet", ".csv.gz"])
def test_a_job_that_stops_leaves_no_half_joined_table_and_no_thread_and_tells_its_own_reason(
    suffix: str, is_broken: bool, local: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, parts = put_rows(tmp_path / "in.jsonl", 45), tmp_path / f"out{suffix}.parts"
    if is_broken:
        monkeypatch.setattr(output_module, "join_tables", no_space)
    begin(source, tmp_path / f"out{suffix}", local, parts=2)  # which raises what stops it
    assert threads_that_join() == []
    assert [name for name in names_in(parts) if not name.startswith(("part-", "_manifest"))] == []


def no_space(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_what_goes_wrong_in_joining_ends_the_job_whose_parts_are_kept(
    run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 45), tmp_path / "out.csv"
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(output_module, "join_tables", no_space)
        run_job(source, target, part_rows=10)
    assert threads_that_join() == [] and not target.exists()
    assert [name for name in names_in(tmp_path / "out.csv.parts") if name.endswith(".tmp")] == []
    assert run_job(source, target, part_rows=10).rows == 0
    assert len(target.read_text().splitlines()) == 46


def test_interrupting_the_wait_for_the_table_ends_its_thread(
    local: Executor, run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 25), tmp_path / "out.csv"

    def stop(self: Output, *_: Any, **__: Any) -> None:
        raise Stop

    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(joining_module.Joining, "finish", stop)
        run_job(source, target, part_rows=10)
    assert threads_that_join() == []
    assert [name for name in names_in(tmp_path / "out.csv.parts") if name.endswith(".tmp")] == []


def test_a_directory_of_parts_is_joined_by_nobody(tmp_path: Path) -> None:
    output = Output.choose(f"{tmp_path / 'out'}/", [], "csv", overwrite=False)
    output.prepare()
    with Manifest(output.directory) as manifest:
        manifest.begin({})
        with output.joining(manifest, is_done=False) as joining:
            assert joining is None and threads_that_join() == []
        assert manifest.files == set()
