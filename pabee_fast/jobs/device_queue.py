"""Calls that wait for one thread, the lowest order first, so that what was begun first ends first."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from queue import PriorityQueue
from typing import Any, TypeVar

Result = TypeVar("Result")

_Call = tuple[int, int, Future[Any], Callable[..., Any], tuple[Any, ...]]


class DeviceQueue:
    """A thread that runs calls one at a time: of those that wait, one of the lowest order, the oldest of these.

    The thread is an executor's, to which each call gives a turn; a turn runs whichever call is first by then.
    """

    def __init__(self) -> None:
        self._waiting: PriorityQueue[_Call] = PriorityQueue()
        self._numbers = count()
        self._turns = ThreadPoolExecutor(1, "device")

    def submit(self, order: int, call: Callable[..., Result], *args: Any) -> Future[Result]:
        """Queue a call; its result, or what it raises, to come. Raises RuntimeError after `stop`."""
        future: Future[Result] = Future()
        self._waiting.put((order, next(self._numbers), future, call, args))
        self._turns.submit(self._run_first)
        return future

    def stop(self) -> None:
        """Cancel what waits, once the call that runs has ended."""
        self._turns.shutdown(wait=True, cancel_futures=True)
        while not self._waiting.empty():
            self._waiting.get()[2].cancel()

    def _run_first(self) -> None:
        _, _, future, call, args = self._waiting.get()
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = call(*args)
        except BaseException as error:
            future.set_exception(error)
            del future, args  # the error, which the future holds, holds this frame
        else:
            future.set_result(result)
