"""What a layer takes the host, in microseconds, without a GPU: `python -m bench.host`.

The engine's own code for CUDA runs, on rows so small that arithmetic is next to nothing (4 rows of one token, 32 wide),
and kernels are launched on a GPU that is not there (`bench.stub`): the driver is left out, and so is Triton's launcher
unless `--launcher` asks for it (together 3.4 to 5 us of a launch by what others publish), as what transformers' layer
launches is no GPU's either. Attention is our kernel's, since the library's needs CUDA, and the counts are read back
from a CPU's memory. Transformers' layer runs on the same rows in the same process. A run's start, which a GPU waits
for, is of a model of 12 layers, up to the first layer's launches. Variants take turns; figures are medians of the
processor time of one thread, ratios medians of the rounds' ratios.

Where there is a GPU, a batch of 8 rows is replayed there as well, as the drop-in has it: BERT-base in bfloat16, the
microseconds until the host is free again, which launches 12 layers with their exit steps and reads back the counts of
every third one, against transformers' forward.

Exit status 1 where a layer with exit step, plan and read-back takes more than `--at-most` of transformers' layer.
"""

import argparse
import contextlib
import copy
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
import triton
from transformers import BertConfig, BertForSequenceClassification

import pabee_fast as pf
from bench import cases, timing
from bench.endtoend import padded
from bench.stub import LauncherDriver, StubDriver, stub_gpu
from bench.text import columns
from pabee_fast.kernels import prepared, table
from pabee_fast.modeling.forward import engine_of
from pabee_fast.policies import Rule
from pabee_fast.runtime import block, embedding, lists, ops
from pabee_fast.runtime import pack as packing
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.pack import pack
from pabee_fast.runtime.state import Results
from pabee_fast.transfer import ReadBack, Together

ROWS, CALLS = 4, 30
SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 10}
NEVER = 1 << 20
CPU = torch.device("cpu")

Calls = dict[str, Callable[[], Any]]


@contextlib.contextmanager
def as_on_cuda(driver: StubDriver, noted: Calls | None = None, *, is_lean: bool = True) -> Iterator[None]:
    """Let tensors on a CPU go the way of CUDA ones meanwhile.

    Args:
        driver: takes the place of Triton's.
        noted: is given each kernel's last call, by its name.
        is_lean: whether launches are prepared and unchecked, as the runtime's are; else they are checked, and made by
            Triton's own call.
    """

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if noted is not None:
                noted[name] = functools.partial(function, *args, **options)
            return function(*args, **options)

        return function if noted is None else call

    def kernel(name: str, tensor: object) -> Callable[..., Any]:
        return watched(name, getattr(table.FUNCTIONS[name], f"{name}_unchecked" if is_lean else name))

    def repeated(name: str, tensor: object, **fixed: Any) -> Callable[..., Any]:
        if is_lean:
            return watched(name, table.REPEATED[name](**fixed))
        return functools.partial(kernel(name, tensor), **fixed)

    with contextlib.ExitStack() as stack:
        stack.enter_context(stub_gpu(driver))
        stack.enter_context(mock.patch.object(ops, "_kernel", kernel))
        stack.enter_context(mock.patch.object(ops, "repeated", repeated))
        stack.enter_context(mock.patch.object(ops, "has_kernels", lambda device: is_lean))
        for module, name in ((block, "JOINED"), (embedding, "FUSED")):
            stack.enter_context(mock.patch.object(module, name, {"cpu"}))
        for module in (packing, lists):
            stack.enter_context(mock.patch.object(module, "to_device", lambda *args: Together(*args).tensors))
        if not is_lean:
            stack.enter_context(mock.patch.object(prepared, "_prepare", lambda kernel: None))
            for module in table.MODULES:
                stack.enter_context(mock.patch.object(module, "check_on_device", lambda *args: None))
        yield


class _Begun(Exception):
    """A run has come to its first layer."""


class _Beginning(Engine):
    """An engine whose runs end there."""

    def _layer(self, *args: Any) -> Any:
        raise _Begun


class Work:
    """One layer of ours and of transformers, on the same rows; `driver` takes the place of Triton's."""

    def __init__(self, driver: Callable[[], StubDriver] = StubDriver) -> None:
        self._driver = driver
        # Each with a config of its own, by which attention is found.
        stock, model, other = (BertForSequenceClassification(BertConfig(**SIZES)).eval() for _ in range(3))
        self._stock, self._states = stock.bert.encoder.layer[0], torch.randn(ROWS, 1, SIZES["hidden_size"])
        self._engine, self._results = (
            Engine(pf.attach_heads(model).eval(), attention="short"),
            Results.empty(ROWS, 2, CPU),
        )
        ids = torch.ones(ROWS, 1, dtype=torch.int64)
        self._batch = pack(model, input_ids=ids, token_type_ids=ids)
        with self._engine._ready():
            self._wave = self._engine._embed(self._batch, np.arange(ROWS), pf.Patience(2))
        self._beginning = _Beginning(pf.attach_heads(other).eval(), attention="short")

    def stock(self) -> None:
        self._stock(self._states)

    @contextlib.contextmanager
    def ready(self, *, is_lean: bool = True) -> Iterator[Calls]:
        """Yield what a layer of ours is made of, and each kernel's call, bound meanwhile."""
        noted: Calls = {}
        with as_on_cuda(self._driver(), noted, is_lean=is_lean), self._bound_anew():
            for call in self._parts().values():
                call()
        with as_on_cuda(self._driver(), is_lean=is_lean), self._bound_anew():
            yield self._parts() | noted

    @contextlib.contextmanager
    def _bound_anew(self) -> Iterator[None]:
        self._engine.layers._bound = self._beginning.layers._bound = None
        with self._engine._ready():
            yield

    def _parts(self) -> Calls:
        engine, wave, rule = self._engine, self._wave, Rule("agreement", patience=NEVER)
        policy = pf.Patience(2)

        def read_back() -> None:
            plan = engine._plan(wave)
            ReadBack(plan.counts).wait()

        def step() -> None:
            engine._exit_step(wave, 1, NEVER, rule, None, self._results)

        def whole() -> None:
            engine._layer(1, wave)
            step()
            read_back()

        def begin() -> None:
            with contextlib.suppress(_Begun):
                self._beginning.run(self._batch, policy)

        return {
            "start of a run, with its first embedding": begin,
            "layer with exit step, plan and read-back": whole,
            "layer": lambda: engine._layer(1, wave),
            "exit step behind its pooler": step,
            "plan and read-back": read_back,
            "compaction": lambda: wave.compact(engine._plan(wave), ROWS, ROWS, 1),
        }


