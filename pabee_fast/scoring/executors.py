"""Where tasks are scored: in this process, or in a process for each device. Ray's executor stands in `ray`.

Executors take tasks and give futures of results; they know no files, and the order in which they finish means nothing.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count
from multiprocessing.connection import Connection
from typing import Any

import torch

from pabee_fast.errors import InputError, PabeeFastError, WorkerDied, WorkerError
from pabee_fast.policies import Policy
from pabee_fast.runtime.device import choose_device
from pabee_fast.scoring.load import Setting, load_scorer
from pabee_fast.scoring.worker import UNDER_WAY, About, Scored, Task, Worker

logger = logging.getLogger(__name__)

TRIES = 3
"""How often a task is given to a worker before it is held to be what kills them."""

_PRIMITIVES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
"""oneDNN, which multiplies on CPUs, keeps a primitive for every number of tokens it has met: 1,024 by default, some
60 KB each. A wave's count of tokens hardly comes again, so only its own layers find theirs, and 64 are enough. It reads
this at its first product: what is set already, or a product before, wins."""


@dataclass(frozen=True)
class Recipe:
    """What a worker is made from, in whatever process: the arguments of `load_scorer`, `Setting.choose` and `Worker`.

    `threads` are the CPU threads that the model computes with; None: torch's own choice.
    """

    model: str
    policy: Policy | None
    device: str = "auto"
    dtype: str = "auto"
    max_length: int | None = None
    token_budget: int | None = None
    window: int | None = None
    threads: int | None = None
    all_scores: bool = False
    audit: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.audit <= 1:
            raise InputError(f"audit={self.audit}: give a share of the rows, from 0 to 1")

    def worker(self) -> tuple[Worker, About]:
        """Loads the model; raises what `load_scorer` raises."""
        os.environ.setdefault(*_PRIMITIVES)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        setting = Setting.choose(self.device, self.dtype)
        scorer = load_scorer(
            self.model,
            self.policy,
            setting,
            max_length=self.max_length,
            token_budget=self.token_budget,
            window=self.window,
        )
        worker = Worker(scorer, all_scores=self.all_scores, audit=self.audit)
        return worker, worker.about(setting)


class Executor(ABC):
    """Scores tasks somewhere; a context manager, which ends its workers."""

    about: About
    workers: int = 1
    under_way: int = UNDER_WAY

    @property
    def slots(self) -> int:
        """How many tasks keep all workers busy."""
        return self.workers * self.under_way

    @abstractmethod
    def submit(self, task: Task) -> Future[Scored]:
        """The task's results to come.

        The future raises WorkerDied where the task's worker died `TRIES` times; any other exception ends the job.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends the workers, with what they have under way."""

    def __enter__(self) -> "Executor":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


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


@dataclass
class Work:
    """A task that a process has or waits for, and how often one died while it was there."""

    task: Task
    future: Future[Scored] = field(default_factory=Future)
    deaths: int = 0

    def settle(self, answer: Any) -> None:
        """Passes the answer, or the exception that it is, to whoever waits."""
        _settle(self.future, answer)


class DeviceExecutor(Executor):
    """A process for each device; one that dies is started again, and what it had is given to it once more.

    Args:
        recipes: one for each device.

    Raises:
        PabeeFastError: what a worker says of its model; WorkerError where one cannot be started.
    """

    def __init__(self, recipes: Sequence[Recipe]) -> None:
        self.workers = len(recipes)
        self._processes: list[_Process] = []
        try:
            self._processes = [_Process(recipe) for recipe in recipes]
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
    """The executor that options name.

    A CUDA device has a process of its own even where it is the only one, since reading and writing tables in Python
    would hold up the thread that launches its kernels. The CPU's worker shares this process.

    Args:
        recipe: of one worker.
        devices: as `device_recipes` takes them; None: the recipe's one device.
        engine: local or ray.
        workers: of Ray; None: a GPU each, or a core each.
        on_rows: told what was computed, by an executor of this process.

    Raises:
        InputError: a name that is not known, or Ray is not installed.
    """
    if engine == "ray":
        from pabee_fast.scoring.ray import RayExecutor

        if devices is not None:
            raise InputError("devices are for engine=local: Ray gives each worker its own; use --workers")
        return RayExecutor(recipe, workers)
    if engine != "local":
        raise InputError(f"engine={engine!r}: give local or ray")
    if workers is not None:
        raise InputError("workers are for engine=ray: name devices instead (--devices cpu,cpu)")
    if devices is not None or choose_device(recipe.device).type == "cuda":
        return DeviceExecutor(device_recipes(recipe, devices or recipe.device))
    worker, about = recipe.worker()
    worker.on_rows = on_rows
    return LocalExecutor(worker, about)


def same_everywhere(abouts: Sequence[About]) -> About:
    """What all workers run; raises InputError, naming the difference, where they do not run the same."""
    for other in abouts[1:]:
        for name, value in abouts[0].identity.items():
            if other.identity[name] != value:
                raise InputError(
                    f"the workers differ in {name} ({value} on {abouts[0].device}, {other.identity[name]} on "
                    f"{other.device}): give it by an option, or leave one kind of device out"
                )
    names = [about.device for about in abouts]
    told = " + ".join(f"{names.count(name)} x {name}" if len(names) > 1 else name for name in dict.fromkeys(names))
    return replace(abouts[0], device=told)


