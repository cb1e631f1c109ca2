"""Which attention serves packed rows: what was asked for, what was measured, and torch's own where it can."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import pabee_fast as pf
from pabee_fast.kernels import reference
from pabee_fast.layout import Layout
from pabee_fast.runtime import block, choice, ops, varlen
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.pack import pack
from tests import zoo
from tests.conftest import tiny_stock
from tests.kernels.attention_cases import AttentionCase, softmax_maths
from tests.runtime.answers import LENGTHS
from tests.tolerances import assert_close

CUDA, HALF = torch.device("cuda"), torch.bfloat16


def library(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, key_ends: torch.Tensor,
    longest: int, longest_key: int, *, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    """torch's variable-length attention by what its documentation says, for one row."""
    assert ends.tolist() == key_ends.tolist() == [0, longest] == [0, longest_key]
    assert enable_gqa == (query.shape[1] != key.shape[1])
    left, right = (longest if reach == -1 else reach for reach in window_size)
    after = torch.arange(longest)[None, :] - torch.arange(longest)[:, None]  # how far a key comes after the query
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    seen = (after <= right) & (after >= -left)
    attended = nn.functional.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=enable_gqa)
    return attended[0].transpose(0, 1)


def operator(
    query: Any, key: Any, value: Any, ends: Any, key_ends: Any, longest: int, key_longest: int, dropout: float,
    is_causal: bool, return_mask: bool, *, scale: float, window_size_left: int, window_size_right: int,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """What torch's function calls, which takes grouped heads without a word."""
    sides, is_grouped = (window_size_left, window_size_right), query.shape[1] != key.shape[1]
    assert (dropout, return_mask, is_causal) == (0.0, False, sides == (-1, 0))
    attended = library(
        query, key, value, ends, key_ends, longest, key_longest, scale=scale, window_size=sides, enable_gqa=is_grouped
    )
    return attended, None


@pytest.mark.parametrize("below", [operator, None])
@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3, 9, 50])
def test_the_library_is_asked_for_the_same_keys(
    kv_heads: int, is_causal: bool, window: int | None, below: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", library if below is None else None)
    monkeypatch.setattr(varlen, "operator", lambda: below)
    monkeypatch.setattr(varlen, "why_not", lambda *asked: None)
    case = AttentionCase((9,), kv_heads=kv_heads, is_causal=is_causal, window=window, scaling=0.4)
    tensors = case.tensors(torch.float32)
    got = ops.attention(*tensors, Layout(case.cu_seqlens(), 9), scaling=0.4, is_causal=is_causal, window=window)
    assert_close(got, softmax_maths(case, *tensors))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_operator_below_torch_s_function_is_given_what_that_gives_it(
    is_causal: bool, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[Any]] = []
    real = torch.ops.aten._flash_attention_forward

    def note(*args: Any, **options: Any) -> tuple[Any, ...]:
        names = [each.name for each in real.default._schema.arguments]
        told = dict(zip(names, args, strict=False)) | options
        given.append([value for value in told.values() if value is not None and not isinstance(value, torch.Tensor)])
        return args[0].clone(), args[0].new_zeros(1), None, None, None

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", note)
    tensors, layout = AttentionCase((5, 4)).tensors(torch.float32), Layout(torch.tensor([0, 5, 9]).int(), 5)
    for below in (note, None):
        monkeypatch.setattr(varlen, "operator", lambda below=below: below)
        varlen.attend(*tensors, layout, scaling=0.5, is_causal=is_causal, window=window)
    assert given[0] == given[1]


def test_an_operator_that_takes_other_arguments_is_left_alone_and_this_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert varlen.operator() is torch.ops.aten._flash_attention_forward
    varlen.operator.cache_clear()
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", torch.ops.aten.linear)
    assert varlen.operator() is None
    assert "called by torch's public function" in caplog.text
    varlen.operator.cache_clear()


@pytest.mark.parametrize(
    "case",
    [
        AttentionCase((5, 4), hidden="first"),
        AttentionCase((5, 4), has_holes=True, window=4),
        AttentionCase((5, 4), value_dim=24),
    ],
    ids=str,
)
def test_the_library_is_not_asked_for_what_it_does_not_know(
    case: AttentionCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", None)
    monkeypatch.setattr(varlen, "why_not", lambda *asked: None)
    tensors = case.tensors(torch.float32)
    got = ops.attention(*tensors, Layout(case.cu_seqlens(), 5, case.key_mask(), case.positions()), window=case.window)
    assert_close(got, softmax_maths(case, *tensors))


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU that need not be there, as far as the choice looks at it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    varlen.why_not.cache_clear()
    yield
    varlen.why_not.cache_clear()


def old_varlen_attn(query: Any, key: Any, value: Any, *, scale: Any = None, window_size: Any = None) -> None:
    """Without `enable_gqa`, as in torch 2.11."""


def test_what_serves_is_told_and_why(ampere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_triton_kernels", lambda: {})
    tell = ops.attention_in_use
    assert tell(torch.device("cpu"), HALF, 64) == (
        "scaled_dot_product_attention over runs of rows of one length (not on CUDA)"
    )
    assert tell(CUDA, HALF, 64) == "torch.nn.attention.varlen; Triton where a mask hides tokens inside a row"
    assert tell(CUDA, torch.float32, 64) == "Triton (the library's is for half precision, not torch.float32)"
    assert tell(CUDA, HALF, 20) == "Triton (the library's is for multiples of 8 up to 256, not heads of 20)"
    assert "runs of rows of one length" in tell(CUDA, HALF, 320) and "ours for heads of up to 256" in tell(
        CUDA, HALF, 320
    )
    assert "varlen" in tell(CUDA, HALF, 64, is_grouped=True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", old_varlen_attn)
    varlen.why_not.cache_clear()
    assert tell(CUDA, HALF, 64, is_grouped=True).startswith("Triton (this torch's variable-length attention promises")
    assert "varlen" in tell(CUDA, HALF, 64)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions that serve attention from here on, in order."""
    names, real = [], ops._kernel

    def noted(name: str, tensor: torch.Tensor) -> Any:
        if "attention" in name:
            names.append(name)
        return real(name, tensor)

    monkeypatch.setattr(ops, "_kernel", noted)
    return names


@pytest.mark.parametrize(
    ("case", "serves"),
    [
        (AttentionCase((5, 64, 1)), "short_attention"),
        (AttentionCase((5, 64, 1), hidden="first", window=3, has_holes=True), "short_attention"),
        (AttentionCase((5, 65, 1)), "attention"),
        (AttentionCase((5, 1), head_dim=72), "attention"),
        (AttentionCase((5, 1), value_dim=72), "attention"),
    ],
    ids=str,
)
def test_who_asks_for_the_kernel_of_short_rows_gets_it_where_it_can_serve(
    case: AttentionCase, serves: str, served: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    choice._say_not_short.cache_clear()
    tensors, marks = case.tensors(torch.float32), (case.key_mask(), case.positions())
    for asked, expected in (("short", serves), ("kernel", "attention"), ("library", "attention"), (None, "attention")):
        layout = Layout(case.cu_seqlens(), max(case.lengths), *marks, asked)
        got = ops.attention(*tensors, layout, window=case.window)
        assert_close(got, softmax_maths(case, *tensors))
        assert served.pop() == expected
    assert ("attention='short' cannot serve some batches" in caplog.text) == (serves != "short_attention")


def test_who_asks_for_our_kernel_gets_it_though_the_library_could_serve(
    served: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlen, "why_not", lambda *asked: None)
    case = AttentionCase((5, 4))
    ops.attention(*case.tensors(torch.float32), Layout(case.cu_seqlens(), 5, attention="kernel"))
    assert served == ["attention"]


def test_what_was_asked_for_holds_after_rows_have_left(served: list[str]) -> None:
    model, policy = zoo.model_with_heads("bert"), pf.Scheduled((6, 2, 4, 1, 3, 2))
    batch = pack(model, **zoo.rows("bert", LENGTHS))
    expected = Engine(model).run(batch, policy)
    assert set(served) == {"attention"}
    served.clear()
    got = Engine(model, attention="short", gather_cost=0).run(batch, policy)
    assert set(served) == {"short_attention"}
    assert got.exit_layers.tolist() == expected.exit_layers.tolist()
    assert_close(got.logits, expected.logits)


def test_an_attention_of_another_name_is_refused() -> None:
    with pytest.raises(pf.InputError, match="attention='fast': give one of library, kernel, short, or None"):
        Engine(tiny_stock("bert"), attention="fast")


def test_nobody_gets_the_kernel_of_short_rows_unasked_but_on_a_gpu_where_it_was_measured(
    ampere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "_triton_kernels", lambda: {})
    monkeypatch.setattr(choice, "SHORT_ROWS", {("sm_80", HALF, 64): 48, ("sm_90", HALF, 32): 48})
    choice.most_short.cache_clear()
    try:
        assert [choice.takes_short(CUDA, HALF, 64, longest, None) for longest in (1, 48, 49)] == [True, True, False]
        assert not choice.takes_short(CUDA, HALF, 32, 5, None)
        assert not choice.takes_short(CUDA, torch.float16, 64, 5, None)
        assert not choice.takes_short(torch.device("cpu"), HALF, 64, 5, None)
        assert not choice.takes_short(CUDA, HALF, 64, 5, "library")
        assert ops.attention_in_use(CUDA, HALF, 64) == (
            "Triton, several rows to a tile, where none has more than 48 tokens (measured); else "
            "torch.nn.attention.varlen; Triton where a mask hides tokens inside a row"
        )
    finally:
        choice.most_short.cache_clear()


def test_an_older_gpu_or_a_build_without_the_library_is_told(ampere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_triton_kernels", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert ops.attention_in_use(CUDA, HALF, 64) == (
        "scaled_dot_product_attention over runs of rows of one length "
        "(the library's needs a GPU of compute capability 8.0; Triton cannot be imported)"
    )
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    varlen.why_not.cache_clear()
    assert "built without FlashAttention" in ops.attention_in_use(CUDA, HALF, 64)


@pytest.mark.parametrize("name", ["bert", "albert", "roberta"])
def test_attention_of_short_rows_adds_the_biases_of_a_joined_projection(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block, "JOINED", {"cpu"})
    given, real = [], reference.short_attention

    def noted(*args: Any, **options: Any) -> torch.Tensor:
        given.append(options)
        return real(*args, **options)

    monkeypatch.setattr(reference, "short_attention", noted)
    model = zoo.stock_model(name).to(torch.float16)
    with torch.no_grad():
        for bias in (each for key, each in model.named_parameters() if key.endswith("bias")):
            bias.normal_()
    batch = zoo.rows(name, LENGTHS)
    expected = model(**batch).logits
    got = Engine(model, attention="short").run(pack(model, **batch), pf.FullDepth())
    assert_close(got.logits, expected.float(), torch.float16)
    assert len(given) == model.config.num_hidden_layers
    assert all({"query_bias", "value_bias"} <= options.keys() for options in given)
