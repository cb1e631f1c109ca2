"""Where the device's time and memory go: the exit step's and compaction's share of a run, and peaks against stock.

Times come in two ways. Between events around each call of them, gaps of the device in between included, so
that a share is an upper bound; and on CUDA as the sum of the kernels by their names, from torch's profiler, which
cannot tell a pooler's library product from a layer's.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench import timing
from pabee_fast.runtime import ops
from pabee_fast.runtime.bound import HeadStep
from pabee_fast.runtime.steps import Steps

PARTS: dict[str, tuple[Any, str]] = {
    "exit_step": (HeadStep, "__call__"), "plan": (Steps, "_plan"), "gather": (ops, "gather")
}  # fmt: skip
"""By the name of a part, who has it, under which name."""
KERNELS = ("exit_step_kernel", "plan_kernel", "gather_kernel", "pool_kernel")


class _Spans:
    """Seconds between the beginnings and ends of calls, read once the device has done them all."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    def mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(first: Any, *args: Any, **options: Any) -> Any:
            if isinstance(first, Tensor) and first.device.type != self.device.type:  # inputs on their way to the device
                return call(first, *args, **options)
            begin = self.mark()
            out = call(first, *args, **options)
            self._spans[name].append((begin, self.mark()))
            return out

        return timed

    def seconds(self) -> dict[str, float]:
        timing.wait_for(self.device)
        return {name: sum(self._between(*span) for span in spans) for name, spans in self._spans.items()}

    def _between(self, begin: Any, end: Any) -> float:
        return begin.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - begin


@contextlib.contextmanager
def _seam(spans: _Spans) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name, (owner, attribute) in PARTS.items():
            call = spans.around(name, getattr(owner, attribute))
            stack.enter_context(mock.patch.object(owner, attribute, call))
        yield


def time_shares(run: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Return shares of one run's time, by part: "exit_step", "plan", "gather", and "together"."""
    spans = _Spans(device)
    with _seam(spans):
        timing.wait_for(device)
        begin = spans.mark()
        run()
        end = spans.mark()
    parts = spans.seconds()
    whole = spans._between(begin, end)
    return {name: parts.get(name, 0.0) / whole for name in PARTS} | {"together": sum(parts.values()) / whole}


def kernel_shares(run: Callable[[], Any]) -> dict[str, float]:
    """Return shares of the time in which a CUDA device runs kernels, by kernel; needs a device."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run()
        torch.cuda.synchronize()
    times: dict[str, float] = defaultdict(float)
    for event in profiled.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            times[next((name for name in KERNELS if name in event.name), "other")] += event.time_range.elapsed_us()
    whole = sum(times.values())
    return {name: times[name] / whole for name in KERNELS} if whole else {}


def peak_bytes(run: Callable[[], Any], device: torch.device) -> tuple[int, int]:
    """Return the most memory that a run holds on a CUDA device, and how much of it was held before: weights and
    inputs."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device), before
