"""What a report is about, and what it works out before anything is drawn.

Settings of a rule are chosen by cross-fitting: the rows fall into two halves, the setting that does best on one half at
no more than a given cost answers the rows of the other, and both halves' answers are judged together. So no row helps
to choose the setting that answers it, and curves and tests are not flattered by the choice.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pabee_fast.calibration.candidates import chains_for
from pabee_fast.calibration.replay import Replayer
from pabee_fast.calibration.risks import answers
from pabee_fast.calibration.trace import Trace
from pabee_fast.errors import InputError
from pabee_fast.policies import AnswerKind, FixedDepth, Patience, Policy
from pabee_fast.report.metrics import METRICS, ensemble, evaluate, head_answers, metrics_for, right
from pabee_fast.report.rule import Rule, Stored

SeedAnswers = tuple[Tensor, ...]
"""Of all rows, one tensor for each seed."""


@dataclass(frozen=True)
class Study:
    """One model, in one or several seeds of the same recipe, on one labelled data set.

    Raises:
        InputError: no trace, traces that are not of the same rows and labels, labels that are all the same, no
            tolerance for values, or a truncated model that is as deep as the model.
    """

    model: str
    data: str
    texts: Sequence[tuple[str, ...]]
    traces: tuple[Trace, ...]  # with labels; one for each seed
    truncated: Mapping[int, SeedAnswers]  # depth -> answers of models fine-tuned at that depth, one for each seed
    label_names: tuple[str, ...] = ()
    facts: Mapping[str, str] | None = None  # what a reader of the figures must know: hardware, dtype, ...
    metric: str | None = None  # None: the first of `metrics_for`
    tolerance: float | None = None  # values within it of their label count as right
    stored: Stored | None = None  # what `tune` stored with the first seed

    def __post_init__(self) -> None:
        if not self.traces:
            raise InputError("a report needs a trace: give a model, or several seeds of one")
        first = self.traces[0]
        for other in self.traces:
            if other.labels is None or first.labels is None or not torch.equal(other.labels, first.labels):
                raise InputError("a report needs labels, the same ones in the traces of all seeds")
            if other.logits.shape != first.logits.shape or other.first_layer != first.first_layer:
                raise InputError("the seeds differ in layers, heads or rows: give models of one recipe")
        if len(self.texts) != len(first):
            raise InputError(f"{len(self.texts)} texts for {len(first)} rows: give one for each")
        check_measures(first.kind, first.logits.shape[2], self.metric, self.tolerance)
        check_shallower(self.truncated, first.layers)
        if any(math.isnan(evaluate(self.main_metric, answered, self.labels)) for answered in self.full_depth):
            raise InputError(
                f"full depth has no {self.main_metric}: its answers are the same for all rows, or not finite; give "
                "rows that it tells apart"
            )

    @property
    def main_metric(self) -> str:
        """The metric that settings are chosen by and claims are about."""
        return self.metric or self.metrics[0]

    @property
    def metrics(self) -> tuple[str, ...]:
        """All that are shown."""
        return metrics_for(self.traces[0].kind, self.traces[0].logits.shape[2])

    @property
    def labels(self) -> Tensor:
        """Of the rows."""
        labels = self.traces[0].labels
        assert labels is not None
        return labels

    @property
    def layers(self) -> int:
        """Of the model."""
        return self.traces[0].layers

    @cached_property
    def heads(self) -> SeedAnswers:
        """What every head answers, [heads, rows, ...] for each seed."""
        return tuple(head_answers(trace) for trace in self.traces)

    @property
    def full_depth(self) -> SeedAnswers:
        """What the last head answers."""
        return tuple(heads[-1] for heads in self.heads)

    @property
    def ensemble(self) -> SeedAnswers:
        """What all heads answer together."""
        return tuple(answers(ensemble(trace), trace.kind) for trace in self.traces)

    @cached_property
    def right(self) -> SeedAnswers:
        """Which rows every head gets right, [heads, rows] bool for each seed."""
        return tuple(right(heads, self.labels, self.tolerance) for heads in self.heads)

    @cached_property
    def rule(self) -> Rule | None:
        """The stored policy on the rows of the first seed."""
        return None if self.stored is None else Rule.of(self.stored, self.traces[0], self.tolerance)

    def score(self, answered: SeedAnswers, metric: str | None = None) -> tuple[float, float]:
        """Mean and standard deviation of a metric over the seeds; 0 where there is one."""
        return mean_sd([METRICS[metric or self.main_metric](one, self.labels) for one in answered])


def check_measures(kind: AnswerKind, classes: int, metric: str | None, tolerance: float | None) -> None:
    """Raise InputError where answers of this kind, of so many classes, have no such metric, or lack a tolerance."""
    if (kind == "value") != (tolerance is not None):
        raise InputError("give a tolerance where answers are values and only there (--tolerance): what counts as right")
    if metric is not None and metric not in (known := metrics_for(kind, classes)):
        raise InputError(f"metric={metric!r}: for these answers give {', '.join(known)}")


def check_shallower(truncated: Iterable[int], layers: int) -> None:
    """Raise InputError for a truncated model that is none, by its layers."""
    for depth in truncated:
        if not 0 < depth < layers:
            raise InputError(f"a truncated model has {depth} layers, the model {layers}: give shallower ones")


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and sample standard deviation, or 0 of a single value; NaN where a seed's is."""
    if any(map(math.isnan, values)):
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Point:
    """A rule at a cost, its settings chosen on other rows than those they answer."""

    rule: str
    policies: tuple[Policy, ...]  # one for each half
    answers: SeedAnswers
    speed: tuple[float, float]  # by layers, mean and standard deviation over the seeds
    score: tuple[float, float]  # of the main metric, likewise


