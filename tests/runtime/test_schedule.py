"""What runs when: waves of rows, and the queue of waves by depth."""

import itertools
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pabee_fast as pf
from pabee_fast.runtime.schedule import SELDOM, WORTHWHILE, Costs, WaveQueue, plan_lists, plan_waves


@given(st.lists(st.integers(1, 50), max_size=80), st.integers(50, 300))
def test_waves_hold_every_row_once_within_the_budget_and_longest_first(lengths: list[int], budget: int) -> None:
    sizes = np.array(lengths, dtype=np.int64)
    waves = plan_waves(sizes, budget)
    assert sorted(itertools.chain(*waves)) == list(range(len(lengths)))
    assert all(sizes[wave].sum() <= budget for wave in waves)
    in_order = [int(sizes[row]) for wave in waves for row in wave]
    assert in_order == sorted(in_order, reverse=True)
    for wave, following in itertools.pairwise(waves):
        assert sizes[wave].sum() + sizes[following[0]] > budget, "a row was left out although it would have fitted"


@given(st.lists(st.integers(1, 3) | st.integers(60_000, 140_000), min_size=1, max_size=60), st.integers(1, 4))
def test_rows_of_one_length_stay_in_their_order_however_far_lengths_lie_apart(lengths: list[int], lists: int) -> None:
    """So that a resumed job repeats its waves, however they are sorted."""
    sizes, most = np.array(lengths, dtype=np.int64), sum(lengths)
    longest_first = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    assert list(itertools.chain(*plan_waves(sizes, 100_000, longest_row=most))) == longest_first
    of_list = np.arange(len(lengths)) % lists
    for wave in plan_lists(sizes, of_list, 100_000, most):
        assert wave.tolist() == [row for row in longest_first if row in set(wave.tolist())]


def test_a_row_longer_than_the_budget_is_refused_by_name() -> None:
    with pytest.raises(pf.InputError, match="row 1 has 9 tokens"):
        plan_waves(np.array([3, 9]), 8)


def test_a_row_longer_than_the_budget_is_a_wave_of_its_own_where_rows_may_be_longer() -> None:
    waves = plan_waves(np.array([3, 9, 4, 12, 1]), 8, longest_row=12)
    assert [wave.tolist() for wave in waves] == [[3], [1], [2, 0, 4]]
    with pytest.raises(pf.InputError, match="token_budget=11, but row 3 has 12 tokens"):
        plan_waves(np.array([3, 9, 4, 12, 1]), 8, longest_row=11)


@given(tokens=st.integers(1, 1000), kept=st.integers(0, 1000), layers_left=st.integers(1, 12))
def test_a_compaction_pays_where_it_saves_more_than_it_moves_and_launches_are_not_all_there_is(
    tokens: int, kept: int, layers_left: int
) -> None:
    kept = min(kept, tokens)
    plain, small = Costs(0.03), Costs(0.03, least_tokens=1000)
    assert plain.pays(tokens, kept, layers_left) == ((tokens - kept) * layers_left > kept * 0.03)
    assert Costs(0.0).pays(tokens, kept, layers_left) == (kept < tokens)
    assert not small.pays(tokens, kept, layers_left)
    # What is saved of a larger wave ends where launches take as long.
    assert small.pays(1000 + tokens, kept, layers_left) == (tokens * layers_left > kept * 0.03)


def test_small_waves_are_asked_after_now_and_then_and_others_at_every_layer() -> None:
    costs = Costs(least_tokens=100)
    assert [costs.asks(100, layers) for layers in range(1, SELDOM + 1)] == [False] * (SELDOM - 1) + [True]
    assert costs.asks(101, 1)
    assert Costs().asks(1, 1)


def rows_to_begin(count: int) -> deque[np.ndarray]:
    return deque(np.array([row]) for row in range(count))


