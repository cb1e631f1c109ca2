"""Ray: an executor for a job over many machines. What users' own Ray Data pipelines call is `BatchScorer`.

A machine of the cluster needs this package and must see the model under the same name; input and output are the
coordinator's alone.
"""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from pabee_fast.errors import InputError, WorkerDied
from pabee_fast.jobs.batches import BatchScorer as BatchScorer
from pabee_fast.jobs.executor import Executor, same_everywhere
from pabee_fast.jobs.process import TRIES
from pabee_fast.jobs.recipe import Recipe
from pabee_fast.jobs.worker import UNDER_WAY, About, Scored, Task

logger = logging.getLogger(__name__)

SLOW_START = 60
"""Seconds after which a user is told that workers are still to start."""


def cores_each(cores: Sequence[int], workers: int) -> int:
    """Return the most cores that each of `workers` can have, none of them spread over machines.

    Args:
        cores: of each machine; `workers` are no more than their sum.
    """
    return next(each for each in range(max(cores), 0, -1) if sum(own // each for own in cores) >= workers)


class RayExecutor(Executor):
    """A Ray actor for each worker; Ray starts one that dies again, and gives it once more what it had.

    Joins the cluster that Ray is connected to or that RAY_ADDRESS names; without one, it starts one on this machine.

    Args:
        recipe: of a worker; its device `auto` is a GPU where the cluster has any.
        workers: None: one for each GPU; in a cluster without, as many as there are machines with cores.

    Raises:
        InputError: Ray is not installed, or the cluster is too small.
        PabeeFastError: what a worker says of its model.
    """

    def __init__(self, recipe: Recipe, workers: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise InputError(f"Ray cannot be imported ({error}): pip install 'pabee-fast[ray]'") from error
        self._ray = ray
        self._owns_cluster = not ray.is_initialized()
        if self._owns_cluster:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
        try:
            self._actors = self._start(recipe, workers)
            self._load = [0] * len(self._actors)
            self.workers = len(self._actors)
            self.about = same_everywhere(self._abouts())
        except BaseException:
            self.close()
            raise

    def _start(self, recipe: Recipe, workers: int | None) -> list[Any]:
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
        cores = [int(machine["CPU"]) for machine in machines if machine.get("CPU", 0) >= 1]
        if recipe.device not in ("auto", "cpu", "cuda"):
            raise InputError(f"device={recipe.device!r}: Ray gives each worker its own; give auto, cpu or cuda")
        if recipe.device == "cuda" and not gpus:
            raise InputError("device='cuda': the cluster has no GPU; give cpu or auto")
        on_gpu = gpus > 0 and recipe.device != "cpu"
        most, what = (gpus, "GPUs") if on_gpu else (sum(cores), "CPU cores")
        count = (gpus if on_gpu else len(cores)) if workers is None else workers
        if not 1 <= count <= most:
            raise InputError(f"workers={count}: the cluster has {most} {what}; give 1 to {most}")
        if on_gpu:
            recipe, needs = replace(recipe, device="cuda"), {"num_gpus": 1}
        else:
            each = cores_each(cores, count)
            recipe, needs = replace(recipe, device="cpu", threads=recipe.threads or each), {"num_cpus": each}
        actor = self._ray.remote(**needs, max_restarts=-1, max_task_retries=TRIES - 1, max_concurrency=UNDER_WAY)(
            _Actor
        )
        return [actor.remote(recipe) for _ in range(count)]

    def _abouts(self) -> list[About]:
        asked = [actor.about.remote() for actor in self._actors]
        _, late = self._ray.wait(asked, num_returns=len(asked), timeout=SLOW_START)
        if late:
            logger.warning(
                "%d of %d Ray workers have not started after %d s: they load the model, or wait for cores or GPUs that "
                "others hold (`ray status`)", len(late), len(asked), SLOW_START,
            )  # fmt: skip
        try:
            abouts: list[About] = self._ray.get(asked)
        except self._ray.exceptions.RayActorError as error:
            cause = error.__cause__ or error
            raise InputError(f"a Ray worker could not be started: {cause}") from error
        failed = [about for about in abouts if isinstance(about, Exception)]
        if failed:
            raise failed[0]
        return abouts

    def submit(self, task: Task) -> Future[Scored]:
        index = min(range(len(self._actors)), key=self._load.__getitem__)
        self._load[index] += 1
        future: Future[Scored] = Future()

        def settle(done: Future[Any]) -> None:
            self._load[index] -= 1
            error = done.exception()
            if isinstance(error, self._ray.exceptions.RayActorError):
                future.set_exception(WorkerDied(f"the worker died {TRIES} times while it had this row's part"))
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(done.result())

        self._actors[index].score.remote(task).future().add_done_callback(settle)
        return future

    def close(self) -> None:
        for actor in getattr(self, "_actors", []):
            self._ray.kill(actor)
        if self._owns_cluster:
            self._ray.shutdown()


class _Actor:
    """A worker in a process of Ray's; tasks come from several of its threads at once."""

    def __init__(self, recipe: Recipe) -> None:
        self._failure: Exception | None = None
        try:
            self._worker, self._about = recipe.worker()
        except Exception as error:
            self._failure = error  # told by `about`: an actor that fails to start has its error only as text

    def about(self) -> About | Exception:
        return self._failure or self._about

    def pid(self) -> int:
        return os.getpid()

    def score(self, task: Task) -> Scored:
        return self._worker.score(task)
