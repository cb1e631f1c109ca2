"""Backbones in torch's dynamic int8, on a CPU: the quantised model's own answers, and messages that say the way."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import pabee_fast as pf
from pabee_fast.models.head import CalledPooler
from pabee_fast.models.heads import exit_heads_of
from pabee_fast.scoring.conditions import model_fingerprint
from tests import zoo
from tests.conftest import padded_rows, tiny_model, tiny_stock

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
LENGTHS = [7, 1, 12, 30, 5]
STEP = 0.02
"""Of the largest logit: attention differs in its last float32 bits, by which an int8 value may round to a neighbour."""
# GPT-2's layers have no nn.Linear.
VARIANTS = [variant for variant in zoo.VARIANTS if variant != "gpt2"]


def quantised(model: Any, part: str | None = None) -> Any:
    """The model, with its backbone or a part of it in int8."""
    name = part or model.base_model_prefix
    model.set_submodule(name, torch.ao.quantization.quantize_dynamic(model.get_submodule(name), {nn.Linear}))
    assert any("quantized" in type(module).__module__ for module in model.modules())
    return model


def assert_near(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert (got - expected).abs().max() <= STEP * expected.abs().max()


def first_rows(batch: dict[str, torch.Tensor], rows: list[int], length: int | None) -> dict[str, torch.Tensor]:
    return {name: values[rows, :length] if values.ndim == 2 else values[rows] for name, values in batch.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_alone_gets_the_quantised_models_own_answer(variant: str) -> None:
    model, batch = zoo.stock_model(variant), zoo.rows(variant, LENGTHS)
    with torch.no_grad():
        before = model(**batch).logits
        stock = quantised(model)
        ours = pf.accelerate(copy.deepcopy(stock), pf.FullDepth())
        rows = [first_rows(batch, [row], length) for row, length in enumerate(LENGTHS)]
        expected = torch.cat([stock(**row).logits for row in rows])
    assert (expected - before).abs().max() > 1e-3, "nothing was quantised, so the test could not fail"
    assert_near(torch.cat([ours(**row).logits for row in rows]), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_of_one_length_have_the_scales_of_the_quantised_models_own_batch(variant: str) -> None:
    stock, batch = quantised(zoo.stock_model(variant)), zoo.rows(variant, [9, 9, 9])
    ours = pf.accelerate(copy.deepcopy(stock), pf.FullDepth())
    with torch.no_grad():
        assert_near(ours(**batch).logits, stock(**batch).logits)


def test_rows_that_leave_early_read_quantised_layers_through_a_quantised_pooler() -> None:
    model, row = quantised(tiny_model("bert")), padded_rows([12])
    with torch.no_grad():
        states = model(**row, output_hidden_states=True).hidden_states
        expected = model.exit_heads[2](model.bert.pooler(states[3]))
    assert_near(pf.accelerate(model, pf.FixedDepth(3))(**row).logits, expected)


def test_an_encoder_quantised_alone_is_served_and_its_dependence_on_batch_mates_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "pabee_fast")
    stock, batch = quantised(tiny_stock("bert"), "bert.encoder"), padded_rows([9, 9])
    with torch.no_grad():
        expected = stock(**batch).logits
    for _ in range(2):
        pf.accelerate(stock, pf.FullDepth())
    assert_near(stock(**batch).logits, expected)
    assert sum("a row's answer depends on the rows beside it" in record.message for record in caplog.records) == 1


def test_a_quantised_classifier_is_refused_with_what_to_quantise() -> None:
    model = torch.ao.quantization.quantize_dynamic(tiny_stock("bert"), {nn.Linear})
    says = r"the classifier is a torch.ao.nn.quantized\S+: .*\(model.bert = torch.ao\S+dynamic\(model.bert, {torch.nn"
    with pytest.raises(pf.UnsupportedError, match=says):
        pf.accelerate(model, pf.FullDepth())


def test_a_model_in_int8_is_known_by_all_its_weights() -> None:
    changed = tiny_model("bert")
    changed.bert.encoder.layer[0].output.dense.weight.data *= 1.5
    first, again, other = (model_fingerprint(quantised(model)) for model in (*map(tiny_model, ["bert"] * 2), changed))
    assert first == again != other


@pytest.fixture
def quantise_by_token() -> Callable[[nn.Module], None]:
    """torchao's dynamic int8, in place: each token has a scale of its own."""
    torchao = pytest.importorskip("torchao.quantization")
    return lambda module: torchao.quantize_(module, torchao.Int8DynamicActivationInt8WeightConfig())


@pytest.mark.parametrize("variant", ["bert", "roberta", "distilbert", "modernbert", "llama"])
def test_a_row_by_torchao_gets_the_quantised_models_own_answer_whatever_lies_beside_it(
    variant: str, quantise_by_token: Callable[[nn.Module], None]
) -> None:
    model, batch = zoo.stock_model(variant), zoo.rows(variant, LENGTHS)
    with torch.no_grad():
        before = model(**batch).logits
        quantise_by_token(model.base_model)
        rows = [first_rows(batch, [row], length) for row, length in enumerate(LENGTHS)]
        expected = torch.cat([model(**row).logits for row in rows])
        ours = pf.accelerate(model, pf.FullDepth())
        alone = torch.cat([ours(**row).logits for row in rows])
    assert (expected - before).abs().max() > 1e-3, "nothing was quantised, so the test could not fail"
    assert_near(alone, expected)
    assert_near(ours(**batch).logits, alone)


def test_rows_that_leave_early_read_a_pooler_by_torchao(quantise_by_token: Callable[[nn.Module], None]) -> None:
    model, row = tiny_model("bert"), padded_rows([12])
    quantise_by_token(model.base_model)
    assert isinstance(exit_heads_of(model)[0].pooler, CalledPooler), "kernels would read the weight's codes"
    with torch.no_grad():
        states = model(**row, output_hidden_states=True).hidden_states
        expected = model.exit_heads[2](model.bert.pooler(states[3]))
    assert_near(pf.accelerate(model, pf.FixedDepth(3))(**row).logits, expected)


def test_a_model_by_torchao_is_known_by_all_its_weights(quantise_by_token: Callable[[nn.Module], None]) -> None:
    models = [tiny_model("bert") for _ in range(3)]
    models[2].bert.encoder.layer[0].output.dense.weight.data *= 1.5
    for model in models:
        quantise_by_token(model.bert)
    first, again, other = map(model_fingerprint, models)
    assert first == again != other


def test_heads_by_torchao_are_refused_with_what_to_quantise(quantise_by_token: Callable[[nn.Module], None]) -> None:
    model = tiny_model("bert")
    quantise_by_token(model)
    with pytest.raises(pf.UnsupportedError, match=r"a head is torchao's Int8Tensor.*quantize_\(model.bert, "):
        pf.accelerate(model, pf.Patience(1))
