"""How layers run: every variant answers as transformers' own modules."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pabee_fast as pf
from pabee_fast.kernels import reference
from pabee_fast.layout import Layout
from pabee_fast.models import FAMILIES
from pabee_fast.runtime import block, choice, embedding, layers, ops, variants
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.pack import pack
from tests import zoo
from tests.conftest import FAMILIES as THREE
from tests.conftest import tiny_stock
from tests.runtime.answers import distance, exact_heads, stock_answers
from tests.runtime.answers import packed_answers as answers
from tests.runtime.memory import peak_bytes
from tests.tolerances import TOLERANCES, assert_close

FUSED = ["bert", "albert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "deberta-v2"]
ACTIVATIONS = ["gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python", "gelu_accurate", "relu"]


def model_with(family: str, activation: str, **options: Any) -> Any:
    name = "activation" if family == "distilbert" else "hidden_act"
    return zoo.stock_model(family, **{name: activation}, **options)


@pytest.fixture
def by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of CUDA tensors on a CPU: joined projections, and the kernels' references in place of the kernels."""

    def another(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **options: function(*args, **options)

    served = {name: another(getattr(reference, name)) for name in ("add_norm", "bias_act")}
    real = ops._kernel
    monkeypatch.setattr(ops, "_kernel", lambda name, tensor: served.get(name) or real(name, tensor))
    monkeypatch.setattr(block, "JOINED", {"cpu"})
    monkeypatch.setattr(embedding, "FUSED", {"cpu"})


@pytest.mark.parametrize("family", FUSED)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_variants_equal_stock_transformers_for_every_activation(family: str, activation: str) -> None:
    stock = model_with(family, activation)
    assert Engine(stock).layers.describe() == "fused (measured)"
    expected = stock_answers(stock)
    for variant in (None, "stock", "fused"):
        assert_close(answers(stock, variant), expected)


@pytest.mark.parametrize("family", FUSED)
def test_gelu_stays_the_exact_one_where_gelu_by_tanh_would_be_seen_in_the_logits(family: str) -> None:
    """text-embeddings-inference 1.9 computes `gelu` by tanh; of the largest logit that is 1e-4 and more here."""
    stock = model_with(family, "gelu", initializer_range=0.3)
    by_tanh = model_with(family, "gelu_pytorch_tanh", initializer_range=0.3)
    by_tanh.load_state_dict(stock.state_dict())
    expected = stock_answers(stock)
    assert_close(answers(stock), expected)
    assert distance(stock_answers(by_tanh), expected) > 10 * TOLERANCES[torch.float32]


@pytest.mark.parametrize("family", FUSED)
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_the_way_of_the_kernels_equals_stock_transformers(family: str, activation: str, by_kernels: None) -> None:
    stock = model_with(family, activation, layer_norm_eps=0.03)
    expected = stock_answers(stock)
    assert_close(answers(stock, "fused"), expected)
    assert_close(answers(stock, "fused"), expected)  # joined already


@pytest.mark.parametrize("family", FUSED)
def test_a_product_that_ends_with_its_gelu_equals_stock_transformers(
    family: str, by_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock, real, tokens = model_with(family, "gelu"), reference.linear_gelu, []

    def noted(hidden: Tensor, *rest: Tensor) -> Tensor:
        tokens.append(len(hidden))
        return real(hidden, *rest)

    monkeypatch.setattr(reference, "linear_gelu", noted)
    expected = stock_answers(stock)
    assert_close(answers(stock, "fused"), expected)
    assert not tokens, "nothing was measured here, and ours was taken"
    for least in (0, 10**6):
        monkeypatch.setattr(choice, "LINEAR_GELU", {("cpu", torch.float32, stock.config.hidden_size): least})
        choice._least_tokens.cache_clear()
        assert_close(answers(stock, "fused"), expected)
        assert bool(tokens) == (least == 0)
        tokens.clear()
    choice._least_tokens.cache_clear()


# DeBERTa looks up no places unless it is told to.
@pytest.mark.parametrize("family", [*FUSED[:-1], "deberta-v2, absolute"])
def test_stock_embeddings_are_computed_in_one_launch_and_others_as_they_are(
    family: str, by_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock, real, calls = model_with(family, "gelu"), reference.embed_norm, []

    def noted(*args: Any, **options: Any) -> Tensor:
        calls.append(args)
        return real(*args, **options)

    monkeypatch.setattr(reference, "embed_norm", noted)
    embeddings = stock.base_model.embeddings
    with torch.no_grad():
        embeddings.LayerNorm.weight.normal_()
        embeddings.LayerNorm.bias.normal_()
        if hasattr(embeddings, "token_type_ids"):  # which stand for types that nobody gives
            embeddings.token_type_ids[0, 3:9] = 1
    expected = stock_answers(stock)
    assert_close(answers(stock, "fused"), expected)
    assert calls
    assert "forward" not in vars(embeddings)
    assert_close(answers(stock, "stock"), expected)
    embeddings.register_forward_hook(lambda module, args, out: 2 * out)
    calls.clear()
    assert_close(answers(stock, "fused"), stock_answers(stock))
    assert not calls


@pytest.mark.parametrize("change", ["max_norm", "subclass", "no bias", "another dtype"])
def test_embeddings_that_are_not_as_their_class_makes_them_are_called_themselves(change: str, by_kernels: None) -> None:
    embeddings = model_with("bert", "gelu").base_model.embeddings
    package = "transformers.models.bert"
    assert embedding.fused_embedding(embeddings, package) is not None
    assert embedding.fused_embedding(None, package) is None
    if change == "max_norm":
        embeddings.word_embeddings.max_norm = 1.0
    elif change == "subclass":
        embeddings.word_embeddings.__class__ = type("Own", (torch.nn.Embedding,), {})
    elif change == "no bias":
        embeddings.LayerNorm.bias = None
    else:
        embeddings.LayerNorm.half()
    assert embedding.fused_embedding(embeddings, package) is None


@pytest.mark.parametrize("family", ["bert", "albert", "distilbert"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_way_of_the_kernels_is_as_near_to_double_precision_as_stock_layers(
    family: str, activation: str, dtype: torch.dtype, by_kernels: None
) -> None:
    name = "activation" if family == "distilbert" else "hidden_act"
    model, rows = zoo.model_with_heads(family, **{name: activation}).to(dtype), zoo.rows(family, [7, 1, 12, 30, 5])
    batch, exact = pack(model, **rows), exact_heads(model, rows)
    allowed = max(TOLERANCES[dtype], 2 * distance(Engine(model, layers="stock").every_head(batch), exact))
    assert distance(Engine(model, layers="fused").every_head(batch), exact) <= allowed


@pytest.mark.parametrize("family", THREE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_within_its_tolerance(family: str, dtype: torch.dtype) -> None:
    stock = tiny_stock(family).to(dtype)
    assert_close(answers(stock, "fused"), answers(stock, "stock"), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_on_a_cpu_fused_layers_repeat_stock_ones_to_the_bit(activation: str, dtype: torch.dtype) -> None:
    stock = tiny_stock("bert", hidden_act=activation).to(dtype)
    assert torch.equal(answers(stock, "fused"), answers(stock, "stock"))


@pytest.mark.parametrize("groups", [{"num_hidden_groups": 1}, {"num_hidden_groups": 3}, {"inner_group_num": 2}])
def test_albert_groups_run_all_their_inner_layers(groups: dict[str, int], by_kernels: None) -> None:
    stock = tiny_stock("albert", **groups)
    expected = stock_answers(stock)
    for variant in ("stock", "fused"):
        assert_close(answers(stock, variant), expected)


@pytest.mark.parametrize("variant", ["stock", "fused"])
@pytest.mark.parametrize("family", THREE)
def test_chunked_feed_forward_layers_run_whole_and_stay_chunked_for_their_owner(family: str, variant: str) -> None:
    stock = tiny_stock(family, chunk_size_feed_forward=15)
    layer = Engine(stock).layers.modules[0]
    sizes = [getattr(module, "chunk_size_feed_forward", None) for module in layer.modules()]
    assert 15 in sizes
    expected = stock_answers(stock)
    assert_close(answers(stock, variant), expected)  # 67 tokens are no multiple of 15
    assert [getattr(module, "chunk_size_feed_forward", None) for module in layer.modules()] == sizes


def test_what_runs_is_chosen_by_the_table_and_said() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert variants.choose_layers(cpu, torch.float32) == ("fused", "measured")
    assert variants.choose_layers(cpu, torch.float64) == ("stock", "nothing faster is known for torch.float64 on cpu")
    assert variants.choose_layers(torch.device("mps"), torch.float16)[0] == "stock"
    assert variants.choose_layers(cuda, torch.bfloat16) == ("fused", "measured")
    assert Engine(tiny_stock("bert")).layers.describe() == "fused (measured)"
    assert Engine(tiny_stock("bert"), layers="stock").layers.describe() == "stock (asked for)"


@pytest.mark.parametrize("family", [variant for variant in zoo.VARIANTS if zoo.VARIANTS[variant][0] not in FUSED])
def test_families_of_other_layers_run_as_they_are(family: str) -> None:
    stock = zoo.stock_model(family)
    said = Engine(stock).layers.describe()
    passes = "; GELU by tanh in one pass" if stock.config.model_type == "gpt2" else ""
    assert said == f"stock ({stock.config.model_type} has no post-norm blocks){passes}"


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_fast", "gelu_accurate"])
def test_gelu_by_tanh_takes_one_pass_while_we_run_and_its_owners_way_otherwise(activation: str) -> None:
    stock = zoo.stock_model("gpt2", activation_function=activation)
    owners = stock.transformer.h[0].mlp.act
    expected, forward = stock_answers(stock), owners.forward
    runs = Engine(stock).layers
    with runs.turn(), runs.running():
        assert owners.forward.func is torch.nn.functional.gelu
    assert owners.forward == forward
    assert_close(answers(stock), expected)
    assert torch.equal(stock_answers(stock), expected)
    with torch.autocast("cpu", torch.bfloat16), runs.turn(), runs.running():
        assert owners.forward == forward
    asked_for = Engine(stock, layers="stock").layers
    assert asked_for.describe() == "stock (asked for)"
    with asked_for.turn(), asked_for.running():
        assert owners.forward == forward


def test_a_gelu_that_is_not_transformers_own_any_more_is_called_as_it_is() -> None:
    stock = zoo.stock_model("gpt2")
    calls = []
    for layer in stock.transformer.h:
        layer.mlp.act.register_forward_hook(lambda *_: calls.append(1))
    assert Engine(stock).layers.describe() == "stock (gpt2 has no post-norm blocks)"
    assert_close(answers(stock), stock_answers(stock))
    assert len(calls) == 2 * len(stock.transformer.h)


def test_a_family_of_ones_own_that_runs_its_layers_itself_is_not_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(type(FAMILIES["bert"])):  # type: ignore[misc]
        model_type = "mine"

        def run_layer(self, *args: Any) -> torch.Tensor:
            return 2 * super().run_layer(*args)

    stock = tiny_stock("bert")
    before = answers(stock)
    monkeypatch.setitem(FAMILIES, "bert", Mine())
    assert Engine(stock).layers.describe() == "stock (mine has no post-norm blocks)"
    assert (answers(stock) - before).abs().max() > 1e-3
    with pytest.raises(pf.UnsupportedError, match="mine has no post-norm blocks"):
        answers(stock, "fused")


def test_without_triton_a_gpu_runs_stock_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_triton_kernels", lambda: None)
    assert variants.choose_layers(torch.device("cuda"), torch.bfloat16) == ("stock", "Triton cannot be imported")


def test_a_variant_of_another_name_is_refused() -> None:
    with pytest.raises(pf.InputError, match="layers='fast': give one of stock, fused, or None"):
        Engine(tiny_stock("bert"), layers="fast")


@pytest.mark.parametrize("way", ["plain", "kernels"])
def test_fused_layers_hold_less_memory_than_stock_ones(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "kernels":  # which work in place
        served = {"add_norm": lambda product, *args, **options: product}
        served["bias_act"] = served["add_norm"]
        real = ops._kernel
        monkeypatch.setattr(ops, "_kernel", lambda name, tensor: served.get(name) or real(name, tensor))
        monkeypatch.setattr(block, "JOINED", {"cpu"})
    stock = tiny_stock("bert", hidden_size=64, intermediate_size=256, num_hidden_layers=2)
    tokens, hidden_bytes = 400, 400 * 64 * 4
    layout = Layout(torch.tensor([0, 150, 400], dtype=torch.int32), 250)
    peaks = {}
    for variant in ("stock", "fused"):
        runs = layers.Layers(stock, FAMILIES["bert"], variant)
        with runs.turn(), runs.running():
            peaks[variant] = peak_bytes(lambda runs=runs: runs(1, torch.randn(tokens, 64), layout, {}))
    assert peaks["fused"] < peaks["stock"]
    # What entered, what attention gave, the inner product of four times the width, and the outer one; torch's own norm
    # writes its result beside that.
    assert peaks["fused"] <= (7.1 if way == "kernels" else 8.1) * hidden_bytes
    assert peaks["stock"] >= 10 * hidden_bytes, "the test could not fail"
