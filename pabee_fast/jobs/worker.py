"""One device at work on tasks: tokenisation in the callers' threads, the model in one of its own, results back.

Every executor runs this class: in this process, in a process for each device, in a Ray actor. Several threads call
`Worker.score` at once; while one task's rows are computed, the next one's are tokenized and on their way to the device,
and the last one's become columns. It knows rows and results, and no files.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers

import pabee_fast
from pabee_fast.calibration.audit import chosen
from pabee_fast.calibration.guarantee import Guarantee
from pabee_fast.calibration.risks import answers_differ
from pabee_fast.calibration.scorer import Scorer
from pabee_fast.jobs.columns import result_columns, result_schema
from pabee_fast.jobs.device_queue import DeviceQueue
from pabee_fast.policies import FullDepth
from pabee_fast.runtime.pack import PackedBatch
from pabee_fast.scoring.answers import Answers
from pabee_fast.scoring.labels import Labels, labels_of_config
from pabee_fast.scoring.load import Setting
from pabee_fast.scoring.scorer import Row, readable
from pabee_fast.scoring.stretches import places_of
from pabee_fast.scoring.tally import Tally
from pabee_fast.transfer import Stopwatch

UNDER_WAY = 4
"""Tasks that keep a device busy: one in it, one read, one tokenized, one that becomes columns and is written."""


@dataclass(frozen=True)
class Task:
    """The rows of a part: what a worker needs of them.

    file, first_row  which rows they are
    columns          their texts, one large string array, or two of pairs; null where a row is refused
    refused          by row: why it cannot be scored
    """

    file: str
    first_row: int
    columns: Sequence[pa.Array]
    refused: Mapping[int, str]

    @classmethod
    def of(cls, rows: Sequence[Row], file: str = "", first_row: int = 0) -> "Task":
        """Return the task of rows that no table has looked at."""
        return cls(file, first_row, *readable(rows))


@dataclass(frozen=True)
class Scored:
    """A task's result columns (as `result_schema` without a prefix), and its tally."""

    results: pa.RecordBatch
    tally: Tally


@dataclass(frozen=True)
class About:
    """What a worker runs: everything that changes results, by name, and what a summary tells of it."""

    identity: dict[str, str]
    schema: pa.Schema  # of its results, without a prefix
    layers: int
    device_type: str
    device: str
    dtype_reason: str
    policy_reason: str
    guarantee: Guarantee | None
    is_void: bool  # what is stored with the model, so that rows run to full depth
    tokenizer: str  # what tokenizes, in words
    labels: Labels  # what the model's outputs mean


