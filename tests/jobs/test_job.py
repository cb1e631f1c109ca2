"""A job: stopped anywhere it goes on, and what it leaves is what an undisturbed one leaves."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pabee_fast as pf
from pabee_fast.errors import InputError, JobError
from pabee_fast.jobs.executor import Executor
from pabee_fast.jobs.executors import LocalExecutor
from pabee_fast.jobs.job import Columns, Job, JobOptions, Progress
from pabee_fast.jobs.manifest import NAME, Manifest
from pabee_fast.jobs.recipe import Recipe
from pabee_fast.jobs.worker import Worker
from pabee_fast.scoring.load import Setting
from pabee_fast.scoring.tally import Seconds, Tally
from tests.jobs.conftest import RunJob, put_rows
from tests.tables.cases import SUFFIXES


class Stop(Exception):
    """What stops a job in a test."""


def stop_after(parts: int, error: type[BaseException] = Stop) -> Any:
    def on_part(progress: Progress) -> None:
        if progress.parts == parts:
            raise error

    return on_part


def begin(source: Path, target: object, executor: Executor, parts: int = 3, **options: Any) -> None:
    """A job that stops after so many parts."""
    columns = options.pop("columns", Columns(["text"]))
    job = Job([str(source)], str(target), columns, JobOptions(part_rows=10, **options))
    with pytest.raises(Stop):
        job.run(executor, stop_after(parts))


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".csv.gz", ".tsv.bz2", ".jsonl.zst"])
def test_a_stopped_job_goes_on_and_leaves_the_same_table(
    suffix: str, local: Executor, run_job: RunJob, tmp_path: Path
) -> None:
    source = put_rows(tmp_path / "in.jsonl", 95, row7=None, row50='a "quoted",\n\tfilm')
    undisturbed, resumed = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    run_job(source, undisturbed, part_rows=10)
    begin(source, resumed, local)
    assert not resumed.exists()
    assert len(names_in(tmp_path / f"out{suffix}.parts")) == 4  # three parts and the manifest
    summary = run_job(source, resumed, part_rows=10)
    assert (summary.resumed, summary.rows, summary.tally.rows, summary.tally.errors) == (30, 65, 95, 1)
    assert resumed.read_bytes() == undisturbed.read_bytes()
    assert names_in(tmp_path) == sorted(["in.jsonl", undisturbed.name, resumed.name])


def test_parts_that_are_done_are_not_scored_again(
    local: Executor, run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 95), tmp_path / "out.csv"
    begin(source, target, local)
    firsts: list[int] = []
    score = Worker.score
    monkeypatch.setattr(Worker, "score", lambda self, task: (firsts.append(task.first_row), score(self, task))[1])
    run_job(source, target, part_rows=10)
    assert len(firsts) == 7 and len(set(firsts)) == 7


def test_a_job_on_several_files_is_one_table_in_their_order(local: Executor, run_job: RunJob, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(4):
        put_rows(tmp_path / "in" / f"{number}.jsonl", 7 * number, first=100 * number)
    begin(tmp_path / "in", tmp_path / "out.parquet", local, parts=2)
    run_job(tmp_path / "in", tmp_path / "out.parquet", part_rows=10)
    ids = pq.read_table(tmp_path / "out.parquet").column("id").to_pylist()
    assert ids == [100 * number + row for number in range(4) for row in range(7 * number)]


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv"])
def test_a_directory_of_parts_holds_whole_tables_and_can_be_added_up(
    format: str, local: Executor, run_job: RunJob, tmp_path: Path
) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 25), f"{tmp_path / 'out'}/"
    begin(source, target, local, parts=1, format=format)
    run_job(source, target, part_rows=10, format=format)
    assert names_in(tmp_path / "out") == [NAME, *(f"part-00000{part}.{format}" for part in range(3))]
    again = run_job(source, target, part_rows=10, format=format)
    assert (again.rows, again.resumed, again.tally.rows) == (0, 25, 25)
    if format == "parquet":
        import pyarrow.dataset

        assert pyarrow.dataset.dataset(tmp_path / "out").count_rows() == 25
    else:
        first = (tmp_path / "out" / f"part-000000.{format}").read_text().splitlines()[0]
        assert "id" in first and "prediction" in first


def test_no_rows_make_a_part_without_rows(run_job: RunJob, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text,n\n")
    run_job(tmp_path / "in.csv", f"{tmp_path / 'out'}/")
    assert pq.read_table(tmp_path / "out" / "part-000000.parquet").schema.names[:3] == ["text", "n", "prediction"]
    run_job(tmp_path / "in.csv", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "text,n,prediction,score,exit_layer,error\n"


@pytest.mark.parametrize(
    ("recipe_change", "option_change", "says"),
    [
        ({"policy": pf.Patience(2)}, {}, "policy was patience:1 and is patience:2"),
        ({"max_length": 20}, {}, "max_length was 48 and is 20"),
        ({"dtype": "bfloat16"}, {}, "dtype was float32 and is bfloat16"),
        ({"token_budget": 100}, {}, "token_budget was 2000 and is 100"),
        ({}, {"part_rows": 11}, "part_rows was 10 and is 11"),
        ({}, {"prefix": "p_"}, "prefix was  and is p_"),
        ({"all_scores": True}, {}, "the result columns .* score_bad, score_so-so, score_good"),
        ({}, {}, r"the size of the input \.\./in\.jsonl was \d+ and is \d+"),
    ],
)
def test_a_mismatch_names_what_changed(
    recipe_change: dict[str, Any], option_change: dict[str, Any], says: str, recipe: Recipe, local: Executor,
    run_job: RunJob, tmp_path: Path,
) -> None:  # fmt: skip
    source, target = put_rows(tmp_path / "in.jsonl", 35), tmp_path / "out.csv"
    begin(source, target, local, parts=1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out.csv.parts").iterdir()}
    if "size" in says:
        put_rows(source, 36)
    with LocalExecutor(*dataclasses.replace(recipe, **recipe_change).worker()) as other:
        with pytest.raises(InputError, match=f"{says}.*--overwrite"):
            run_job(source, target, executor=other, **{"part_rows": 10, **option_change})
        assert {path.name: path.read_bytes() for path in (tmp_path / "out.csv.parts").iterdir()} == before
        run_job(source, target, executor=other, **{"part_rows": 10, **option_change}, overwrite=True)
    assert len(target.read_text().splitlines()) == 1 + (36 if "size" in says else 35)


def test_other_weights_labels_and_tokenizer_are_told_apart(
    recipe: Recipe, local: Executor, run_job: RunJob, tmp_path: Path
) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 35), tmp_path / "out.csv"
    begin(source, target, local, parts=1)
    for spoil, says in (
        (
            lambda worker: worker.scorer.model.bert.pooler.dense.weight.data.add_(1e-3),
            "the model's weights, heads or config changed",
        ),
        (lambda worker: worker.scorer.labels.reverse(), r'labels was \["bad"'),
        (lambda worker: worker.scorer.tokenizer.add_tokens(["film!"]), "the tokenizer changed"),
    ):
        worker, _ = recipe.worker()
        spoil(worker)
        about = worker.about(Setting.choose("cpu", "float32"))
        with LocalExecutor(worker, about) as other, pytest.raises(InputError, match=says):
            run_job(source, target, executor=other, part_rows=10)


def test_an_input_of_the_same_size_but_other_content_is_told_apart(
    local: Executor, run_job: RunJob, tmp_path: Path
) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 35), tmp_path / "out.csv"
    begin(source, target, local, parts=1)
    source.write_text(source.read_text().replace("film", "FILM"))
    with pytest.raises(InputError, match="has other content"):
        run_job(source, target, part_rows=10)


@pytest.mark.parametrize("spoil", ["content", "size"])
def test_a_part_that_was_tampered_with_is_refused(spoil: str, local: Executor, run_job: RunJob, tmp_path: Path) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 35), tmp_path / "out.jsonl"
    begin(source, target, local, parts=2)
    part = max((tmp_path / "out.jsonl.parts").glob("part-*"))
    content = part.read_bytes()
    part.write_bytes(content[:-9] + b"tampered\n" if spoil == "content" else content[:-1])
    with pytest.raises(JobError, match=r"part-00000\d\.jsonl .*--overwrite"):
        run_job(source, target, part_rows=10)
    assert not target.exists()
    run_job(source, target, part_rows=10, overwrite=True)
    assert len(target.read_text().splitlines()) == 35


def test_half_written_files_of_a_killed_job_are_removed(local: Executor, run_job: RunJob, tmp_path: Path) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 25), f"{tmp_path / 'out'}/"
    begin(source, target, local, parts=1)
    (tmp_path / "out" / ".pabee-fast-0123456789abcdef.tmp").write_text("half")
    run_job(source, target, part_rows=10)
    assert [name for name in names_in(tmp_path / "out") if name.startswith(".")] == []


def test_an_exception_leaves_no_half_written_part(local: Executor, tmp_path: Path) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 35), tmp_path / "out.csv"
    job = Job([str(source)], str(target), Columns(["text"]), JobOptions(part_rows=10))
    with pytest.raises(KeyboardInterrupt):
        job.run(local, stop_after(2, KeyboardInterrupt))
    assert job.progress.tally.rows == 20 and job.progress.total == 35
    assert [name for name in names_in(tmp_path / "out.csv.parts") if name.endswith(".tmp")] == []
    with Manifest(tmp_path / "out.csv.parts") as manifest:
        assert len(manifest.parts) == 2


def test_more_errors_than_wanted_stop_the_job_which_can_go_on(run_job: RunJob, tmp_path: Path) -> None:
    source = put_rows(tmp_path / "in.jsonl", 50, row3=None, row14=None, row15=None)
    with pytest.raises(JobError, match=r"3 of \d+ rows have errors, more than max_errors=2"):
        run_job(source, tmp_path / "out.csv", part_rows=10, max_errors=2)
    assert run_job(source, tmp_path / "out.csv", part_rows=10, max_errors=3).tally.errors == 3


def test_failed_rows_are_tried_again_and_bad_ones_are_not(
    local: Executor, run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 40, row25=None), tmp_path / "out.jsonl"
    run_job(source, tmp_path / "well.jsonl", part_rows=10)
    assert isinstance(local, LocalExecutor)
    start = local.worker.scorer.start

    def sick(batch: Any, *options: Any) -> Any:
        answers = start(batch, *options)()
        if len(answers.exit_layers) == 10:
            answers.logits[3] = float("inf")
        return lambda: answers

    monkeypatch.setattr(local.worker.scorer, "start", sick)
    summary = run_job(source, target, part_rows=10)
    assert (summary.tally.errors, summary.tally.failed) == (4, 3)
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert sum("not finite" in str(row["error"]) and row["prediction"] is None for row in rows) == 3
    assert (tmp_path / "out.jsonl.parts").is_dir()
    monkeypatch.undo()
    assert run_job(source, target, part_rows=10).rows == 0  # finished; nothing is tried unless asked
    again = run_job(source, target, part_rows=10, retry_errors=True)
    assert (again.rows, again.tally.errors, again.tally.failed) == (30, 1, 0)
    assert target.read_bytes() == (tmp_path / "well.jsonl").read_bytes()
    assert not (tmp_path / "out.jsonl.parts").exists()


def test_retrying_without_a_job_that_has_failed_rows_says_so(run_job: RunJob, tmp_path: Path) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 15), tmp_path / "out.csv"
    with pytest.raises(InputError, match="holds no job"):
        run_job(source, target, retry_errors=True)
    assert not target.exists()


def test_a_finished_output_is_replaced_only_when_asked_and_others_never(run_job: RunJob, tmp_path: Path) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 25), tmp_path / "out"
    run_job(source, f"{target}/", part_rows=10)
    with pytest.raises(InputError, match="part_rows was 10 and is 5"):
        run_job(source, f"{target}/", part_rows=5)
    assert run_job(source, f"{target}/", part_rows=5, overwrite=True).rows == 25
    assert len(names_in(target)) == 6
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="holds files that are not of a job"):
        run_job(source, tmp_path / "mine", overwrite=True)
    (tmp_path / "data").mkdir()
    put_rows(tmp_path / "data" / "in.jsonl", 3)
    with pytest.raises(InputError, match="where the results go"):
        run_job(tmp_path / "data", tmp_path / "data", overwrite=True)


def test_a_table_that_came_to_exist_meanwhile_is_left_alone(local: Executor, run_job: RunJob, tmp_path: Path) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 25), tmp_path / "out.csv"
    begin(source, target, local, parts=1)
    target.write_text("precious")
    with pytest.raises(InputError, match="exists"):
        run_job(source, target, part_rows=10)
    assert target.read_text() == "precious"
    run_job(source, target, part_rows=10, overwrite=True)
    assert len(target.read_text().splitlines()) == 26


def test_resuming_on_another_device_warns(
    local: Executor, run_job: RunJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 25), tmp_path / "out.csv"
    begin(source, target, local, parts=1)
    local.about = dataclasses.replace(local.about, device="another machine")
    with caplog.at_level(logging.WARNING, "pabee_fast"):
        run_job(source, target, part_rows=10)
    assert "goes on on another machine" in caplog.text


def test_parts_in_memory_are_no_more_than_the_executor_has_slots(
    local: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pabee_fast.tables.source import Source

    source = put_rows(tmp_path / "in.jsonl", 200)
    read, most = [0], [0]
    parts = Source.parts

    def counted(self: Source, *args: Any) -> Any:
        for item in parts(self, *args):
            read[0] += 1
            yield item

    def on_part(progress: Progress) -> None:
        most[0] = max(most[0], read[0] - progress.parts)

    monkeypatch.setattr(Source, "parts", counted)
    Job([str(source)], str(tmp_path / "out.csv"), Columns(["text"]), JobOptions(part_rows=5)).run(local, on_part)
    assert read[0] == 40
    assert 0 < most[0] <= local.slots


def test_the_summary_tells_where_the_time_went(run_job: RunJob, tmp_path: Path) -> None:
    summary = run_job(put_rows(tmp_path / "in.jsonl", 60), tmp_path / "out.csv", part_rows=10)
    spent = summary.tally.seconds
    assert all(spent[stage] > 0 for stage in ("read", "tokenise", "compute", "write"))
    assert spent["audit"] == 0
    assert summary.wait == pytest.approx(summary.seconds - spent["compute"])
    assert summary.cores > 0


@pytest.mark.parametrize(
    ("spent", "workers", "bound"),
    [
        ({"compute": 9.5, "tokenise": 25, "read": 1, "write": 9}, 1, "compute"),
        ({"compute": 12, "audit": 6.5, "read": 9.9}, 2, "compute"),
        ({"compute": 4, "tokenise": 25, "read": 5, "write": 3}, 1, "tokenise"),
        ({"compute": 4, "tokenise": 3, "read": 9.5, "write": 3}, 1, "read"),
        ({"compute": 4, "tokenise": 3, "read": 5, "write": 8}, 4, "write"),
    ],
)
def test_what_bounds_a_job_is_the_device_where_it_hardly_waits_else_what_is_busiest(
    spent: dict[str, float], workers: int, bound: str
) -> None:
    assert Progress(Tally(seconds=Seconds(spent)), seconds=10, workers=workers).bound == bound


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"part_rows": 0}, "part_rows=0"),
        ({"max_errors": -1}, "max_errors=-1"),
        ({"format": "xml"}, "format='xml'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], says: str, run_job: RunJob, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        run_job(put_rows(tmp_path / "in.jsonl", 3), f"{tmp_path / 'out'}/", **options)


def test_nested_and_typed_columns_survive_the_joining_of_parts(run_job: RunJob, tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(["good film", "bad", None, "a long film"] * 10),
            "kind": pa.array(["x", "y", "x", None] * 10).dictionary_encode(),
            "nested": pa.array([{"k": [1, None]}, None, {"k": []}, {"k": [2]}] * 10),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    run_job(tmp_path / "in.parquet", tmp_path / "out.parquet", part_rows=7)
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.select(table.column_names).equals(table)
    assert pq.ParquetFile(tmp_path / "out.parquet").metadata.num_row_groups == 1


def test_a_job_that_stopped_for_its_errors_stops_again(local: Executor, run_job: RunJob, tmp_path: Path) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 30, row3=None, row4=None, row25=None), tmp_path / "out.csv"
    for _ in range(3):
        with pytest.raises(JobError, match=r"[23] of \d0 rows have errors, more than max_errors=1"):
            run_job(source, target, part_rows=10, max_errors=1)
    assert not target.exists()
    assert run_job(source, target, part_rows=10, max_errors=3).tally.errors == 3
