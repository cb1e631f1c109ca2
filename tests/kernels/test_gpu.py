"""The kernels compiled and run on a GPU: the interpreter's cases, in float32 and in bfloat16."""

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from pabee_fast.kernels.checks import ExitHead, ExitRows, ExitRule, RowState
from tests.kernels import attention_cases, compact_cases, disentangled_cases, exit_cases, layer_cases

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

by_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture(scope="module")
def attention() -> ModuleType:
    pytest.importorskip("triton", reason="Triton is not installed, as on Windows")
    from pabee_fast.kernels import attention

    return attention


@pytest.fixture(scope="module")
def short_attention() -> ModuleType:
    pytest.importorskip("triton", reason="Triton is not installed, as on Windows")
    from pabee_fast.kernels import short_attention

    return short_attention


@pytest.fixture(scope="module")
def disentangled_attention() -> ModuleType:
    pytest.importorskip("triton", reason="Triton is not installed, as on Windows")
    from pabee_fast.kernels import disentangled_attention

    return disentangled_attention


@pytest.fixture(scope="module")
def exit_step() -> ModuleType:
    pytest.importorskip("triton", reason="Triton is not installed, as on Windows")
    from pabee_fast.kernels import exit_step

    return exit_step


@pytest.fixture(scope="module")
def pool() -> ModuleType:
    pytest.importorskip("triton", reason="Triton is not installed, as on Windows")
    from pabee_fast.kernels import pool

    return pool


@pytest.fixture(scope="module")
def compact() -> ModuleType:
    pytest.importorskip("triton", reason="Triton is not installed, as on Windows")
    from pabee_fast.kernels import compact

    return compact


@by_dtype
@pytest.mark.parametrize("case", exit_cases.EXIT_CASES, ids=str)
def test_exit_step_equals_its_reference(exit_step: ModuleType, case: exit_cases.ExitCase, dtype: torch.dtype) -> None:
    exit_cases.check_exit_step(exit_step.exit_step, case, dtype, "cuda")


@by_dtype
@pytest.mark.parametrize("case", exit_cases.FLOAT_CASES, ids=str)
def test_exit_step_sums_in_float32(exit_step: ModuleType, case: exit_cases.ExitCase, dtype: torch.dtype) -> None:
    exit_cases.check_exit_step(exit_step.exit_step, case, dtype, "cuda", integers=False)


@by_dtype
@pytest.mark.parametrize("case", exit_cases.POOL_CASES, ids=str)
def test_pool_equals_its_reference(pool: ModuleType, case: exit_cases.PoolCase, dtype: torch.dtype) -> None:
    exit_cases.check_pool(pool.pool, case, dtype, "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", attention_cases.ATTENTION_CASES, ids=str)
def test_attention_equals_its_formula(
    attention: ModuleType, case: attention_cases.AttentionCase, dtype: torch.dtype
) -> None:
    attention_cases.check_attention(attention.attention, case, dtype, "cuda")


@pytest.mark.parametrize("lengths", [[1, 33, 5], [200, 1, 64], [7, 7, 130]], ids=str)
@pytest.mark.parametrize("place", range(3))
def test_a_row_s_attention_does_not_depend_on_its_neighbours(
    attention: ModuleType, lengths: list[int], place: int
) -> None:
    attention_cases.check_neighbours_do_not_matter(
        attention.attention, lengths, place, is_causal=False, window=None, device="cuda"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", attention_cases.SHORT_CASES, ids=str)
def test_attention_of_short_rows_equals_its_formula(
    short_attention: ModuleType, case: attention_cases.AttentionCase, dtype: torch.dtype
) -> None:
    attend = attention_cases.short(short_attention.short_attention, case.lengths)
    attention_cases.check_attention(attend, case, dtype, "cuda")


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("longest", [32, 64])
def test_attention_of_many_short_rows_equals_its_formula(
    short_attention: ModuleType, head_dim: int, longest: int
) -> None:
    lengths = torch.randint(1, longest + 1, (700,), generator=torch.Generator().manual_seed(0)).tolist()
    case = attention_cases.AttentionCase(tuple(lengths), heads=12, kv_heads=4, head_dim=head_dim, is_joined=True)
    attend = attention_cases.short(short_attention.short_attention, [longest])
    attention_cases.check_attention(attend, case, torch.bfloat16, "cuda")


@pytest.mark.parametrize("lengths", [[1, 33, 5], [30, 1, 64], [7, 7, 13]], ids=str)
@pytest.mark.parametrize("place", range(3))
def test_a_short_row_s_attention_does_not_depend_on_what_shares_its_tile(
    short_attention: ModuleType, lengths: list[int], place: int
) -> None:
    attention_cases.check_neighbours_do_not_matter(
        attention_cases.short(short_attention.short_attention, lengths), lengths, place, is_causal=False, window=None,
        device="cuda",
    )  # fmt: skip


def test_a_short_row_with_a_value_that_is_not_finite_keeps_it_to_those_who_see_it(short_attention: ModuleType) -> None:
    attend = attention_cases.short(short_attention.short_attention, [20])
    attention_cases.check_values_that_are_not_finite(attend, "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", disentangled_cases.KERNEL_CASES, ids=str)
def test_disentangled_attention_equals_its_formula(
    disentangled_attention: ModuleType, case: disentangled_cases.DisentangledCase, dtype: torch.dtype
) -> None:
    disentangled_cases.check_disentangled(disentangled_attention.disentangled_attention, case, dtype, "cuda")


@pytest.mark.parametrize("lengths", [[1, 33, 5], [200, 1, 64], [7, 7, 130]], ids=str)
@pytest.mark.parametrize("place", range(3))
def test_a_row_s_disentangled_attention_does_not_depend_on_its_neighbours(
    disentangled_attention: ModuleType, lengths: list[int], place: int
) -> None:
    disentangled_cases.check_neighbours(disentangled_attention.disentangled_attention, lengths, place, "cuda")


def test_attention_reaches_elements_past_two_to_the_31(attention: ModuleType) -> None:
    heads, head_dim, length = 64, 256, 128
    rows = 2**31 // (heads * head_dim * length) + 1
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free GPU memory")
    query = torch.zeros(rows * length, heads, head_dim, dtype=torch.bfloat16, device="cuda")
    query[-length:].normal_()
    key = torch.randn(rows * length, 1, head_dim, device="cuda").bfloat16()
    ends = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device="cuda")
    last = [tensor[-length:] for tensor in (query, key, key)]
    got = attention.attention(query, key, key, ends)[-length:]
    assert torch.equal(got, attention.attention(*last, ends[:2]))