class Candidates:
    """Every candidate's exits on every row and seed of a study, and what is chosen among them."""

    def __init__(self, study: Study, seed: int = 0) -> None:
        self.study = study
        replayers = self._replayers = [Replayer(trace) for trace in study.traces]
        self.policies = [policy for chain in chains_for(replayers[0]) for policy in chain]
        self.rules = [rule_name(policy) for policy in self.policies]
        found = [[replayer.replay(policy) for policy in self.policies] for replayer in replayers]
        # [policies, rows] for each seed; logits can be had again from the heads.
        self.exits = [torch.stack([one.exit_layers.to(torch.int16) for one in every]) for every in found]
        self._spent = [torch.stack([one.spent.to(torch.int32) for one in every]) for every in found]
        order = torch.randperm(len(study.labels), generator=torch.Generator().manual_seed(seed))
        self.halves = (order[: len(order) // 2].sort().values, order[len(order) // 2 :].sort().values)

    @cached_property
    def seen(self) -> list[tuple[list[float], list[float]]]:
        """For each half: every candidate's cost and main metric there, means over the seeds."""
        return [self._seen(half) for half in self.halves]

    def _seen(self, half: Tensor) -> tuple[list[float], list[float]]:
        study = self.study
        costs = sum(spent[:, half].double().sum(dim=1) for spent in self._spent)
        scores = [self._scores(seed, half) for seed in range(len(self.exits))]
        whole = study.traces[0].lengths[half].sum() * study.layers * len(self.exits)
        return (costs / whole).tolist(), [statistics.fmean(seeds) for seeds in zip(*scores, strict=True)]

    def _scores(self, seed: int, half: Tensor) -> list[float]:
        """Return the main metric of every candidate on some rows."""
        study, metric = self.study, self.study.main_metric
        # Which rows are right says it all, for every candidate at once, where a row leaves as a whole.
        if metric == "accuracy" and study.traces[seed].stretches is None:
            at = self.exits[seed][:, half].long() - study.traces[seed].first_layer
            flags: list[float] = study.right[seed][:, half].double().gather(0, at).mean(dim=1).tolist()
            return flags
        policies = range(len(self.policies))
        return [METRICS[metric](self._answers(seed, policy)[half], study.labels[half]) for policy in policies]

    def _answers(self, seed: int, policy: int) -> Tensor:
        trace = self.study.traces[seed]
        if trace.stretches is not None:
            return answers(self._replayers[seed].replay(self.policies[policy]).logits, trace.kind)
        exits = self.exits[seed][policy].long() - self.study.traces[seed].first_layer
        return self.study.heads[seed][exits, torch.arange(len(exits))]

    def best(self, rule: Callable[[str], bool], most: float, name: str) -> Point | None:
        """Return the cross-fitted point of the best candidates of some rules that cost no more than `most`; None where
        a half knows of none."""
        chosen = []
        for costs, scores in self.seen:
            able = [i for i, cost in enumerate(costs) if cost <= most and rule(self.rules[i])]
            if not able:
                return None
            chosen.append(max(able, key=lambda i: (-math.inf if math.isnan(scores[i]) else scores[i], -costs[i])))
        return self._point(name, chosen)

    def cheapest(self, rule: str, least: float) -> int | None:
        """Return the candidate of a rule that costs least, over all rows, among those that score at least so much
        there."""
        costs, scores = self._whole
        able = [i for i, score in enumerate(scores) if score >= least and self.rules[i] == rule]
        return min(able, key=lambda i: costs[i], default=None)

    @cached_property
    def _whole(self) -> tuple[list[float], list[float]]:
        return self._seen(torch.arange(len(self.study.labels)))

    def figures(self, policy: int) -> tuple[float, float]:
        """Return a candidate's cost and score over all rows."""
        return self._whole[0][policy], self._whole[1][policy]

    def _point(self, name: str, chosen: Sequence[int]) -> Point:
        study, answered, speeds = self.study, [], []
        lengths = study.traces[0].lengths.double()
        for seed, of_seed in enumerate(self._spent):
            spent = sum(
                float(of_seed[policy, half].double().sum())
                for policy, half in zip(chosen, reversed(self.halves), strict=True)
            )
            speeds.append(float(lengths.sum()) * study.layers / spent)
            whole = torch.empty_like(study.full_depth[seed])
            for policy, half in zip(chosen, reversed(self.halves), strict=True):
                whole[half] = self._answers(seed, policy)[half]
            answered.append(whole)
        policies = tuple(self.policies[i] for i in chosen)
        return Point(name, policies, tuple(answered), mean_sd(speeds), study.score(tuple(answered)))

    def curves(self) -> Iterator[tuple[str, list[Point]]]:
        """For every rule, its points at the costs of k layers, from dear to cheap."""
        for rule in dict.fromkeys(self.rules):
            found = (self.best(rule.__eq__, k / self.study.layers, rule) for k in range(self.study.layers - 1, 0, -1))
            points = [point for point in found if point is not None]
            yield rule, [p for i, p in enumerate(points) if i == 0 or p.policies != points[i - 1].policies]


def rule_name(policy: Policy) -> str:
    """As the report calls the rule of a policy."""
    words = "".join(" " + c.lower() if c.isupper() else c for c in type(policy).__name__).strip()
    return {"patience": "patience (PABEE)", "fixed depth": "fixed depth (own head)"}.get(words, words)


def looks_at_rows(rule: str) -> bool:
    """Return whether a rule lets rows leave at different layers."""
    return rule != rule_name(FixedDepth(1))


PABEE = rule_name(Patience(1))
