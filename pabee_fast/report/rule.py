"""The rule that is stored with a model, on a report's rows: what it answers, what it saves, and whether its promise is
kept there."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pabee_fast.calibration.audit import interval
from pabee_fast.calibration.guarantee import Guarantee
from pabee_fast.calibration.replay import replay
from pabee_fast.calibration.risks import Risk, answers
from pabee_fast.calibration.trace import Trace
from pabee_fast.policies import FullDepth, Policy
from pabee_fast.scoring.scorer import Row, Scorer

ROUNDS = 3
TIMED_ROWS = {"cuda": 16_384, "cpu": 512}
"""Rows that are run again and again for the clock, by device: enough for full waves."""


@dataclass(frozen=True)
class Clock:
    """Full depth's seconds over the rule's, medians of runs that took turns over rows tokenized beforehand."""

    speed: float
    rows: int


@dataclass(frozen=True)
class Stored:
    """What `tune` stored with a model, and what holds of it for this report."""

    policy: Policy
    guarantee: Guarantee | None = None
    void: Sequence[str] = ()  # why the guarantee does not hold for how this report ran
    clock: Clock | None = None


@dataclass(frozen=True)
class Rule:
    """A stored policy on the rows of a trace."""

    stored: Stored
    logits: Tensor  # [rows, classes], where each row left
    exit_layers: Tensor  # [rows] int64
    layer_ratio: float
    differing: int  # rows whose answer is not the one of full depth
    errors: int | None  # rows that are wrong by the risk that the guarantee bounds; None: there is none

    @classmethod
    def of(cls, stored: Stored, trace: Trace, tolerance: float | None) -> "Rule":
        """Return what the policy does, by replay.

        Args:
            stored: the policy.
            trace: of the rows, with labels.
            tolerance: of values, how far from full depth's one may be that counts as the same.
        """
        found = replay(trace, stored.policy)
        differing = int(Risk.choose(trace.kind, None, tolerance).losses(trace, found).sum())
        errors = None if stored.guarantee is None else int(stored.guarantee.risk.losses(trace, found).sum())
        return cls(stored, found.logits, found.exit_layers, found.layer_ratio, differing, errors)

    @property
    def mean_exit_layer(self) -> float:
        """Over rows."""
        return float(self.exit_layers.double().mean())

    def answers(self, trace: Trace) -> Tensor:
        """Return what it answers, as `risks.answers` has it."""
        return answers(self.logits, trace.kind)

    @property
    def disagreement(self) -> str:
        """In words: how often its answer is not the one of full depth, and what that says of all such rows."""
        rows = len(self.exit_layers)
        low, high = interval(self.differing, rows)
        return (
            f"{self.differing:,} of {rows:,} rows, {self.differing / rows:.2%} (95 % interval {low:.2%} to {high:.2%})"
        )

    @property
    def verdict(self) -> str:
        """In words: whether the promise is kept on these rows."""
        guarantee = self.stored.guarantee
        if guarantee is None or self.errors is None:
            return "nothing is promised of it"
        if self.stored.void:
            return f"its promise is void here: {'; '.join(self.stored.void)}"
        rows = len(self.exit_layers)
        share = f"{self.errors / rows:.2%} of these rows against {guarantee.epsilon:.2%} promised"
        if interval(self.errors, rows)[0] > guarantee.epsilon:
            return f"its promise is broken here, {share}, by more than chance explains: tune on rows like these"
        if self.errors / rows > guarantee.epsilon:
            return f"its promise is not contradicted: {share}, within chance"
        return f"its promise is kept: {share}"


def time_rule(scorer: Scorer, rows: Sequence[Row], policy: Policy) -> Clock:
    """Return the clock's speed-up of a policy over full depth, on some of the rows, evenly chosen."""
    most = TIMED_ROWS.get(scorer.engine.device.type, TIMED_ROWS["cpu"])
    some = rows[:: -(-len(rows) // most)]
    batch = scorer.batch(some)
    seconds: dict[Policy, list[float]] = {FullDepth(): [], policy: []}
    for _ in range(ROUNDS):
        for one, taken in seconds.items():
            started = time.perf_counter()
            scorer.engine.run(batch, one).exit_layers.cpu()
            taken.append(time.perf_counter() - started)
    full, early = map(statistics.median, seconds.values())
    return Clock(full / early, len(some))
