"""Layers whose modules hold another config than the model, as copied modules do: each attends within its rows."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import pabee_fast as pf
from pabee_fast.models.padded import PaddedFamily
from pabee_fast.runtime.attention import NAME
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.pack import pack
from tests import zoo
from tests.conftest import padded_rows, tiny_stock
from tests.tolerances import assert_close

LENGTHS = [7, 1, 12, 30, 12, 5]


def stack_of(model: Any) -> Any:
    """The list that holds the layers; ALBERT's groups."""
    return next(module for module in model.base_model.modules() if isinstance(module, nn.ModuleList))


def attention_of(layer: Any) -> str:
    """The name of the first module of a layer that attends, by its config where the family does so."""
    names = [name for name, module in layer.named_modules() if "ttention" in type(module).__name__]
    return next((name for name in names if hasattr(layer.get_submodule(name), "config")), names[0])


def copy_backbone(model: Any) -> None:
    setattr(model, model.base_model_prefix, copy.deepcopy(model.base_model))


def copy_stack(model: Any) -> None:
    backbone, stack = model.base_model, stack_of(model)
    name = next(name for name, module in backbone.named_modules() if module is stack)
    outer = name.split(".")[0]  # the encoder, where the family has one
    setattr(backbone, outer, copy.deepcopy(getattr(backbone, outer)))


def copy_layer(model: Any) -> None:
    stack_of(model)[-1] = copy.deepcopy(stack_of(model)[-1])


def copy_attention(model: Any) -> None:
    layer = stack_of(model)[-1]
    layer.set_submodule(name := attention_of(layer), copy.deepcopy(layer.get_submodule(name)))


COPIES: dict[str, Callable[[Any], None]] = {
    "the backbone": copy_backbone,
    "the encoder": copy_stack,
    "a layer": copy_layer,
    "its attention": copy_attention,
}


def configs_of(model: Any) -> list[Any]:
    return [module.config for module in model.modules() if hasattr(module, "config")]


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("variant", zoo.VARIANTS)
def test_rows_do_not_see_each_other_in_a_copied_module(variant: str, copied: str) -> None:
    model, batch = zoo.stock_model(variant), zoo.rows(variant, LENGTHS)
    COPIES[copied](model)
    by_config = not isinstance(pf.models.family_of(model), PaddedFamily)
    assert not by_config or len({id(config) for config in configs_of(model)}) == 2, "the test could not fail"
    with torch.no_grad():
        expected = model(**batch).logits
    for layers in ("stock", None):
        engine = Engine(model, layers=layers)
        assert_close(engine.run(pack(model, **batch), pf.FullDepth()).logits, expected)
    assert NAME not in {config._attn_implementation for config in configs_of(model)}


class Alone(nn.Module):
    """Attends without asking transformers how."""

    def __init__(self, like: Any) -> None:
        super().__init__()
        self.query, self.key, self.value = like.query, like.key, like.value

    def forward(self, states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        q, k, v = (part(states).unflatten(-1, (4, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), None


def test_attention_that_does_not_know_where_rows_end_is_refused() -> None:
    model, batch = tiny_stock("bert"), padded_rows([9, 9])
    attention = model.bert.encoder.layer[4].attention
    attention.self = Alone(attention.self)
    pf.accelerate(model, pf.FullDepth())
    with pytest.raises(pf.UnsupportedError, match=r"BertLayer attends by other means.*rows .* would see each other"):
        model(**batch)


def test_a_copied_layer_that_was_told_to_run_in_chunks_runs_whole() -> None:
    model, batch = tiny_stock("bert"), padded_rows(LENGTHS)
    copy_layer(model)
    layer = stack_of(model)[-1]
    layer.attention.self.config.chunk_size_feed_forward = layer.chunk_size_feed_forward = 15
    layer.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        expected = model(**batch).logits
    assert_close(pf.accelerate(model, pf.FullDepth())(**batch).logits, expected)
    assert layer.chunk_size_feed_forward == 15
