"""Executors give the same results wherever tasks are scored, and outlive their workers."""

import dataclasses
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import pabee_fast as pf
from pabee_fast.errors import InputError, WorkerDied, WorkerError
from pabee_fast.jobs import executors, process
from pabee_fast.jobs.executor import Executor
from pabee_fast.jobs.executors import DeviceExecutor, LocalExecutor, open_executor
from pabee_fast.jobs.job import Columns, Job, JobOptions, Progress
from pabee_fast.jobs.recipe import Recipe, device_recipes
from pabee_fast.jobs.worker import Task
from tests.jobs.conftest import RunJob, put_rows, text_of


def task(rows: int, first: int = 0) -> Task:
    return Task.of([text_of(first + row) for row in range(rows)], "in.csv", first)


@pytest.fixture(scope="module")
def two(recipe: Recipe) -> Iterator[DeviceExecutor]:
    """Two processes, each a worker on the CPU."""
    with DeviceExecutor(device_recipes(recipe, "cpu,cpu")) as made:
        yield made


def kill_one(two: DeviceExecutor, index: int = 0) -> None:
    os.kill(two._processes[index]._process.pid or 0, signal.SIGKILL)


def test_two_devices_leave_the_table_that_one_leaves(two: DeviceExecutor, run_job: RunJob, tmp_path: Path) -> None:
    source = put_rows(tmp_path / "in.jsonl", 300, row7=None)
    run_job(source, tmp_path / "one.parquet", part_rows=16)
    summary = run_job(source, tmp_path / "two.parquet", part_rows=16, executor=two)
    assert summary.workers == 2 and two.slots == 8
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()


def test_a_worker_killed_in_the_middle_is_restarted_and_nothing_is_lost(
    two: DeviceExecutor, run_job: RunJob, tmp_path: Path
) -> None:
    source = put_rows(tmp_path / "in.jsonl", 400)
    run_job(source, tmp_path / "one.parquet", part_rows=16)
    job = Job([str(source)], str(tmp_path / "two.parquet"), Columns(["text"]), JobOptions(part_rows=16))
    killed = []

    def kill_at_the_fifth(progress: Progress) -> None:
        if progress.parts == 5:
            killed.append(two._processes[1]._process.pid)
            kill_one(two, 1)

    summary = job.run(two, kill_at_the_fifth)
    assert (summary.tally.rows, summary.tally.errors) == (400, 0)
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    assert two._processes[1]._process.pid not in killed


def test_workers_are_told_of_errors_in_their_recipe(recipe: Recipe) -> None:
    with pytest.raises(InputError, match="no such directory"):
        DeviceExecutor([dataclasses.replace(recipe, model="nowhere/nothing")])


def test_workers_that_would_differ_are_refused(recipe: Recipe) -> None:
    one, about = recipe.worker()
    _, other = dataclasses.replace(recipe, max_length=20).worker()
    with pytest.raises(InputError, match=r"differ in max_length \(48 on cpu .*, 20 on cpu"):
        executors.same_everywhere([about, other])
    assert executors.same_everywhere([about, about]).device == f"2 x {about.device}"
    one.stop()


class Dying:
    """Stands for a worker in `serve`: dies of tasks whose first row is 666, or of all."""

    def __init__(self, always: bool) -> None:
        self.always = always

    def score(self, task: Task) -> Any:
        if self.always or task.first_row == 666:
            os._exit(9)
        return task.first_row


@dataclasses.dataclass(frozen=True)
class Poisoned(Recipe):
    """A recipe whose worker dies of some tasks."""

    always: bool = False

    def worker(self) -> Any:
        return Dying(self.always), "about"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes whose recipes say nothing of a model, forked, which spares their imports."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("starts processes by fork")
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(process.multiprocessing, "get_context", lambda method: fork)
    monkeypatch.setattr(executors, "same_everywhere", lambda abouts: abouts[0])


@pytest.mark.usefixtures("quick")
def test_a_task_that_kills_its_workers_is_given_up_and_no_other_is() -> None:
    with DeviceExecutor([Poisoned("m", pf.Patience(1))]) as executor:
        futures = {first: executor.submit(task(1, first)) for first in (1, 2, 666, 3, 4)}
        with pytest.raises(WorkerDied, match="3 times"):
            futures.pop(666).result(timeout=120)
        assert [future.result(timeout=120) for future in futures.values()] == [1, 2, 3, 4]


