"""Which rows are audited, and what the counts say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom

from pabee_fast.calibration.audit import chosen, interval


@settings(deadline=None)
@given(first=st.integers(0, 10**7), rows=st.integers(1, 50), cut=st.integers(0, 50), share=st.floats(0, 1))
def test_a_row_is_chosen_by_its_file_and_number_alone(first: int, rows: int, cut: int, share: float) -> None:
    cut = min(cut, rows)
    whole = chosen("a.csv", first, rows, share)
    assert np.array_equal(whole, np.concatenate([chosen("a.csv", first, cut, share),
                                                 chosen("a.csv", first + cut, rows - cut, share)]))  # fmt: skip
    more = chosen("a.csv", first, rows, min(1.0, share * 1.5))
    assert (more | ~whole).all(), "a larger share keeps the rows of a smaller one"


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 1.0])
def test_the_share_is_what_was_asked_for_and_files_differ(share: float) -> None:
    one, other = chosen("a.csv", 0, 200_000, share), chosen("b.csv", 0, 200_000, share)
    low, high = binom.ppf([1e-6, 1 - 1e-6], 200_000, share) if 0 < share < 1 else (200_000 * share, 200_000 * share)
    assert low <= one.sum() <= high
    assert low <= other.sum() <= high
    if share in (0.01, 0.3):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.02
        assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.02


@settings(deadline=None, max_examples=50)
@given(trials=st.integers(1, 3000), share=st.floats(0, 1), confidence=st.sampled_from([0.9, 0.95, 0.999]))
def test_the_interval_is_clopper_and_pearsons(trials: int, share: float, confidence: float) -> None:
    events, tail = round(share * trials), (1 - confidence) / 2
    low, high = interval(events, trials, confidence)
    wanted_low = 0.0 if events == 0 else beta.ppf(tail, events, trials - events + 1)
    wanted_high = 1.0 if events == trials else beta.ppf(1 - tail, events + 1, trials - events)
    assert (low, high) == pytest.approx((wanted_low, wanted_high), rel=1e-9, abs=1e-12)


def test_no_trial_says_nothing_and_many_are_no_trouble() -> None:
    assert interval(0, 0) == (0.0, 1.0)
    low, high = interval(5_000, 1_000_000)
    assert low < 0.005 < high
    assert high - low < 0.0003