def many(call: Callable[[], Any]) -> Callable[[], None]:
    def calls() -> None:
        for _ in range(CALLS):
            call()

    return calls


@torch.no_grad()
def measure(rounds: int, *, has_launcher: bool = False) -> dict[str, Any]:
    """Run everything in turns, and return its figures."""
    work, seconds = Work(LauncherDriver if has_launcher else StubDriver), {}
    with work.ready() as lean:
        timed = {name: many(call) for name, call in {"transformers' layer": work.stock, **lean}.items()}
        seconds = timing.interleaved(timed, rounds, CPU, time.thread_time)
    with work.ready(is_lean=False) as plain:
        before = timing.interleaved({name: many(call) for name, call in plain.items()}, rounds, CPU, time.thread_time)
    whole, stock = seconds["layer with exit step, plan and read-back"], seconds["transformers' layer"]
    return {
        "hardware": timing.hardware(CPU),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "triton": triton.__version__,
        "transformers": transformers.__version__,
        "rounds": rounds,
        "has_launcher": has_launcher,
        "microseconds": {name: 1e6 * statistics.median(each) / CALLS for name, each in seconds.items()},
        "microseconds_checked_and_by_triton": {
            name: 1e6 * statistics.median(each) / CALLS for name, each in before.items()
        },
        "ratio": timing.median_ratio(whole, stock),
    }


@torch.no_grad()
def replayed(rounds: int) -> dict[str, float]:
    """Return what a small batch takes the host on a GPU, a layer: replayed, and by transformers' forward."""
    device, layers, times = torch.device("cuda"), 12, dict[str, list[float]]()
    stock = cases.model("bert-base").to(device, torch.bfloat16)
    rows = cases.sst2_like(8, layers)
    batch = padded(rows.input_ids, device)
    ours = pf.accelerate(pf.attach_heads(copy.deepcopy(stock)).eval(), pf.Scheduled(rows.exit_layers))
    for _ in range(3):
        ours(**batch)
    graphs = engine_of(ours).graphs
    assert graphs is not None
    (recording,) = graphs._recordings.values()

    def launch() -> None:
        for graph, asked in recording.sections:
            graph.replay()
            if asked.counts is not None:
                ReadBack(asked.counts)

    for _ in range(rounds):
        for name, call in {"transformers' layer": lambda: stock(**batch), "layer, replayed": launch}.items():
            torch.cuda.synchronize()
            started = time.thread_time()
            call()
            times.setdefault(name, []).append((time.thread_time() - started) / layers)
    torch.cuda.synchronize()
    micros = {name: 1e6 * statistics.median(each) for name, each in times.items()}
    return {**micros, "ratio": timing.median_ratio(times["layer, replayed"], times["transformers' layer"])}


def show(figures: dict[str, Any]) -> str:
    """Return the figures as a table."""
    before = figures["microseconds_checked_and_by_triton"]
    lines: list[list[object]] = [["us of the host", "prepared", "checked, by Triton's own call"]]
    for name, each in figures["microseconds"].items():
        lines.append([name, f"{each:.1f}", f"{before[name]:.1f}" if name in before else ""])
    versions = ", ".join(f"{name} {figures[name]}" for name in ("torch", "triton", "transformers", "python"))
    launcher = "with Triton's launcher" if figures["has_launcher"] else "without Triton's launcher"
    ratio = f"A layer with exit step, plan and read-back takes {figures['ratio']:.2f} of transformers' layer."
    return f"{figures['hardware']}, {versions}, {launcher}\n\n{columns(lines)}\n\n{ratio}"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table and, as the last line, one JSON document; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--at-most", type=float, help="of transformers' layer; default: any")
    parser.add_argument("--launcher", action="store_true", help="with Triton's launcher in C; needs a C compiler")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # what no kernel has written may be anything, and products of such numbers are slow
    try:
        figures = measure(args.rounds, has_launcher=args.launcher)
    finally:
        torch.set_flush_denormal(False)  # it is the thread's, whoever computes on it next
    print(show(figures))
    if torch.cuda.is_available():
        print(json.dumps(figures))  # should the GPU fail
        figures["replayed"] = found = replayed(args.rounds)
        print("On the GPU, 8 rows: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
    print(json.dumps(figures))
    return int(args.at_most is not None and figures["ratio"] > args.at_most)


if __name__ == "__main__":
    sys.exit(main())
