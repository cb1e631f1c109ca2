"""Whether one model's answers are better than another's on the same rows, or only luckier."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pabee_fast.errors import InputError
from pabee_fast.extras import require
from pabee_fast.report.metrics import METRICS, Metric, right

RESAMPLES = 1_000
LEAST_ROWS = 20


@dataclass(frozen=True)
class McNemar:
    """The exact test of McNemar (1947): of the rows that one alone gets right, is either's share above a half?"""

    only_first: int
    only_second: int
    p_value: float  # two-sided


def mcnemar(first: Tensor, second: Tensor) -> McNemar:
    """From which rows each gets right, [rows] bool both."""
    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    if one + other == 0:
        return McNemar(0, 0, 1.0)
    return McNemar(one, other, float(require("scipy.stats").binomtest(one, one + other).pvalue))


@dataclass(frozen=True)
class Bootstrap:
    """The first's metric less the second's."""

    difference: float
    low: float  # of the 95 % interval, by percentiles
    high: float
    p_value: float
    """Two-sided: twice the share of resamples on the other side of 0, these themselves counted. NaN of fewer rows than
    LEAST_ROWS, of which the bootstrap is too sure: where one side alone gets 4 of 4 rows right it says 0.002, and an
    exact test 0.125."""


def paired_bootstrap(
    metric: str | Metric,
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    labels: Tensor,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Bootstrap:
    """Return the paired bootstrap over rows (Efron and Tibshirani 1993, chapter 16) of the difference of a metric.

    Rows are drawn anew with replacement, the same ones for both sides and for every seed of a side, and the metric is
    the mean over a side's seeds: so it speaks of other rows from the same source, and not of other seeds.

    Args:
        metric: its name, or a function of answers and labels.
        first, second: answers of each side, one [rows] or [rows, classes] tensor for each of its seeds.
        labels: of the rows.
        resamples: how many draws.
        seed: of the draws.

    Raises:
        InputError: a side without answers, or fewer than two rows.
    """
    if not first or not second or len(labels) < 2:
        raise InputError("a paired bootstrap needs answers of both sides to two rows or more")
    if metric == "accuracy":  # a mean over rows, so that it is enough to draw their differences
        sides = (torch.stack([right(one, labels).double() for one in side]).mean(dim=0) for side in (first, second))
        better = next(sides) - next(sides)
        return _bootstrap(lambda rows: float(better[rows].mean()), len(labels), resamples, seed)
    score = METRICS[metric] if isinstance(metric, str) else metric

    def difference(rows: Tensor | slice) -> float:
        means = (sum(score(answered[rows], labels[rows]) for answered in side) / len(side) for side in (first, second))
        return next(means) - next(means)

    return _bootstrap(difference, len(labels), resamples, seed)


def _bootstrap(difference: Callable[[Tensor | slice], float], rows: int, resamples: int, seed: int) -> Bootstrap:
    draws = np.random.default_rng(seed)
    drawn = np.array([difference(torch.from_numpy(draws.integers(0, rows, rows))) for _ in range(resamples)])
    drawn = drawn[np.isfinite(drawn)]
    observed = difference(slice(None))
    if not len(drawn) or not math.isfinite(observed):
        return Bootstrap(observed, math.nan, math.nan, math.nan)
    low, high = np.percentile(drawn, [2.5, 97.5])
    tail = (1 + min((drawn <= 0).sum(), (drawn >= 0).sum())) / (1 + len(drawn))
    p = float(min(1.0, 2 * tail)) if rows >= LEAST_ROWS else math.nan
    return Bootstrap(observed, float(low), float(high), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return P-values adjusted for being several (Holm 1979): the probability of any false claim stays below each
    level."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