@pytest.mark.usefixtures("quick")
def test_workers_that_always_die_end_the_job(caplog: pytest.LogCaptureFixture) -> None:
    with DeviceExecutor([Poisoned("m", pf.Patience(1), always=True)]) as executor:
        futures = [executor.submit(task(1, first)) for first in range(4)]
        errors = [future.exception(timeout=240) for future in futures]
        assert all(isinstance(error, WorkerError) for error in errors)
        assert any(not isinstance(error, WorkerDied) for error in errors)
        with pytest.raises(WorkerError, match="no use"):
            executor.submit(task(1)).result(timeout=60)
    assert "it is started again" in caplog.text


def test_a_part_whose_worker_always_dies_has_errors_that_can_be_retried(
    local: Executor, run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concurrent.futures import Future

    source, target = put_rows(tmp_path / "in.jsonl", 30, row12=None), tmp_path / "out.parquet"
    submit = local.submit

    def poisoned(task: Task) -> Any:
        if task.first_row != 10:
            return submit(task)
        future: Future[Any] = Future()
        future.set_exception(WorkerDied("the worker died 3 times while it had this row's part"))
        return future

    monkeypatch.setattr(local, "submit", poisoned)
    summary = run_job(source, target, part_rows=10)
    assert (summary.tally.errors, summary.tally.failed) == (10, 9)
    errors = pq.read_table(target).column("error").to_pylist()
    assert [error is not None for error in errors] == [False] * 10 + [True] * 10 + [False] * 10
    assert "null" in errors[12] and "died 3 times" in errors[11]
    monkeypatch.undo()
    assert run_job(source, target, part_rows=10, retry_errors=True).tally.errors == 1


def test_closing_ends_the_processes(recipe: Recipe) -> None:
    with DeviceExecutor([recipe]) as made:
        pid = made._processes[0]._process.pid
        assert made.submit(task(5)).result(timeout=60).tally.rows == 5
    with pytest.raises(ProcessLookupError):
        os.kill(pid or 0, 0)


@pytest.mark.parametrize(("devices", "threads"), [("cpu", [1]), ("cpu, cpu", [1, 1]), ("all", [1])])
def test_devices_are_named_by_lists(recipe: Recipe, devices: str, threads: list[int]) -> None:
    found = device_recipes(recipe, devices)
    if not found[0].device.startswith("cuda"):
        assert [one.threads for one in found] == threads
        assert {one.device for one in found} == {"cpu"}


def test_cpu_workers_share_the_cores(recipe: Recipe) -> None:
    (one,) = device_recipes(dataclasses.replace(recipe, threads=None), "cpu")
    assert one.threads is None
    several = device_recipes(dataclasses.replace(recipe, threads=None), "cpu,cpu")
    assert [each.threads for each in several] == [max(1, (os.cpu_count() or 1) // 2)] * 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"devices": "cpu,tpu"}, "tpu"),
        ({"engine": "spark"}, "local or ray"),
        ({"workers": 2}, "--devices cpu,cpu"),
        ({"engine": "ray", "devices": "all"}, "--workers"),
    ],
)
def test_options_that_name_no_executor_are_refused(recipe: Recipe, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        open_executor(recipe, **arguments)


def test_a_share_to_audit_out_of_range_is_refused_before_a_model_is_loaded() -> None:
    with pytest.raises(InputError, match=r"audit=1\.5"):
        Recipe("nowhere", None, audit=1.5)


def test_the_cpu_has_its_worker_in_this_process(recipe: Recipe) -> None:
    with open_executor(recipe) as executor:
        assert isinstance(executor, LocalExecutor)


@pytest.mark.parametrize(("own", "kept"), [(None, "64"), ("7", "7")])
def test_a_worker_bounds_the_products_that_a_cpu_remembers_unless_its_user_has(
    own: str | None, kept: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, own or "to be removed")
    if own is None:
        monkeypatch.delenv(name)
    recipe.worker()
    assert os.environ[name] == kept


def tell_what_is_blocked(pipe: Any, recipe: Recipe) -> None:
    """Stands for `process.serve`."""
    pipe.send((None, signal.pthread_sigmask(signal.SIG_BLOCK, [])))
    pipe.recv()


@pytest.mark.usefixtures("quick")
def test_a_worker_that_starts_cannot_be_stopped_by_what_stops_its_coordinator(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "serve", tell_what_is_blocked)
    with DeviceExecutor([recipe]) as executor:
        assert {signal.SIGINT, signal.SIGTERM} <= executor.about  # type: ignore[operator]
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
