"""What the owner of a model has changed in its layers runs as it is, and `info` says why."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertSelfOutput

import pabee_fast as pf
from pabee_fast.runtime.engine import Engine
from tests.conftest import FAMILIES, padded_rows, tiny_stock
from tests.runtime.answers import packed_answers, stock_answers
from tests.tolerances import assert_close


class Adapted(nn.Module):
    """A linear layer with a correction of low rank, as adapters wrap them."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.low = base, nn.Linear(base.in_features, 2, bias=False)
        self.high = nn.Linear(2, base.out_features, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.base(hidden) + self.high(self.low(hidden))


class SubclassedLinear(nn.Linear):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden) * 1.5


def changed_forward(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    return 2 * type(self).original(self, *args, **kwargs)


def subclass_layer(layer: Any) -> None:
    original = type(layer)
    layer.__class__ = type("Mine", (original,), {"original": original.forward, "forward": changed_forward})


def set_forward(layer: Any) -> None:
    original = layer.output.dense.forward
    layer.output.dense.forward = lambda hidden: 2 * original(hidden)


def quantise(layer: Any) -> None:
    dense = layer.output.dense
    dense.weight = nn.Parameter(dense.weight.data.round().to(torch.int8), requires_grad=False)
    dense.__class__ = type("Int8Linear", (nn.Linear,), {"forward": lambda self, x: x @ self.weight.float().T})


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "an adapter": (
        lambda layer: setattr(layer.attention.self, "query", Adapted(layer.attention.self.query)),
        r"attention.self.query is a .*Adapted",
    ),
    "a quantised linear": (quantise, r"output.dense is a .*Int8Linear"),
    "a subclassed linear": (
        lambda layer: setattr(layer.intermediate.dense, "__class__", SubclassedLinear),
        r"intermediate.dense is a .*SubclassedLinear",
    ),
    "a subclassed layer": (subclass_layer, r"the layer is a .*Mine"),
    "a replaced method": (set_forward, r"output.dense has another forward than Linear's own"),
    "a hook": (
        lambda layer: layer.intermediate.register_forward_hook(lambda module, args, out: out * 1.1),
        r"intermediate has hooks",
    ),
    "a hook in front": (
        lambda layer: layer.output.dense.register_forward_pre_hook(lambda module, args: (args[0] * 1.1,)),
        r"output.dense has hooks",
    ),
    "a parametrisation": (
        lambda layer: parametrize.register_parametrization(layer.output.dense, "weight", nn.Softshrink(0.1)),
        r"output.dense is a .*ParametrizedLinear",
    ),
    "pruned weights": (
        lambda layer: prune.l1_unstructured(layer.output.dense, "weight", 0.5),
        r"output.dense has hooks",
    ),
    "another dropout": (
        lambda layer: setattr(layer.output, "dropout", nn.ReLU()),
        r"output.dropout is a ReLU, of which the block knows nothing",
    ),
    "another norm": (
        lambda layer: setattr(layer.output, "LayerNorm", nn.RMSNorm(32)),
        r"output.LayerNorm is a RMSNorm|a RMSNorm stands where a LayerNorm is expected",
    ),
    "another activation": (
        lambda layer: setattr(layer.intermediate, "intermediate_act_fn", nn.Softsign()),
        r"activation Softsign has no kernel",
    ),
    "a norm without bias": (
        lambda layer: setattr(layer.output, "LayerNorm", nn.LayerNorm(32, bias=False)),
        r"a LayerNorm lacks a contiguous parameter",
    ),
    "a query without bias": (
        lambda layer: setattr(layer.attention.self, "query", nn.Linear(32, 32, bias=False)),
        r"query, key and value differ in shape",
    ),
    "one part in double precision": (lambda layer: layer.output.LayerNorm.double(), r"its parameters are of torch"),
    "compiled by its owner": (lambda layer: layer.compile(backend="eager"), r"the layer was compiled by its owner"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_that_its_owner_has_changed_runs_as_it_is_and_says_so(change: str) -> None:
    stock = tiny_stock("bert", num_hidden_layers=3)
    before = stock_answers(stock)
    apply, reason = CHANGES[change]
    apply(stock.bert.encoder.layer[1])
    stock.eval()
    said = Engine(stock).layers.describe()
    assert said.startswith("fused (measured); stock in layer 2, since ")
    assert re.search(reason, said)
    with pytest.raises(pf.UnsupportedError, match=reason):
        packed_answers(stock, "fused")
    if change == "one part in double precision":
        return  # transformers cannot run it either
    expected = stock_answers(stock)
    assert_close(packed_answers(stock), expected)
    if change != "compiled by its owner":
        assert (expected - before).abs().max() > 1e-3, "the change changes no answer, so the test could not fail"


def test_a_layer_whose_parts_have_other_names_runs_as_it_is() -> None:
    stock = tiny_stock("bert")
    own = stock.bert.encoder.layer[4].attention.self
    own.size = own.__dict__.pop("attention_head_size")
    assert "stock in layer 5, since 'BertSelfAttention' object has no attribute" in Engine(stock).layers.describe()


def test_a_method_replaced_for_all_layers_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    stock, original = tiny_stock("bert"), BertSelfOutput.forward

    def doubled(self: Any, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        return original(self, 2 * hidden_states, input_tensor)

    monkeypatch.setattr(BertSelfOutput, "forward", doubled)
    assert "layers 1, 2, 3, 4, 5 and 6, since attention.output has another forward" in Engine(stock).layers.describe()
    assert_close(packed_answers(stock), stock_answers(stock))


def test_hooks_on_all_modules_are_called() -> None:
    stock, called = tiny_stock("bert"), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: called.append(module))
    try:
        assert "there are hooks on all modules" in Engine(stock).layers.describe()
        packed_answers(stock)
    finally:
        handle.remove()
    assert stock.bert.encoder.layer[0].attention.self.query in called


def test_dropout_that_is_kept_at_work_keeps_its_layer() -> None:
    stock = tiny_stock("bert", hidden_dropout_prob=0.5)
    stock.bert.encoder.layer[2].output.dropout.train()
    assert "stock in layer 3, since output.dropout is in training mode" in Engine(stock).layers.describe()
    assert not torch.equal(packed_answers(stock), packed_answers(stock))


def test_the_hooks_that_transformers_leaves_behind_change_nothing() -> None:
    stock = tiny_stock("bert")
    stock(**padded_rows([3, 5]), output_hidden_states=True, output_attentions=False)
    assert any(module._forward_hooks for module in stock.modules()), "the test could not fail"
    assert Engine(stock).layers.describe() == "fused (measured)"


@pytest.mark.parametrize("family", FAMILIES)
def test_autocast_and_unknown_activations_and_dtypes_keep_stock_layers(family: str) -> None:
    stock = tiny_stock(family)
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast is on" in Engine(stock).layers.describe()
        assert torch.equal(packed_answers(stock), packed_answers(stock, "stock"))
        with pytest.raises(pf.UnsupportedError, match="autocast is on"):
            packed_answers(stock, "fused")
    silu = tiny_stock(family, hidden_act="silu")
    assert "activation SiLU" in Engine(silu).layers.describe()
    assert_close(packed_answers(silu), stock_answers(silu))
    double = tiny_stock(family).double()
    assert Engine(double).layers.describe() == "stock (nothing faster is known for torch.float64 on cpu)"


def set_activation(layer: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    del layer.intermediate.intermediate_act_fn  # a module, whose place no function takes
    layer.intermediate.intermediate_act_fn = function


def test_a_function_as_activation_is_known_by_itself() -> None:
    known = tiny_stock("bert")
    for layer in known.bert.encoder.layer:
        set_activation(layer, nn.functional.relu)
    assert Engine(known).layers.describe() == "fused (measured)"
    assert_close(packed_answers(known), stock_answers(known))
    own = tiny_stock("bert")
    set_activation(own.bert.encoder.layer[0], torch.sin)
    assert "stock in layer 1, since activation sin has no kernel" in Engine(own).layers.describe()
    assert_close(packed_answers(own), stock_answers(own))


def test_a_model_under_a_config_of_ones_own_keeps_stock_layers() -> None:
    class OwnConfig(BertConfig):
        pass

    stock = tiny_stock("bert")
    stock.config.__class__ = OwnConfig
    assert "the layer is a transformers.models.bert.modeling_bert.BertLayer" in Engine(stock).layers.describe()
    assert_close(packed_answers(stock), stock_answers(stock))


def test_what_is_changed_between_two_calls_is_seen_at_the_second() -> None:
    model = pf.accelerate(tiny_stock("bert"), pf.FullDepth())
    batch = padded_rows([4, 9])
    before = model(**batch).logits
    handle = model.bert.encoder.layer[0].output.register_forward_hook(lambda module, args, out: 2 * out)
    assert (model(**batch).logits - before).abs().max() > 1e-3
    handle.remove()
    assert torch.equal(model(**batch).logits, before)
