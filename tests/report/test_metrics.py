"""Metrics, errors of neighbouring heads and tests of significance, against values that are known."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pabee_fast as pf
from pabee_fast.report import metrics, significance
from pabee_fast.report.significance import holm, mcnemar, paired_bootstrap
from tests.calibration.traces import CONDITIONS, made_up

LABELS = torch.tensor([1, 1, 1, 0, 0, 0, 0, 1])
ANSWERED = torch.tensor([1, 1, 0, 0, 0, 1, 0, 1])  # 3 of 4 ones found, 1 of 4 zeros taken for one


def test_glues_metrics_of_two_labels() -> None:
    assert metrics.evaluate("accuracy", ANSWERED, LABELS) == 6 / 8
    assert metrics.evaluate("F1", ANSWERED, LABELS) == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert metrics.evaluate("Matthews", ANSWERED, LABELS) == pytest.approx((3 * 3 - 1 * 1) / 16)


def test_f1_of_several_labels_is_their_mean_and_of_label_sets_over_all_choices() -> None:
    assert metrics.evaluate("macro-F1", torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2])) == pytest.approx(
        (1 + 2 / 3 + 2 / 3) / 3
    )
    answered, labels = torch.tensor([[1, 1], [0, 1]]), torch.tensor([[1, 0], [0, 1]])
    assert metrics.evaluate("micro-F1", answered, labels) == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert metrics.evaluate("accuracy", answered, labels) == 0.5


def test_which_f1_it_is_the_models_classes_say_and_not_which_of_them_rows_have() -> None:
    assert metrics.metrics_for("label", 2) == ("accuracy", "F1", "Matthews")
    assert metrics.metrics_for("label", 4) == ("accuracy", "macro-F1", "Matthews")
    assert metrics.metrics_for("label_set", 2) == ("accuracy", "micro-F1")
    labels, answered = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 2])  # no row has classes 2 and 3
    assert metrics.evaluate("macro-F1", answered, labels) == pytest.approx((2 * 2 / (2 * 2 + 1) + 0) / 2)


def test_what_a_head_answers_has_no_say_in_what_an_f1_is_over() -> None:
    stray = ANSWERED.clone()
    stray[4] = 2  # a third class, which no row has: as wrong as label 1 would be
    wrong = ANSWERED.clone()
    wrong[4] = 0
    assert metrics.evaluate("F1", stray, LABELS) == metrics.evaluate("F1", wrong, LABELS)
    labels = torch.tensor([0, 1, 1, 3])
    assert metrics.evaluate("macro-F1", torch.tensor([0, 1, 1, 2]), labels) == pytest.approx((1 + 1 + 0) / 3)


def test_correlations_of_values() -> None:
    values, labels = torch.tensor([1.0, 2.0, 9.0, 4.0]), torch.tensor([0.0, 1.0, 3.0, 2.0])
    assert metrics.evaluate("Spearman", values, labels) == pytest.approx(1.0)
    expected = torch.corrcoef(torch.stack([values, labels]))[0, 1]
    assert metrics.evaluate("Pearson", values, labels) == pytest.approx(float(expected), rel=1e-6)
    assert math.isnan(metrics.evaluate("Pearson", torch.ones(4), labels))


@pytest.mark.parametrize(
    ("name", "answered", "labels", "says"),
    [
        ("recall", ANSWERED, LABELS, "accuracy, F1, macro-F1, micro-F1, Matthews, Pearson, Spearman"),
        ("accuracy", ANSWERED[:3], LABELS, r"\[3\] and labels \[8\]"),
        ("F1", ANSWERED, torch.ones(8).long(), "two labels or more"),
        ("F1", torch.ones(2, 2), torch.eye(2), "of label sets there are accuracy and micro-F1"),
        ("micro-F1", ANSWERED, LABELS, "micro-F1 of these alone"),
    ],
)
def test_what_no_metric_can_judge_is_refused(name: str, answered: Tensor, labels: Tensor, says: str) -> None:
    with pytest.raises(pf.InputError, match=says):
        metrics.evaluate(name, answered, labels)


def test_the_ensemble_is_the_mean_of_probabilities_or_of_values_from_the_first_head_on() -> None:
    made = made_up(rows=5, layers=3)
    spoilt = made.logits.clone()
    spoilt[0] = math.nan
    late = pf.Trace(spoilt, made.lengths, "label", CONDITIONS, first_layer=2)
    expected = (made.logits[1].softmax(1) + made.logits[2].softmax(1)) / 2
    torch.testing.assert_close(metrics.ensemble(late).exp(), expected)
    values = made_up(rows=5, layers=3, classes=1, kind="value")
    torch.testing.assert_close(metrics.ensemble(values), values.logits.mean(0))
    sets = made_up(rows=5, layers=3, kind="label_set")
    torch.testing.assert_close(metrics.ensemble(sets).sigmoid(), sets.logits.sigmoid().mean(0))


def test_right_is_as_a_whole_for_sets_and_within_a_tolerance_for_values() -> None:
    sets = torch.tensor([[[1, 0], [1, 1]], [[1, 1], [1, 1]]])  # [2 layers, 2 rows, 2 labels]
    assert metrics.right(sets, torch.tensor([[1, 0], [1, 1]])).tolist() == [[True, True], [False, True]]
    assert metrics.right(torch.tensor([[1.0, 2.0]]), torch.tensor([1.5, 2.75]), 0.5).tolist() == [[True, False]]


#                       rows: 0      1      2      3
RIGHT = torch.tensor([[True, True, False, False], [True, False, False, True], [False, True, False, True]])


def test_errors_of_neighbouring_heads_are_conditional_on_the_head_before() -> None:
    first, second = metrics.neighbour_errors(RIGHT, first_layer=4)
    assert (first.layer, first.after_right, first.after_wrong, first.independent) == (4, 0.5, 0.5, 0.5)
    assert (second.layer, second.after_right, second.after_wrong, second.independent) == (5, 0.5, 0.5, 0.5)
    assert (first.rows_right, first.rows_wrong) == (2, 2)
    (alone,) = metrics.neighbour_errors(torch.tensor([[True, True], [True, False]]))
    assert (alone.after_right, alone.rows_wrong) == (0.5, 0)
    assert math.isnan(alone.after_wrong)


def test_streaks_of_wrong_heads_are_held_against_the_product_of_their_error_rates() -> None:
    one, two, three = metrics.wrong_streaks(RIGHT)
    assert one.observed == one.independent == pytest.approx(0.5)
    assert (two.observed, two.independent) == (pytest.approx(0.25), pytest.approx(0.25))
    assert (three.observed, three.independent) == (pytest.approx(0.25), pytest.approx(0.125))


def test_overthinking_is_what_an_earlier_head_had_right() -> None:
    found = metrics.overthinking(RIGHT)
    assert found.share == 0.25  # row 0; row 2 was never right
    assert found.of_errors == 0.5
    assert found.last_right == (0.0, 0.25)


def test_mcnemars_test_is_exact_and_looks_only_at_rows_that_differ() -> None:
    first = torch.tensor([True] * 8 + [False] * 2 + [True] * 50)
    second = torch.tensor([False] * 8 + [True] * 2 + [True] * 50)
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (8, 2)
    assert found.p_value == pytest.approx(2 * sum(math.comb(10, k) for k in range(3)) / 2**10)
    assert mcnemar(first, first).p_value == 1.0


def test_a_bootstrap_finds_a_real_difference_and_none_between_equals() -> None:
    labels = torch.arange(400) % 2
    better, worse = labels.clone(), labels.clone()
    better[:20], worse[:80] = 1 - labels[:20], 1 - labels[:80]
    found = paired_bootstrap("accuracy", [better], [worse], labels, resamples=300)
    assert found.difference == pytest.approx(0.15)
    assert found.low < 0.15 < found.high
    assert found.low > 0 and found.p_value == pytest.approx(2 / 301)
    same = paired_bootstrap("F1", [better], [better], labels, resamples=50)
    assert (same.difference, same.p_value) == (0.0, 1.0)
    accuracy = metrics.METRICS["accuracy"]
    slowly = paired_bootstrap(accuracy, [better], [worse], labels, resamples=300)
    assert dataclasses.astuple(slowly) == pytest.approx(dataclasses.astuple(found))
    two_seeds = paired_bootstrap("accuracy", [better, worse], [worse, worse], labels, resamples=50)
    assert two_seeds.difference == pytest.approx(0.075)


def test_a_bootstrap_repeats_and_refuses_what_it_cannot_draw() -> None:
    values, labels = torch.tensor([0.1, 0.9, 0.4, 0.3]), torch.tensor([0.0, 1.0, 0.5, 0.2])
    first, again = (paired_bootstrap("Pearson", [values], [-values], labels, resamples=50) for _ in range(2))
    assert first == again
    with pytest.raises(pf.InputError, match="two rows or more"):
        paired_bootstrap("accuracy", [values[:1]], [values[:1]], labels[:1])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holms_adjustment_keeps_the_order_and_is_between_the_value_and_bonferronis(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        assert p <= q <= min(1.0, len(p_values) * p) + 1e-12
    pairs = sorted(zip(p_values, adjusted, strict=True))
    assert all(low[1] <= high[1] for low, high in itertools.pairwise(pairs))
    assert adjusted[p_values.index(min(p_values))] == min(1.0, len(p_values) * min(p_values))


def test_a_bootstrap_of_few_rows_gives_no_p_value(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.ones(20, dtype=torch.int64)
    answered = torch.cat([torch.zeros(3, dtype=torch.int64), labels[3:]])
    for metric in ("accuracy", "F1"):
        few = paired_bootstrap(metric, [labels[:19]], [answered[:19]], labels[:19], resamples=200)
        assert math.isnan(few.p_value) and few.low <= few.difference <= few.high
        assert 0 < paired_bootstrap(metric, [labels], [answered], labels, resamples=200).p_value <= 1
    monkeypatch.setattr(significance, "LEAST_ROWS", 1)
    too_sure = paired_bootstrap("accuracy", [labels[:4]], [1 - labels[:4]], labels[:4])
    assert too_sure.p_value == pytest.approx(0.002, rel=0.01)
    assert mcnemar(labels[:4] > 0, labels[:4] == 0).p_value == 0.125
