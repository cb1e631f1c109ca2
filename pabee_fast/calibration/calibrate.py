"""Learn then Test (Angelopoulos et al. 2021, arXiv 2110.01052): the fastest policy whose risk is bounded.

Candidates come in chains, the strictest first. Some of the rows, the ordering rows, choose which chains are walked. On
the others, the testing rows, each chosen chain is walked policy by policy: the null hypothesis "its risk is above
epsilon" is rejected where the exact binomial p-value of its errors is at most the chain's share of delta, and the walk
ends at the first that is not (fixed-sequence testing). So the probability that any rejected hypothesis is true is at
most delta, whatever the chains, and the fastest of all rejected ones may be taken.

Tried on traces of a 12-layer model (sst2): one chain of nested policies beats the Pareto frontier of all candidates by
far (mean cost 0.33 against 0.68 at 1,000 rows, epsilon 0.01), since neighbours on that frontier were picked for luck on
the ordering rows and a single failure ends the walk. A second chain at half of delta gains a few percent more.
"""

import bisect
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pabee_fast.arguments import require_share
from pabee_fast.calibration.candidates import Chain, chains_for
from pabee_fast.calibration.guarantee import Guarantee
from pabee_fast.calibration.known import WORTH_SAYING, Known, distinct_rows
from pabee_fast.calibration.replay import Replayer
from pabee_fast.calibration.risks import Risk, answers, full_depth_right
from pabee_fast.calibration.settings import ORDER_SHARE
from pabee_fast.calibration.trace import Trace
from pabee_fast.errors import InputError
from pabee_fast.extras import require
from pabee_fast.policies import FullDepth, Policy, require_policy

logger = logging.getLogger(__name__)

MOST_SHARED = 0.5
"""Of ordering and testing rows, the share that may be the same: some texts occur often, but a copy shares them all."""

WALKS = 2
"""Chains that are walked, each at its share of delta, where there are rows enough."""


@dataclass(frozen=True)
class Estimate:
    """A candidate as the ordering rows see it: an estimate, and no promise."""

    policy: Policy
    cost: float  # tokens x layers, as a share of full depth's
    risk: float


@dataclass(frozen=True)
class Tested:
    """A step of a walk over the testing rows."""

    policy: Policy
    errors: int
    p_value: float
    passed: bool
    cost: float  # over all rows
    walk: int  # from 0


