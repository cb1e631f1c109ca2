"""The ways between host and device that let the host go on."""

from collections.abc import Iterable
from typing import cast

import numpy as np
import torch
from torch import Tensor


class ReadBack:
    """A few integers on their way to the host: on CUDA one pinned, asynchronous copy, and a wait for it alone."""

    def __init__(self, counts: Tensor) -> None:
        self._host = counts
        self._copied: torch.cuda.Event | None = None
        if counts.is_cuda:
            self._host = torch.empty_like(counts, device="cpu", pin_memory=True)
            self._host.copy_(counts, non_blocking=True)
            self._copied = torch.cuda.Event()
            # Of the counts' device, which need not be the current one.
            self._copied.record(torch.cuda.current_stream(counts.device))

    def wait(self) -> list[int]:
        """Return the integers, once they are here."""
        if self._copied is not None:
            self._copied.synchronize()
        return cast(list[int], self._host.tolist())


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on `device`; towards CUDA through pinned memory, so that the host need not wait."""
    if tensor.device == device:
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_device(arrays: Iterable[np.ndarray], device: torch.device) -> list[Tensor]:
    """Host arrays as tensors on `device`."""
    return [move(torch.from_numpy(np.ascontiguousarray(array)), device) for array in arrays]
