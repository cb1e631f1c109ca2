"""Whose files lie where a job works: its own, which go and come with it, and others, which stay as they are."""

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pabee_fast.errors import InputError, JobError
from pabee_fast.jobs import manifest as manifest_module
from pabee_fast.jobs import output as output_module
from pabee_fast.jobs.executors import Executor, LocalExecutor
from pabee_fast.jobs.job import Columns, Job, JobOptions
from pabee_fast.jobs.manifest import NAME, Manifest
from tests.jobs.conftest import RunJob, put_rows
from tests.jobs.test_job import Stop, begin, names_in

LEFT = [
    b"",
    b'{"files": ["part-00000-user.parquet"]}',
    b'{"files": ["part-00000-user.parquet"]}\n',
    b"precious, and no newline",
    b'{"chain": "0", "record": {"kind": "job", "format": 1}}\n',
    b'{"chain": "',
]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("manifest", LEFT)
def test_a_directory_whose_manifest_is_no_jobs_is_left_as_it_is(
    manifest: bytes, overwrite: bool, tmp_path: Path
) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 5), tmp_path / "data"
    target.mkdir()
    for name in ("part-00000-user.parquet", "part-000000.parquet", "table.parquet"):
        (target / name).write_text("precious")
    (target / NAME).write_bytes(manifest)
    before = contents(target)
    with pytest.raises((InputError, JobError), match=r"is not what was written by a job|holds files that are not of a"):
        Job([str(source)], f"{target}/", Columns(["text"]), JobOptions(overwrite=overwrite))
    assert contents(target) == before


def test_a_directory_in_which_a_job_was_killed_as_it_began_is_begun_in(run_job: RunJob, tmp_path: Path) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 5), tmp_path / "out.csv"
    for written in (b"", b'{"ch', b'{"chain": "0123'):
        (tmp_path / "out.csv.parts").mkdir()
        (tmp_path / "out.csv.parts" / NAME).write_bytes(written)
        run_job(source, target)
        assert names_in(tmp_path) == ["in.jsonl", "out.csv"]
        target.unlink()


def test_overwriting_removes_what_the_manifest_names_and_refuses_where_there_is_more(
    run_job: RunJob, tmp_path: Path
) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 25), tmp_path / "out"
    run_job(source, f"{target}/", part_rows=10, format="csv")
    for name in ("part-000009.csv", "part-000001.parquet", "notes.txt", ".pabee-fast-mine.tmp"):
        (target / name).write_text("precious")
        before = contents(target)
        with pytest.raises(InputError, match=f"holds files that are not of a job.*'{name}'"):
            run_job(source, f"{target}/", part_rows=5, format="csv", overwrite=True)
        assert contents(target) == before
        (target / name).unlink()
    (target / ".pabee-fast-0123456789abcdef.tmp").write_text("half")
    assert run_job(source, f"{target}/", part_rows=20, format="csv", overwrite=True).rows == 25
    assert names_in(target) == [NAME, "part-000000.csv", "part-000001.csv"]


def test_overwriting_a_job_whose_manifest_is_damaged_removes_what_it_named_before_the_damage(
    run_job: RunJob, tmp_path: Path
) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 25), tmp_path / "out"
    run_job(source, f"{target}/", part_rows=10)
    lines = (target / NAME).read_bytes().splitlines(keepends=True)
    (target / NAME).write_bytes(b"".join([*lines[:-1], b"{}\n"]))
    with pytest.raises(JobError, match=r"is not what was written.*--overwrite"):
        run_job(source, f"{target}/", part_rows=5)
    run_job(source, f"{target}/", part_rows=20, overwrite=True)
    assert len(names_in(target)) == 3


def test_a_part_whose_name_another_file_has_taken_is_not_written(
    local: Executor, run_job: RunJob, tmp_path: Path
) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 45), tmp_path / "out"
    begin(source, f"{target}/", local, parts=2, format="csv")
    mine = next(name for part in range(5) if (name := f"part-00000{part}.csv") not in names_in(target))
    (target / mine).write_text("precious")
    with pytest.raises(JobError, match=f"{mine} is not of this job: move it away"):
        run_job(source, f"{target}/", part_rows=10, format="csv")
    assert (target / mine).read_text() == "precious"
    (target / mine).unlink()
    assert run_job(source, f"{target}/", part_rows=10, format="csv").tally.rows == 45


def a_manifest_that_is_a_link(folder: Path, victim: Path) -> None:
    (folder / "out.csv.parts").mkdir()
    (folder / "out.csv.parts" / NAME).symlink_to(victim)


def a_directory_that_is_a_link(folder: Path, victim: Path) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "out.csv.parts").symlink_to("elsewhere")


def a_directory_that_is_a_link_to_nowhere(folder: Path, victim: Path) -> None:
    (folder / "out.csv.parts").symlink_to("nowhere")


