"""Policies: which layers they test, from where a row may leave, what they refuse, and their spelling."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest

import pabee_fast as pf
from pabee_fast.policies import COMMAND_LINE


def layers_tested(policy: pf.Policy, layers: int) -> list[int]:
    return [layer for layer in range(1, layers + 1) if policy.tests(layer, layers)]


def test_patience_tests_every_layer_and_leaves_from_patience_plus_one() -> None:
    policy = pf.Patience(3)
    assert layers_tested(policy, 12) == list(range(1, 13))
    assert policy.first_exit(12) == 4


def test_first_layer_and_every_choose_the_tested_layers() -> None:
    policy = pf.Patience(2, first_layer=4, every=3)
    assert layers_tested(policy, 12) == [4, 7, 10, 12]
    assert policy.first_exit(12) == 10


@pytest.mark.parametrize("policy", [pf.Patience(12), pf.Patience(11), pf.Patience(3, first_layer=9), pf.FullDepth()])
def test_a_policy_that_cannot_leave_early_runs_the_last_head_alone(policy: pf.Policy) -> None:
    assert layers_tested(policy, 12) == [12]


def test_fixed_depth_runs_one_head_at_its_depth() -> None:
    assert pf.FixedDepth(5).depth(12) == 5
    assert [layer for layer in range(1, 6) if pf.FixedDepth(5).tests(layer, 12)] == [5]


def test_scheduled_runs_every_head_and_leaves_from_its_earliest_exit() -> None:
    policy = pf.Scheduled((7, 4, 12))
    assert layers_tested(policy, 12) == list(range(1, 13))
    assert policy.first_exit(12) == 4


@pytest.mark.parametrize("patience", [0, -1, 1.5, True, "3"])
def test_patience_below_one_or_not_whole_names_full_depth(patience: object) -> None:
    with pytest.raises(pf.InputError, match="FullDepth"):
        pf.Patience(patience)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "first"),
    [
        (pf.Confidence(0.9), 1),
        (pf.Entropy(0.3), 1),
        (pf.PatientConfidence(3, 0.2), 3),
        (pf.PatientDivergence(3, 0.01), 4),
        (pf.PatientDivergence(2, 0.01, first_layer=3, every=2), 7),
        # votes / tests ** exponent of a row whose heads all agree: 1, 1.41, 1.73, 2, 2.24.
        (pf.Vote(2.0, 0.5), 4),
        (pf.Vote(2.0, 0.5, first_layer=2, every=3), 11),
        (pf.Vote(1.0, 1.0), 1),
    ],
)
def test_a_row_can_leave_from_the_layer_where_the_rule_can_be_met(policy: pf.Policy, first: int) -> None:
    assert policy.first_exit(12) == first


def test_a_vote_needs_more_votes_the_more_heads_have_voted() -> None:
    policy = pf.Vote(0.6, 1.0, first_layer=2)
    # v / tests >= 0.6
    assert [policy.rule(layer, classes=3).patience for layer in range(2, 12)] == [1, 2, 2, 3, 3, 4, 5, 5, 6, 6]


def test_patient_confidence_compares_entropy_with_a_share_of_the_largest() -> None:
    assert pf.PatientConfidence(2, 0.5).rule(1, classes=8).threshold == pytest.approx(0.5 * math.log(8))


OF_CLASSES = [
    pf.Confidence(0.9),
    pf.Entropy(0.3),
    pf.PatientConfidence(2, 0.2),
    pf.PatientDivergence(2, 0.1),
    pf.Vote(1),
]


@pytest.mark.parametrize("policy", OF_CLASSES, ids=str)
@pytest.mark.parametrize(("kind", "says"), [("value", "one output.*threshold=0.1"), ("label_set", "several labels")])
def test_rules_of_classes_refuse_other_answers(policy: pf.Policy, kind: str, says: str) -> None:
    policy.check(12, "label")
    with pytest.raises(pf.InputError, match=says):
        policy.check(12, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda: pf.Confidence(1.5),
        lambda: pf.Confidence(0.0),
        lambda: pf.Entropy(-1.0),
        lambda: pf.PatientConfidence(2, 1.0),
        lambda: pf.PatientDivergence(2, float("nan")),
        lambda: pf.Vote(True),
        lambda: pf.Patience(3, threshold="0.1"),  # type: ignore[arg-type]
    ],
)
def test_a_threshold_out_of_its_range_is_refused(make: Callable[[], pf.Policy]) -> None:
    with pytest.raises(pf.InputError, match=r"threshold=.*give a"):
        make()


def test_useless_patience_has_a_warning() -> None:
    assert "before layer 13" in str(pf.Vote(9.0, 0.5).warning(12))
    assert "no row will leave early" in str(pf.Patience(12).warning(12))
    assert "before layer 13" in str(pf.Patience(4, first_layer=9).warning(12))
    assert pf.Patience(10).warning(12) is None


@pytest.mark.parametrize(
    ("policy", "kind", "says"),
    [
        (pf.Patience(2), "value", "threshold=0.1"),
        (pf.Patience(2, threshold=0.5), "label", "Patience\\(2\\)"),
        (pf.FixedDepth(13), "label", "1 to 12"),
        (pf.Scheduled((13,)), "label", "12 layers"),
    ],
)
def test_a_policy_that_does_not_fit_the_model_is_refused(policy: pf.Policy, kind: str, says: str) -> None:
    with pytest.raises(pf.InputError, match=says):
        policy.check(12, kind)  # type: ignore[arg-type]


def test_scheduled_of_another_length_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="2 exit layers for 3 rows"):
        pf.Scheduled((4, 5)).check(12, "label", rows=3)


@pytest.mark.parametrize("options", [{"first_layer": 0}, {"every": 0}, {"every": 1.0}])
def test_grid_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(pf.InputError, match=next(iter(options))):
        pf.Patience(3, **options)


@pytest.mark.parametrize(
    "policy",
    [
        pf.Patience(6),
        pf.Patience(3, threshold=0.25),
        pf.Patience(6, first_layer=4),
        pf.Patience(2, threshold=0.5, every=2),
        *OF_CLASSES,
        pf.PatientDivergence(2, 0.1, first_layer=3, every=2),
        pf.Vote(1.5, 0.25),
        pf.FullDepth(),
        pf.FixedDepth(4),
        pf.Shortlist(10, (float("inf"), 1.25, 0.1 + 0.2)),
        pf.Shortlist(3, (0.5,), label=1),
    ],
)
def test_a_policy_reads_back_from_its_spelling(policy: pf.Policy) -> None:
    assert pf.parse_policy(str(policy)) == policy


@pytest.mark.parametrize("text", ["patience:6,first_layer=4", " Patience : patience=6 , first_layer=4 "])
def test_the_command_lines_spelling_is_lenient_about_case_and_blanks(text: str) -> None:
    assert pf.parse_policy(text) == pf.Patience(6, first_layer=4)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("patient:6", "patience, confidence, entropy, patient-confidence, .*, vote, full-depth, fixed-depth"),
        ("patience:6,first=4", "first_layer"),
        ("patience:6,patience=5", "each once"),
        ("patience", "patience is missing"),
        ("patience:six", "not a whole number"),
        ("patience:3,threshold=much", "not a number"),
        ("scheduled:4", "unknown name"),
        ("full-depth:4", "cannot use '4'; full-depth takes no options"),
        ("full-depth:every=2", "cannot use 'every=2'"),
        ("fixed-depth:4,first_layer=2", "fixed-depth takes layers, each once"),
        ("patience:0", "FullDepth"),
    ],
)
def test_a_wrong_spelling_names_the_valid_ones(text: str, says: str) -> None:
    with pytest.raises(pf.InputError, match=says):
        pf.parse_policy(text)


@pytest.mark.parametrize("cls", COMMAND_LINE)
def test_policies_are_frozen(cls: type[pf.Policy]) -> None:
    values = {"patience": "4", "threshold": "0.4", "layers": "4"}
    own = [f"{f.name}={values[f.name]}" for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
    policy = pf.parse_policy(":".join([pf.policies.base.spelling(cls), *([",".join(own)] if own else [])]))
    with pytest.raises(AttributeError):
        policy.needs_heads = False  # type: ignore[misc]


def test_a_shortlist_asks_the_heads_of_layers_that_have_a_margin() -> None:
    policy = pf.Shortlist(10, (float("inf"), 1.0, float("inf"), 0.5))
    assert [layer for layer in range(1, 6) if policy.tests(layer, 5)] == [2, 4, 5]
    assert policy.first_exit(5) == 2 and policy.is_listwise
    assert policy.among(2) == (10, 1.0, 0) and policy.among(3) is None and policy.among(5) is None
    assert policy.from_layer(3).margins == (float("inf"),) * 3 + (0.5,)
    assert pf.Shortlist(10, (float("inf"),) * 4).first_exit(5) == 5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"top_k": 0, "margins": (1.0,)}, "top_k=0"),
        ({"top_k": 1, "margins": (-1.0,)}, r"margins holds -1\.0: give numbers of 0 or more"),
        ({"top_k": 1, "margins": (float("nan"),)}, "margins holds nan"),
        ({"top_k": 1, "margins": 1.0}, r"margins=1\.0: give numbers"),
        ({"top_k": 1, "margins": ("much",)}, "give numbers, one for each layer but the last"),
        ({"top_k": 1, "margins": (1.0,), "label": -1}, "label=-1"),
    ],
)
def test_a_shortlist_refuses_what_is_no_margin(options: dict[str, Any], says: str) -> None:
    with pytest.raises(pf.InputError, match=says):
        pf.Shortlist(**options)


def test_a_shortlist_fits_models_of_its_depth() -> None:
    with pytest.raises(pf.InputError, match="has 2 margins, and the model 6 layers: give 5"):
        pf.Shortlist(10, (1.0, 1.0)).check(6, "value")
    with pytest.raises(pf.InputError, match="label=1 on a model with one output"):
        pf.Shortlist(10, (1.0,), label=1).check(2, "value")
