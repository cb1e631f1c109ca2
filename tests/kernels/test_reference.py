"""What exit_step, plan and gather mean: logits that are small exact integers, PABEE's own loop, and plain indexing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pabee_fast.kernels import reference
from pabee_fast.kernels.checks import ExitHead, ExitRows, ExitRule
from tests.kernels import compact_cases
from tests.kernels.rows import INF, NAN, UNWRITTEN, Rows


def test_the_lowest_class_wins_a_tie() -> None:
    rows = Rows.fresh(4, 3)
    rows.give([[1, 3, 3], [2, 2, 2], [-1, 0, 0], [0, -0.0, -5]])
    assert rows.memory[:, 0].tolist() == [1, 0, 1, 0]


def test_a_streak_counts_layers_that_kept_the_answer_and_starts_over_when_it_changes() -> None:
    rows, streaks = Rows.fresh(1, 2), []
    for label in (0, 0, 1, 1, 1, 0):
        rows.give([[1 - label, label]])
        streaks += rows.streak.tolist()
    assert streaks == [0, 1, 0, 1, 2, 0]


def published_exit_layer(labels: list[int], patience: int) -> int | None:
    """The loop of the published code, for one row."""
    counter, previous = 0, None
    for layer, label in enumerate(labels, start=1):
        counter = counter + 1 if previous is not None and label == previous else 0
        previous = label
        if counter == patience:
            return layer
    return None


@given(
    table=st.lists(st.lists(st.integers(0, 2), min_size=9, max_size=9), min_size=1, max_size=5),
    patience=st.integers(1, 9),
)
def test_every_row_leaves_where_pabee_leaves_it_alone(table: list[list[int]], patience: int) -> None:
    rows = Rows.fresh(len(table), 3)
    for layer in range(9):
        rows.give([[float(label == labels[layer]) for label in range(3)] for labels in table], patience=patience)
    expected = [published_exit_layer(labels, patience) for labels in table]
    assert rows.exit_layers[: len(table)].tolist() == [UNWRITTEN if layer is None else layer for layer in expected]
    assert rows.keep.tolist() == [int(layer is None) for layer in expected]


def test_results_are_written_at_the_row_ids_of_rows_that_leave_and_nowhere_else() -> None:
    rows = Rows.fresh(3, 2, row_ids=[4, 0, 2])
    rows.give([[1, 0], [1, 0], [1, 0]], patience=1)
    assert rows.exit_layers.tolist() == [UNWRITTEN] * 5
    rows.give([[5, 0], [0, 1], [7, 0]], patience=1)
    assert rows.exit_layers.tolist() == [UNWRITTEN, UNWRITTEN, 2, UNWRITTEN, 2]
    assert rows.logits[[4, 2]].tolist() == [[5, 0], [7, 0]]
    assert rows.logits[[0, 1, 3]].isnan().all()
    assert rows.keep.tolist() == [0, 1, 0]


def test_a_row_that_has_left_is_left_alone_entirely() -> None:
    rows = Rows.fresh(2, 2)
    rows.keep[0], rows.streak[0], rows.memory[0] = 0, 5, 1
    rows.give([[NAN, 0], [0, 1]], last=1)
    assert (rows.keep.tolist(), rows.streak.tolist(), rows.memory[:, 0].tolist()) == ([0, 0], [5, 0], [1, 1])
    assert rows.exit_layers.tolist() == [UNWRITTEN, 1, UNWRITTEN, UNWRITTEN]
    assert rows.logits[0].isnan().all()


@pytest.mark.parametrize("number", [NAN, INF, -INF])
@pytest.mark.parametrize(("kind", "classes"), [("label", 2), ("label_set", 2), ("value", 1)])
def test_a_logit_that_is_not_finite_ends_the_streak_and_settles_nothing(kind: str, classes: int, number: float) -> None:
    rows, sound = Rows.fresh(1, classes), [1.0] * classes
    streaks = []
    for logits in (sound, [number, 1.0][:classes], [number, 1.0][:classes], sound, sound):
        rows.give([logits], kind=kind, patience=1, threshold=0.5)
        streaks += rows.streak.tolist()
        if len(streaks) == 1:
            first = rows.memory.clone()
        assert torch.equal(rows.memory, first)
    assert streaks == [0, -1, -1, 0, 1]
    assert rows.exit_layers[0] == 5


def test_a_row_without_a_valid_answer_still_leaves_at_the_last_layer() -> None:
    rows = Rows.fresh(1, 2)
    rows.give([[INF, 1]], last=1)
    assert rows.exit_layers[0] == 1
    assert rows.logits[0, 0] == INF
    assert (rows.keep.tolist(), rows.streak.tolist()) == ([0], [-1])


def test_values_are_the_same_strictly_below_the_threshold() -> None:
    rows, streaks = Rows.fresh(1, 1), []
    for value in (1.0, 1.5, 1.25, 0.75, 0.5):
        rows.give([[value]], kind="value", threshold=0.5)
        streaks += rows.streak.tolist()
    assert streaks == [0, 0, 1, 0, 1]
    assert rows.memory.view(torch.float32).tolist() == [[0.5]]


def test_a_threshold_means_the_float32_number_nearest_to_it() -> None:
    rows, tenth = Rows.fresh(1, 1), torch.tensor(0.1).item()
    assert tenth > 0.1
    for value in (0.0, tenth):
        rows.give([[value]], kind="value", threshold=0.1)
    assert rows.streak.tolist() == [0]


def test_a_label_set_holds_one_bit_for_every_logit_above_zero() -> None:
    classes = [0, 30, 31, 32, 39]
    rows = Rows.fresh(1, 40, words=2)
    rows.give([[1.0 if number in classes else -float(number % 2) for number in range(40)]], kind="label_set")
    bits = [(word >> bit) & 1 for word in rows.memory[0].tolist() for bit in range(32)]
    assert [number for number, bit in enumerate(bits) if bit] == classes


def test_label_sets_are_the_same_when_every_class_is_and_the_empty_one_counts() -> None:
    rows, streaks = Rows.fresh(1, 3), []
    for logits in ([-1, 0, -1], [0, 0, 0], [0, 0, 1], [5, 0, 1], [1, -2, 3]):
        rows.give([logits], kind="label_set")
        streaks += rows.streak.tolist()
    assert streaks == [0, 1, 0, 0, 1]


def test_rows_with_given_exits_leave_there_and_their_streaks_run() -> None:
    rows = Rows.fresh(3, 2, row_ids=[2, 0, 1])
    exit_at = torch.tensor([1, 3, 2, 9, 9])
    for _ in range(3):
        rows.give([[1, 0]] * 3, rule="given", exit_at=exit_at)
    assert rows.exit_layers[:3].tolist() == [1, 3, 2]
    assert rows.streak.tolist() == [1, 0, 2]


def test_a_given_exit_that_has_passed_is_taken_at_the_next_tested_layer() -> None:
    rows = Rows.fresh(1, 2)
    rows.give([[1, 0]], rule="given", exit_at=torch.tensor([2, 9, 9]), layer=5)
    assert rows.exit_layers[0] == 5


def test_logits_are_the_float32_sums_of_half_precision_products() -> None:
    # 257 needs nine bits, and bfloat16 has eight.
    logits, exit_layers = torch.full((1, 1), NAN), torch.zeros(1, dtype=torch.int64)
    features, one = torch.tensor([[256.0, 1.0]]).bfloat16(), torch.ones((1, 2)).bfloat16()
    reference.exit_step(
        ExitRows(features, Rows.fresh(1, 1, words=0).state, logits, exit_layers),
        ExitHead(one, torch.tensor([0.5]).bfloat16()),
        ExitRule("label", "none", layer=1, last=1),
    )
    assert logits.tolist() == [[257.5]]


@pytest.mark.parametrize(
    ("pooling", "expected"), [("first", [[1, 2], [3, 4]]), ("last", [[5, 6], [3, 4]]), ("mean", [[3, 4], [3, 4]])]
)
def test_a_packed_row_reads_its_first_token_its_last_or_the_mean_and_no_graph_is_kept(
    pooling: str, expected: list[list[float]]
) -> None:
    logits, weight = torch.full((2, 2), NAN), torch.eye(2, requires_grad=True)
    features, ends = torch.tensor([[1.0, 2.0], [5.0, 6.0], [3.0, 4.0]]), torch.tensor([0, 2, 3], dtype=torch.int32)
    state, exit_layers = Rows.fresh(2, 2, words=0).state, torch.zeros(2, dtype=torch.int64)
    reference.exit_step(
        ExitRows(features, state, logits, exit_layers, ends, pooling),
        ExitHead(weight),
        ExitRule("label", "none", layer=1, last=1),
    )
    assert logits.tolist() == expected
    assert not logits.requires_grad


@pytest.mark.parametrize("case", compact_cases.COMPACT_CASES, ids=str)
def test_compaction_equals_indexing(case: compact_cases.CompactCase) -> None:
    compact_cases.check_compact(reference, case, "cpu")


@given(rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), max_size=9), words=st.integers(1, 3))
def test_any_compaction_equals_indexing(rows: list[tuple[int, int]], words: int) -> None:
    compact_cases.check_compaction(reference, [length for length, _ in rows], [kept for _, kept in rows], words=words)


def test_a_batch_shrinks_to_one_row_and_to_none() -> None:
    compact_cases.check_shrinking_batch(reference, "cpu")