def a_directory_that_is_a_file(folder: Path, victim: Path) -> None:
    (folder / "out.csv.parts").write_text("precious")


@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize(
    "put",
    [
        a_manifest_that_is_a_link,
        a_directory_that_is_a_link,
        a_directory_that_is_a_link_to_nowhere,
        a_directory_that_is_a_file,
    ],
)
def test_links_and_files_in_the_place_of_what_a_job_makes_are_refused_and_not_followed(
    put: Callable[[Path, Path], None], dangling: bool, tmp_path: Path
) -> None:
    source, victim = put_rows(tmp_path / "in.jsonl", 5), tmp_path / "victim"
    if not dangling:
        victim.write_text("")
    put(tmp_path, victim)
    before = sorted(tmp_path.rglob("*"))
    for overwrite in (False, True):
        with pytest.raises((InputError, JobError), match=r"is a symbolic link|is a link or a file"):
            Job([str(source)], str(tmp_path / "out.csv"), Columns(["text"]), JobOptions(overwrite=overwrite))
    assert sorted(tmp_path.rglob("*")) == before
    assert dangling or victim.read_text() == ""


def test_a_directory_that_becomes_a_link_meanwhile_is_refused(local: Executor, tmp_path: Path) -> None:
    source = put_rows(tmp_path / "in.jsonl", 5)
    job = Job([str(source)], str(tmp_path / "out.csv"), Columns(["text"]))
    a_directory_that_is_a_link(tmp_path, tmp_path)
    with pytest.raises(InputError, match="is a link or a file"):
        job.run(local)
    assert names_in(tmp_path / "elsewhere") == []


def test_a_part_in_whose_place_a_link_lies_is_refused(local: Executor, run_job: RunJob, tmp_path: Path) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 35), tmp_path / "out.csv"
    begin(source, target, local, parts=1)
    (part,) = (tmp_path / "out.csv.parts").glob("part-*")
    part.rename(tmp_path / "moved")
    part.symlink_to(tmp_path / "moved")
    with pytest.raises(JobError, match="is no regular file"):
        run_job(source, target, part_rows=10)


def test_a_link_to_a_table_is_written_through(run_job: RunJob, tmp_path: Path) -> None:
    source = put_rows(tmp_path / "in.jsonl", 5)
    (tmp_path / "real").mkdir()
    (tmp_path / "out.csv").symlink_to("real/table.csv")  # which is to be made
    run_job(source, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").is_symlink() and names_in(tmp_path / "real") == ["table.csv"]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_job_whose_directory_is_taken_from_it_stops_and_writes_nothing_into_another(
    replaced: bool, local: Executor, tmp_path: Path
) -> None:
    source, parts = put_rows(tmp_path / "in.jsonl", 65), tmp_path / "out.csv.parts"
    job = Job([str(source)], str(tmp_path / "out.csv"), Columns(["text"]), JobOptions(part_rows=10))

    def take(progress: Any) -> None:
        if progress.parts == 2:
            shutil.rmtree(parts, ignore_errors=True)  # a file may be tidied up meanwhile
            if replaced:
                parts.mkdir()
                Manifest(parts).__exit__()

    with pytest.raises(JobError, match="was removed or replaced meanwhile"):
        job.run(local, take)
    assert not replaced or names_in(parts) == [NAME]


def test_a_manifest_that_was_removed_while_its_lock_was_waited_for_is_not_worked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", lambda *_: (tmp_path / NAME).unlink())
    with pytest.raises(JobError, match="removed or replaced"):
        Manifest(tmp_path)


def test_a_file_system_without_locks_is_told_of_once_and_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with Manifest(tmp_path) as manifest:
        manifest.begin({})
    assert "cannot be locked" in caplog.text


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_finished_directory_that_lost_parts_gets_them_again(
    format: str, run_job: RunJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 45), tmp_path / "out"
    run_job(source, f"{target}/", part_rows=10, format=format)
    before = contents(target)
    for lost in ([1], [0, 4], [0, 1, 2, 3, 4]):
        for part in lost:
            (target / f"part-00000{part}.{format}").unlink()
        summary = run_job(source, f"{target}/", part_rows=10, format=format)
        assert (summary.rows, summary.tally.rows) == (sum(5 if part == 4 else 10 for part in lost), 45)
        assert f"{len(lost)} parts are gone" in caplog.text
        assert {name: one for name, one in contents(target).items() if name != NAME} == {
            name: one for name, one in before.items() if name != NAME
        }
    assert run_job(source, f"{target}/", part_rows=10, format=format).rows == 0


