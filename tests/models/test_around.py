"""What an owner has changed between layers and logits is run, or refused by name; it is never passed over."""

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import BertForSequenceClassification, PreTrainedModel, RobertaForSequenceClassification

import pabee_fast as pf
from tests import zoo
from tests.conftest import padded_rows, tiny_model, tiny_stock
from tests.tolerances import assert_close

LENGTHS = [7, 3, 12, 30]

POOLERS = {
    "bert": ["query", "dense"],
    "roberta": ["dense"],
    "electra": ["dense"],
    "albert": ["pooler"],
    "distilbert": ["pre_classifier", "q_lin"],
    "mpnet": ["dense"],
    "deberta-v2": ["dense"],
    "deberta-v2, absolute": ["dense"],
    "eurobert": ["dense"],
    "eurobert, late": ["dense"],
    "modernbert": ["dense"],
}
"""What adapters hang on in each family; among it the dense layer in front of the classifier."""


@pytest.mark.parametrize("variant", POOLERS)
def test_adapters_on_the_pooler_are_run(variant: str) -> None:
    model, batch = zoo.stock_model(variant), zoo.rows(variant, LENGTHS)
    with torch.no_grad():
        before = model(**batch).logits
        model.add_adapter(peft.LoraConfig(r=2, target_modules=POOLERS[variant]))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
        expected = model.eval()(**batch).logits
    assert (expected - before).abs().max() > 0.1, "the test could not fail"
    assert_close(pf.accelerate(model, pf.FullDepth())(**batch).logits, expected)


def test_heads_behind_an_adapted_shared_pooler_read_what_it_gives() -> None:
    model, batch = tiny_model("bert"), padded_rows(LENGTHS)
    dense = model.bert.pooler.dense
    alone = pf.accelerate(model, pf.FixedDepth(3))(**batch).logits
    dense.register_forward_hook(lambda module, args, out: out * 1.5)
    hooked = model(**batch).logits
    with torch.no_grad():
        dense._forward_hooks.clear()
        dense.weight *= 1.5
        dense.bias *= 1.5
    assert (hooked - alone).abs().max() > 0.01, "the test could not fail"
    assert_close(hooked, model(**batch).logits)


class Cooled(BertForSequenceClassification):
    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        out = super().forward(input_ids, **kwargs)
        out.logits = out.logits / 4
        return out


Cooled.__name__ = "CooledForSequenceClassification"


class Renamed(BertForSequenceClassification):
    """Adds no forward."""


Renamed.__name__ = "RenamedForSequenceClassification"


def test_a_subclass_with_a_forward_of_its_own_is_refused_and_one_without_is_served() -> None:
    config, batch = tiny_stock("bert").config, padded_rows(LENGTHS)
    with pytest.raises(
        pf.UnsupportedError, match=r"CooledForSequenceClassification has a forward of its own.*register"
    ):
        pf.accelerate(Cooled(config).eval(), pf.FullDepth())
    model = Renamed(config).eval()
    with torch.no_grad():
        expected = model(**batch).logits
    assert_close(pf.accelerate(model, pf.FullDepth())(**batch).logits, expected)


class OtherPooler(nn.Module):
    def __init__(self, like: Any) -> None:
        super().__init__()
        self.dense = like.dense

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.dense(states.mean(dim=1))


class DoubledLinear(nn.Linear):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(features)


