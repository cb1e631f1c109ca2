"""Wall-clock times of variants that take turns, so that a noisy machine disturbs all of them alike."""

import contextlib
import gc
import os
import platform
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch


def interleaved(
    variants: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return seconds of every variant in each of `rounds` rounds, after one round that is not counted; see `turns`."""
    return deque(turns(variants, rounds, device, clock), maxlen=1).pop()


def turns(
    variants: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
    *,
    uncounted: int = 1,
) -> Iterator[dict[str, list[float]]]:
    """Yield, after each time that is taken, the seconds of every variant so far: one list, that grows.

    The order turns by one from round to round, so that no variant always follows the same one. `time.process_time` for
    clock counts the processor's seconds alone, which other programs on a busy machine lengthen less. `uncounted` rounds
    come before those that are counted; 0 where all variants have just run. As in `timeit` no garbage is collected while
    the clock runs: a full collection takes milliseconds, and would count for whoever it happened to.
    """
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(uncounted + rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            wait_for(device)
            with _no_collection():
                started = clock()
                variants[name]()
                wait_for(device)
                taken = clock() - started
            if turn >= uncounted:
                seconds[name].append(taken)
                yield seconds


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def wait_for(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Return the median of the ratios of the rounds in which both were timed: a slow round slows both of its sides."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=False))


def hardware(device: torch.device) -> str:
    """Return the device's name, as a reader of a figure needs it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
