"""Disentangled attention in plain torch: the formula, and what it refuses."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pabee_fast.kernels import reference, reference_disentangled
from tests.kernels.disentangled_cases import (
    DISENTANGLED_CASES,
    TABLES,
    DisentangledCase,
    check_disentangled,
    check_neighbours,
)
from tests.tolerances import TOLERANCES


@pytest.mark.parametrize("case", DISENTANGLED_CASES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_the_reference_equals_its_formula(case: DisentangledCase, dtype: torch.dtype) -> None:
    check_disentangled(reference.disentangled_attention, case, dtype, "cpu")


@given(
    lengths=st.lists(st.integers(0, 23), max_size=7),
    tables=st.sampled_from([(), TABLES[:1], TABLES[1:], TABLES]),
    hidden=st.sampled_from([None, "first", "every", "some"]),
    spare=st.integers(0, 3),
)
def test_rows_of_any_lengths_attend_by_the_formula(
    lengths: list[int], tables: tuple[str, ...], hidden: str | None, spare: int
) -> None:
    case = DisentangledCase(tuple(lengths), tables, hidden=hidden, spare=spare)
    check_disentangled(reference.disentangled_attention, case, torch.float32, "cpu")


def test_heads_that_are_taken_one_after_the_other_attend_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    case = DisentangledCase(lengths=(9, 9, 4), heads=5)
    monkeypatch.setattr(reference_disentangled, "WORK", 2 * 2 * 9 * 17)
    check_disentangled(reference.disentangled_attention, case, torch.float32, "cpu")


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), place=st.integers(0, 4))
def test_a_row_s_answer_does_not_depend_on_its_neighbours(lengths: list[int], place: int) -> None:
    check_neighbours(reference.disentangled_attention, lengths, place % len(lengths))


WRONG: list[tuple[dict[str, Any], str]] = [
    (dict.fromkeys(("key", "value"), torch.zeros(5, 1, 16)), r"key is \[5, 1, 16\]; give it as many heads as query"),
    ({"place_keys": torch.zeros(5, 32)}, r"place_keys is \[5, 32\]; give it the shape \[lines, heads, head_dim\]"),
    ({"place_queries": torch.zeros(5, 2, 8)}, r"place_queries is \[5, 2, 8\]; .*here \[5, 2, 16\]"),
    ({"place_keys": torch.zeros(5, 2, 16).half()}, "place_keys is torch.float16; convert it to torch.float32"),
    ({"place_keys": torch.zeros(6, 2, 16)}, "place_keys has 6 lines; rows of 3 tokens need an odd number, at least 5"),
    ({"longest": 4}, "place_keys has 5 lines; rows of 4 tokens need an odd number, at least 7"),
    ({"longest": 2}, "longest is 2, and a row has 3 tokens"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_disentangled_attention_names_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    arguments = DisentangledCase(lengths=(3, 2)).arguments(torch.float32)
    with pytest.raises(ValueError, match=message):
        reference.disentangled_attention(**arguments | changes)
