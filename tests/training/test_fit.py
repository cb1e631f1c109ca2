"""Heads for a model that is fine-tuned already: what they learn, what stays as it was, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import pabee_fast as pf
from pabee_fast.models.head_kinds import KINDS, HeadSpec, read_padded
from pabee_fast.models.heads import spec_of
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.pack import pack
from pabee_fast.training import features as features_module
from pabee_fast.training.features import FeatureStore, run_once
from tests import zoo
from tests.conftest import FAMILIES, padded_rows, tiny_model, tiny_stock
from tests.tolerances import assert_close

WORDS = ["a", "and", "bad", "film", "good", "is", "long", "the", "this", "was", "what", "very", "not", "it"]
LENGTHS = [5, 9, 2, 14, 1, 9]


def made_texts(rows: int = 240, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(rows)]


def agreement(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[float]:
    """Of every head with the last, by the runtime."""
    answers = pf.trace(model, tokenizer, texts).logits.argmax(dim=2)
    return (answers == answers[-1]).float().mean(dim=1).tolist()


@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_what_the_heads_read(family: str, pooling: str) -> None:
    model, batch = tiny_stock(family), padded_rows(LENGTHS, family=family)
    batch["attention_mask"][3, :2] = 0
    engine = Engine(model, token_budget=20)
    packed = pack(model, **batch)
    with torch.no_grad():
        out = model(**batch, output_hidden_states=True)
    found, logits = engine.every_feature(packed, pooling, first_layer=2)
    expected = [read_padded(state, batch["attention_mask"], pooling) for state in out.hidden_states[2:-1]]
    assert_close(found, torch.stack(expected))
    assert_close(logits, out.logits)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_features_have_gone_through_the_norm_behind_the_last_layer(family: str) -> None:
    model = zoo.model_with_heads(family)
    engine, packed = Engine(model), pack(model, **zoo.rows(family, LENGTHS))
    features, logits = engine.every_feature(packed, "last")
    expected = engine.every_head(packed)
    for head, feature, asked in zip(engine.heads, features, expected, strict=False):
        assert_close(torch.nn.functional.linear(feature, head.linear.weight, head.linear.bias), asked)
    assert torch.equal(logits, expected[-1])


@pytest.mark.parametrize("head", KINDS)
def test_heads_learn_the_models_own_answers_and_nothing_else_changes(
    head: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model, batch = tiny_stock("bert"), padded_rows(LENGTHS)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    full = model(**batch).logits
    assert pf.fit(model, tiny_tokenizer, made_texts(), head=head, pooling="mean", first_layer=2) is model
    assert torch.equal(model(**batch).logits, full)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert spec_of(model) == HeadSpec(head, "mean", 2)
    unseen = agreement(model, tiny_tokenizer, made_texts(seed=1))
    untrained = agreement(pf.attach_heads(tiny_stock("bert"), head), tiny_tokenizer, made_texts(seed=1))
    assert unseen[-2] > 0.8
    assert sum(unseen[1:-1]) > sum(untrained[1:-1]) + 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_record_says_what_the_runtime_does(
    family: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model, texts = tiny_stock(family), made_texts()
    pf.fit(model, tiny_tokenizer, texts, held_out=0.5, seed=3)
    model.save_pretrained(tmp_path)
    found = pf.from_pretrained(tmp_path).config.pabee_fast["fit"]
    assert (found["rows"], found["labelled"], found["held_out"]) == (240, 0, 120)
    assert [head["layer"] for head in found["heads"]] == [1, 2, 3, 4, 5]
    assert all(0.05 <= head["temperature"] <= 20 for head in found["heads"])
    aside = torch.randperm(240, generator=torch.Generator().manual_seed(3))[:120].tolist()
    by_runtime = agreement(model, tiny_tokenizer, [texts[i] for i in aside])
    assert [head["agreement"] for head in found["heads"]] == pytest.approx(by_runtime[:-1], abs=1 / 120)


def test_scores_mean_the_same_at_every_layer(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = pf.fit(tiny_stock("bert"), tiny_tokenizer, made_texts(600), held_out=0.4)
    p = pf.trace(model, tiny_tokenizer, made_texts(600, seed=1)).logits.softmax(dim=2)
    for layer in (3, 4, 5):
        best = p[layer - 1].argmax(dim=1, keepdim=True)
        said, own = p[layer - 1].gather(1, best).mean(), p[-1].gather(1, best).mean()
        assert abs(said - own) < 0.06


def test_one_output_models_get_values_on_the_last_heads_scale(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_stock("bert", num_labels=1)
    with torch.no_grad():
        model.classifier.bias.add_(50.0)
    pf.fit(model, tiny_tokenizer, made_texts(600))
    values = pf.trace(model, tiny_tokenizer, made_texts(seed=1)).logits[:, :, 0]
    assert abs(values[4].mean() - values[5].mean()) < 0.2 * values[5].std()
    assert torch.corrcoef(values[[4, 5]])[0, 1] > 0.8
    for head in model.config.pabee_fast["fit"]["heads"]:
        assert head.keys() == {"layer", "scale", "shift", "difference"}
    pf.accelerate(model, pf.Patience(1, threshold=0.5))


def test_label_sets_learn_each_label(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_stock("bert", num_labels=4, problem_type="multi_label_classification")
    pf.fit(model, tiny_tokenizer, made_texts(), labels=[[0, 1, 0, 1]] + [None] * 239)
    logits = pf.trace(model, tiny_tokenizer, made_texts(seed=1)).logits
    assert ((logits[4] > 0) == (logits[5] > 0)).float().mean() > 0.85
    assert model.config.pabee_fast["fit"]["labelled"] == 1


def test_labels_are_learned_by_their_share(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    texts = made_texts(400)
    labels = [int("good" in text) for text in texts]
    accuracies = []
    for alpha in (0.0, 1.0):
        model = pf.fit(tiny_stock("bert", num_labels=2), tiny_tokenizer, texts, labels, alpha=alpha, first_layer=2)
        answers = pf.trace(model, tiny_tokenizer, texts).logits[1].argmax(dim=1)
        accuracies.append(float((answers == torch.tensor(labels)).float().mean()))
    assert accuracies[0] > accuracies[1] + 0.1


def test_heads_that_are_there_are_replaced(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("bert")
    pf.fit(model, tiny_tokenizer, made_texts(), head="own-pooler", first_layer=4)
    pf.fit(model, tiny_tokenizer, made_texts(), head="linear", pooling="first", first_layer=5)
    assert spec_of(model) == HeadSpec("linear", "first", 5)
    assert len(model.exit_heads) == 1
    again = pf.fit(tiny_stock("bert"), tiny_tokenizer, made_texts(), head="linear", pooling="first", first_layer=5)
    assert torch.equal(again.exit_heads[0].weight, model.exit_heads[0].weight)


def test_heads_follow_the_models_precision(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = pf.fit(tiny_stock("bert").to(torch.bfloat16), tiny_tokenizer, made_texts(), first_layer=5)
    assert {p.dtype for p in model.exit_heads.parameters()} == {torch.bfloat16}
    assert agreement(model, tiny_tokenizer, made_texts(seed=1))[4] > 0.8


def test_features_stay_on_disk_and_are_read_by_parts(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "PART_BYTES", 32 * 4 * 7)
    monkeypatch.setattr(features_module, "WINDOW_BYTES", 0)  # the least window, 64 rows
    seen: list[int] = []
    with FeatureStore(folder=tmp_path) as store:
        run_once(store, tiny_stock("bert"), tiny_tokenizer, made_texts(), pooling="mean", on_window=seen.append)
        assert seen == [64, 128, 192, 240]
        assert sum(file.stat().st_size for file in tmp_path.rglob("layer-*")) == 240 * 5 * 32 * 4
        parts = list(store.parts(3))
        assert {len(features) for _, features in parts} == {7, 2}
        whole = torch.cat([features for _, features in parts])
        assert torch.equal(store.take(3, torch.tensor([239, 0, 17])), whole[[239, 0, 17]])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rows": []}, r"0 row\(s\) to fit by"),
        ({"rows": ["one"]}, r"1 row\(s\) to fit by"),
        ({"rows": ["fine"] * 30 + [None]}, "row 30: the text is null"),
        ({"labels": [0, 1]}, "labels has 2 entries for 240 rows"),
        ({"labels": [0, 3] * 120}, "row 1: 3 is no class id; the model's are 0 to 2"),
        ({"labels": [0, -1] * 120}, "row 1: -1 is no class id"),
        ({"labels": [0.5] * 240}, "row 0: 0.5 is no class id"),
        ({"labels": 1}, "labels is a int: give a list, one for each row"),
        ({"onto": tiny_stock("bert", num_labels=2)}, "onto has 6 layers of 32 and 2 labels, and the model .* 3 labels"),
        ({"labels": [2] * 239 + [None]}, "all 2: heads need two classes"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"held_out": 0.0}, "held_out=0.0"),
        ({"held_out": 1}, "held_out=1"),
        ({"held_out": 0.97}, "leaves 7 of 240 rows to learn from"),
        ({"head": "mlp"}, "head='mlp'"),
        ({"first_layer": 7}, "6 layers"),
    ],
)
def test_what_cannot_be_fitted_is_refused_and_the_model_left_alone(
    given: dict[str, Any], says: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = tiny_stock("bert")
    with pytest.raises(pf.InputError, match=says):
        pf.fit(model, tiny_tokenizer, **{"rows": made_texts(), "folder": tmp_path, **given})
    assert not hasattr(model, "exit_heads")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "labels", "says"),
    [
        ({"num_labels": 1}, [0.5, float("inf")], "row 1: inf; give 1 finite"),
        ({"num_labels": 1}, [0.5, "good"], "row 1"),
        ({"problem_type": "multi_label_classification"}, [[0, 1, 0], [0, 1]], "row 1: .* give 3 finite"),
        ({"problem_type": "multi_label_classification"}, [[0, 1, 0.5]], "give 0 or 1 for each of the 3"),
    ],
)
def test_labels_that_do_not_fit_the_answers_are_refused(
    options: dict[str, Any], labels: list[Any], says: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(pf.InputError, match=says):
        pf.fit(tiny_stock("bert", **options), tiny_tokenizer, made_texts(len(labels)), labels)


@pytest.mark.parametrize("where", ["features after layer 2", "logits at full depth"])
def test_features_that_are_not_finite_name_row_and_layer(where: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model, texts = tiny_stock("bert"), ["the film"] * 100
    texts[77] = "good"
    with torch.no_grad():
        if where.startswith("logits"):
            model.classifier.bias[0] = float("inf")
            texts[0] = "good"
        else:
            model.bert.embeddings.word_embeddings.weight[9] = 1e30
    layer = where.replace("2", "1")
    row = 0 if where.startswith("logits") else 77
    with pytest.raises(pf.InputError, match=f"row {row}: the {layer} are not finite; leave such rows out"):
        pf.fit(model, tiny_tokenizer, texts)


def test_a_model_in_training_mode_is_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(pf.InputError, match=r"model.eval\(\)"):
        pf.fit(tiny_stock("bert").train(), tiny_tokenizer, made_texts())


def test_labels_may_be_booleans_and_nan_is_none(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    given: list[list[Any]] = [[1, 0, None] * 80, [True, False, float("nan")] * 80]
    fitted = [pf.fit(tiny_stock("bert"), tiny_tokenizer, made_texts(), labels) for labels in given]
    assert all(torch.equal(one, other) for one, other in zip(*(m.state_dict().values() for m in fitted), strict=True))
    assert fitted[1].config.pabee_fast["fit"]["labelled"] == 160
