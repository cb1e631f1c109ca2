"""One thread for the calls of several tasks: those of the task begun first go first, and no end leaves one waiting."""

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from pabee_fast.jobs.device_queue import DeviceQueue
from pabee_fast.jobs.recipe import Recipe
from tests.jobs.test_worker import task


class Busy:
    """A call that holds up the thread until it is told to end."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.may_end.wait(30)


@pytest.fixture
def device() -> Iterator[DeviceQueue]:
    made = DeviceQueue()
    yield made
    made.stop()


@pytest.fixture
def busy(device: DeviceQueue) -> Iterator[Busy]:
    """What the device's thread is at."""
    call = Busy()
    device.submit(0, call)
    assert call.begun.wait(30)
    yield call
    call.may_end.set()


def test_what_an_older_task_submits_later_runs_before_what_waits_of_younger_ones(
    device: DeviceQueue, busy: Busy
) -> None:
    ran: list[tuple[int, int]] = []
    submitted = [(2, 0), (2, 1), (1, 0), (3, 0), (1, 1), (2, 2), (0, 0)]
    futures = [device.submit(order, ran.append, (order, number)) for order, number in submitted]
    busy.may_end.set()
    for future in futures:
        future.result(timeout=30)
    assert ran == sorted(submitted)


def test_an_exception_reaches_its_future_alone(device: DeviceQueue, busy: Busy) -> None:
    before, wrong, after = device.submit(1, len, "ab"), device.submit(1, len, 3), device.submit(1, len, "abc")
    stopping = device.submit(1, exec, "raise SystemExit(3)")
    last = device.submit(2, len, "abcd")
    busy.may_end.set()
    assert (before.result(30), after.result(30), last.result(30)) == (2, 3, 4)
    with pytest.raises(TypeError, match="int"):
        wrong.result()
    with pytest.raises(SystemExit):
        stopping.result(30)


def test_stopping_waits_for_the_call_that_runs_cancels_the_others_and_takes_no_more(
    device: DeviceQueue, busy: Busy
) -> None:
    waiting = [device.submit(order, len, "ab") for order in (2, 1, 3)]
    with ThreadPoolExecutor(1) as other:
        stopped = other.submit(device.stop)
        assert not stopped.done()
        busy.may_end.set()
        stopped.result(timeout=30)
    for future in waiting:
        with pytest.raises(CancelledError):
            future.result(timeout=30)
    with pytest.raises(RuntimeError):
        device.submit(0, len, "ab")


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_a_finished_call_is_kept(fails: bool, device: DeviceQueue) -> None:
    class Tensor:
        pass

    def use(given: Tensor) -> None:
        if fails:
            del given
            raise ValueError

    gc.collect()
    gc.disable()
    try:
        tensor = Tensor()
        seen = weakref.ref(tensor)
        future = device.submit(0, use, tensor)
        del tensor
        assert isinstance(future.exception(timeout=30), ValueError if fails else type(None))
        device.submit(0, len, "").result(timeout=30)  # the thread has left the first call
        assert seen() is None
    finally:
        gc.enable()


def test_a_worker_computes_all_windows_of_the_task_begun_first_before_those_of_the_next(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, _ = replace(recipe, window=10).worker()
    older, younger = task(30), task(20, first=100)
    ran: list[list[int]] = []
    compute, plan = worker._compute, worker.scorer.plan

    def computed(batch: Any, *args: Any) -> Any:
        ran.append(batch.lengths.tolist())
        return compute(batch, *args)

    monkeypatch.setattr(worker, "_compute", computed)
    wanted = [worker.score(one).results for one in (older, younger)]
    one_after_the_other, ran = ran, []

    older_is_begun, younger_waits, older_waits = threading.Event(), threading.Event(), threading.Event()

    def younger_first(columns: Any, answers: Any) -> Iterator[Any]:
        """Tokenize the older task's first window, all of the younger's, and then the older's others."""
        is_older = len(columns[0]) == 30
        for number, window in enumerate(plan(columns, answers)):
            if is_older and number == 1:
                older_is_begun.set()
                assert younger_waits.wait(30)
            yield window
        (older_waits if is_older else younger_waits).set()

    monkeypatch.setattr(worker.scorer, "plan", younger_first)
    busy = Busy()
    worker._device.submit(-1, busy)
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(worker.score, older)]
        assert older_is_begun.wait(30)
        futures.append(threads.submit(worker.score, younger))
        assert older_waits.wait(30)
        busy.may_end.set()
        assert [future.result(timeout=60).results for future in futures] == wanted
    assert ran == one_after_the_other and len(ran) == 5
    worker.stop()
