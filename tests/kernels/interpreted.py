"""The kernels under Triton's interpreter, on a CPU in float32.

`test_interpreter.py` runs this file in a process of its own: TRITON_INTERPRET is read when a kernel is defined, and a
process that has read it can compile nothing.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import gelu

from pabee_fast.kernels import (
    add_norm,
    attention,
    bias_act,
    compact,
    disentangled_attention,
    embed_norm,
    exit_step,
    launch,
    linear_gelu,
    pool,
    short_attention,
)
from tests.kernels import attention_cases, compact_cases, disentangled_cases, exit_cases, layer_cases


@pytest.mark.parametrize("case", exit_cases.EXIT_CASES, ids=str)
def test_exit_step_equals_its_reference(case: exit_cases.ExitCase) -> None:
    exit_cases.check_exit_step(exit_step.exit_step, case, torch.float32, "cpu")


@pytest.mark.parametrize("case", exit_cases.FLOAT_CASES, ids=str)
def test_exit_step_sums_as_exactly_as_its_reference(case: exit_cases.ExitCase) -> None:
    exit_cases.check_exit_step(exit_step.exit_step, case, torch.float32, "cpu", integers=False)


def test_exit_step_refuses_the_dtype_that_the_interpreter_multiplies_wrongly() -> None:
    with pytest.raises(ValueError, match=r"features is torch.bfloat16.*use torch.float32"):
        exit_cases.check_exit_step(exit_step.exit_step, exit_cases.ExitCase(), torch.bfloat16, "cpu")


@pytest.mark.parametrize("case", exit_cases.POOL_CASES, ids=str)
def test_pool_equals_its_reference(case: exit_cases.PoolCase) -> None:
    exit_cases.check_pool(pool.pool, case, torch.float32, "cpu")


@pytest.mark.parametrize("case", compact_cases.COMPACT_CASES, ids=str)
def test_compaction_equals_indexing(case: compact_cases.CompactCase) -> None:
    compact_cases.check_compact(compact, case, "cpu")


def test_a_batch_shrinks_to_one_row_and_to_none() -> None:
    compact_cases.check_shrinking_batch(compact, "cpu")


def test_gather_copies_whole_runs_with_fewer_programs_than_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GATHER_PROGRAMS", 2)
    compact_cases.check_compaction(compact, [301, 1], [1, 1], shape=(48,), dtype=torch.float32)


@pytest.mark.parametrize("case", attention_cases.ATTENTION_CASES, ids=str)
def test_attention_equals_its_formula(case: attention_cases.AttentionCase) -> None:
    attention_cases.check_attention(attention.attention, case, torch.float32, "cpu")


@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([1, 5, 31, 32, 33, 70]), min_size=1, max_size=4),
    place=st.integers(0, 3),
    is_causal=st.booleans(),
    window=st.sampled_from([None, 3, 40]),
)
def test_a_row_s_attention_does_not_depend_on_its_neighbours(
    lengths: list[int], place: int, is_causal: bool, window: int | None
) -> None:
    attention_cases.check_neighbours_do_not_matter(
        attention.attention, lengths, place % len(lengths), is_causal=is_causal, window=window
    )


def test_attention_refuses_the_dtype_that_the_interpreter_multiplies_wrongly() -> None:
    with pytest.raises(ValueError, match=r"query is torch.bfloat16.*use torch.float32"):
        case = attention_cases.AttentionCase(lengths=(3,))
        attention_cases.check_attention(attention.attention, case, torch.bfloat16, "cpu")


@pytest.mark.parametrize("case", attention_cases.SHORT_CASES, ids=str)
def test_attention_of_short_rows_equals_its_formula(case: attention_cases.AttentionCase) -> None:
    attend = attention_cases.short(short_attention.short_attention, case.lengths)
    attention_cases.check_attention(attend, case, torch.float32, "cpu")


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 64), max_size=12) | st.lists(st.integers(0, 9), max_size=60),
    is_causal=st.booleans(),
    window=st.sampled_from([None, 3, 40]),
)
def test_short_rows_of_any_lengths_attend_by_the_formula(
    lengths: list[int], is_causal: bool, window: int | None
) -> None:
    case = attention_cases.AttentionCase(tuple(lengths), heads=1, kv_heads=1, is_causal=is_causal, window=window)
    attend = attention_cases.short(short_attention.short_attention, lengths)
    attention_cases.check_attention(attend, case, torch.float32, "cpu")


@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([1, 5, 20, 32, 33, 64]), min_size=1, max_size=5),
    place=st.integers(0, 4),
    is_causal=st.booleans(),
    window=st.sampled_from([None, 3]),
)
def test_a_short_row_s_attention_does_not_depend_on_what_shares_its_tile(
    lengths: list[int], place: int, is_causal: bool, window: int | None
) -> None:
    attention_cases.check_neighbours_do_not_matter(
        attention_cases.short(short_attention.short_attention, lengths), lengths, place % len(lengths),
        is_causal=is_causal, window=window,
    )  # fmt: skip


def test_a_short_row_with_a_value_that_is_not_finite_keeps_it_to_those_who_see_it() -> None:
    attention_cases.check_values_that_are_not_finite(attention_cases.short(short_attention.short_attention, [20]))


def test_attention_of_short_rows_refuses_the_dtype_that_the_interpreter_multiplies_wrongly() -> None:
    case = attention_cases.AttentionCase(lengths=(3,))
    with pytest.raises(ValueError, match=r"query is torch.bfloat16.*use torch.float32"):
        attention_cases.check_attention(
            attention_cases.short(short_attention.short_attention, [3]), case, torch.bfloat16, "cpu"
        )


@pytest.mark.parametrize("case", disentangled_cases.KERNEL_CASES, ids=str)
def test_disentangled_attention_equals_its_formula(case: disentangled_cases.DisentangledCase) -> None:
    disentangled_cases.check_disentangled(disentangled_attention.disentangled_attention, case, torch.float32, "cpu")


@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.sampled_from([1, 5, 15, 16, 17, 40]), min_size=1, max_size=4), place=st.integers(0, 3))
def test_a_row_s_disentangled_attention_does_not_depend_on_its_neighbours(lengths: list[int], place: int) -> None:
    disentangled_cases.check_neighbours(disentangled_attention.disentangled_attention, lengths, place % len(lengths))


def test_disentangled_attention_refuses_the_dtype_that_the_interpreter_multiplies_wrongly() -> None:
    case = disentangled_cases.DisentangledCase(lengths=(3,))
    with pytest.raises(ValueError, match=r"query is torch.bfloat16.*use torch.float32"):
        disentangled_cases.check_disentangled(
            disentangled_attention.disentangled_attention, case, torch.bfloat16, "cpu"
        )


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), max_size=9))
def test_any_compaction_equals_indexing(rows: list[tuple[int, int]]) -> None:
    compact_cases.check_compaction(compact, [length for length, _ in rows], [kept for _, kept in rows])


@pytest.mark.parametrize("case", layer_cases.NORM_CASES, ids=str)
def test_add_norm_equals_double_precision(case: layer_cases.NormCase) -> None:
    layer_cases.check_add_norm(add_norm.add_norm, case, torch.float32, "cpu")


@pytest.mark.parametrize("case", layer_cases.ACTIVATION_CASES, ids=str)
def test_bias_act_equals_double_precision(case: layer_cases.ActivationCase) -> None:
    layer_cases.check_bias_act(bias_act.bias_act, case, torch.float32, "cpu")


@pytest.mark.parametrize("case", layer_cases.EMBED_CASES, ids=str)
def test_embed_norm_equals_double_precision(case: layer_cases.EmbedCase) -> None:
    layer_cases.check_embed_norm(embed_norm.embed_norm, case, torch.float32, "cpu")


@pytest.mark.parametrize(("name", "wrong"), [("word_ids", 3), ("position_ids", -1), ("type_ids", 2**40)])
def test_a_token_with_an_id_that_a_table_does_not_have_becomes_nan_and_no_other_does(name: str, wrong: int) -> None:
    given = layer_cases.embed_norm_arguments()
    given[name][2] = wrong
    assert embed_norm.embed_norm(**given).isnan().all(dim=1).tolist() == [False, False, True, False]


def test_gelu_by_a_polynomial_in_a_product_s_epilogue_is_near_double_precision() -> None:
    x = torch.cat([torch.linspace(-9, 9, 3001), torch.tensor([-1e4, 0.0, 1e4])])
    # The product is x itself, twice of it and none of it.
    hidden, weight = torch.zeros(len(x), 20), torch.zeros(4, 20)
    hidden[:, 7], weight[:2, 7] = x, torch.tensor([1.0, 2.0])
    bias = torch.tensor([0.0, 0.0, -0.5, 1.5])
    got = linear_gelu.linear_gelu(hidden, weight, bias)
    total = torch.stack([x, 2 * x, *(torch.full_like(x, each) for each in (-0.5, 1.5))], dim=1).double()
    assert ((got - gelu(total)).abs() <= (5e-7 * total.abs()).clamp(min=5.2e-5)).all()


@pytest.mark.parametrize("size", layer_cases.LINEAR_GELU_SIZES[:-1], ids=str)
def test_linear_gelu_equals_double_precision(size: tuple[int, int, int]) -> None:
    layer_cases.check_linear_gelu(linear_gelu.linear_gelu, size, torch.float32, "cpu")


def test_interpreted_kernels_take_tensors_on_the_cpu_only_because_they_are_interpreted() -> None:
    assert type(exit_step.exit_step_kernel).__name__ == "InterpretedFunction"
