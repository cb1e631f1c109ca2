"""Learn then Test for lists: the fastest shortlist whose mean loss is bounded with a stated probability.

As `calibration.calibrate` does for rows: some lists, the ordering lists, choose a chain of shortlists; on the others it
is walked, the strictest first, up to the first whose loss is not shown to be small enough (fixed-sequence testing). The
fastest before that may be taken. Losses are shares, so that the test is one of a bounded mean (`risks.mean_p_value`).
"""

from dataclasses import dataclass

import torch

from pabee_fast.arguments import require_share
from pabee_fast.calibration.replay import Replay
from pabee_fast.calibration.settings import ORDER_SHARE
from pabee_fast.errors import InputError
from pabee_fast.policies import FullDepth, Policy, Shortlist
from pabee_fast.reranking.guarantee import ListGuarantee, ListRisk
from pabee_fast.reranking.margins import shortlists
from pabee_fast.reranking.replay import ListTrace, replay_lists
from pabee_fast.reranking.risks import lists_needed, losses, mean_p_value


@dataclass(frozen=True)
class TestedLists:
    """A step of the walk over the testing lists."""

    policy: Shortlist
    loss: float  # in the mean of lists
    losing: int  # lists that lost anything
    p_value: float
    passed: bool
    cost: float  # tokens x layers over all lists, as a share of full depth's

    __test__ = False  # for pytest, which would take it for tests


@dataclass(frozen=True)
class ListCalibration:
    """What `calibrate_lists` found."""

    guarantee: ListGuarantee
    tested: tuple[TestedLists, ...]

    @property
    def policy(self) -> Policy:
        """The chosen one; FullDepth where nothing faster can be promised."""
        return self.guarantee.policy


def calibrate_lists(
    trace: ListTrace,
    top_k: int = 10,
    *,
    epsilon: float = 0.01,
    delta: float = 0.05,
    risk: str = "overlap",
    order: float = ORDER_SHARE,
    seed: int = 0,
) -> ListCalibration:
    """Return the shortlist of least cost whose mean loss is at most epsilon with probability at least 1 - delta.

    The lists must be exchangeable with those promised for, and unseen by training and `fit`.

    Args:
        trace: of the calibration lists.
        top_k: how many of a list are wanted.
        epsilon: the most that the mean loss may be, between 0 and 1.
        delta: the most that the probability of a broken promise may be, between 0 and 1.
        risk: "overlap" or "ndcg", see `ListRisk`.
        order: the share of the lists that only decide what is tested, drawn by `seed`.

    Raises:
        InputError: a number out of range, an unknown risk, or too few lists (the message says how many are needed).
    """
    judged = ListRisk(risk, top_k)  # type: ignore[arg-type]
    check_lists(len(trace), epsilon, delta, order)
    shuffled = torch.randperm(len(trace), generator=torch.Generator().manual_seed(seed))
    orders = torch.zeros(len(trace), dtype=torch.bool)
    orders[shuffled[: max(1, int(order * len(trace)))]] = True
    ordering, testing = trace.select(orders), trace.select(~orders)
    mixed = torch.randperm(len(testing), generator=torch.Generator().manual_seed(seed))
    tested: list[TestedLists] = []
    for policy in shortlists(ordering, top_k):
        lost = losses(judged, testing, replay_lists(testing, policy))[mixed].numpy()
        p = mean_p_value(lost, epsilon, delta)
        cost = _cost(replay_lists(trace, policy))
        tested.append(TestedLists(policy, float(lost.mean()), int((lost > 0).sum()), p, p <= delta, cost))
        if not tested[-1].passed:
            break
    best = min((step for step in tested if step.passed), key=lambda step: step.cost, default=None)
    guarantee = ListGuarantee(
        policy=best.policy if best else FullDepth(),
        risk=judged,
        epsilon=epsilon,
        delta=delta,
        rows=len(testing),
        errors=best.losing if best else 0,
        ordering_rows=len(ordering),
        cost=best.cost if best else 1.0,
        conditions=trace.trace.conditions,
        loss=best.loss if best else 0.0,
        label=trace.label,
    )
    return ListCalibration(guarantee, tuple(tested))


def check_lists(lists: int, epsilon: float, delta: float, order: float) -> None:
    """Raise InputError where so many lists cannot support a promise, or a number is out of range."""
    for name, given in (("epsilon", epsilon), ("delta", delta), ("order share", order)):
        require_share(name, given)
    needed, left = lists_needed(epsilon, delta), lists - max(1, int(order * lists))
    if left < needed:
        raise InputError(
            f"{left} of {lists} lists are left to test with, and epsilon={epsilon:g} with delta={delta:g} needs "
            f"{needed} even if none of them loses anything: give more queries, or a larger epsilon or delta"
        )


def _cost(found: Replay) -> float:
    return 1 / found.layer_ratio
