"""Bytes that each kernel moves, counted under Triton's interpreter, against the fewest possible.

`python -m bench.traffic [PART OF A CASE'S NAME]` prints them; `bench.static` holds them against a baseline.

Every load and store of a launch is written down with its addresses. What a program's access touches is counted in whole
sectors of 32 bytes, as a GPU moves them, each time anew: `moved` is what reaches a multiprocessor from cache or memory.
`least` counts every byte once that any program reads, and once that any writes. The ratio says how often operands are
read again, and how much of the sectors is not asked for.

Counted in float16, which stands for bfloat16, since the interpreter has none: block sizes depend on the size alone.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.text import columns

SECTOR = 32
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Traffic:
    """Bytes of one call."""

    moved: int
    least: int
    expected: int
    """What the microbenchmark says that the least is, from shapes alone."""

    @property
    def ratio(self) -> float:
        return self.moved / self.least


def made_of() -> str:
    """Return a hash of the sources that counts follow from: kernels, cases, and how they are counted."""
    folders = (ROOT / "pabee_fast" / "kernels", ROOT / "bench" / "micro")
    sources = [Path(__file__), *(path for folder in folders for path in sorted(folder.glob("*.py")))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


class _Counter:
    def __init__(self) -> None:
        self.moved = 0
        self._touched: dict[tuple[str, int], list[np.ndarray]] = {}

    def count(self, kind: str, pointers: Any, mask: Any) -> None:
        itemsize = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        wanted = np.broadcast_to(mask.data.astype(bool), pointers.data.shape)
        addresses = np.unique(pointers.data[wanted])
        self.moved += SECTOR * len(np.unique(addresses // SECTOR))  # elements are aligned: none lies in two sectors
        self._touched.setdefault((kind, itemsize), []).append(addresses)

    @property
    def least(self) -> int:
        return sum(size * len(np.unique(np.concatenate(each))) for (_, size), each in self._touched.items())


@contextmanager
def _counting() -> Iterator[_Counter]:
    """Count what kernels of this process load and store meanwhile."""
    from triton.runtime.interpreter import interpreter_builder

    counter, builder = _Counter(), type(interpreter_builder)
    load, store = builder.create_masked_load, builder.create_masked_store

    def counted_load(self: Any, pointers: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        counter.count("load", pointers, mask)
        return load(self, pointers, mask, *args, **kwargs)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        counter.count("store", pointers, mask)
        return store(self, pointers, value, mask, *args, **kwargs)

    builder.create_masked_load, builder.create_masked_store = counted_load, counted_store
    try:
        yield counter
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store


def count_here(only: str = "") -> dict[str, Traffic]:
    """Count the kernels of microbenchmarks; in a process where they are interpreted, and nowhere else."""
    from bench.micro.table import CASES

    found = {}
    for case in CASES:
        # The smallest of each kind: an interpreted program takes milliseconds a step.
        if case.is_small and case.rows <= 64 and only in case.name:
            subject = case.build(torch.device("cpu"), torch.float16)
            for name in {"kernel", "fused"} & subject.calls.keys():
                with _counting() as counter:
                    subject.calls[name]()
                found[case.name] = Traffic(counter.moved, counter.least, subject.moved)
    return found


def count(only: str = "") -> dict[str, Traffic]:
    """Count the cases whose name holds `only`, in a process of its own: TRITON_INTERPRET is read when a kernel is
    defined."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench.traffic", only]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"counting failed:\n{done.stderr}")
    return {name: Traffic(**each) for name, each in json.loads(done.stdout.splitlines()[-1]).items()}


def show(found: Mapping[str, Traffic]) -> str:
    """As a table."""
    lines = [[name, each.moved, each.least, f"{each.ratio:.2f}"] for name, each in found.items()]
    return columns([["bytes of a call", "moved", "least", "times"], *lines])


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    results = count_here(wanted) if os.environ.get("TRITON_INTERPRET") == "1" else count(wanted)
    print(show(results))
    print(json.dumps({name: asdict(each) for name, each in results.items()}))
