"""What the kernels of a layer mean, and what they refuse; they are held against the same cases elsewhere."""

from typing import Any

import pytest
import torch

from pabee_fast.kernels import launch, reference
from tests.kernels.layer_cases import (
    ACTIVATION_CASES,
    EMBED_CASES,
    LINEAR_GELU_SIZES,
    NORM_CASES,
    ActivationCase,
    EmbedCase,
    NormCase,
    add_norm_arguments,
    bias_act_arguments,
    check_add_norm,
    check_bias_act,
    check_embed_norm,
    check_linear_gelu,
    embed_norm_arguments,
    linear_gelu_arguments,
)

by_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)


@by_dtype
@pytest.mark.parametrize("case", NORM_CASES, ids=str)
def test_add_norm_is_the_layer_norm_of_product_bias_and_residual(case: NormCase, dtype: torch.dtype) -> None:
    check_add_norm(reference.add_norm, case, dtype, "cpu")


@by_dtype
@pytest.mark.parametrize("case", ACTIVATION_CASES, ids=str)
def test_bias_act_is_the_activation_of_product_and_bias(case: ActivationCase, dtype: torch.dtype) -> None:
    check_bias_act(reference.bias_act, case, dtype, "cpu")


@by_dtype
@pytest.mark.parametrize("case", EMBED_CASES, ids=str)
def test_embed_norm_is_the_layer_norm_of_the_tables_rows(case: EmbedCase, dtype: torch.dtype) -> None:
    check_embed_norm(reference.embed_norm, case, dtype, "cpu")


@by_dtype
@pytest.mark.parametrize("size", LINEAR_GELU_SIZES[:-1], ids=str)
def test_linear_gelu_is_the_gelu_of_product_and_bias(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    check_linear_gelu(reference.linear_gelu, size, dtype, "cpu")


def test_sums_are_not_rounded_on_the_way() -> None:
    # In float16 256 + 0.125 is 256, and both tokens would be constant.
    product = torch.tensor([[256.0, 256.0], [256.0, 256.0]]).half()
    residual = torch.tensor([[-256.0, -256.0], [0.125, 0.0]]).half()
    bias, ones = torch.tensor([0.125, 0.0]).half(), torch.ones(2).half()
    out = reference.add_norm(product, bias, residual, ones, torch.zeros_like(ones), eps=1e-12)
    assert out.tolist() == [[1.0, -1.0], [1.0, -1.0]]


WRONG_FOR_ADD_NORM: list[tuple[dict[str, Any], str]] = [
    ({"product": torch.zeros(4, 8).double()}, r"product is torch.float64; convert it to one of"),
    ({"product": torch.zeros(1, 4, 8)}, r"product is \[1, 4, 8\]; give it the shape \[tokens, hidden_size\]"),
    ({"product": torch.zeros(8, 4).T}, r"product is not contiguous"),
    ({"residual": torch.zeros(3, 8)}, r"residual is \[3, 8\]; .*here \[4, 8\]"),
    ({"residual": torch.zeros(4, 8).half()}, r"residual is torch.float16; convert it to torch.float32"),
    ({"bias": torch.zeros(7)}, r"bias is \[7\]; .*here \[8\]"),
    ({"gain": torch.zeros(8).half()}, r"gain is torch.float16; convert it"),
    ({"shift": torch.zeros(8, device="meta")}, r"shift is on meta; move it to cpu"),
]
WRONG_FOR_BIAS_ACT: list[tuple[dict[str, Any], str]] = [
    ({"activation": "swish"}, r"activation is 'swish'; choose one of 'gelu', 'gelu_tanh', 'relu'"),
    ({"product": torch.zeros(4, 8).long()}, r"product is torch.int64; convert it to one of"),
    ({"product": torch.zeros(8)}, r"product is \[8\]; give it the shape \[tokens, width\]"),
    ({"product": torch.zeros(8, 4).T}, r"product is not contiguous"),
    ({"bias": torch.zeros(9)}, r"bias is \[9\]; .*here \[8\]"),
    ({"bias": torch.zeros(8).bfloat16()}, r"bias is torch.bfloat16; convert it"),
]


WRONG_FOR_LINEAR_GELU: list[tuple[dict[str, Any], str]] = [
    ({"hidden": torch.zeros(4, 8).long()}, r"hidden is torch.int64; convert it to one of"),
    ({"hidden": torch.zeros(8)}, r"hidden is \[8\]; give it the shape \[tokens, hidden_size\]"),
    ({"weight": torch.zeros(8, 12)}, r"weight is \[8, 12\]; .*here \[8, 8\]"),
    ({"bias": torch.zeros(8).half()}, r"bias is torch.float16; convert it"),
    ({"hidden": torch.zeros(4, 6), "weight": torch.zeros(8, 6)}, r"at multiples of 16 bytes, so call linear"),
    ({"weight": torch.zeros(7, 8), "bias": torch.zeros(7)}, r"at multiples of 16 bytes, so call linear"),
    ({"weight": torch.zeros(65)[1:].view(8, 8)}, r"at multiples of 16 bytes, so call linear"),
]


WRONG_FOR_EMBED_NORM: list[tuple[dict[str, Any], str]] = [
    ({"words": torch.zeros(3, 8).double()}, r"words is torch.float64; convert it to one of"),
    ({"word_ids": torch.zeros(4)}, r"word_ids is torch.float32; convert it to one of torch.int32, torch.int64"),
    ({"position_ids": torch.zeros(5).long()}, r"position_ids is \[5\]; .*here \[4\]"),
    ({"type_ids": None}, r"give both type_ids and types, or neither"),
    ({"positions": torch.zeros(3, 7)}, r"positions is \[3, 7\]; .*here \[3, 8\]"),
    ({"types": torch.zeros(3, 8).half()}, r"types is torch.float16; convert it"),
    ({"gain": torch.zeros(7)}, r"gain is \[7\]; .*here \[8\]"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_FOR_EMBED_NORM, ids=lambda value: str(value)[:40])
def test_embed_norm_names_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reference.embed_norm(**embed_norm_arguments(**changes))


@pytest.mark.parametrize(("changes", "message"), WRONG_FOR_LINEAR_GELU, ids=lambda value: str(value)[:40])
def test_linear_gelu_names_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reference.linear_gelu(**linear_gelu_arguments(**changes))


@pytest.mark.parametrize(("changes", "message"), WRONG_FOR_ADD_NORM, ids=lambda value: str(value)[:40])
def test_add_norm_names_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reference.add_norm(**add_norm_arguments(**changes))


@pytest.mark.parametrize(("changes", "message"), WRONG_FOR_BIAS_ACT, ids=lambda value: str(value)[:40])
def test_bias_act_names_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reference.bias_act(**bias_act_arguments(**changes))


def test_a_residual_that_would_be_overwritten_is_refused() -> None:
    arguments = add_norm_arguments()
    with pytest.raises(ValueError, match="residual is product, which is overwritten"):
        reference.add_norm(**arguments | {"residual": arguments["product"]})


def test_a_token_too_wide_for_one_program_is_refused() -> None:
    widest = launch.add_norm_constants(launch.MAX_HIDDEN_SIZE).values
    assert (widest["BLOCK_TOKENS"], widest["BLOCK_HIDDEN"]) == (1, launch.MAX_HIDDEN_SIZE)
    with pytest.raises(ValueError, match=r"tokens of 16385 numbers; the kernel takes up to 16384"):
        launch.add_norm_constants(launch.MAX_HIDDEN_SIZE + 1)