@pytest.mark.parametrize("case", compact_cases.COMPACT_CASES, ids=str)
def test_compaction_equals_indexing(compact: ModuleType, case: compact_cases.CompactCase) -> None:
    compact_cases.check_compact(compact, case, "cuda")


def test_a_batch_shrinks_to_one_row_and_to_none(compact: ModuleType) -> None:
    compact_cases.check_shrinking_batch(compact, "cuda")


@by_dtype
@pytest.mark.parametrize("case", layer_cases.NORM_CASES, ids=str)
def test_add_norm_equals_double_precision(case: layer_cases.NormCase, dtype: torch.dtype) -> None:
    module = pytest.importorskip("pabee_fast.kernels.add_norm", reason="Triton is not installed, as on Windows")
    layer_cases.check_add_norm(module.add_norm, case, dtype, "cuda")


@by_dtype
@pytest.mark.parametrize("case", layer_cases.ACTIVATION_CASES, ids=str)
def test_bias_act_equals_double_precision(case: layer_cases.ActivationCase, dtype: torch.dtype) -> None:
    module = pytest.importorskip("pabee_fast.kernels.bias_act", reason="Triton is not installed, as on Windows")
    layer_cases.check_bias_act(module.bias_act, case, dtype, "cuda")


@by_dtype
@pytest.mark.parametrize("case", layer_cases.EMBED_CASES, ids=str)
def test_embed_norm_equals_double_precision(case: layer_cases.EmbedCase, dtype: torch.dtype) -> None:
    module = pytest.importorskip("pabee_fast.kernels.embed_norm", reason="Triton is not installed, as on Windows")
    layer_cases.check_embed_norm(module.embed_norm, case, dtype, "cuda")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", layer_cases.LINEAR_GELU_SIZES, ids=str)
def test_linear_gelu_equals_double_precision(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    module = pytest.importorskip("pabee_fast.kernels.linear_gelu", reason="Triton is not installed, as on Windows")
    layer_cases.check_linear_gelu(module.linear_gelu, size, dtype, "cuda")


@pytest.fixture
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_no_launch_waits_for_the_device(
    attention: ModuleType,
    short_attention: ModuleType,
    exit_step: ModuleType,
    compact: ModuleType,
    waiting_is_an_error: None,
) -> None:
    rows, classes, hidden_size = 5, 3, 48
    with torch.device("cuda"):
        state = RowState(
            keep=torch.ones(rows, dtype=torch.int8),
            streak=torch.zeros(rows, dtype=torch.int32),
            memory=torch.zeros(rows, 1, dtype=torch.int32),
            row_ids=torch.arange(rows),
        )
        cu_seqlens = torch.arange(rows + 1, dtype=torch.int32)
        hidden, weight = torch.zeros(rows, hidden_size), torch.zeros(classes, hidden_size)
        logits, exit_layers = torch.zeros(rows, classes), torch.zeros(rows, dtype=torch.int64)
    exit_step.exit_step(
        ExitRows(hidden, state, logits, exit_layers, cu_seqlens, "mean"),
        ExitHead(weight),
        ExitRule("label", "agreement", layer=1, last=9, patience=9),
    )
    found = compact.plan(state.keep, cu_seqlens, state.row_ids, state.streak)
    moved, memory = compact.gather(
        hidden, found.starts, found.cu_seqlens, rows=rows, tokens=rows, longest=1, memory=state.memory,
        sources=found.sources,
    )  # fmt: skip
    assert (moved.shape, memory.shape) == (hidden.shape, state.memory.shape)
    heads = hidden.view(rows, 3, hidden_size // 3)
    assert attention.attention(heads, heads, heads, cu_seqlens, window=2).shape == heads.shape
    assert short_attention.short_attention(heads, heads, heads, cu_seqlens, longest=1).shape == heads.shape
