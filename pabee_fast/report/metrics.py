"""How good answers are, by GLUE's metrics, and what the heads of a model get wrong together.

Answers and labels are tensors as `risks.answers` makes them: labels [rows], values [rows], or label sets
[rows, classes]. The metrics themselves are scikit-learn's and scipy's.
"""

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pabee_fast.calibration.risks import answers
from pabee_fast.calibration.trace import Trace
from pabee_fast.errors import InputError
from pabee_fast.extras import require
from pabee_fast.policies import AnswerKind

Metric = Callable[[Tensor, Tensor], float]
"""From answers and labels to a number; higher is better."""


def _accuracy(answered: Tensor, labels: Tensor) -> float:
    """Return the share of rows that are right; of label sets, right as a whole."""
    return float(require("sklearn.metrics").accuracy_score(labels.numpy(), answered.numpy()))


def _f1(answered: Tensor, labels: Tensor) -> float:
    """Of label 1 against all others, as GLUE has it for labels 0 and 1."""
    return _f1_score(answered, labels, average="macro", labels=[1])


def _macro_f1(answered: Tensor, labels: Tensor) -> float:
    """Return the mean over the labels that rows have. What is answered has no say in which these are, so that heads can
    be compared."""
    return _f1_score(answered, labels, average="macro", labels=labels.unique().tolist())


def _micro_f1(answered: Tensor, labels: Tensor) -> float:
    """Of label sets, over all choices between yes and no."""
    return _f1_score(answered, labels, average="micro")


def _f1_score(answered: Tensor, truth: Tensor, **which: Any) -> float:
    f1_score = require("sklearn.metrics").f1_score
    return float(f1_score(truth.numpy(), answered.numpy(), zero_division=0.0, **which))


def _matthews(answered: Tensor, labels: Tensor) -> float:
    with warnings.catch_warnings():  # one label alone is 0, by convention
        warnings.filterwarnings("ignore", "A single label", UserWarning)
        return float(require("sklearn.metrics").matthews_corrcoef(labels.numpy(), answered.numpy()))


def _pearson(answered: Tensor, labels: Tensor) -> float:
    return _correlation("pearsonr", answered, labels)


def _spearman(answered: Tensor, labels: Tensor) -> float:
    return _correlation("spearmanr", answered, labels)


def _correlation(name: str, answered: Tensor, labels: Tensor) -> float:
    if bool((answered == answered[0]).all()) or bool((labels == labels[0]).all()):
        return math.nan  # what is constant is correlated with nothing
    return float(getattr(require("scipy.stats"), name)(answered.numpy(), labels.numpy()).statistic)


METRICS: dict[str, Metric] = {
    "accuracy": _accuracy,
    "F1": _f1,
    "macro-F1": _macro_f1,
    "micro-F1": _micro_f1,
    "Matthews": _matthews,
    "Pearson": _pearson,
    "Spearman": _spearman,
}


def metrics_for(kind: AnswerKind, classes: int) -> tuple[str, ...]:
    """Return the names of the metrics that suit a model's answers of a kind, of so many classes, the main one first."""
    return {
        "label": ("accuracy", "F1" if classes == 2 else "macro-F1", "Matthews"),
        "label_set": ("accuracy", "micro-F1"),
        "value": ("Pearson", "Spearman"),
    }[kind]


def evaluate(name: str, answered: Tensor, labels: Tensor) -> float:
    """Return one metric.

    Raises:
        InputError: no such metric, answers and labels of different shapes, or labels that are all the same, which
            most metrics say nothing about.
        PabeeFastError: scikit-learn or scipy is not installed.
    """
    if name not in METRICS:
        raise InputError(f"metric={name!r}: give one of {', '.join(METRICS)}")
    if answered.shape != labels.shape:
        raise InputError(f"answers are {list(answered.shape)} and labels {list(labels.shape)}: give one for each row")
    if (labels.ndim == 2 and name not in ("accuracy", "micro-F1")) or (labels.ndim == 1 and name == "micro-F1"):
        raise InputError(f"metric={name!r}: of label sets there are accuracy and micro-F1, and micro-F1 of these alone")
    if len(torch.unique(labels, dim=0)) < 2:
        raise InputError("the labels of all rows are the same: give rows of two labels or more")
    return METRICS[name](answered, labels)


