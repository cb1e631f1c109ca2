"""Where tasks are scored: in this process, in a process for each device, or by Ray, whose executor stands in `ray`."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from pabee_fast.jobs.executor import Executor, same_everywhere
from pabee_fast.jobs.places import check_places
from pabee_fast.jobs.process import Process, Work
from pabee_fast.jobs.recipe import Recipe, device_recipes
from pabee_fast.jobs.worker import UNDER_WAY, About, Scored, Task, Worker
from pabee_fast.runtime.device import choose_device


class LocalExecutor(Executor):
    """A worker in this process, called by a thread for each task under way."""

    def __init__(self, worker: Worker, about: About, under_way: int = UNDER_WAY) -> None:
        self.worker, self.about, self.under_way = worker, about, under_way
        self._threads = ThreadPoolExecutor(self.slots, "tokenise")

    def submit(self, task: Task) -> Future[Scored]:
        return self._threads.submit(self.worker.score, task)

    def close(self) -> None:
        self.worker.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)


class DeviceExecutor(Executor):
    """A process for each device; one that dies is started again, and what it had is given to it once more.

    Args:
        recipes: one for each device.

    Raises:
        PabeeFastError: what a worker says of its model; WorkerError where one cannot be started.
    """

    def __init__(self, recipes: Sequence[Recipe]) -> None:
        self.workers = len(recipes)
        self._processes: list[Process] = []
        try:
            for recipe in recipes:
                self._processes.append(Process(recipe))
            abouts = [process.wait_until_ready() for process in self._processes]
        except BaseException:
            self.close()
            raise
        self.about = same_everywhere(abouts)

    def submit(self, task: Task) -> Future[Scored]:
        return min(self._processes, key=lambda process: process.load).give(Work(task))

    def close(self) -> None:
        for process in self._processes:
            process.end()


def open_executor(
    recipe: Recipe,
    devices: str | None = None,
    engine: str = "local",
    workers: int | None = None,
    on_rows: Callable[[int, int], None] = lambda rows, layers: None,
) -> Executor:
    """Return the executor that options name.

    A CUDA device has a process of its own even where it is the only one, since reading and writing tables in Python
    would hold up the thread that launches its kernels. The CPU's worker shares this process.

    Args:
        recipe: of one worker.
        devices: as `device_recipes` takes them; None: the recipe's one device.
        engine: local or ray.
        workers: of Ray; None: one for each GPU; in a cluster without, one for each machine.
        on_rows: told what was computed, by an executor of this process.

    Raises:
        InputError: a name that is not known, or Ray is not installed.
    """
    check_places(devices, engine, workers)
    if engine == "ray":
        from pabee_fast.jobs.ray import RayExecutor

        return RayExecutor(recipe, workers)
    if devices is not None or choose_device(recipe.device).type == "cuda":
        return DeviceExecutor(device_recipes(recipe, devices or recipe.device))
    worker, about = recipe.worker()
    worker.on_rows = on_rows
    return LocalExecutor(worker, about)
