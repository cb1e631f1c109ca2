"""Texts made of parts of other texts."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from experiments.glue.augment import LONGER, substituted

GRAMMAR = [
    (f"{subject} {verb}", subject, verb)
    for subject in ("the film", "the plot", "a good long film", "a bad cast")
    for verb in ("is fine", "is very very dull", "works well", "works")
]
ROWS = [(text,) for texts in GRAMMAR for text in texts if " " in text]


def has_replaced_part(new: list[str], old: list[str], rows: set[str]) -> bool:
    """Whether `new` is `old` with one part, itself a row, replaced by another row that begins with the same word."""
    for start in range(len(old) - 1):
        for end in range(start + 2, len(old) + 1):
            longer = len(new) - len(old)
            part, other = old[start:end], new[start : end + longer]
            if (
                new[:start] == old[:start]
                and new[end + longer :] == old[end:]
                and len(part) < len(old)
                and {" ".join(part), " ".join(other)} <= rows
                and part[:1] == other[:1]
                and abs(longer) <= LONGER
            ):
                return True
    return False


@given(st.sets(st.sampled_from(ROWS), min_size=10), st.integers(1, 4), st.integers(0, 5))
def test_each_text_is_one_of_the_rows_with_a_part_replaced_by_another_row(
    rows: set[tuple[str]], count: int, seed: int
) -> None:
    try:
        made = substituted(sorted(rows), count, seed)
    except ValueError as error:
        assert f"count={count}" in str(error)
        return
    assert len(made) == len(set(made)) == count and not rows & set(made)
    texts = {text for (text,) in rows}
    for (new,) in made:
        assert any(has_replaced_part(new.split(), old.split(), texts) for old in texts)


def test_the_same_rows_and_seed_give_the_same_texts_whatever_the_rows_order() -> None:
    assert substituted(ROWS, 5, seed=3) == substituted(ROWS[::-1], 5, seed=3) != substituted(ROWS, 5, seed=4)


def test_rows_that_hold_too_few_texts_or_are_pairs_are_refused_with_what_can_be_done() -> None:
    with pytest.raises(ValueError, match=r"count=10000: .* ask less"):
        substituted(ROWS, 10_000)
    with pytest.raises(ValueError, match="no row is part of another"):
        substituted([("the film",), ("is fine",)], 1)
    with pytest.raises(ValueError, match="single texts"):
        substituted([("the film", "is fine")], 1)