@dataclass(frozen=True)
class AnswerErrors:
    """Of the testing rows with one answer at full depth, or one label in it, what the chosen policy does to them."""

    rows: int
    errors: int  # by the risk that the guarantee bounds


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found."""

    guarantee: Guarantee
    tested: tuple[Tested, ...]
    frontier: tuple[Estimate, ...]  # no other candidate was cheaper and safer on the ordering rows; safest first
    known: Known
    full_depth_accuracy: float | None = None  # where the risk is of labels
    by_answer: tuple[AnswerErrors, ...] = ()  # for each class or label of a set, over the testing rows; none of values

    @property
    def policy(self) -> Policy:
        """The chosen one; FullDepth where nothing faster can be promised."""
        return self.guarantee.policy


def p_value(errors: int, rows: int, epsilon: float) -> float:
    """The probability of no more errors among `rows` rows if the risk is epsilon: exact, for losses of 0 or 1."""
    return float(require("scipy.stats").binom.cdf(errors, rows, epsilon))


def rows_needed(epsilon: float, delta: float) -> int:
    """Return the fewest testing rows that can support a promise: with less, not even none wrong among them would do."""
    return math.ceil(math.log(delta) / math.log1p(-epsilon))


def calibrate(
    trace: Trace,
    *,
    epsilon: float = 0.01,
    delta: float = 0.05,
    risk: str | None = None,
    tolerance: float | None = None,
    order: Trace | float = ORDER_SHARE,
    candidates: Sequence[Sequence[Policy]] | None = None,
    seed: int = 0,
    allow_learned: bool = False,
) -> Calibration:
    """Return the policy of least cost whose risk is at most epsilon with probability at least 1 - delta.

    The rows must be exchangeable with the rows promised for, and unseen by training and `fit`. Cost is what a policy
    spends: tokens times layers, summed over rows, as a share of full depth's.

    Args:
        trace: of the calibration rows.
        epsilon: the most that the risk may be, between 0 and 1.
        delta: the most that the probability of a broken promise may be, between 0 and 1.
        risk: "disagreement" with full depth, "accuracy-loss" (needs labels) or "distance" (regression, with
            `tolerance`); None: the one of these that needs no labels.
        tolerance: for "distance", in units of the output.
        order: the share of the rows that only decide what is tested, drawn by `seed`; or a trace of other rows.
        candidates: chains of policies, each the strictest first; None: those of `chains_for`.
        seed: of the split.
        allow_learned: whether rows are taken of which most are known to be among those that `fit` or `train` has
            learned from: right where texts recur as often in what is promised for.

    Raises:
        InputError: a number out of range, a risk or policy that does not fit, too few rows that differ (the message
            says how many are needed), rows that the model has learned from, or an `order` of another model.
    """
    share = None if isinstance(order, Trace) else order
    check_rows(len(trace), epsilon, delta, share)
    judged = Risk.choose(trace.kind, risk, tolerance)
    for rows in (trace, order):
        if isinstance(rows, Trace):
            judged.check(rows.kind, rows.labels)
    ordering, testing = _split(trace, order, seed)
    _check_distinct(testing, epsilon, delta)
    known = _check_unseen(trace, allow_learned)
    accuracy = _full_depth_accuracy(trace) if judged.name == "accuracy-loss" else None
    replayer = Replayer(ordering)
    chains = chains_for(replayer) if candidates is None else _given(candidates)
    estimates = [[_estimate(replayer, policy, judged) for policy in chain] for chain in chains]
    walks = min(WALKS, len(chains))
    while walks > 1 and len(testing) < rows_needed(epsilon, delta / walks):
        walks -= 1
    chosen = _best_chains(estimates, len(testing), epsilon, delta, walks) if chains else []
    whole, tests = Replayer(trace), Replayer(testing)
    tested = [
        step
        for walk, index in enumerate(chosen)
        for step in _walk(chains[index], whole, tests, judged, epsilon, delta / walks, walk)
    ]
    best = min((step for step in tested if step.passed), key=lambda step: step.cost, default=None)
    guarantee = Guarantee(
        policy=best.policy if best else FullDepth(),
        risk=judged,
        epsilon=epsilon,
        delta=delta,
        rows=len(testing),
        errors=best.errors if best else 0,
        ordering_rows=len(ordering),
        cost=best.cost if best else 1.0,
        conditions=trace.conditions,
    )
    by_answer = _by_answer(tests, guarantee.policy, judged)
    return Calibration(guarantee, tuple(tested), _frontier(estimates), known, accuracy, by_answer)


def _given(candidates: Sequence[Sequence[Policy]]) -> list[Chain]:
    for chain in candidates:
        if isinstance(chain, Policy):
            raise InputError(f"candidates holds {chain}: give chains, [[the strictest, ..., the fastest], ...]")
        for policy in chain:
            require_policy(policy, "candidates")
    return [tuple(chain) for chain in candidates]


def check_rows(rows: int, epsilon: float, delta: float, order_share: float | None) -> None:
    """Raise InputError where `rows` calibration rows cannot support a promise, or a number is out of range; without an
    `order_share` all of them test."""
    for name, given in (("epsilon", epsilon), ("delta", delta), ("order share", order_share)):
        if given is not None:
            require_share(name, given)
    needed = rows_needed(epsilon, delta)
    testing = rows if order_share is None else rows - _ordering_rows(rows, order_share)
    if testing < needed:
        total = ""
        if order_share is not None:
            share = order_share  # more rows in all never leave fewer to test with
            counts = range(needed, math.ceil(needed / (1 - share)) + 2)
            enough = bisect.bisect_left(counts, needed, key=lambda n: n - _ordering_rows(n, share))
            total = f", {counts[enough]} in all"
        raise InputError(
            f"{testing} rows are left to test with, and epsilon={epsilon:g} with delta={delta:g} needs {needed} "
            f"even if none of them is wrong{total}: give more rows, or a larger epsilon or delta"
        )


def _ordering_rows(rows: int, share: float) -> int:
    return max(1, math.floor(share * rows))


def _split(trace: Trace, order: Trace | float, seed: int) -> tuple[Trace, Trace]:
    """Ordering rows and testing rows."""
    if not isinstance(order, Trace):
        shuffled = torch.randperm(len(trace), generator=torch.Generator().manual_seed(seed))
        first = _ordering_rows(len(trace), order)
        return trace.select(shuffled[:first]), trace.select(shuffled[first:])
    if differences := trace.conditions.differences(order.conditions):
        raise InputError(f"order is a trace made otherwise than the one to test on: {'; '.join(differences)}")
    shared = _shared(order, trace)
    if shared > MOST_SHARED:
        raise InputError(
            f"order and the trace to test on share {shared:.0%} of the rows of the smaller one: rows that choose what "
            "is tested cannot test it; give other rows, or a share, which splits them"
        )
    return order, trace


def _shared(one: Trace, other: Trace) -> float:
    """Return the share of rows that both have: of the distinct ones of the trace with fewer."""
    seen = distinct_rows(one), distinct_rows(other, like=one)
    return len(seen[0] & seen[1]) / min(map(len, seen))


def _check_distinct(testing: Trace, epsilon: float, delta: float) -> None:
    """Copies are no evidence of their own: the binomial test counts rows that were drawn one by one."""
    distinct, needed = len(distinct_rows(testing)), rows_needed(epsilon, delta)
    if distinct < needed:
        raise InputError(
            f"the {len(testing)} rows to test with are copies of {distinct}, and epsilon={epsilon:g} with "
            f"delta={delta:g} needs {needed} different ones: give other rows, or a larger epsilon or delta"
        )
    if distinct < MOST_SHARED * len(testing):
        logger.warning(
            "the %d rows to test with are copies of %d: the promise holds only if texts come as often as here where it "
            "is made for; leave copies out that were added by hand",
            len(testing),
            distinct,
        )


def _check_unseen(trace: Trace, allow_learned: bool) -> Known:
    known = Known.of(trace)
    if not allow_learned:
        known.refuse_most()
    if known.is_more_than(WORTH_SAYING):
        logger.warning("%s: they may be easier than those promised for", known)
    return known


def _full_depth_accuracy(trace: Trace) -> float:
    """Of what is wrong already nothing is lost: labels that are numbered otherwise make every promise an easy one."""
    assert trace.labels is not None
    accuracy = float(full_depth_right(trace).double().mean())
    _, counts = torch.unique(trace.labels, dim=0, return_counts=True)
    if accuracy <= (chance := float(counts.max()) / len(trace)):
        logger.warning(
            "full depth is right on %.1f %% of the rows, and the most frequent label alone would be on %.1f %%: a "
            "bound on what exits lose of that promises little; are the labels the model's, by number and name?",
            100 * accuracy,
            100 * chance,
        )
    return accuracy


def _estimate(replayer: Replayer, policy: Policy, risk: Risk) -> Estimate:
    found = replayer.replay(policy)
    return Estimate(policy, 1 / found.layer_ratio, float(risk.losses(replayer.trace, found).double().mean()))


def _best_chains(
    estimates: Sequence[Sequence[Estimate]], rows: int, epsilon: float, delta: float, walks: int
) -> list[int]:
    """Return the chains that lead furthest if every policy errs on the testing rows as often as on the ordering
    rows."""
    errors = np.arange(rows + 1)
    passing = require("scipy.stats").binom.cdf(errors, rows, epsilon) <= delta / walks
    bound = int(passing.sum() - 1) / rows  # the highest share of errors that passes

    def end(chain: Sequence[Estimate]) -> float:
        cost = 1.0
        for estimate in chain:
            if estimate.risk > bound:
                break
            cost = min(cost, estimate.cost)
        return cost

    return sorted(range(len(estimates)), key=lambda index: end(estimates[index]))[:walks]


def _walk(
    chain: Chain, whole: Replayer, tests: Replayer, risk: Risk, epsilon: float, delta: float, walk: int
) -> list[Tested]:
    """Return the chain's policies up to the first that fails, which is among them."""
    steps: list[Tested] = []
    for policy in chain:
        errors = int(risk.losses(tests.trace, tests.replay(policy)).sum())
        p = p_value(errors, len(tests.trace), epsilon)
        cost = 1 / whole.replay(policy).layer_ratio
        steps.append(Tested(policy, errors, p, p <= delta, cost, walk))
        if not steps[-1].passed:
            break
    return steps


def _by_answer(tests: Replayer, policy: Policy, risk: Risk) -> tuple[AnswerErrors, ...]:
    """Whom the errors of a policy befall: a bound over all rows says nothing of a rare answer's."""
    trace = tests.trace
    if trace.kind == "value":
        return ()
    lost, full = risk.losses(trace, tests.replay(policy)), answers(trace.logits[-1], trace.kind)
    each = (full[:, label] > 0 if full.ndim == 2 else full == label for label in range(trace.classes))
    return tuple(AnswerErrors(int(rows.sum()), int((rows & lost).sum())) for rows in each)


def _frontier(estimates: Sequence[Sequence[Estimate]]) -> tuple[Estimate, ...]:
    by_cost = sorted((e for chain in estimates for e in chain), key=lambda e: (e.cost, e.risk))
    frontier: list[Estimate] = []
    for estimate in by_cost:
        if not frontier or estimate.risk < frontier[-1].risk:
            frontier.append(estimate)
    return tuple(reversed(frontier))
