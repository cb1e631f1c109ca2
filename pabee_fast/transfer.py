"""The ways between host and device that let the host go on."""

import time
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 16
"""Bytes: kernels are compiled for tensors that begin at multiples of it, and again for others."""


class ToHost:
    """Tensors of a device on their way to the host: on CUDA pinned, asynchronous copies, and a wait for them alone."""

    def __init__(self, *tensors: Tensor) -> None:
        self._host: Sequence[Tensor] = tensors
        self._copied: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            self._host = [torch.empty_like(tensor, device="cpu", pin_memory=True) for tensor in tensors]
            for here, there in zip(self._host, tensors, strict=True):
                here.copy_(there, non_blocking=True)
            self._copied = torch.cuda.Event()
            # Of the tensors' device, which need not be the current one.
            self._copied.record(torch.cuda.current_stream(tensors[0].device))

    def tensors(self) -> Sequence[Tensor]:
        """Return them, once they are here."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host


class ReadBack(ToHost):
    """A few integers on their way to the host, [n]."""

    def wait(self) -> list[int]:
        """Return the integers, once they are here."""
        return cast(list[int], self.tensors()[0].tolist())


class Stopwatch:
    """The seconds that a device works between its creation and `stop`: by a GPU's own clock, on whose current stream it
    is asked, since calls return before their work is done."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._span = [self._now()]

    def stop(self) -> None:
        self._span.append(self._now())

    def seconds(self) -> float:
        """Return them, once they are over."""
        began, ended = self._span
        if not self._is_cuda:
            return float(ended - began)
        ended.synchronize()
        return float(began.elapsed_time(ended) / 1000)

    def _now(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on `device`; towards CUDA through pinned memory, so that the host need not wait."""
    if tensor.device == device:
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_device(arrays: Iterable[np.ndarray], device: torch.device) -> list[Tensor]:
    """Return host arrays as tensors on `device`; on CUDA they travel together, since each copy takes the host longer
    than a few numbers take to travel."""
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    return by_one_copy(tensors, device) if device.type == "cuda" else [tensor.to(device) for tensor in tensors]


def by_one_copy(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return tensors of the host on `device`, all in one piece of memory."""
    return Together(tensors, device).tensors


class Together:
    """Tensors in one piece of a device's memory, which one copy fills.

    Args:
        values: of the host, what they hold at first.
        device: where they are to be.
    """

    def __init__(self, values: Sequence[Tensor], device: torch.device) -> None:
        self._memory = _joined(values, device).to(device, non_blocking=True)
        ends = np.cumsum([_room(each) for each in values]).tolist()
        self.tensors = [
            self._memory[end - _room(each) : end - _room(each) + each.nbytes].view(each.dtype).view(each.shape)
            for end, each in zip(ends, values, strict=True)
        ]

    def fill(self, values: Sequence[Tensor]) -> None:
        """Write other values of the same shapes and dtypes, from the host."""
        self._memory.copy_(_joined(values, self._memory.device), non_blocking=True)


def _room(tensor: Tensor) -> int:
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT


def _joined(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the bytes of tensors of the host end to end, on their way to `device`."""
    joined, start = torch.empty(sum(map(_room, tensors)), dtype=torch.uint8, pin_memory=device.type == "cuda"), 0
    for tensor in tensors:
        joined[start : start + tensor.nbytes].view(tensor.dtype).copy_(tensor.flatten())
        start += _room(tensor)
    return joined
