"""What can go wrong when a row leaves early: losses of 0 or 1 a row, whose mean is a risk."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pabee_fast.calibration.replay import Replay
from pabee_fast.calibration.trace import Trace
from pabee_fast.errors import InputError
from pabee_fast.policies import AnswerKind

RiskName = Literal["disagreement", "accuracy-loss", "distance"]
RISKS: tuple[RiskName, ...] = get_args(RiskName)


@dataclass(frozen=True)
class Risk:
    """A loss of 0 or 1 for each row; a row that is given every layer has none.

    Args:
        name: "disagreement": the answer, a label or a set of labels, is not the one of full depth. "accuracy-loss":
            full depth is right and the answer is not, whose mean bounds the loss of accuracy. "distance": the value is
            more than `tolerance` from the one of full depth.
        tolerance: for "distance" and only then, in units of the output.

    Raises:
        InputError: another name, or a tolerance that is missing, unwanted or not above 0.
    """

    name: RiskName
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.name not in RISKS:
            raise InputError(f"risk={self.name!r}: give {', '.join(RISKS)}")
        if self.name != "distance" and self.tolerance is not None:
            raise InputError(f"tolerance={self.tolerance}: it belongs to the risk 'distance', of one-output models")
        if self.name == "distance" and not (self.tolerance is not None and 0 < self.tolerance < math.inf):
            raise InputError(
                f"tolerance={self.tolerance}: the risk 'distance', of models that answer with values, needs one "
                "(--tolerance): how far from full depth's value an answer may be, in units of the output, above 0"
            )

    @classmethod
    def choose(cls, kind: AnswerKind, name: str | None = None, tolerance: float | None = None) -> "Risk":
        """Return the risk of that name; without one, the one that needs no labels and suits answers of this kind."""
        return cls(name or ("distance" if kind == "value" else "disagreement"), tolerance)  # type: ignore[arg-type]

    def check_kind(self, kind: AnswerKind) -> None:
        """Raise InputError where answers of this kind do not allow it."""
        if (kind == "value") != (self.name == "distance"):
            what = "values" if kind == "value" else "labels"
            fit = "'distance' with a tolerance" if kind == "value" else "'disagreement' or 'accuracy-loss'"
            raise InputError(f"risk={self.name!r} on a model that answers with {what}: use {fit}")

    def check(self, kind: AnswerKind, labels: Tensor | None) -> None:
        """Raise InputError where a trace's kind of answers or its labels do not allow it."""
        self.check_kind(kind)
        if self.name != "accuracy-loss":
            return
        if labels is None:
            raise InputError("risk='accuracy-loss' needs labels, and the trace has none: use 'disagreement'")
        if len(torch.unique(labels, dim=0)) < 2:
            raise InputError(
                "the labels of all rows are the same: give rows of two classes or more, or use 'disagreement'"
            )

    def losses(self, trace: Trace, found: Replay) -> Tensor:
        """Return [rows] bool: which rows of `trace` pay for what a policy `found`. Logits that are not finite are an
        answer of their own, and a wrong one."""
        full, got = trace.logits[-1], found.logits
        if self.name == "accuracy-loss":
            assert trace.labels is not None
            wrong = _differ(answers(got, trace.kind), trace.labels) | ~got.isfinite().all(dim=1)
            lost = full_depth_right(trace) & wrong
        else:
            lost = answers_differ(got, full, trace.kind, self.tolerance or 0.0)
        return lost & (found.exit_layers < trace.layers)

    def __str__(self) -> str:
        return {
            "disagreement": "the share of rows whose answer is not the one of full depth",
            "accuracy-loss": "the share of rows that full depth gets right and this does not",
            "distance": f"the share of rows whose value is more than {self.tolerance} from the one of full depth",
        }[self.name]


def full_depth_right(trace: Trace) -> Tensor:
    """Return [rows] bool: which rows of a trace with labels full depth gets right; of label sets, right as a whole."""
    assert trace.labels is not None
    full = trace.logits[-1]
    return ~_differ(answers(full, trace.kind), trace.labels) & full.isfinite().all(dim=1)


def answers(logits: Tensor, kind: AnswerKind) -> Tensor:
    """Return what logits [..., classes] say: labels [...] int64, values [...] float32, or label sets [..., classes]
    int64."""
    if kind == "label":
        return logits.argmax(dim=-1)
    return logits[..., 0] if kind == "value" else (logits > 0).long()


def answers_differ(one: Tensor, other: Tensor, kind: AnswerKind, tolerance: float) -> Tensor:
    """Return [rows] bool: whether logits [rows, classes] give different answers; what is not finite differs from
    everything.

    Args:
        tolerance: how far apart values may be and count as the same; of no meaning for labels.
    """
    if kind == "value":
        differ = (one[:, 0] - other[:, 0]).abs() > tolerance
    else:
        differ = _differ(answers(one, kind), answers(other, kind))
    return differ | ~one.isfinite().all(dim=1) | ~other.isfinite().all(dim=1)


def _differ(some: Tensor, others: Tensor) -> Tensor:
    """Return [rows] bool, of labels [rows] or label sets [rows, classes]."""
    differ = some != others
    return differ.any(dim=1) if differ.ndim == 2 else differ
