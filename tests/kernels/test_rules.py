"""What each rule counts, on numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from pabee_fast.kernels.checks import memory_words
from tests.kernels.rows import INF, NAN, Rows


def logits_of(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


# Probabilities, layer by layer, of one row with two classes; what each rule's streak is after each layer.
LAYERS_OF_A_ROW = [(0.6, 0.4), (0.9, 0.1), (0.08, 0.92), (0.5, 0.5), (0.49, 0.51), (0.95, 0.05)]


@pytest.mark.parametrize(
    ("rule", "threshold", "streaks"),
    [
        ("agreement", 0.0, [0, 1, 0, 0, 0, 0]),
        ("confidence", 0.85, [0, 1, 2, 0, 0, 1]),
        ("confidence", 0.55, [1, 2, 3, 0, 0, 1]),
        # In nats: 0.673, 0.325, 0.279, 0.693, 0.693, 0.199.
        ("entropy", 0.3, [0, 0, 1, 0, 0, 1]),
        ("entropy", 0.6932, [1, 2, 3, 4, 5, 6]),
        # Against the layer before, in nats: 0.063, 0.387, 0.115, 0.00005, 0.147.
        ("divergence", 0.1, [0, 1, 0, 0, 1, 0]),
        ("divergence", 0.12, [0, 1, 0, 1, 2, 0]),
        # The votes of the class with the most; the tie at layer 4 goes to class 0.
        ("vote", 0.0, [1, 2, 2, 3, 3, 4]),
    ],
)
def test_a_streak_counts_by_its_rule(rule: str, threshold: float, streaks: list[int]) -> None:
    rows, found = Rows.fresh(1, 2, words=memory_words("label", rule, 2)), []
    for probabilities in LAYERS_OF_A_ROW:
        # Adding one number to all logits changes no probability.
        rows.give([[logit + 3 for logit in logits_of(*probabilities)]], rule=rule, threshold=threshold)
        found += rows.streak.tolist()
    assert found == streaks


@pytest.mark.parametrize("rule", ["confidence", "entropy", "divergence", "vote"])
@pytest.mark.parametrize("number", [NAN, INF])
def test_no_rule_lets_a_row_leave_on_a_logit_that_is_not_finite(rule: str, number: float) -> None:
    rows = Rows.fresh(1, 2, words=memory_words("label", rule, 2))
    rows.give([[9, 0]], rule=rule, threshold=0.5)
    before = rows.memory.clone()
    rows.give([[number, 0]], rule=rule, threshold=0.5, patience=1)
    assert (rows.streak.tolist(), rows.keep.tolist()) == ([-1], [1])
    assert torch.equal(rows.memory, before)
    rows.give([[9, 0]], rule=rule, threshold=0.5)
    assert rows.streak.tolist() == [{"confidence": 1, "entropy": 1, "divergence": 0, "vote": 2}[rule]]


@given(logits=st.lists(st.lists(st.integers(-6, 6), min_size=4, max_size=4), min_size=2, max_size=2))
def test_divergence_is_scipy_s_jensen_shannon(logits: list[list[int]]) -> None:
    p, q = torch.tensor(logits, dtype=torch.float64).softmax(dim=1).numpy()
    exact = float(jensenshannon(p, q)) ** 2
    for threshold, same in ((exact + 1e-5, 1), (exact - 1e-5, 0)):
        if threshold > 0:
            rows = Rows.fresh(1, 4, words=4)
            for layer in logits:
                rows.give([layer], rule="divergence", threshold=threshold)
            assert rows.streak.tolist() == [same]