@given(
    st.lists(st.tuples(st.integers(1, 11), st.integers(1, 100)), max_size=60), st.integers(0, 3), st.integers(1, 120)
)
def test_every_wave_comes_out_once_joined_with_others_of_its_depth_within_the_budget(
    put: list[tuple[int, int]], fresh: int, budget: int
) -> None:
    queue: WaveQueue[int, tuple[int, int]] = WaveQueue(rows_to_begin(fresh), budget)
    for number, (depth, tokens) in enumerate(put):
        queue.put(depth, tokens, number)
    taken: list[int] = []
    begun = 0
    while queue:
        depth, picked = queue.pop()
        if isinstance(picked, np.ndarray):
            begun += 1
            continue
        assert {put[number][0] for number in picked} == {depth}
        assert len(picked) == 1 or sum(put[number][1] for number in picked) <= budget
        taken += picked
    assert begun == fresh
    assert sorted(taken) == list(range(len(put)))


@given(st.lists(st.tuples(st.integers(1, 11), st.integers(1, 100)), min_size=1, max_size=60), st.integers(0, 2))
def test_while_rows_begin_worthwhile_waves_run_deepest_first_and_afterwards_all_from_the_shallowest(
    put: list[tuple[int, int]], fresh: int
) -> None:
    queue: WaveQueue[int, tuple[int, int]] = WaveQueue(rows_to_begin(fresh), 200)
    waiting: dict[int, int] = {}
    for number, (depth, tokens) in enumerate(put):
        queue.put(depth, tokens, number)
        waiting[depth] = waiting.get(depth, 0) + tokens
    while queue:
        full = [depth for depth, tokens in waiting.items() if tokens >= WORTHWHILE * 200]
        has_fresh = bool(queue.fresh)
        depth, picked = queue.pop()
        assert depth == (max(full, default=0) if has_fresh else min(waiting))
        if depth:
            waiting[depth] -= sum(put[number][1] for number in picked)
            if not waiting[depth]:
                del waiting[depth]


SHARES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=200)
"""Of a wave's tokens, what is kept at each question."""


@given(SHARES, st.integers(1, 3))
def test_few_tokens_wait_at_any_depth_however_many_rows_leave(kept: list[float], under_way: int) -> None:
    """Memory is bounded: while rows begin, a depth holds less than a wave beside what one wave brings, whatever the
    number of waves; afterwards there are never more tokens than there were."""
    budget, layers, share = 100, 6, itertools.cycle(kept)
    queue: WaveQueue[int, tuple[int, int]] = WaveQueue(rows_to_begin(40), budget, under_way)
    most = (WORTHWHILE + under_way) * budget
    while queue:
        if (question := queue.due()) is not None:
            depth, tokens = question
            if depth < layers and (left := int(next(share) * tokens)):
                queue.put(depth, left, left)
        else:
            depth, picked = queue.pop()
            queue.ask((depth + 1, budget if isinstance(picked, np.ndarray) else sum(picked)))
        assert len(queue._asked) <= under_way
        at_depths = [sum(tokens for tokens, _ in waiting) for waiting in queue._waiting.values()]
        assert sum(at_depths) < layers * most
        assert not queue.fresh or all(tokens < most for tokens in at_depths)


@given(SHARES, st.integers(0, 5), st.integers(1, 3))
def test_counts_are_waited_for_only_where_enough_of_them_travel_or_nothing_is_left_to_run(
    kept: list[float], fresh: int, under_way: int
) -> None:
    budget, layers, share = 100, 6, itertools.cycle(kept)
    queue: WaveQueue[int, tuple[int, int]] = WaveQueue(rows_to_begin(fresh), budget, under_way)
    while queue:
        asked, has_work = [*queue._asked], bool(queue.fresh or queue._waiting)
        if (question := queue.due()) is not None:
            assert question == asked[0], "the oldest question's counts arrive first"
            assert len(asked) == under_way or not has_work
            depth, tokens = question
            if depth < layers and (left := int(next(share) * tokens)):
                queue.put(depth, left, left)
        else:
            assert has_work
            depth, picked = queue.pop()
            queue.ask((depth + 1, budget if isinstance(picked, np.ndarray) else sum(picked)))