def test_a_finished_directory_whose_part_has_another_size_is_refused(run_job: RunJob, tmp_path: Path) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 25), tmp_path / "out"
    run_job(source, f"{target}/", part_rows=10, format="csv")
    with (target / "part-000001.csv").open("a") as file:
        file.write("mine\n")
    with pytest.raises(JobError, match=r"part-000001.csv has \d+ bytes.*remove it, and the same command makes it"):
        run_job(source, f"{target}/", part_rows=10, format="csv")


def test_an_unfinished_job_makes_lost_parts_again(local: Executor, run_job: RunJob, tmp_path: Path) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 45), tmp_path / "out.csv"
    run_job(source, tmp_path / "apart.csv", part_rows=10)
    begin(source, target, local, parts=3)
    min((tmp_path / "out.csv.parts").glob("part-*")).unlink()
    assert run_job(source, target, part_rows=10).resumed == 20
    assert target.read_bytes() == (tmp_path / "apart.csv").read_bytes()


def test_a_file_of_others_among_the_parts_keeps_their_directory_and_the_table_is_whole(
    local: Executor, run_job: RunJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, target, parts = put_rows(tmp_path / "in.jsonl", 25), tmp_path / "out.csv", tmp_path / "out.csv.parts"
    begin(source, target, local, parts=1)
    (parts / "notes.txt").write_text("precious")
    run_job(source, target, part_rows=10)
    assert "out.csv.parts is left" in caplog.text
    assert len(target.read_text().splitlines()) == 26 and names_in(parts) == [NAME, "notes.txt"]
    (parts / "notes.txt").unlink()
    assert run_job(source, target, part_rows=10).rows == 0
    assert names_in(tmp_path) == ["in.jsonl", "out.csv"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "point", ["job: a file was removed", "job: the manifest is aside", "job: the directory is gone"]
)
def test_a_job_stopped_while_it_tidies_up_is_finished_by_the_same_command_and_no_other(
    point: str, overwrite: bool, run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 25), tmp_path / "out.csv"

    def stop(here: str) -> None:
        if here == point:
            raise Stop

    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(output_module, "reached", stop)
        run_job(source, target, part_rows=10, overwrite=overwrite)
    written = target.read_bytes()
    with pytest.raises(InputError, match="part_rows was 10 and is 5"):
        run_job(source, target, part_rows=5)
    assert run_job(source, target, part_rows=10, overwrite=overwrite).rows == 0
    assert target.read_bytes() == written and names_in(tmp_path) == ["in.jsonl", "out.csv"]
    with pytest.raises(InputError, match="exists"):
        run_job(source, target, part_rows=10)


@pytest.mark.parametrize("begun", [False, True])
def test_another_file_where_the_manifest_goes_while_the_directory_is_removed_is_left_as_it_is(
    begun: bool, local: Executor, tmp_path: Path
) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 25), tmp_path / "out.csv"
    if begun:
        begin(source, target, local, parts=1)
    aside = tmp_path / ".out.csv.parts.done"
    aside.write_text("precious")
    with pytest.raises(JobError, match="done is not what was written by a job: it was left as it is"):
        Job([str(source)], str(target), Columns(["text"]), JobOptions(overwrite=True))
    assert aside.read_text() == "precious" and (tmp_path / "out.csv.parts").exists() == begun


def test_trying_again_goes_on_where_it_was_stopped_between_the_record_of_the_new_table_and_its_place(
    local: Executor, run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 30), tmp_path / "out.jsonl"
    assert isinstance(local, LocalExecutor)
    start = local.worker.scorer.start

    def sick(batch: Any, *options: Any) -> Any:
        answers = start(batch, *options)()
        answers.logits[0] = float("inf")
        return lambda: answers

    with monkeypatch.context() as patched:
        patched.setattr(local.worker.scorer, "start", sick)
        assert run_job(source, target, part_rows=10).tally.failed == 3

    def stop(here: str) -> None:
        if b'"kind": "finished"' in (tmp_path / "out.jsonl.parts" / NAME).read_bytes().splitlines()[-1]:
            raise Stop

    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(manifest_module, "reached", stop)
        run_job(source, target, part_rows=10, retry_errors=True)
    assert run_job(source, target, part_rows=10, retry_errors=True).rows == 0
    assert all(json.loads(line)["error"] is None for line in target.read_text().splitlines())
    assert names_in(tmp_path) == ["in.jsonl", "out.jsonl"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of other kinds")
def test_a_replaced_table_keeps_its_permissions_and_a_new_one_has_the_umasks(run_job: RunJob, tmp_path: Path) -> None:
    source = put_rows(tmp_path / "in.jsonl", 5)
    for name, mode in (("out.csv", 0o640), ("out.parquet", 0o400), ("out.jsonl", 0o666)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
        run_job(source, tmp_path / name, overwrite=True)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode
    before = os.umask(0o027)
    try:
        run_job(source, tmp_path / "new.csv")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new.csv").stat().st_mode) == 0o640
