"""The one seam to the kernels: CUDA tensors go to Triton, others to the reference."""

import functools
import logging
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pabee_fast.kernels import reference
from pabee_fast.kernels.checks import answer_words
from pabee_fast.kernels.launch import MAX_CLASSES, Plan

__all__ = ["Plan", "answer_words", "exit_step", "gather", "kernels_in_use", "move", "plan", "read_back", "to_device"]

logger = logging.getLogger(__name__)


@functools.cache
def _triton_kernels() -> tuple[ModuleType, ModuleType]:
    """The modules with exit_step and compact for CUDA; says once why it is not Triton where it is not."""
    try:
        from pabee_fast.kernels import compact
        from pabee_fast.kernels import exit_step as exit_step_module
    except ImportError as error:
        logger.warning("exit step and compaction run as plain torch on CUDA: Triton cannot be imported (%s)", error)
        return reference, reference
    return exit_step_module, compact


def kernels_in_use(device: torch.device) -> str:
    """In words: what runs exit step and compaction on `device`."""
    if device.type != "cuda":
        return f"plain torch, since Triton kernels need CUDA and the device is {device.type}"
    return "plain torch, since Triton cannot be imported" if _triton_kernels()[0] is reference else "Triton"


def exit_step(features: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> None:
    """See `kernels.reference.exit_step`."""
    module = _triton_kernels()[0] if features.is_cuda else reference
    if module is not reference and weight.shape[0] > MAX_CLASSES:
        _say_too_many_classes(weight.shape[0])
        module = reference
    module.exit_step(features, weight, *args, **kwargs)


@functools.cache
def _say_too_many_classes(classes: int) -> None:
    logger.warning("the exit step runs as plain torch: %d classes, and the kernel holds %d", classes, MAX_CLASSES)


def plan(keep: Tensor, *args: Any) -> Plan:
    """See `kernels.reference.plan`."""
    module = _triton_kernels()[1] if keep.is_cuda else reference
    return module.plan(keep, *args)


def gather(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """See `kernels.reference.gather`."""
    module = _triton_kernels()[1] if hidden.is_cuda else reference
    return module.gather(hidden, *args, **kwargs)


def read_back(counts: Tensor) -> list[int]:
    """The host's copy of a few integers; on CUDA one pinned, asynchronous copy, and a wait for that copy alone."""
    if not counts.is_cuda:
        return counts.tolist()
    host = torch.empty_like(counts, device="cpu", pin_memory=True)
    host.copy_(counts, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    copied.synchronize()
    return host.tolist()


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; towards CUDA through pinned memory, so that the host need not wait."""
    if tensor.device == device:
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_device(arrays: Iterable[np.ndarray], device: torch.device) -> list[Tensor]:
    """Host arrays as tensors on `device`."""
    return [move(torch.from_numpy(np.ascontiguousarray(array)), device) for array in arrays]
