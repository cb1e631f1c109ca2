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
    here = [np.ascontiguousarray(array) for array in arrays]
    if device.type == "cuda":
        return Together(here, device).tensors
    return [torch.from_numpy(array).to(device) for array in here]


class Together:
    """Tensors in one piece of a device's memory, which one copy fills.

    Args:
        arrays: contiguous, what they hold at first.
        device: where they are to be.
    """

    def __init__(self, arrays: Sequence[np.ndarray], device: torch.device) -> None:
        self._memory = _end_to_end(arrays, device).to(device, non_blocking=True)
        self.tensors, start = list[Tensor](), 0
        for array in arrays:
            flat = self._memory.narrow(0, start, array.nbytes).view(torch.from_numpy(array).dtype)
            self.tensors.append(flat if array.ndim == 1 else flat.view(array.shape))
            start += _room(array)

    def fill(self, arrays: Sequence[np.ndarray]) -> None:
        """Write other values of the same shapes and dtypes."""
        self._memory.copy_(_end_to_end(arrays, self._memory.device), non_blocking=True)


def _room(array: np.ndarray) -> int:
    return -(-array.nbytes // ALIGNMENT) * ALIGNMENT


def _end_to_end(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Return the bytes of arrays, each aligned, on their way to `device`."""
    laid, start = torch.empty(sum(map(_room, arrays)), dtype=torch.uint8, pin_memory=device.type == "cuda"), 0
    places = laid.numpy()  # NumPy copies a few bytes in a fifth of the time that torch takes
    for array in arrays:
        places[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        start += _room(array)
    return laid
