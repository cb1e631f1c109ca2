"""Ray: the same parts on a cluster of two workers, one of them killed in the middle; and users' own pipelines."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pabee_fast as pf
from pabee_fast.errors import InputError
from pabee_fast.jobs import ray as ray_module
from pabee_fast.jobs.job import Columns, Job, JobOptions, Progress
from pabee_fast.jobs.ray import RayExecutor, cores_each
from pabee_fast.jobs.recipe import Recipe
from tests.conftest import ROOT
from tests.jobs.conftest import RunJob, put_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A local cluster of two cores, started once."""
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    # Workers must import this checkout, and a dashboard is of no use here.
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=128 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}},
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def two(cluster: Any, recipe: Recipe) -> Iterator[RayExecutor]:
    """A worker on each core."""
    with RayExecutor(recipe, 2) as made:
        yield made


def test_a_job_on_ray_outlives_a_killed_worker_and_leaves_the_table_of_one_process(
    two: RayExecutor, run_job: RunJob, tmp_path: Path
) -> None:
    source = put_rows(tmp_path / "in.jsonl", 400, row7=None)
    run_job(source, tmp_path / "one.parquet", part_rows=16)
    job = Job([str(source)], str(tmp_path / "ray.parquet"), Columns(["text"]), JobOptions(part_rows=16))
    pids = [two._ray.get(actor.pid.remote()) for actor in two._actors]

    def kill_at_the_fifth(progress: Progress) -> None:
        if progress.parts == 5:
            os.kill(pids[1], signal.SIGKILL)

    summary = job.run(two, kill_at_the_fifth)
    assert summary.workers == 2
    assert (summary.tally.rows, summary.tally.errors) == (400, 1)
    assert (tmp_path / "ray.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    assert two._ray.get(two._actors[1].pid.remote()) not in pids, "it was started again"


@given(cores=st.lists(st.integers(1, 64), min_size=1, max_size=6), data=st.data())
def test_workers_get_as_many_cores_as_lets_all_of_them_start(cores: list[int], data: st.DataObject) -> None:
    workers = data.draw(st.integers(1, sum(cores)))
    each = cores_each(cores, workers)
    assert sum(own // each for own in cores) >= workers > sum(own // (each + 1) for own in cores)


def test_an_executor_leaves_a_cluster_alone_that_it_did_not_start(two: RayExecutor, cluster: Any) -> None:
    with pytest.raises(InputError, match="2 CPU cores"):
        RayExecutor(Recipe("m", None), 3)
    assert cluster.is_initialized()


def test_a_scorer_for_map_batches_adds_the_columns_of_a_job(
    cluster: Any, two: RayExecutor, small_model: Path, run_job: RunJob, tmp_path: Path
) -> None:
    two.close()  # its cores are needed
    pytest.importorskip("ray.data")
    source = put_rows(tmp_path / "in.jsonl", 60, row7=None)
    run_job(source, tmp_path / "job.parquet")
    wanted = pq.read_table(tmp_path / "job.parquet").to_pylist()
    rows = cluster.data.from_items([{"id": row["id"], "text": row["text"]} for row in wanted])
    options = {"model": str(small_model), "policy": "patience:1", "device": "cpu", "dtype": "float32", "threads": 1}
    got = rows.map_batches(
        pf.BatchScorer, fn_constructor_kwargs=options, batch_size=20, batch_format="pyarrow", concurrency=1
    ).take_all()
    by_id = {row["id"]: row for row in got}
    assert len(got) == 60
    for row in wanted:
        assert {name: by_id[row["id"]][name] for name in ("prediction", "exit_layer")} == {
            name: row[name] for name in ("prediction", "exit_layer")
        }
        assert (by_id[row["id"]]["error"] is None) == (row["error"] is None)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'pabee-fast\[ray\]'"):
        RayExecutor(Recipe("m", None))


class FewCores:
    """As much of Ray as says how large a cluster is: two machines with four cores each."""

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 4.0}}] * 2


@pytest.mark.parametrize(
    ("device", "workers", "says"),
    [
        ("cuda", None, "device='cuda': the cluster has no GPU; give cpu or auto"),
        ("cuda:1", None, "device='cuda:1': Ray gives each worker its own; give auto, cpu or cuda"),
        ("gpu", None, "device='gpu': .* give auto, cpu or cuda"),
        ("auto", 9, "workers=9: the cluster has 8 CPU cores; give 1 to 8"),
        ("cpu", 0, "workers=0: the cluster has 8 CPU cores; give 1 to 8"),
    ],
)
def test_what_a_cluster_does_not_have_is_refused(device: str, workers: int | None, says: str) -> None:
    executor = RayExecutor.__new__(RayExecutor)
    executor._ray = FewCores()
    with pytest.raises(InputError, match=says):
        executor._start(Recipe("m", None, device=device), workers)


def test_machines_without_cores_and_lost_ones_get_no_worker(
    cluster: Any, two: RayExecutor, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [{"Alive": True, "Resources": {"memory": 1.0}}, {"Alive": False, "Resources": {"CPU": 8.0}}]
    two.close()  # its cores are needed
    nodes = cluster.nodes() + others
    monkeypatch.setattr(cluster, "nodes", lambda: nodes)
    with RayExecutor(recipe) as made:
        assert made.workers == 1


def test_workers_that_are_late_are_told_of(
    cluster: Any, two: RayExecutor, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    two.close()
    monkeypatch.setattr(ray_module, "SLOW_START", 0)
    with RayExecutor(recipe, 1):
        assert "1 of 1 Ray workers have not started after 0 s" in caplog.text
