"""The promise of a calibration, held against populations whose risk is known, and what it refuses."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence

import pytest
import torch
from scipy.stats import binom
from torch import Tensor

import pabee_fast as pf
from pabee_fast.calibration.calibrate import check_rows, p_value, rows_needed
from pabee_fast.calibration.known import distinct_rows
from pabee_fast.calibration.risks import Risk
from tests.calibration.traces import CONDITIONS, made_up

EPSILON, DELTA, DRAWS = 0.05, 0.1, 500


def two_layers(rows: int, generator: torch.Generator) -> pf.Trace:
    """Layer 1 gives class 0 a probability u, uniform from 0.5 to 1; layer 2 says otherwise with probability 1 - u.

    So Confidence(t) leaves at layer 1 with probability 2 * (1 - t), and its disagreement is (1 - t) ** 2.
    """
    u = 0.5 + torch.rand(rows, generator=generator) / 2
    flips = torch.rand(rows, generator=generator) < 1 - u
    first = torch.stack([u.logit(), torch.zeros(rows)], dim=1)
    last = torch.where(flips, -1.0, 1.0)[:, None] * torch.tensor([1.0, -1.0])
    return pf.Trace(torch.stack([first, last]), torch.full((rows,), 7), "label", CONDITIONS)


def many_depths(rows: int, generator: torch.Generator) -> pf.Trace:
    """Each of twenty layers differs from the last with a probability a hair above EPSILON, on its own."""
    flips = torch.rand(20, rows, generator=generator) < TOO_RISKY
    first = torch.where(flips, -1.0, 1.0)
    logits = torch.cat([first, torch.ones(1, rows)])
    return pf.Trace(torch.stack([logits, -logits], dim=2), torch.full((rows,), 7), "label", CONDITIONS)


CONFIDENCES = [pf.Confidence(threshold) for threshold in (0.98, 0.9, 0.86, 0.776, 0.7)]
"""Risks 0.0004, 0.01, 0.02, 0.0502 and 0.09: the last but one is a hair too risky."""
DEPTHS = [[pf.FixedDepth(depth)] for depth in range(1, 21)]
TOO_RISKY = 1.002 * EPSILON


def known_risk(policy: pf.Policy) -> float:
    if isinstance(policy, pf.Confidence):
        return (1 - policy.threshold) ** 2
    return 0.0 if policy == pf.FullDepth() else TOO_RISKY


def chosen(
    population: Callable[..., pf.Trace], candidates: Sequence[Sequence[pf.Policy]], rows: int
) -> list[pf.Policy]:
    """What each of DRAWS calibrations chose, each on rows of its own."""
    generator = torch.Generator().manual_seed(0)
    return [
        pf.calibrate(
            population(rows, generator), epsilon=EPSILON, delta=DELTA, candidates=candidates, order=0.3, seed=draw
        ).policy
        for draw in range(DRAWS)
    ]


def test_the_promise_is_broken_no_more_often_than_delta_allows_and_something_is_gained() -> None:
    policies = chosen(two_layers, [CONFIDENCES, [pf.FixedDepth(1)]], rows=700)
    broken = sum(known_risk(policy) > EPSILON for policy in policies)
    assert broken <= binom.ppf(0.999, DRAWS, DELTA)
    # Two fifths of EPSILON, which 490 testing rows tell from it in nearly all draws.
    assert sum(known_risk(policy) >= 0.0195 for policy in policies) >= 0.9 * DRAWS
    assert broken > 0, "a draw that is never unlucky tests nothing"


def test_the_promise_holds_where_every_candidate_is_a_little_too_risky() -> None:
    """740 rows test, for which a walk at half of DELTA errs with a probability of up to 0.0496: as near as counts get.

    So what is wrong shows. Of the 500 draws 43 break the promise, and 72 may. Each of these breaks more: walks that do
    not share DELTA, tests on the ordering rows too, and chains that all rows choose.
    """
    policies = chosen(many_depths, DEPTHS, rows=1057)
    broken = sum(known_risk(policy) > EPSILON for policy in policies)
    assert 0.05 * DRAWS < broken <= binom.ppf(0.999, DRAWS, DELTA)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.01, 0.05), (0.05, 0.1), (0.2, 0.01), (0.001, 0.5)])
def test_the_rows_needed_are_the_fewest_that_reject_with_no_error(epsilon: float, delta: float) -> None:
    needed = rows_needed(epsilon, delta)
    assert p_value(0, needed, epsilon) <= delta < p_value(0, needed - 1, epsilon)


@pytest.mark.parametrize("rows", [1, 2, 100, 397])
def test_too_few_rows_are_refused_with_the_number_needed(rows: int) -> None:
    with pytest.raises(pf.InputError, match=r"needs 299 .*, 398 in all"):
        pf.calibrate(made_up(rows), epsilon=0.01, delta=0.05)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.5, 0.97, 0.99999])
def test_the_number_of_rows_that_is_named_suffices_and_one_less_does_not(share: float) -> None:
    with pytest.raises(pf.InputError) as refused:
        check_rows(10, 0.01, 0.05, share)
    named = int(re.findall(r"(\d+) in all", str(refused.value))[0])
    check_rows(named, 0.01, 0.05, share)
    with pytest.raises(pf.InputError):
        check_rows(named - 1, 0.01, 0.05, share)


def test_rows_enough_are_counted_without_those_that_order() -> None:
    chains = [[pf.FixedDepth(5)]]
    found = pf.calibrate(made_up(400), epsilon=0.01, delta=0.05, candidates=chains)
    assert (found.guarantee.rows, found.guarantee.ordering_rows) == (300, 100)
    apart = pf.calibrate(made_up(299), epsilon=0.01, delta=0.05, candidates=chains, order=made_up(50, seed=1))
    assert (apart.guarantee.rows, apart.guarantee.ordering_rows) == (299, 50)


def test_a_walk_goes_from_strict_to_fast_and_ends_at_its_first_failure() -> None:
    found = pf.calibrate(made_up(1000), epsilon=0.1, delta=0.05)
    assert {step.walk for step in found.tested} == {0, 1}
    for _, walk in itertools.groupby(found.tested, key=lambda step: step.walk):
        steps = list(walk)
        assert all(step.passed for step in steps[:-1])
        assert all(later.cost <= earlier.cost for earlier, later in itertools.pairwise(steps))
        assert all(step.passed == (step.p_value <= 0.05 / 2) for step in steps)
        assert all(step.p_value == pytest.approx(binom.cdf(step.errors, 750, 0.1)) for step in steps)
    passed = [step for step in found.tested if step.passed]
    best = min(passed, key=lambda step: step.cost)
    assert (found.policy, found.guarantee.cost, found.guarantee.errors) == (best.policy, best.cost, best.errors)
    assert found.guarantee.cost == pytest.approx(1 / pf.replay(made_up(1000), best.policy).layer_ratio)


def test_only_ordering_rows_decide_what_is_tested() -> None:
    # The testing rows' answers change altogether; what is walked first does not.
    order, testing, other = made_up(200, seed=1), made_up(400, seed=2), made_up(400, seed=3)
    found = [pf.calibrate(rows, epsilon=0.1, order=order).tested for rows in (testing, other)]
    firsts = [next(step.policy for step in tested if step.walk == 0) for tested in found]
    assert firsts[0] == firsts[1]


def test_full_depth_is_chosen_where_nothing_else_can_be_promised() -> None:
    found = pf.calibrate(made_up(400), epsilon=0.01, candidates=[[pf.FixedDepth(1)]])
    assert found.policy == pf.FullDepth()
    assert (found.guarantee.cost, found.guarantee.errors) == (1.0, 0)
    assert [step.passed for step in found.tested] == [False]
    assert "no policy that leaves earlier could be promised" in found.guarantee.statement()


@pytest.mark.parametrize("kind", ["label", "label_set", "value"])
def test_every_candidate_suits_the_answers_and_the_frontier_falls(kind: str) -> None:
    made = made_up(600, kind=kind, classes=1 if kind == "value" else 3)  # type: ignore[arg-type]
    found = pf.calibrate(made, epsilon=0.1, tolerance=1.0 if kind == "value" else None)
    assert found.guarantee.risk.name == ("distance" if kind == "value" else "disagreement")
    assert len(found.frontier) > 5
    for safer, faster in itertools.pairwise(found.frontier):
        assert safer.cost > faster.cost
        assert safer.risk < faster.risk


def labelled(logits: Tensor, labels: Sequence[int] | Tensor, kind: str = "label") -> pf.Trace:
    lengths = torch.full((logits.shape[1],), 3)
    return pf.Trace(logits, lengths, kind, CONDITIONS, torch.as_tensor(labels))  # type: ignore[arg-type]


def test_what_each_risk_counts() -> None:
    # [2 layers, 4 rows, 2 classes]: full depth says 0 0 1 1, layer 1 says 0 1 0 1.
    logits = torch.tensor([[[1, 0], [0, 1], [1, 0], [0, 1]], [[1, 0], [1, 0], [0, 1], [0, 1]]]).float()
    trace = labelled(logits, [1, 0, 0, 1])
    at_one, at_two = pf.replay(trace, pf.FixedDepth(1)), pf.replay(trace, pf.FullDepth())
    assert Risk("disagreement").losses(trace, at_one).tolist() == [False, True, True, False]
    # Row 0: both wrong. Row 1: full depth alone is right. Row 2: layer 1 alone is right.
    assert Risk("accuracy-loss").losses(trace, at_one).tolist() == [False, True, False, False]
    assert not Risk("disagreement").losses(trace, at_two).any()


def test_a_label_set_is_another_where_one_label_is() -> None:
    logits = torch.tensor([[[1, -1], [1, 1]], [[1, -1], [1, -1]]]).float()
    trace = labelled(logits, [[1, 0], [1, 0]], "label_set")
    found = pf.replay(trace, pf.FixedDepth(1))
    assert Risk("disagreement").losses(trace, found).tolist() == [False, True]
    assert Risk("accuracy-loss").losses(trace, found).tolist() == [False, True]


def test_a_value_is_lost_only_beyond_the_tolerance() -> None:
    trace = labelled(torch.tensor([[[1.0], [2.0]], [[1.5], [2.75]]]), [1.0, 2.0], "value")
    assert Risk("distance", 0.5).losses(trace, pf.replay(trace, pf.FixedDepth(1))).tolist() == [False, True]


@pytest.mark.parametrize("risk", [Risk("disagreement"), Risk("accuracy-loss")])
def test_an_answer_that_is_not_finite_is_a_loss_where_full_depth_has_one(risk: Risk) -> None:
    logits = torch.ones(2, 2, 2) * torch.tensor([1.0, 0.0])
    logits[0, 1, 1] = float("nan")
    trace = labelled(logits, [0, 0])
    assert risk.losses(trace, pf.replay(trace, pf.FixedDepth(1))).tolist() == [False, True]
    logits[1, 1, 1] = float("nan")  # without an answer at full depth, none is lost by staying
    assert not risk.losses(trace, pf.replay(trace, pf.FullDepth())).any()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epsilon": 0.0}, "epsilon=0.0: give a number between 0 and 1"),
        ({"delta": 1.0}, "delta=1.0"),
        ({"order": 1.0}, "order share=1.0"),
        ({"risk": "error"}, "disagreement, accuracy-loss, distance"),
        ({"risk": "distance"}, "in units of the output"),
        ({"risk": "distance", "tolerance": 0.5}, "answers with labels: use 'disagreement'"),
        ({"tolerance": 0.5}, "belongs to the risk 'distance'"),
        ({"candidates": [[pf.Patience(1, threshold=0.5)]]}, "regression"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(pf.InputError, match=says):
        pf.calibrate(made_up(400), **{"epsilon": 0.1} | options)  # type: ignore[arg-type]


def test_regression_is_judged_by_distance_alone() -> None:
    values = made_up(400, classes=1, kind="value")
    with pytest.raises(pf.InputError, match="answers with values: use 'distance'"):
        pf.calibrate(values, risk="disagreement")
    with pytest.raises(pf.InputError, match="one output"):
        pf.calibrate(values, tolerance=0.5, candidates=[[pf.Confidence(0.9)]])


def test_accuracy_loss_needs_labels_of_two_classes() -> None:
    made = made_up(400)
    without = pf.Trace(made.logits, made.lengths, made.kind, made.conditions)
    with pytest.raises(pf.InputError, match="needs labels"):
        pf.calibrate(without, risk="accuracy-loss")
    one_class = labelled(made.logits, [1] * 400)
    with pytest.raises(pf.InputError, match="two classes"):
        pf.calibrate(one_class, risk="accuracy-loss")
    unlabelled = dataclasses.replace(made_up(100, seed=4), labels=None)
    with pytest.raises(pf.InputError, match="needs labels"):
        pf.calibrate(made, risk="accuracy-loss", order=unlabelled)


def test_ordering_rows_come_from_the_same_model_and_are_others() -> None:
    made = made_up(400)
    other = pf.Trace(made.logits, made.lengths, made.kind, pf.Conditions("another", "made up", "float32", 32))
    with pytest.raises(pf.InputError, match="weights, heads or config are others"):
        pf.calibrate(made, order=other)
    again = pf.Trace(made.logits + 1e-5, made.lengths, made.kind, made.conditions)
    more = made_up(300, seed=1)
    both = made + more
    for shared in (made, again, made.select(torch.arange(60)), both):
        with pytest.raises(pf.InputError, match=r"share (99|100)% of the rows .* cannot test it"):
            pf.calibrate(made, order=shared)
    order = made.select(torch.arange(50)) + more
    assert pf.calibrate(made, epsilon=0.1, order=order).guarantee.ordering_rows == 350


def test_without_a_candidate_full_depth_is_chosen() -> None:
    one_layer = made_up(400, layers=1)
    for given in ({}, {"candidates": []}):
        found = pf.calibrate(one_layer, epsilon=0.01, **given)  # type: ignore[arg-type]
        assert (found.policy, found.tested, found.guarantee.cost) == (pf.FullDepth(), (), 1.0)


def test_copies_of_rows_are_no_evidence() -> None:
    rows = made_up(rows=60, seed=3)
    copied = rows.select(torch.arange(60).repeat(20))
    with pytest.raises(pf.InputError, match=r"900 rows to test with are copies of 60, and .* needs 299 different ones"):
        pf.calibrate(copied, epsilon=0.01, delta=0.05)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e8])
def test_which_rows_are_copies_does_not_depend_on_the_unit_of_the_values(unit: float) -> None:
    rows = made_up(rows=400, classes=1, kind="value", seed=3)
    rows = dataclasses.replace(rows, logits=rows.logits * unit, labels=None)
    assert len(distinct_rows(rows)) > 390
    outlier = rows.logits.clone()
    outlier[:, 7] = 1e6 * unit
    assert len(distinct_rows(dataclasses.replace(rows, logits=outlier))) > 390
    nearly_constant = torch.cat([unit * (0.3 + 1e-5 * rows.logits[:1]), rows.logits])
    rows = dataclasses.replace(rows, logits=nearly_constant)
    copies = rows.select(torch.arange(40).repeat(10))
    off = torch.rand(copies.logits.shape, generator=torch.Generator().manual_seed(0))
    assert len(distinct_rows(dataclasses.replace(copies, logits=copies.logits * (1 + 1e-6 * off)))) < 60


def test_a_bound_on_the_loss_of_what_is_never_right_is_no_comfort(caplog: pytest.LogCaptureFixture) -> None:
    rows = made_up(rows=400, seed=3)
    assert rows.labels is not None
    found = pf.calibrate(rows, epsilon=0.1, delta=0.1, risk="accuracy-loss")
    assert found.full_depth_accuracy == 1.0 and not caplog.records
    renumbered = dataclasses.replace(rows, labels=(rows.labels + 1) % 3)
    assert pf.calibrate(renumbered, epsilon=0.1, delta=0.1, risk="accuracy-loss").full_depth_accuracy == 0.0
    assert "full depth is right on 0.0 % of the rows, and the most frequent label alone" in caplog.text
    assert pf.calibrate(rows, epsilon=0.1, delta=0.1).full_depth_accuracy is None


def test_rows_that_come_often_are_said_to(caplog: pytest.LogCaptureFixture) -> None:
    rows = made_up(rows=400, seed=3)
    pf.calibrate(rows, epsilon=0.1, delta=0.1)
    assert not caplog.records
    pf.calibrate(rows.select(torch.arange(400).repeat(3)), epsilon=0.1, delta=0.1)
    assert "900 rows to test with are copies of" in caplog.text


def test_what_is_no_policy_is_named() -> None:
    rows = made_up(rows=100)
    with pytest.raises(pf.InputError, match=r"candidates holds patience:3: give chains"):
        pf.calibrate(rows, epsilon=0.2, delta=0.2, candidates=[pf.Patience(3)])  # type: ignore[list-item]
    with pytest.raises(pf.InputError, match=r"candidates='patience:3': give a policy"):
        pf.calibrate(rows, epsilon=0.2, delta=0.2, candidates=[["patience:3"]])  # type: ignore[list-item]
    with pytest.raises(pf.InputError, match=r"policy='patience:3': give a policy"):
        pf.replay(rows, "patience:3")  # type: ignore[arg-type]