def double(module: nn.Module, args: Any, out: Any) -> Any:
    return 2 * out


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a hook on the classifier": (lambda m: m.classifier.register_forward_hook(double), "a head of the model has hooks"),
    "a hook on an inner head": (
        lambda m: m.exit_heads[1].register_forward_hook(double),
        "a head of the model has hooks",
    ),
    "a hook on the pooler": (lambda m: m.bert.pooler.register_forward_hook(double), "bert.pooler has hooks"),
    "a hook on the backbone": (lambda m: m.bert.register_forward_pre_hook(lambda *_: None), "bert has hooks"),
    "a classifier of another class": (
        lambda m: setattr(m.classifier, "__class__", DoubledLinear),
        "a head of the model has another forward than DoubledLinear's own",
    ),
    "another pooler": (
        lambda m: setattr(m.bert, "pooler", OtherPooler(m.bert.pooler)),
        "bert.pooler has another forward",
    ),
    "no pooler": (lambda m: setattr(m.bert, "pooler", None), "not built as bert is.*was a part of it replaced"),
    "a pooler that does nothing": (lambda m: setattr(m.bert, "pooler", nn.Identity()), "not built as bert is"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_early_exit_would_pass_over_is_refused_before_and_after(change: str) -> None:
    apply, says = CHANGES[change]
    model = tiny_model("bert")
    apply(model)
    with pytest.raises(pf.UnsupportedError, match=says):
        pf.accelerate(model, pf.Patience(2))
    model = pf.accelerate(tiny_model("bert"), pf.Patience(2))
    apply(model)
    with pytest.raises(pf.UnsupportedError, match=says):
        model(**padded_rows(LENGTHS))


def test_a_hook_on_the_classifiers_own_head_module_is_refused() -> None:
    model: RobertaForSequenceClassification = zoo.stock_model("roberta")  # type: ignore[assignment]
    model.classifier.register_forward_hook(double)
    with pytest.raises(pf.UnsupportedError, match=r"classifier has hooks.*early exit reads its parts"):
        pf.accelerate(model, pf.FullDepth())


def test_hooks_on_what_is_called_are_run() -> None:
    model, batch = tiny_stock("bert"), padded_rows(LENGTHS)
    model.bert.embeddings.register_forward_hook(double)
    model.bert.encoder.layer[2].register_forward_hook(double)
    with torch.no_grad():
        expected = model(**batch).logits
    assert_close(pf.accelerate(model, pf.FullDepth())(**batch).logits, expected)


def layer_of(model: Any) -> Any:
    return model.base_model.encoder.layer[1]


LAYER_CHANGES: dict[str, Callable[[Any], Any]] = {
    "a hook on a layer": lambda m: layer_of(m).register_forward_hook(lambda *_: None),
    "a hook on its attention": lambda m: layer_of(m).attention.register_forward_hook(lambda *_: None),
    "another forward of a layer": lambda m: setattr(layer_of(m), "forward", lambda *args, **kwargs: args[0]),
}


@pytest.mark.parametrize("change", LAYER_CHANGES)
@pytest.mark.parametrize("variant", ["deberta", "deberta-v2", "mpnet"])
def test_a_change_of_a_layer_whose_parts_alone_are_called_is_refused(variant: str, change: str) -> None:
    model = pf.accelerate(zoo.stock_model(variant), pf.FullDepth())
    LAYER_CHANGES[change](model)
    with pytest.raises(pf.UnsupportedError, match=r"encoder.layer.1(\.attention)? has .*never calls it"):
        model(**zoo.rows(variant, LENGTHS))


@pytest.mark.parametrize("variant", ["deberta", "deberta-v2", "mpnet"])
def test_a_changed_part_of_such_a_layer_is_run(variant: str) -> None:
    model, batch = zoo.stock_model(variant), zoo.rows(variant, LENGTHS)
    layer_of(model).intermediate.register_forward_hook(double)
    with torch.no_grad():
        expected = model(**batch).logits
    assert_close(pf.accelerate(model, pf.FullDepth())(**batch).logits, expected)


@pytest.mark.parametrize("variant", zoo.VARIANTS)
def test_what_a_stock_forward_with_hidden_states_leaves_behind_is_no_change(variant: str) -> None:
    model: PreTrainedModel = zoo.model_with_heads(variant, initializer_range=0.05)
    batch = zoo.rows(variant, LENGTHS)
    with torch.no_grad():
        expected = model(**batch, output_hidden_states=True).logits
    assert_close(pf.accelerate(model, pf.FullDepth())(**batch).logits, expected)


def test_outputs_that_the_config_does_not_count_are_refused() -> None:
    model = tiny_stock("bert")
    model.classifier = nn.Linear(32, 5)
    with pytest.raises(
        pf.UnsupportedError, match=r"5 outputs and config.num_labels is 3: set model.config.num_labels = 5"
    ):
        pf.accelerate(model, pf.FullDepth())


def test_double_precision_is_refused_before_any_row() -> None:
    with pytest.raises(pf.UnsupportedError, match=r"float64 weights.*model.float\(\)"):
        pf.accelerate(tiny_stock("bert").double(), pf.FullDepth())