def device_recipes(recipe: Recipe, devices: str) -> list[Recipe]:
    """A recipe for each device of a list as the command line takes it.

    Args:
        recipe: of one worker.
        devices: `all` (every CUDA device; without one, the CPU), or names between commas: `cuda:0,cuda:2`, `cpu,cpu`.
            Several CPU workers share its cores.

    Raises:
        InputError: a name that is no device.
    """
    if devices == "all":
        names = [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
    else:
        names = ["cuda" if name == "auto" else name for name in map(str.strip, devices.split(","))]
    cpus = names.count("cpu")
    threads = recipe.threads or (max(1, (os.cpu_count() or 1) // cpus) if cpus > 1 else None)
    chosen = [replace(recipe, device=name, threads=threads if name == "cpu" else recipe.threads) for name in names]
    for one in chosen:
        choose_device(one.device)  # before any process is started
    return chosen


class _Process:
    """One worker's process as the coordinator sees it: a pipe to it, and the tasks that it has or that wait for it."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._lock = threading.Lock()
        self._waiting: deque[Work] = deque()
        self._sent: dict[int, Work] = {}
        self._numbers = count()
        self._ready: Future[About] = Future()
        self._deaths_in_a_row = 0
        self._failure: WorkerError | None = None
        self._ended = False
        self._start()
        self._receiver = threading.Thread(target=self._receive, name="receive", daemon=True)
        self._receiver.start()

    @property
    def load(self) -> int:
        """How many tasks it has, or wait for it."""
        return len(self._waiting) + len(self._sent)

    def wait_until_ready(self) -> About:
        """What it runs, once its model is loaded."""
        return self._ready.result()

    def give(self, work: Work) -> Future[Scored]:
        """Queues a task; its results to come."""
        with self._lock:
            if self._failure is not None:
                work.settle(self._failure)
            else:
                self._waiting.append(work)
                self._fill()
        return work.future

    def end(self) -> None:
        """Kills the process; futures that have no result are cancelled."""
        self._ended = True
        self._process.kill()  # a send that waits for it ends, and with it whoever has the lock
        with self._lock:
            self._process.kill()
        self._process.join()
        self._receiver.join()
        self._pipe.close()
        for work in (*self._waiting, *self._sent.values()):
            work.future.cancel()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self._recipe), daemon=True)
        self._process.start()
        theirs.close()  # so that the pipe ends when the process does

    def _fill(self) -> None:
        """Sends what waits. A task under which a worker has died is sent alone, so that no other is blamed for it."""
        while self._waiting:
            alone = self._waiting[0].deaths or any(work.deaths for work in self._sent.values())
            if alone and self._sent:
                return
            number, work = next(self._numbers), self._waiting.popleft()
            self._sent[number] = work
            with contextlib.suppress(OSError):  # it has died: the receiver sees it, and sends again
                self._pipe.send((number, work.task))

    def _receive(self) -> None:
        """Takes what the process says, until it is ended; in a thread of its own."""
        while True:
            try:
                number, answer = self._pipe.recv()
            except (EOFError, OSError):
                with self._lock:
                    if self._ended or not self._restart():
                        return
                continue
            if number is None:
                _settle(self._ready, answer)
                continue
            with self._lock:
                self._deaths_in_a_row = 0
                work = self._sent.pop(number)
                self._fill()
            work.settle(answer)

    def _restart(self) -> bool:
        """Starts a process in place of the dead one; whether that is of any use."""
        self._process.join()
        code, where = self._process.exitcode, self._recipe.device
        self._deaths_in_a_row += 1
        for work in reversed(self._sent.values()):
            work.deaths += 1
            self._waiting.appendleft(work)
        self._sent.clear()
        if not self._ready.done() or self._deaths_in_a_row > 2 * TRIES:
            self._failure = WorkerError(f"the worker on {where} died (exit {code}), and starting it again is of no use")
            _settle(self._ready, self._failure)
            for work in self._waiting:
                work.settle(self._failure)
            return False
        if self._waiting and self._waiting[0].deaths == TRIES:
            self._waiting.popleft().settle(WorkerDied(f"the worker died {TRIES} times while it had this row's part"))
        logger.warning("the worker on %s died (exit %s); it is started again", where, code)
        self._pipe.close()
        self._start()
        self._fill()
        return True


def _settle(future: Future[Any], answer: Any) -> None:
    if future.done():
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def serve(pipe: Connection, recipe: Recipe) -> None:
    """A worker's process: tasks in, results out, until the pipe ends; then it ends at once, whatever is under way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the coordinator's
    sending = threading.Lock()

    def send(number: int | None, answer: Any) -> None:
        with sending, contextlib.suppress(OSError):
            pipe.send((number, answer))

    try:
        worker, about = recipe.worker()
    except Exception as error:
        send(None, error if isinstance(error, PabeeFastError) else WorkerError(f"{type(error).__name__}: {error}"))
        os._exit(1)
    send(None, about)
    threads = ThreadPoolExecutor(UNDER_WAY, "tokenise")

    def work(number: int, task: Task) -> None:
        try:
            send(number, worker.score(task))
        except PabeeFastError as error:
            send(number, error)
        except BaseException:
            # A device that has failed once often fails ever after: a new process is worth a try.
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    try:
        while True:
            threads.submit(work, *pipe.recv())
    except (EOFError, OSError):
        os._exit(0)
