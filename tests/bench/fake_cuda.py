"""A CUDA device with a clock of its own: work costs what it says, and a graph replays what it captured."""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch


class FakeCuda:
    """Takes the place of `torch` in a module that allocates on a device, records events and captures graphs."""

    def __init__(self, flush_seconds: float = 0.003) -> None:
        self.now, self.flush_seconds = 0.0, flush_seconds
        self.flushes = 0
        self._captured: list[float] | None = None
        self.cuda = SimpleNamespace(
            CUDAGraph=lambda: _Graph(self),
            Event=lambda enable_timing: _Event(self),
            Stream=lambda: SimpleNamespace(wait_stream=lambda other: None),
            current_stream=lambda: SimpleNamespace(wait_stream=lambda other: None),
            get_device_properties=lambda device: SimpleNamespace(L2_cache_size=1 << 16),
            graph=self._capture,
            stream=lambda stream: contextlib.nullcontext(),
            synchronize=lambda device=None: self._refuse_in_capture("a wait"),
        )

    def spend(self, seconds: float) -> None:
        """Work of the device."""
        if self._captured is not None:
            self._captured.append(seconds)
        else:
            self.now += seconds

    def wait(self) -> None:
        """What a call does that reads a result back."""
        self._refuse_in_capture("a wait")

    def zeros(self, *shape: int, device: Any) -> torch.Tensor:
        return torch.zeros(*shape)

    def empty(self, *shape: int, device: Any) -> torch.Tensor:
        return torch.empty(*shape)

    def amax(self, *args: Any, **options: Any) -> None:
        self.flushes += 1
        self.spend(self.flush_seconds)

    def _refuse_in_capture(self, what: str) -> None:
        if self._captured is not None:
            raise RuntimeError(f"{what} during capture")

    @contextlib.contextmanager
    def _capture(self, graph: "_Graph") -> Iterator[None]:
        self._captured = graph.work
        try:
            yield
        finally:
            self._captured = None


class _Graph:
    def __init__(self, device: FakeCuda) -> None:
        self.device, self.work = device, list[float]()

    def replay(self) -> None:
        for seconds in self.work:
            self.device.spend(seconds)


class _Event:
    def __init__(self, device: FakeCuda) -> None:
        self.device, self.at = device, 0.0

    def record(self) -> None:
        self.at = self.device.now

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: "_Event") -> float:
        return (end.at - self.at) * 1000
