"""What an owner has changed in configs after the model was built: followed as transformers follows it, or refused."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

import pabee_fast as pf
from tests import zoo
from tests.tolerances import assert_close

LENGTHS = [7, 1, 12, 30, 12, 5]


def with_own_config(model: Any) -> Any:
    """The backbone's config, once that is another one than the model's."""
    setattr(model, model.base_model_prefix, copy.deepcopy(model.base_model))
    return model.base_model.config


@pytest.mark.parametrize("config_of", [lambda model: model.config, with_own_config], ids=["model", "backbone"])
@pytest.mark.parametrize("variant", [variant for variant in zoo.VARIANTS if variant != "gpt2"])  # stock GPT-2 breaks
def test_as_many_layers_run_as_in_the_stock_forward(variant: str, config_of: Callable[[Any], Any]) -> None:
    model, batch = zoo.stock_model(variant), zoo.rows(variant, LENGTHS)
    config_of(model).num_hidden_layers = 2
    with torch.no_grad():
        expected = model(**batch).logits
    assert_close(pf.accelerate(model, pf.FullDepth())(**batch).logits, expected)


def test_eurobert_pools_as_it_was_built() -> None:
    model, batch = zoo.stock_model("eurobert"), zoo.rows("eurobert", LENGTHS)
    model.config.classifier_pooling = "mean"
    with torch.no_grad():
        expected = model(**batch).logits
    assert_close(pf.accelerate(model, pf.FullDepth())(**batch).logits, expected)


@pytest.mark.parametrize("config_of", [lambda model: model.config, with_own_config], ids=["model", "backbone"])
@pytest.mark.parametrize(("variant", "own"), [("bert", False), ("vit", False), ("llama", True), ("gpt2", True)])
def test_attention_to_the_other_side_is_refused(variant: str, own: bool, config_of: Callable[[Any], Any]) -> None:
    model, batch = zoo.stock_model(variant), zoo.rows(variant, LENGTHS)
    config = config_of(model)
    config.is_causal = own
    pf.accelerate(model, pf.FullDepth())(**batch)
    config.is_causal = not own
    for call in (lambda: model(**batch), lambda: pf.accelerate(model, pf.FullDepth())):
        with pytest.raises(pf.UnsupportedError, match=f"config.is_causal={not own}: family .* set it to {own}"):
            call()


@pytest.mark.parametrize("variant", [name for name in zoo.VARIANTS if not name.startswith(("deberta", "mpnet"))])
def test_one_attention_module_that_looks_to_the_other_side_is_refused(variant: str) -> None:
    model = pf.accelerate(zoo.stock_model(variant), pf.FullDepth())
    part: Any = [module for module in model.modules() if hasattr(module, "is_causal")][-1]
    part.is_causal = not part.is_causal
    with pytest.raises(pf.UnsupportedError, match=f"a {type(part).__name__} has is_causal={part.is_causal}, and"):
        model(**zoo.rows(variant, LENGTHS))


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("variant", ["bert", "llama"])
def test_a_call_that_asks_which_side_to_attend_to_is_refused(variant: str, given: bool) -> None:
    model = pf.accelerate(zoo.stock_model(variant), pf.FullDepth())
    with pytest.raises(pf.UnsupportedError, match=r"is_causal: .*leave it out"):
        model(**zoo.rows(variant, LENGTHS), is_causal=given)


def copy_a_layer(model: Any) -> None:
    model.model.layers[1] = copy.deepcopy(model.model.layers[1])
    model.config.sliding_window = 3


WINDOWS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "Qwen2's window": ("qwen2", lambda model: setattr(model.config, "sliding_window", 3)),
    "Qwen2's kinds of layers": ("qwen2", lambda model: setattr(model.config, "layer_types", ["full_attention"] * 6)),
    "ModernBERT's window": ("modernbert", lambda model: setattr(model.config, "local_attention", 10)),
    "Mistral's window, but for a copied layer": ("mistral", copy_a_layer),
}


@pytest.mark.parametrize("change", WINDOWS)
def test_a_window_that_layers_do_not_know_of_is_refused(change: str) -> None:
    variant, apply = WINDOWS[change]
    model, batch = pf.accelerate(zoo.stock_model(variant), pf.FullDepth()), zoo.rows(variant, LENGTHS)
    model(**batch)
    apply(model)
    with pytest.raises(pf.UnsupportedError, match=r"a layer has sliding_window=.* set the config back"):
        model(**batch)


def test_a_window_that_all_layers_look_up_is_followed() -> None:
    model, batch = zoo.stock_model("mistral"), zoo.rows("mistral", LENGTHS)
    model.config.sliding_window = 3
    with torch.no_grad():
        expected = model(**batch).logits
    assert_close(pf.accelerate(model, pf.FullDepth())(**batch).logits, expected)
