"""The one seam to the kernels: CUDA tensors go to Triton, others to the reference."""

import functools
import logging
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from pabee_fast.kernels import reference
from pabee_fast.kernels.checks import Pooler, RowState, memory_words
from pabee_fast.kernels.launch import MAX_CLASSES, Plan
from pabee_fast.kernels.reference import ACTIVATIONS, count, observe

__all__ = [
    "ACTIVATIONS", "Plan", "Pooler", "ReadBack", "RowState", "count", "exit_step", "gather", "kernels_in_use",
    "memory_words", "move", "observe", "plan", "pool", "pooler_in_use", "to_device",
]  # fmt: skip

logger = logging.getLogger(__name__)

FUSED_POOLER_ROWS = 2048
"""Up to so many rows the pooler runs inside the exit step. Each 16 rows read its weights anew (1.2 MB for BERT-base,
some 12 us for one multiprocessor), and 128 programs fill a large GPU once; with more rows they queue, and a library
product over pooled rows is faster in spite of its three launches. Counted, not measured: bench/micro times both."""


@functools.cache
def _triton_kernels() -> dict[str, ModuleType] | None:
    """The modules for CUDA by the name of their function; says once why there are none."""
    try:
        from pabee_fast.kernels import compact
        from pabee_fast.kernels import exit_step as exit_step_module
        from pabee_fast.kernels import pool as pool_module
    except ImportError as error:
        logger.warning("exit step and compaction run as plain torch on CUDA: Triton cannot be imported (%s)", error)
        return None
    return {"exit_step": exit_step_module, "plan": compact, "gather": compact, "pool": pool_module}


def _kernel(name: str, tensor: Tensor) -> Callable[..., Any]:
    """What serves a tensor: the Triton function of that name, or its reference."""
    modules = _triton_kernels() if tensor.is_cuda else None
    return getattr(reference if modules is None else modules[name], name)


def kernels_in_use(device: torch.device) -> str:
    """In words: what runs exit step and compaction on `device`."""
    if device.type != "cuda":
        return f"plain torch, since Triton kernels need CUDA and the device is {device.type}"
    return "plain torch, since Triton cannot be imported" if _triton_kernels() is None else "Triton"


def pooler_in_use(device: torch.device, dtype: torch.dtype) -> str:
    """In words: what runs the pooler in front of the heads."""
    if device.type != "cuda" or dtype == torch.float32 or _triton_kernels() is None:
        return f"a library product over pooled rows ({dtype} on {device.type})"
    return f"inside the exit step up to {FUSED_POOLER_ROWS} rows, a library product over pooled rows above (estimated)"


def exit_step(
    features: Tensor,
    weight: Tensor,
    *args: Any,
    cu_seqlens: Tensor | None,
    pooling: str | None,
    key_mask: Tensor | None,
    pooler: Pooler | None,
    **options: Any,
) -> None:
    """See `kernels.reference.exit_step`; chooses where the pooler runs."""
    step = _kernel("exit_step", features)
    if step is not reference.exit_step and weight.shape[-2] > MAX_CLASSES:
        _say_too_many_classes(weight.shape[-2])
        step = reference.exit_step
    if pooler is not None and not _fuses(step, features, cu_seqlens, pooling):
        if cu_seqlens is not None and pooling is not None:
            features = pool(features, cu_seqlens, pooling=pooling, key_mask=key_mask)
        features = ACTIVATIONS[pooler.activation](linear(features, pooler.weight, pooler.bias))
        cu_seqlens = pooling = key_mask = pooler = None
    # Autocast and a head kept in another precision: the head's own is what its product runs in.
    features = features.to(weight.dtype)
    step(features, weight, *args, cu_seqlens=cu_seqlens, pooling=pooling, key_mask=key_mask, pooler=pooler, **options)


def _fuses(step: Callable[..., Any], features: Tensor, cu_seqlens: Tensor | None, pooling: str | None) -> bool:
    """Whether the pooler runs inside the exit step: where rows are few, in half precision, and each reads one token."""
    if step is reference.exit_step or features.dtype == torch.float32 or cu_seqlens is None or pooling == "mean":
        return False
    return len(cu_seqlens) - 1 <= FUSED_POOLER_ROWS


@functools.cache
def _say_too_many_classes(classes: int) -> None:
    logger.warning("the exit step runs as plain torch: %d classes, and the kernel holds %d", classes, MAX_CLASSES)


def pool(features: Tensor, *args: Any, **options: Any) -> Tensor:
    """See `kernels.reference.pool`."""
    return cast(Tensor, _kernel("pool", features)(features, *args, **options))


def plan(keep: Tensor, *args: Any) -> Plan:
    """See `kernels.reference.plan`."""
    return cast(Plan, _kernel("plan", keep)(keep, *args))


def gather(hidden: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    """See `kernels.reference.gather`."""
    return cast(tuple[Tensor, Tensor | None], _kernel("gather", hidden)(hidden, *args, **options))


class ReadBack:
    """A few integers on their way to the host: on CUDA one pinned, asynchronous copy, and a wait for it alone."""

    def __init__(self, counts: Tensor) -> None:
        self._host = counts
        self._copied: torch.cuda.Event | None = None
        if counts.is_cuda:
            self._host = torch.empty_like(counts, device="cpu", pin_memory=True)
            self._host.copy_(counts, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def wait(self) -> list[int]:
        """The integers, once they are here."""
        if self._copied is not None:
            self._copied.synchronize()
        return cast(list[int], self._host.tolist())


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
