"""Batches too small to keep a GPU busy, by CUDA graphs: what the host would launch one by one is launched at once.

A layer of such a batch is over before the host has launched the next. So its launches are recorded, in sections that
end where the host asks which rows survive, and a later batch of like size has them replayed. Sizes are rounded up, so
that few recordings serve many batches; what is left of the tokens is laid out as rows that have left before they begin.
"""

import contextlib
import gc
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pabee_fast.kernels.launch import next_power_of_2
from pabee_fast.layout import Layout
from pabee_fast.runtime.pack import PackedBatch, cumulative
from pabee_fast.runtime.state import Results
from pabee_fast.transfer import ReadBack, Together

logger = logging.getLogger(__name__)

DEVICES = frozenset({"cuda"})

RECORDINGS = 64
"""Kept at most, the last used. Each holds its inputs and results; what lies between is memory that all share."""

UP_TO = 2
"""Times the tokens whose layers take a GPU as long as their launches take the host (`budget.least_tokens`): somewhat
larger batches gain less by a compaction, too, than by having their launches replayed. An estimate."""

LEAST = 64
"""Tokens that sizes are rounded up to at least: a tile of the kernel for short rows."""


class Size(NamedTuple):
    """What recordings are told apart by: room for so many tokens and rows, none of more than `longest` tokens."""

    tokens: int
    rows: int
    longest: int

    @classmethod
    def of(cls, lengths: np.ndarray) -> "Size":
        """Return the least size that holds rows of these lengths, [rows], and no empty one beside them: rows in powers
        of two, tokens in steps of a quarter of one."""
        count, total, longest = len(lengths), int(lengths.sum()), next_power_of_2(max(LEAST, int(lengths.max())))
        rows = next_power_of_2(count)
        while (tokens := _rounded(total + rows - count)) - total > (rows - count) * longest:
            rows *= 2
        return cls(tokens, rows, longest)

    def lay(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return `cu_seqlens` [rows + 1] int32 of rows that fill all of it, and which of them count, [rows] int8:
        the given ones, which come first."""
        others = self.rows - len(lengths)
        ends = (self.tokens - int(lengths.sum())) * np.arange(others + 1) // max(others, 1)
        is_given = np.arange(self.rows) < len(lengths)
        return cumulative(np.concatenate([lengths, np.diff(ends)])), is_given.astype(np.int8)


class Asked(NamedTuple):
    """What a section ends with: the layer that its rows have behind them, and their counts as `Plan` gives them; None
    where all rows have left."""

    layer: int
    counts: Tensor | None


class Recording:
    """The run of batches of one size: where their inputs and results lie, and the launches between.

    Args:
        size: what there is room for.
        batch: one that fits, for the names and dtypes of its inputs.
        results: [rows] answers, as many as there is room for.
        attention: see `Layout`.
    """

    def __init__(self, size: Size, batch: PackedBatch, results: Results, attention: str | None) -> None:
        device = results.logits.device
        self.size, self.results = size, results
        self.inputs = {name: values.new_zeros(size.tokens, device=device) for name, values in batch.inputs.items()}
        self._sent = Together(_on_host(size, np.zeros(0, np.int64), ()), device)
        cu_seqlens, self.keep, self.exit_at = self._sent.tensors
        self.row_ids = torch.arange(size.rows, device=device)
        self.layout = Layout(cu_seqlens, size.longest, attention=attention)
        self.has_run = False
        self.sections: list[tuple[torch.cuda.CUDAGraph, Asked]] = []

    def take(self, batch: PackedBatch, exit_at: Sequence[int] | None) -> None:
        """Write what a batch brings to where the launches read it."""
        self._sent.fill(_on_host(self.size, batch.lengths, exit_at or ()))
        tokens = len(next(iter(batch.inputs.values())))
        torch._foreach_copy_([values[:tokens] for values in self.inputs.values()], [*batch.inputs.values()])


def _on_host(size: Size, lengths: np.ndarray, exit_at: Sequence[int]) -> list[np.ndarray]:
    """Return `cu_seqlens`, `keep` and the given exits of rows, as far as there is room."""
    exits = np.zeros(size.rows, np.int64)
    exits[: len(exit_at)] = exit_at
    return [*size.lay(lengths), exits]


Sections = Callable[[Recording], Iterator[Asked]]
"""Launches all of a run, from the embedding on, and stops where a section ends; does nothing that depends on values."""


class Graphs:
    """Recordings of one model, by one thread at a time.

    Args:
        device: where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._recordings: OrderedDict[Hashable, Recording] = OrderedDict()
        self._memory: Any = None  # what recordings share, as torch names it
        self._stream: torch.cuda.Stream | None = None
        self._binding = 0
        self._cannot_record = False
        self._over: torch.cuda.Event | None = None  # the last run: another stream may ask for the next

    def keep_for(self, binding: int) -> None:
        """Forget all recordings unless they were made of this binding of the layers: weights may lie elsewhere now."""
        if binding != self._binding:
            self.clear()
            self._binding = binding

    def clear(self) -> None:
        """Forget all recordings, and the memory they share, which goes with the last of them."""
        self._recordings.clear()
        self._memory = None

    def recording(self, key: Hashable, make: Callable[[], Recording]) -> Recording:
        """Return the recording of a key, made where there is none; the one that was not asked for longest goes."""
        if key not in self._recordings:
            if len(self._recordings) >= RECORDINGS:
                self._recordings.popitem(last=False)
                if not any(each.sections for each in self._recordings.values()):
                    self._memory = None  # torch gave it back with the last graph
            with torch.inference_mode(False):  # what is made in it could not be written to outside
                self._recordings[key] = make()
        self._recordings.move_to_end(key)
        return self._recordings[key]

    def run(
        self,
        recording: Recording,
        batch: PackedBatch,
        exit_at: Sequence[int] | None,
        sections: Sections,
        on_settled: Callable[[int, int], None],
    ) -> Results:
        """Return what a batch answers, in its order; see `Engine.run`."""
        if self._over is not None:
            torch.cuda.current_stream(self.device).wait_event(self._over)
        recording.take(batch, exit_at)
        rows = alive = len(batch.lengths)
        for layer, counts in self._launched(recording, sections):
            survivors = 0 if counts is None else ReadBack(counts).wait()[0]
            on_settled(alive - survivors, layer)
            alive = survivors
            if not alive:
                break
        answers = Results(recording.results.logits[:rows].clone(), recording.results.exit_layers[:rows].clone())
        if self._over is None and self.device.type == "cuda":
            self._over = torch.cuda.Event()
        if self._over is not None:
            self._over.record(torch.cuda.current_stream(self.device))
        return answers

    def _launched(self, recording: Recording, sections: Sections) -> Iterator[Asked]:
        """Launch section after section. A size that comes once is not worth a recording; the second time there is one,
        once all kernels have been loaded by a run to the end."""
        if recording.sections:
            for graph, asked in recording.sections:
                graph.replay()
                yield asked
        elif not recording.has_run or self._cannot_record:
            recording.has_run = True
            yield from sections(recording)
        else:
            every = [*sections(recording)]
            try:
                recording.sections = self._record(recording, sections)
            except RuntimeError as error:  # of CUDA, and out of memory
                self._cannot_record = True
                logger.warning(
                    "small batches cannot be recorded as CUDA graphs, and are launched by the host: %s", error
                )
            yield from every

    def _record(self, recording: Recording, sections: Sections) -> list[tuple[torch.cuda.CUDAGraph, Asked]]:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
            logger.info("batches that are too small to keep the GPU busy are replayed as CUDA graphs")
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
        found, caller, steps = [], torch.cuda.current_stream(self.device), sections(recording)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream), _undisturbed():
            is_over = False
            while not is_over:
                graph = torch.cuda.CUDAGraph()
                # Other threads may go on, with what no recording may hold.
                graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")
                try:
                    asked = next(steps)
                finally:
                    graph.capture_end()
                found.append((graph, asked))
                is_over = asked.counts is None
        caller.wait_stream(self._stream)
        return found


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Record without garbage collection, which may free what is on a GPU; and let the library's products have
    workspaces of a recording's own, which nobody has afterwards who runs on the same stream."""
    was_enabled = gc.isenabled()
    gc.disable()
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()
        if was_enabled:
            gc.enable()


def _rounded(tokens: int) -> int:
    step = next_power_of_2(max(LEAST, tokens)) // 8
    return max(LEAST, -(-tokens // step) * step)
