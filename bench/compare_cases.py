"""What two commits are compared by: calls of the public surface, and each function of the seam to the kernels.

Every case is built on its own, so that one that a commit does not know leaves the others alone.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

import pabee_fast as pf
from bench import cases as rows_and_models
from bench import timing

Build = Callable[[], Callable[[], Any]]


def cases(device_name: str) -> dict[str, Build]:
    """Return builders by name; each returns a call that ends when its results are there."""
    from pabee_fast.runtime.device import choose_device, choose_dtype

    device = choose_device(device_name)
    dtype, _ = choose_dtype("auto", device)
    model, rows = ("bert-base", 4096) if device.type == "cuda" else ("bert-tiny", 64)
    found: dict[str, Build] = {
        name: functools.partial(_model_case, name, model, rows, device, dtype)
        for name in ("full depth", "early exit", "nobody leaves")
    }
    return found | {
        name: functools.partial(_kernel_case, name, device, dtype) for name in ("exit_step", "plan", "gather", "pool")
    }


def _model_case(name: str, model: str, rows: int, device: torch.device, dtype: torch.dtype) -> Callable[[], Any]:
    from bench.endtoend import never_agree, padded

    drawn = rows_and_models.sst2_like(rows, 12)
    stock = pf.attach_heads(rows_and_models.model(model)).to(device, dtype)
    policies = {"full depth": pf.FullDepth(), "early exit": pf.Scheduled(drawn.exit_layers)}
    ours = never_agree(stock) if name == "nobody leaves" else stock
    accelerated = pf.accelerate(ours, policies.get(name, pf.Patience(3)))
    batch = padded(drawn.input_ids, device)

    def run() -> None:
        with torch.no_grad():
            accelerated(**batch).logits.cpu()

    return run


def _kernel_case(name: str, device: torch.device, dtype: torch.dtype) -> Callable[[], Any]:
    from bench.micro.table import CASES

    rows = 4096 if device.type == "cuda" else 1024
    case = next(case for case in CASES if case.op.split(",")[0] == name and case.rows >= min(rows, 512))
    subject = case.build(device, dtype)
    call = next(iter(subject.calls.values()))

    def run() -> None:
        call()
        timing.wait_for(device)

    return run
