"""A worker in a process of its own: the coordinator's side, which outlives it, and what runs inside."""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection
from typing import Any

import transformers

from pabee_fast.errors import PabeeFastError, WorkerDied, WorkerError
from pabee_fast.jobs.recipe import Recipe
from pabee_fast.jobs.worker import UNDER_WAY, About, Scored, Task

logger = logging.getLogger(__name__)

TRIES = 3
"""How often a task is given to a worker before it is held to be what kills them."""

_STOPS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Work:
    """A task that a process has or waits for, and how often one died while it was there."""

    task: Task
    future: Future[Scored] = field(default_factory=Future)
    deaths: int = 0

    def resolve(self, answer: Any) -> None:
        """Pass the answer, or the exception that it is, to whoever waits."""
        _resolve(self.future, answer)


class Process:
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
        """Return what it runs, once its model is loaded."""
        return self._ready.result()

    def give(self, work: Work) -> Future[Scored]:
        """Queue a task; its results to come."""
        with self._lock:
            if self._failure is not None:
                work.resolve(self._failure)
            else:
                self._waiting.append(work)
                self._fill()
        return work.future

    def end(self) -> None:
        """Kill the process; futures that have no result are cancelled."""
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
        with _no_signals():
            self._process.start()
        theirs.close()  # so that the pipe ends when the process does

    def _fill(self) -> None:
        """Send what waits. A task under which a worker has died is sent alone, so that no other is blamed for it."""
        while self._waiting:
            alone = self._waiting[0].deaths or any(work.deaths for work in self._sent.values())
            if alone and self._sent:
                return
            number, work = next(self._numbers), self._waiting.popleft()
            self._sent[number] = work
            with contextlib.suppress(OSError):  # it has died: the receiver sees it, and sends again
                self._pipe.send((number, work.task))

    def _receive(self) -> None:
        """Take what the process says, until it is ended; in a thread of its own."""
        while True:
            try:
                number, answer = self._pipe.recv()
            except (EOFError, OSError):
                with self._lock:
                    if self._ended or not self._restart():
                        return
                continue
            if number is None:
                _resolve(self._ready, answer)
                continue
            with self._lock:
                self._deaths_in_a_row = 0
                work = self._sent.pop(number)
                self._fill()
            work.resolve(answer)

    def _restart(self) -> bool:
        """Start a process in place of the dead one; whether that is of any use."""
        self._process.join()
        code, where = self._process.exitcode, self._recipe.device
        self._deaths_in_a_row += 1
        for work in reversed(self._sent.values()):
            work.deaths += 1
            self._waiting.appendleft(work)
        self._sent.clear()
        if not self._ready.done() or self._deaths_in_a_row > 2 * TRIES:
            self._failure = WorkerError(f"the worker on {where} died (exit {code}), and starting it again is of no use")
            _resolve(self._ready, self._failure)
            for work in self._waiting:
                work.resolve(self._failure)
            return False
        if self._waiting and self._waiting[0].deaths == TRIES:
            self._waiting.popleft().resolve(WorkerDied(f"the worker died {TRIES} times while it had this row's part"))
        logger.warning("the worker on %s died (exit %s); it is started again", where, code)
        self._pipe.close()
        self._start()
        self._fill()
        return True


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
    """Let a process that is started here have no signals that stop it, from its first moment on."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _resolve(future: Future[Any], answer: Any) -> None:
    if future.done():
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def serve(pipe: Connection, recipe: Recipe) -> None:
    """A worker's process: tasks in, results out, until the pipe ends; then it ends at once, whatever is under way."""
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)  # the coordinator is stopped, and ends its workers
    transformers.logging.disable_progress_bar()  # whose lock a killed process would leave behind
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
