"""Heads: attached to a live model, saved as a normal directory, loaded with what its config promises."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import pabee_fast as pf
from pabee_fast.models.heads import heads_of
from tests.conftest import FAMILIES, padded_rows, tiny_model, tiny_stock
from tests.tolerances import assert_close

LENGTHS = [5, 9, 2, 14]
MULTI_LABEL = "multi_label_classification"


@pytest.mark.parametrize("family", FAMILIES)
def test_full_depth_answers_are_untouched_by_attaching(family: str) -> None:
    stock = tiny_stock(family)
    batch = padded_rows(LENGTHS, family=family)
    expected = stock(**batch).logits
    model = pf.attach_heads(stock)
    assert model is stock
    assert torch.equal(model(**batch).logits, expected)
    heads = heads_of(model)
    assert len(heads) == model.config.num_hidden_layers
    assert heads[-1] in list(model.classifier.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_directory_is_a_normal_one(family: str, tmp_path: Path) -> None:
    model = pf.accelerate(tiny_model(family), pf.Patience(1))
    batch = padded_rows(LENGTHS, family=family)
    early = model(**batch)
    full = pf.restore(model)(**batch).logits
    model.save_pretrained(tmp_path)

    loaded = pf.from_pretrained(tmp_path, policy=pf.Patience(1))
    out = loaded(**batch)
    assert_close(out.logits, early.logits)  # the file's tensors lie at other addresses, and products round by these
    assert torch.equal(out.exit_layers, early.exit_layers)

    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert (
        type(stock).__name__
        == type(model).__name__
        == json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    )
    assert_close(stock(**batch).logits, full)


def test_an_accelerated_model_saves_what_its_plain_self_would(tmp_path: Path) -> None:
    model = pf.accelerate(tiny_model("bert"), pf.Patience(1))
    model.save_pretrained(tmp_path / "accelerated")
    pf.restore(model).save_pretrained(tmp_path / "plain")
    plain, accelerated = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "accelerated"))
    assert plain.keys() == accelerated.keys()
    configs = [(tmp_path / name / "config.json").read_text() for name in ("plain", "accelerated")]
    assert configs[0] == configs[1]
    assert pf.from_pretrained(tmp_path / "accelerated").exit_policy is None


def test_sharded_weights_load(tmp_path: Path) -> None:
    model = tiny_model("bert")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = pf.from_pretrained(tmp_path)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(heads_of(loaded), heads_of(model), strict=True))


@pytest.mark.parametrize(("saved", "loaded"), [("float32", "float16"), ("float16", "float32"), ("bfloat16", "float16")])
def test_precision_may_change_on_the_way(saved: str, loaded: str, tmp_path: Path) -> None:
    model = tiny_model("bert").to(getattr(torch, saved))
    model.save_pretrained(tmp_path)
    again = pf.from_pretrained(tmp_path, dtype=getattr(torch, loaded))
    assert again.exit_heads[0].weight.dtype == getattr(torch, loaded)
    assert torch.equal(again.exit_heads[0].weight, model.exit_heads[0].weight.to(getattr(torch, loaded)))


def test_a_stock_save_that_dropped_the_heads_is_an_error_that_says_so(tmp_path: Path) -> None:
    tiny_model("bert").save_pretrained(tmp_path)
    AutoModelForSequenceClassification.from_pretrained(tmp_path).save_pretrained(tmp_path / "stock")
    with pytest.raises(pf.CheckpointError, match=r"promises 10 head tensors and 10 are absent.*without pabee_fast"):
        pf.from_pretrained(tmp_path / "stock")


@pytest.mark.parametrize("break_it", ["another value", "another shape"])
def test_heads_that_are_not_the_configs_are_refused(break_it: str, tmp_path: Path) -> None:
    tiny_model("bert").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    head = tensors["exit_heads.2.weight"]
    tensors["exit_heads.2.weight"] = head + 1e-3 if break_it == "another value" else head[:, :-1].contiguous()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(pf.CheckpointError, match="not the ones its config describes"):
        pf.from_pretrained(tmp_path)


def test_a_directory_of_a_later_format_is_refused(tmp_path: Path) -> None:
    tiny_model("bert").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pabee_fast"] = {"format": 3}  # whose keys this version does not know
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(pf.CheckpointError, match="format 3"):
        pf.from_pretrained(tmp_path)


def test_a_directory_without_heads_says_how_to_add_them(tmp_path: Path) -> None:
    tiny_stock("bert").save_pretrained(tmp_path)
    with pytest.raises(pf.CheckpointError, match="attach_heads"):
        pf.from_pretrained(tmp_path)


def test_remote_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(pf.InputError, match="trust_remote_code"):
        pf.from_pretrained(tmp_path, trust_remote_code=True)


def test_settings_of_the_config_may_be_given_in_loading_as_to_transformers(tmp_path: Path) -> None:
    tiny_model("bert").save_pretrained(tmp_path)
    given = {"problem_type": "multi_label_classification", "hidden_dropout_prob": 0.3, "dtype": torch.bfloat16}
    model = pf.from_pretrained(tmp_path, **given)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path, **given)
    assert (model.config.problem_type, model.bert.embeddings.dropout.p) == ("multi_label_classification", 0.3)
    assert model.dtype == stock.dtype == torch.bfloat16
    batch = padded_rows([3, 8])
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, stock.eval()(**batch).logits)
    model.save_pretrained(tmp_path / "half")
    assert pf.from_pretrained(tmp_path / "half", dtype="auto", problem_type=None).dtype == torch.bfloat16


@pytest.mark.parametrize("given", [{"num_hidden_layers": 8}, {"num_hidden_layers": 4}, {"num_labels": 5}])
def test_settings_that_the_heads_do_not_fit_are_refused(given: dict[str, int], tmp_path: Path) -> None:
    tiny_model("bert").save_pretrained(tmp_path)
    with pytest.raises(pf.CheckpointError, match="its heads are of 6 layers and 3 labels"):
        pf.from_pretrained(tmp_path, **given)


def test_heads_are_attached_once_and_of_a_known_kind() -> None:
    with pytest.raises(pf.InputError, match="has heads already"):
        pf.attach_heads(tiny_model("bert"))
    for asked, says in (
        ({"head": "mlp"}, "'pabee', 'own-pooler' or 'linear'"),
        ({"pooling": "max"}, "'first', 'last' or 'mean'"),
        ({"first_layer": 0}, "first_layer=0"),
        ({"first_layer": 7}, "6 layers"),
    ):
        with pytest.raises(pf.InputError, match=says):
            pf.attach_heads(tiny_stock("bert"), **asked)


def test_attached_heads_follow_the_models_precision_and_mode() -> None:
    model = pf.attach_heads(tiny_stock("bert").to(torch.bfloat16))
    assert {p.dtype for p in model.exit_heads.parameters()} == {torch.bfloat16}
    assert not model.exit_heads.training


def test_several_regression_outputs_are_refused() -> None:
    model = tiny_model("bert", problem_type="regression")
    with pytest.raises(pf.UnsupportedError, match="one output"):
        pf.accelerate(model, pf.Patience(2))


@pytest.mark.parametrize("options", [{"num_labels": 1}, {"problem_type": MULTI_LABEL, "num_labels": 40}])
def test_values_and_label_sets_settle_by_their_own_meaning_of_the_same_answer(options: dict[str, Any]) -> None:
    model = tiny_model("bert", **options)
    batch = padded_rows([3, 8, 21, 5, 13, 30, 2, 9])
    with torch.no_grad():
        for head in (
            heads_of(model) if "problem_type" in options else []
        ):  # two labels of a set vary, the 38 others are always or never in it
            head.weight[2:] = 0
            head.bias[2:] = torch.where(torch.arange(2, options["num_labels"]) % 3 == 0, 1.0, -1.0)
    every = [pf.accelerate(model, pf.FixedDepth(layer))(**batch).logits for layer in range(1, 7)]
    threshold = 0.7 if options["num_labels"] == 1 else None
    out = pf.accelerate(model, pf.Patience(1, threshold=threshold))(**batch)
    for row, layer in enumerate(out.exit_layers.tolist()):
        same = [
            bool((b[row] - a[row]).abs() < threshold) if threshold else torch.equal(a[row] > 0, b[row] > 0)
            for a, b in itertools.pairwise(every)
        ]
        assert layer == (same.index(True) + 2 if True in same else 6)
    assert len(set(out.exit_layers.tolist())) > 1