class Worker:
    """Scores tasks on the device of a scorer.

    Args:
        scorer: what scores.
        all_scores: whether the results have a column for each label.
        audit: the share of rows that also run to full depth. In regression, values disagree where they differ by more
            than what a guarantee tolerates, or else than the policy's threshold.
        on_rows: told how many rows are done, and the sum of their exit layers; from any thread.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        all_scores: bool = False,
        audit: float = 0.0,
        on_rows: Callable[[int, int], None] = lambda rows, layers: None,
    ) -> None:
        self.scorer, self.audit, self.on_rows = scorer, audit, on_rows
        tolerated = scorer.guarantee and scorer.guarantee.risk.tolerance
        self._tolerance = tolerated or getattr(scorer.policy, "threshold", None) or 0.0
        self.schema = result_schema(scorer.labels, scorer.engine.kind, all_scores=all_scores)
        self._device, self._tasks = DeviceQueue(), count()
        self._copies = torch.cuda.Stream(scorer.engine.device) if scorer.engine.device.type == "cuda" else None
        self._stopped = threading.Event()

    def about(self, setting: Setting) -> About:
        """Return what this worker runs."""
        return about(self.scorer, setting, self.schema)

    def score(self, task: Task) -> Scored:
        """Return the results of a task's rows; may be called by several threads at once.

        A row that cannot be scored has an error and stops nothing. The device serves the task that was begun first, so
        that one ends, and is written, while the next is computed.
        """
        scorer, tally, order = self.scorer, Tally(), next(self._tasks)
        rows = len(task.columns[0])
        answers = Answers.none_yet(rows, task.refused, scorer.engine.classes)
        audited = chosen(task.file, task.first_row, rows, self.audit)
        started, windows = time.perf_counter(), list[tuple[np.ndarray, Future[Callable[[], tuple[Answers, Tally]]]]]()
        for planned in scorer.plan(task.columns, answers):
            audit = np.flatnonzero(audited[planned.places])
            running = self._device.submit(
                order, self._compute, *self._to_device(planned.batch), audit, planned.stretches
            )
            windows.append((planned.places, running))
        tally.seconds["tokenise"] = time.perf_counter() - started
        for places, future in windows:
            found, of_window = future.result()()
            answers.put(places, found)
            tally.merge(of_window)
        answers.mark_not_finite()
        tally.add(answers)
        return Scored(self.columns(task, answers), tally)

    def columns(self, task: Task, answers: Answers) -> pa.RecordBatch:
        """Return the answers to a task's rows as result columns."""
        return result_columns(answers, self.scorer.labels, self.scorer.engine.kind, self.schema)

    def stop(self) -> None:
        """Give up what is under way, after the wave on the device."""
        self._stopped.set()
        self._device.stop()
        self.scorer.close()

    def _to_device(self, batch: PackedBatch) -> tuple[PackedBatch, Any]:
        """Return the batch on its way to the device, and the event that says that it is there."""
        if self._copies is None:
            return batch, None
        with torch.cuda.stream(self._copies):
            return batch.to(self.scorer.engine.device), self._copies.record_event()

    def _compute(
        self, batch: PackedBatch, arrival: Any, audit: np.ndarray, stretches: np.ndarray | None
    ) -> Callable[[], tuple[Answers, Tally]]:
        """Run a window, and its audited rows to full depth; in the device's thread, which begins the next window while
        a GPU ends this one.

        Returns:
            What waits for the window's answers, and returns them with what the audit counts and the time both took.
        """
        tally = Tally(audited=len(audit))
        if arrival is not None:
            torch.cuda.set_device(self.scorer.engine.device)  # of this thread
            arrival.wait()
            # Their memory is the copies' again once they are let go, which is before a GPU has read them.
            for tensor in (*batch.inputs.values(), batch.key_mask, batch.positions, batch.images):
                if tensor is not None:
                    tensor.record_stream(torch.cuda.current_stream())
        computing = Stopwatch(self.scorer.engine.device)
        told = self._on_settled if stretches is None else self._on_stretch
        waiting = self.scorer.start(batch, self.scorer.policy, told)
        computing.stop()

        def answered() -> tuple[Answers, Tally]:
            answers = waiting().together(stretches)
            if stretches is not None:
                self.on_rows(len(stretches), int(answers.exit_layers.sum()))
            tally.seconds["compute"] = computing.seconds()
            return answers, tally

        if not len(audit):
            return answered
        answers, _ = answered()
        auditing = time.perf_counter()
        tally.disagreed = self._disagreements(batch, answers, audit, stretches)
        tally.seconds["audit"] = time.perf_counter() - auditing
        return lambda: (answers, tally)

    def _on_settled(self, rows: int, layer: int) -> None:
        self._on_stretch(rows, layer)
        self.on_rows(rows, rows * layer)

    def _on_stretch(self, stretches: int, layer: int) -> None:
        if self._stopped.is_set():
            raise InterruptedError("the worker was stopped")

    def _disagreements(
        self, batch: PackedBatch, answers: Answers, audit: np.ndarray, stretches: np.ndarray | None
    ) -> int:
        """Return how many of the audited rows have another answer at full depth; those that ran so deep have the
        same."""
        engine = self.scorer.engine
        # Of a row in stretches the largest exit layer says nothing of the others.
        early = audit if stretches is not None else audit[(answers.exit_layers[audit] < len(engine.layers)).numpy()]
        if not len(early):
            return 0
        device = next(iter(batch.inputs.values())).device
        rows = early
        if stretches is not None:
            rows = places_of(torch.from_numpy(early), torch.from_numpy(stretches)).numpy()
        found = self.scorer.run(batch.select(rows, device), FullDepth())
        full = found.together(None if stretches is None else stretches[early]).logits
        return int(answers_differ(answers.logits[early], full, engine.kind, self._tolerance).sum())


def about(scorer: Scorer, setting: Setting, schema: pa.Schema) -> About:
    """Return everything of a scorer that changes results, by the names that a message tells."""
    # Right after loading: all weights need not be hashed twice.
    engine, conditions = scorer.engine, scorer.loaded_under or scorer.conditions()
    identity = {
        "the model's weights, heads or config": conditions.model,
        "labels": json.dumps(scorer.labels),
        "the tokenizer": conditions.tokenizer,
        "policy": str(scorer.policy),
        "max_length": str(scorer.max_length),
        "dtype": conditions.dtype,
        "token_budget": str(engine.first_budget),
        **({} if scorer.stride is None else {"stride": str(scorer.stride)}),
        "window": str(scorer.window),
        "pabee_fast's version": pabee_fast.__version__,
        "torch's version": torch.__version__,
        "transformers' version": transformers.__version__,
    }
    return About(
        identity,
        schema,
        len(engine.layers),
        engine.device.type,
        setting.device_name,
        setting.dtype_reason,
        scorer.policy_reason,
        scorer.guarantee,
        scorer.is_void,
        scorer.encoder.served_by,
        labels_of_config(scorer.model.config),
    )
