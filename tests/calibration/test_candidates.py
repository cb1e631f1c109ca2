"""The chains of policies that calibration walks: what they hold, and that each goes from strict to loose."""

import dataclasses
import itertools

import pytest
import torch

import pabee_fast as pf
from pabee_fast.calibration.candidates import chains_for, grids
from pabee_fast.policies import Stepping
from tests.calibration.traces import made_up


@pytest.mark.parametrize("classes", [2, 3])
def test_labels_bring_chains_of_every_rule(classes: int) -> None:
    chains = chains_for(pf.Replayer(made_up(200, layers=8, classes=classes)))
    rules = {type(policy) for chain in chains for policy in chain}
    expected = {pf.FixedDepth, pf.Patience, pf.Confidence, pf.PatientConfidence, pf.PatientDivergence, pf.Vote}
    assert rules == (expected if classes == 2 else expected | {pf.Entropy})
    grids_seen = {
        (policy.first_layer, policy.every) for chain in chains for policy in chain if isinstance(policy, Stepping)
    }
    assert {first for first, _ in grids_seen} == {1, 2, 3, 4, 5}
    assert {every for _, every in grids_seen} == {1, 2}


@pytest.mark.parametrize(("kind", "classes"), [("value", 1), ("label_set", 4)])
def test_other_answers_bring_patience_and_fixed_depths(kind: str, classes: int) -> None:
    chains = chains_for(pf.Replayer(made_up(200, classes=classes, kind=kind)))  # type: ignore[arg-type]
    assert {type(policy) for chain in chains for policy in chain} == {pf.FixedDepth, pf.Patience}


@pytest.mark.parametrize(("kind", "classes"), [("label", 2), ("label", 5), ("value", 1), ("label_set", 3)])
def test_along_a_chain_no_row_leaves_later_and_every_policy_can_leave_early(kind: str, classes: int) -> None:
    replayer = pf.Replayer(made_up(150, classes=classes, kind=kind))  # type: ignore[arg-type]
    for chain in chains_for(replayer):
        assert len(set(chain)) == len(chain)
        assert all(policy.first_exit(6) < 6 for policy in chain)
        exits = [replayer.replay(policy).exit_layers for policy in chain]
        assert all((later <= earlier).all() for earlier, later in itertools.pairwise(exits)), chain[0]


def test_thresholds_are_short_enough_to_say_and_tell_rows_apart() -> None:
    chains = chains_for(pf.Replayer(made_up(500, classes=2)))
    chain = next(chain for chain in chains if isinstance(chain[0], pf.Confidence))
    thresholds = [policy.threshold for policy in chain if isinstance(policy, pf.Confidence)]
    assert len(thresholds) > 20
    assert thresholds == sorted(thresholds, reverse=True)
    assert max(len(str(threshold)) for threshold in thresholds) <= 9


def test_layers_before_the_first_head_are_never_tested() -> None:
    made = made_up(100)
    made.logits[:2] = float("nan")
    late = dataclasses.replace(made, first_layer=3)
    for chain in chains_for(pf.Replayer(late)):
        for policy in chain:
            assert policy.first_exit(6) >= 3
            assert not any(policy.tests(layer, 6) for layer in (1, 2))
    assert [grid["first_layer"] for grid in grids(3, 6)] == [3, 4]


def test_what_a_rule_sees_begins_at_the_first_head() -> None:
    made = made_up(100)
    late = dataclasses.replace(made, first_layer=3)
    measures = pf.Replayer(late).measures(pf.Confidence(0.5))
    assert len(measures) == 3  # layers 3, 4 and 5
    torch.testing.assert_close(measures[0], made.logits[2].softmax(dim=1).amax(dim=1))