def ensemble(trace: Trace) -> Tensor:
    """Return logits [rows, classes] of all heads together, which no row leaves early: of the mean of their
    probabilities, or the mean of their values."""
    heads = trace.logits[trace.first_layer - 1 :]
    if trace.kind == "value":
        return heads.mean(dim=0)
    return heads.softmax(dim=2).mean(dim=0).log() if trace.kind == "label" else heads.sigmoid().mean(dim=0).logit()


def right(answered: Tensor, labels: Tensor, tolerance: float | None = None) -> Tensor:
    """Return which answers are right, [...] bool; values: which are within `tolerance` of their label.

    Args:
        answered: as `risks.answers` makes them, with any dimensions before the rows, [layers, rows] say.
        labels: of the rows.
        tolerance: for values and only then.
    """
    if tolerance is not None:
        return (answered - labels).abs() <= tolerance
    same = answered == labels
    return same.all(dim=-1) if labels.ndim == 2 else same


@dataclass(frozen=True)
class NeighbourErrors:
    """How the errors of two neighbouring heads hang together."""

    layer: int  # the first of the two
    after_right: float  # P(wrong at layer + 1 | right at layer); NaN where no row is right
    after_wrong: float  # P(wrong at layer + 1 | wrong at layer)
    independent: float  # P(wrong at layer + 1): both of the above, if errors were independent
    rows_right: int
    rows_wrong: int


def neighbour_errors(is_right: Tensor, first_layer: int = 1) -> list[NeighbourErrors]:
    """For every two neighbouring heads, from `right` of all heads, [heads, rows]; the first head is `first_layer`'s."""
    found = []
    for layer, (now, then) in enumerate(itertools.pairwise(is_right), first_layer):
        wrong = ~then
        found.append(
            NeighbourErrors(layer, _share(wrong[now]), _share(wrong[~now]), _share(wrong), int(now.sum()),
                            int((~now).sum()))
        )  # fmt: skip
    return found


@dataclass(frozen=True)
class WrongStreak:
    """How often several heads in a row are all wrong: what a patience of heads - 1 cannot see through."""

    heads: int
    observed: float  # mean over the places where so many heads stand in a row
    independent: float  # the mean of the products of their error rates, as PABEE's theorem 1 assumes


def wrong_streaks(is_right: Tensor, longest: int = 7) -> list[WrongStreak]:
    """For 1 to `longest` heads in a row, from `right` of all heads, [heads, rows]."""
    wrong = (~is_right).double()
    rates, found = wrong.mean(dim=1), []
    for heads in range(1, min(longest, len(wrong)) + 1):
        windows = wrong.unfold(0, heads, 1)  # [places, rows, heads]
        expected = rates.unfold(0, heads, 1).prod(dim=1).mean()
        found.append(WrongStreak(heads, float(windows.prod(dim=2).mean()), float(expected)))
    return found


@dataclass(frozen=True)
class Overthinking:
    """What later layers undo (Kaya et al., ICML 2019, call it destructive overthinking)."""

    share: float  # of all rows: wrong at full depth, and right at an earlier head
    of_errors: float  # of the rows that full depth gets wrong; NaN where there are none
    last_right: tuple[float, ...]  # for each head but the last, the share of all rows that are so and last right there


def overthinking(is_right: Tensor) -> Overthinking:
    """From `right` of all heads, [heads, rows]."""
    earlier, wrong = is_right[:-1], ~is_right[-1]
    undone = wrong & earlier.any(dim=0)
    last = torch.where(earlier, torch.arange(len(earlier))[:, None], -1).amax(dim=0)
    by_head = tuple(_share(undone & (last == head)) for head in range(len(earlier)))
    return Overthinking(_share(undone), _share(undone[wrong]), by_head)


def _share(flags: Tensor) -> float:
    return float(flags.double().mean()) if len(flags) else math.nan


def head_answers(trace: Trace) -> Tensor:
    """Return what every head from the first one on answers, [heads, rows] or [heads, rows, classes]."""
    return answers(trace.logits[trace.first_layer - 1 :], trace.kind)
