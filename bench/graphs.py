"""Seconds of single kernels: on CUDA by replayed graphs with a cold L2, elsewhere by the wall clock.

A graph holds REPEATS times a pass over a buffer larger than the L2 and the call; a second graph holds the passes alone,
and a call's time is the difference of their replays / REPEATS. So a launch costs what it costs behind another kernel,
no host is in the figure, and no input is cached. The buffer is read, not written, or the call would have to write dirty
lines back. A call that waits for the device cannot be captured: it is timed between two events, host included.
"""

import statistics
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

Call = Callable[[], Any]
REPEATS = 20
SHORTEST = 2e-3
"""Seconds of one sample on a CPU: shorter calls are repeated, since a timer's ticks and a cold start would show."""


class Spread(NamedTuple):
    """The median of some samples and their 20th and 80th percentile, in seconds."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, samples: list[float]) -> "Spread":
        if len(samples) == 1:
            return cls(*samples * 3)
        fifths = statistics.quantiles(samples, n=5, method="inclusive")
        return cls(statistics.median(samples), fifths[0], fifths[3])


def sample(
    calls: Mapping[str, Call], device: torch.device, *, rounds: int, waiting: Collection[str] = ()
) -> dict[str, list[float]]:
    """Return seconds of one run of each call, `rounds` samples each, in turns whose order rotates from round to round.

    Args:
        calls: by name; each is run a few times before it is timed.
        waiting: names of calls that wait for the device.
    """
    timers = {name: _timer(call, device, name in waiting) for name, call in calls.items()}
    names = list(timers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds[name].append(timers[name]())
    return seconds


def _timer(call: Call, device: torch.device, waits: bool) -> Callable[[], float]:
    """Return what gives one sample of a call's seconds."""
    if device.type != "cuda":
        return _on_the_wall(call)
    flush = Flush(device)
    if waits:
        return lambda: _between_events(call, flush)

    def after_a_pass() -> None:
        flush()
        call()

    both, passes = _captured(after_a_pass), _captured(flush)
    return lambda: max(0.0, _replayed(both) - _replayed(passes)) / REPEATS


def _on_the_wall(call: Call) -> Callable[[], float]:
    call()  # the first one allocates
    started = time.perf_counter()
    call()
    repeats = max(1, round(SHORTEST / max(time.perf_counter() - started, 1e-7)))

    def timed() -> float:
        started = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - started) / repeats

    return timed


class Flush:
    """A pass over a buffer of twice the L2's size, which leaves nothing else in it."""

    _buffers: ClassVar[dict[torch.device, Tensor]] = {}

    def __init__(self, device: torch.device) -> None:
        if device not in self._buffers:
            lines = 2 * torch.cuda.get_device_properties(device).L2_cache_size // 4 // 1024 + 1
            self._buffers[device] = torch.zeros(lines, 1024, device=device)
        self._buffer = self._buffers[device]
        self._out = torch.empty(len(self._buffer), device=device)

    def __call__(self) -> None:
        torch.amax(self._buffer, dim=1, out=self._out)


def _captured(call: Call) -> torch.cuda.CUDAGraph:
    """Return a graph of REPEATS calls. Compiling and loading happen before, on a stream of their own, as capture
    demands."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            call()
    graph.replay()
    return graph


def _replayed(graph: torch.cuda.CUDAGraph) -> float:
    return _elapsed(graph.replay)


def _between_events(call: Call, flush: Flush) -> float:
    flush()
    return _elapsed(call)


def _elapsed(call: Call) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000
