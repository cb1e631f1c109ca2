"""A model directory is loaded whole and as it was saved, or refused before anything runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

import pabee_fast as pf
from pabee_fast.modeling.directory import read_config
from pabee_fast.modeling.load import load_classifier
from pabee_fast.models.heads import heads_of
from tests import zoo
from tests.conftest import SIZES, tiny_model, tiny_stock

Weights = dict[str, Tensor]
PLANTED = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
from transformers import BertConfig, BertForSequenceClassification
"""


def load(path: Path, **settings: Any) -> PreTrainedModel:
    config, rest = read_config(path)
    return load_classifier(path, config, **rest, **settings)


def change_weights(path: Path, change: Callable[[Weights], Any]) -> None:
    """`change` edits the tensors in place, or returns others."""
    weights = load_file(path / "model.safetensors")
    save_file(change(weights) or weights, path / "model.safetensors", {"format": "pt"})


def change_config(path: Path, **entries: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | entries))


@pytest.fixture(params=["stock", "with heads"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make = tiny_stock if request.param == "stock" else tiny_model
    make("bert", num_hidden_layers=3).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def stock(tmp_path: Path) -> Path:
    tiny_stock("bert", num_hidden_layers=3).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("variant", zoo.VARIANTS)
@pytest.mark.parametrize("heads", [False, True])
def test_what_every_family_saves_loads_whole_and_without_a_word(
    variant: str, heads: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = zoo.model_with_heads(variant) if heads else zoo.stock_model(variant)
    model.half().save_pretrained(tmp_path)
    loaded = load(tmp_path, dtype="auto", use_safetensors=True).state_dict()
    state = model.state_dict()
    assert state.keys() == loaded.keys() and all(torch.equal(state[name], loaded[name]) for name in state)
    assert not [record for record in caplog.records if record.name.startswith("pabee_fast")]


ABSENT = {
    "the classifier": ("classifier.", r"lacks classifier.bias, classifier.weight, .*`pabee-fast train`"),
    "a tensor of a layer": ("bert.encoder.layer.2.attention.self.query.weight", r"lacks bert.encoder.layer.2"),
    "the embeddings": ("bert.embeddings.", r"lacks bert.embeddings.LayerNorm.bias, .* and 2 more"),
}


@pytest.mark.parametrize("what", ABSENT)
def test_absent_weights_are_named_and_never_drawn_at_random(what: str, saved: Path) -> None:
    begins, says = ABSENT[what]
    change_weights(saved, lambda weights: {k: v for k, v in weights.items() if not k.startswith(begins)})
    with pytest.raises(pf.CheckpointError, match=says):
        load(saved)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
def test_the_prefix_that_a_wrapper_left_on_every_name_is_named(prefix: str, stock: Path) -> None:
    change_weights(stock, lambda weights: {prefix + k: v for k, v in weights.items()})
    with pytest.raises(pf.CheckpointError, match=rf"all stored names begin with '{prefix.split('.')[0]}\.'"):
        load(stock)


def test_a_weight_of_another_shape_is_named_with_both(saved: Path) -> None:
    change_weights(saved, lambda w: w.update({"bert.pooler.dense.bias": torch.zeros(5)}))
    with pytest.raises(pf.CheckpointError, match=r"bert.pooler.dense.bias is stored as \[5\], .* asks for \[32\]"):
        load(saved, ignore_mismatched_sizes=True)


def test_a_tensor_that_the_model_lacks_is_told_once_and_left_out(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    change_weights(saved, lambda weights: weights.update({"cls.predictions.bias": torch.zeros(5)}))
    load(saved)
    (told,) = [record.getMessage() for record in caplog.records]
    assert "holds cls.predictions.bias, which its model does not have" in told


def test_names_of_older_versions_are_no_absent_weights(stock: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = load(stock).state_dict()

    def age(weights: Weights) -> Weights:
        old = {k.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): v for k, v in weights.items()}
        return old | {"bert.embeddings.position_ids": torch.arange(SIZES["max_position_embeddings"])[None]}

    change_weights(stock, age)
    after = load(stock).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not caplog.records


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["bert.encoder.layer.1.attention.self.key.weight", "classifier.bias"])
def test_weights_that_are_not_finite_are_named(value: float, name: str, saved: Path) -> None:
    def spoil(weights: Weights) -> None:
        weights[name].flatten()[-1:].fill_(value)

    change_weights(saved, spoil)
    with pytest.raises(pf.CheckpointError, match=f"values of {name} are NaN or infinite in float32"):
        load(saved)


def test_a_published_checkpoint_with_a_value_that_is_not_finite_is_refused() -> None:
    model = tiny_model("bert")
    state = {name: value for name, value in model.state_dict().items() if name.startswith("bert.")}
    for layer, head in enumerate(heads_of(model)):
        state |= {f"classifiers.{layer}.{name}": value.detach().clone() for name, value in head.named_parameters()}
    pf.load_pabee_checkpoint(state, model.config)
    state["classifiers.2.bias"][0] = torch.nan
    with pytest.raises(pf.CheckpointError, match=r"values of exit_heads.2.bias are NaN"):
        pf.load_pabee_checkpoint(state, model.config)


def test_weights_whose_sum_overflows_are_finite_still(stock: Path) -> None:
    largest = torch.finfo(torch.float32).max
    change_weights(stock, lambda weights: weights.update({"classifier.bias": torch.full((3,), largest)}))
    assert load(stock).classifier.bias.tolist() == [largest] * 3


def test_weights_that_a_lower_precision_makes_infinite_are_named_with_it(stock: Path) -> None:
    change_weights(stock, lambda weights: weights.update({"classifier.bias": torch.full((3,), 1e6)}))
    with pytest.raises(pf.CheckpointError, match=r"classifier.bias are NaN or infinite in float16"):
        load(stock, dtype=torch.float16)


def test_a_bare_encoder_gets_a_new_classifier_where_that_is_asked_for_and_told(
    stock: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = tmp_path / "encoder"
    AutoModel.from_pretrained(stock).save_pretrained(encoder)
    caplog.clear()
    load(encoder, new_classifier=True)
    (told,) = [record.getMessage() for record in caplog.records]
    assert "classifier.bias, classifier.weight are new, and untrained" in told
    with pytest.raises(pf.CheckpointError, match=r"lacks classifier.bias"):
        load(encoder)
    change_weights(
        encoder, lambda weights: {k: v for k, v in weights.items() if k != "encoder.layer.1.output.dense.bias"}
    )
    with pytest.raises(pf.CheckpointError, match=r"lacks bert.encoder.layer.1.output.dense.bias, and"):
        load(encoder, new_classifier=True)


HUGE = {
    "num_labels": "num_labels=1,000,000,000, and its safetensors are .* tensors of at most 120 rows",
    "num_hidden_layers": "num_hidden_layers=1,000,000,000, and its safetensors are",
    "vocab_size": r"word_embeddings.weight \[1000000000, 32\]\), and its safetensors hold",
    "max_position_embeddings": r"position_embeddings.weight \[1000000000, 32\]",
    "intermediate_size": r"intermediate.dense.weight \[1000000000, 32\]",
    "hidden_size": r"weight \[1000000000, 1000000000\]",
}


@pytest.mark.parametrize("entry", HUGE)
def test_a_config_that_asks_for_far_more_than_is_stored_is_refused_before_memory_is_taken(
    entry: str, stock: Path
) -> None:
    change_config(stock, **{entry: 10**9})
    with pytest.raises((pf.CheckpointError, pf.InputError), match=HUGE[entry]):
        load(stock)


def test_layers_that_share_their_weights_may_be_more_than_the_tensors(tmp_path: Path) -> None:
    tiny_stock("albert", num_hidden_layers=60).save_pretrained(tmp_path)
    assert len(load_file(tmp_path / "model.safetensors")) < 60
    assert load(tmp_path).config.num_hidden_layers == 60


@pytest.fixture
def hub_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test where transformers would fetch attention."""
    for name in ("lazy_import_flash_attention", "lazy_import_paged_flash_attention"):
        monkeypatch.setattr(
            f"transformers.modeling_utils.{name}", lambda *_, **__: pytest.fail("fetched"), raising=False
        )


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("value", ["org/repo", "org/repo@main:function", "flash_attention_2", {"": "org/repo"}])
def test_attention_that_a_config_names_is_never_fetched(
    key: str, value: Any, saved: Path, hub_code: None, caplog: pytest.LogCaptureFixture
) -> None:
    change_config(saved, **{key: value})
    assert load(saved).config._attn_implementation in ("sdpa", "eager")
    (told,) = [record.getMessage() for record in caplog.records]
    assert "is ignored, since it may be code of the hub" in told


@pytest.mark.parametrize(
    "given", [{"attn_implementation": "org/repo"}, {"use_kernels": True}, {"allow_all_kernels": True}]
)
def test_settings_that_would_run_code_of_the_hub_are_refused(given: dict[str, Any], tmp_path: Path) -> None:
    tiny_model("bert").save_pretrained(tmp_path)
    (name,) = given
    with pytest.raises(pf.InputError, match=name):
        pf.from_pretrained(tmp_path, **given)


def test_code_beside_a_model_is_never_run_and_nobody_is_asked(stock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    (stock / "code.py").write_text(PLANTED)
    names = {
        "AutoConfig": "code.BertConfig",
        "AutoModelForSequenceClassification": "code.BertForSequenceClassification",
    }
    change_config(stock, auto_map=names)
    assert type(load(stock)).__module__.startswith("transformers.")
    change_config(stock, model_type="unheard_of")
    with pytest.raises(pf.InputError, match="custom code"):
        load(stock)
    assert not (stock / "ran").exists()


def test_an_adapter_beside_a_model_is_refused_rather_than_ignored_or_applied(saved: Path) -> None:
    (saved / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(pf.InputError, match=r"adapter_config.json.*merge_and_unload"):
        load(saved)


def test_one_file_of_weights_is_read_before_an_index_as_transformers_does(saved: Path) -> None:
    (saved / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    load(saved)
    shutil.move(saved / "model.safetensors", saved / "other.safetensors")
    with pytest.raises(pf.CheckpointError, match=r"holds no model-00001-of-00002.safetensors, which its index"):
        load(saved)
