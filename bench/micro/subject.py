"""What a microbenchmark is made of: one operation on given data, and the variants that do it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bench.graphs import Call
from pabee_fast.kernels import reference

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""What sums and roundings in another order change, as a share of the largest magnitude."""


@dataclass(frozen=True)
class Subject:
    """One operation on given data, ready to be run by each of its variants."""

    calls: Mapping[str, Call]
    """By variant; the first is the one that the runtime uses."""
    moved: int
    """Bytes that must at least be read and written."""
    flops: int = 0
    """Floating-point operations of its matrix products."""
    waiting: frozenset[str] = frozenset()
    """Variants that wait for the device, so that no graph can hold them."""
    agree: Callable[[], None] = field(kw_only=True)
    """Raises AssertionError unless all variants give one result."""


@dataclass(frozen=True)
class Case:
    """A subject by name; its data is made when it is asked for."""

    op: str
    size: str
    rows: int
    build: Callable[[torch.device, torch.dtype], Subject]
    is_small: bool = False
    """Whether it is in the set that every change runs."""

    @property
    def name(self) -> str:
        return f"{self.op} {self.size}"


def serving(name: str, device: torch.device) -> dict[str, Callable[..., Any]]:
    """Return the functions of that name that run on `device`: "kernel" where Triton can launch it, and "reference"."""
    module = _kernels().get(name)
    found = {"reference": getattr(reference, name)}
    if module is not None and (device.type == "cuda" or are_interpreted()):
        found = {"kernel": getattr(module, name)} | found
    return found


def _kernels() -> dict[str, ModuleType]:
    try:
        from pabee_fast.kernels import table
    except ImportError:  # no Triton: the references alone
        return {}
    return table.FUNCTIONS


def are_interpreted() -> bool:
    """Return whether this process runs kernels under Triton's interpreter, on a CPU."""
    import triton

    from pabee_fast.kernels import compact

    return not isinstance(compact.plan_kernel, triton.JITFunction)


def same(found: Mapping[str, Sequence[Tensor]], *, tolerance: float = 0.0) -> None:
    """Raise AssertionError, naming the variant, unless all hold the same tensors as the reference; floating-point ones
    up to `tolerance` of the largest magnitude."""
    for variant, got in found.items():
        for number, (a, b) in enumerate(zip(got, found["reference"], strict=True)):
            message = f"{variant}, result {number} differs from the reference's"
            assert a.shape == b.shape, message
            if not a.is_floating_point():
                assert torch.equal(a, b), message
                continue
            finite = b[b.isfinite()].float()
            limit = tolerance * (finite.abs().max().item() if finite.numel() else 0.0)
            close = torch.isclose(a.float(), b.float(), rtol=0, atol=limit, equal_nan=True)
            assert close.all(), f"{message} by up to {(a.float() - b.float()).abs().nan_to_num().max().item():.2e}"


def size_of(*tensors: Tensor | None) -> int:
    """Return bytes of the tensors that are there."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
