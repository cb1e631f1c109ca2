"""Fine-tuning for the evaluation: it can be cut, its batches, its precision, its teacher."""

from pathlib import Path

import numpy as np
import pytest
import torch

import pabee_fast as pf
from experiments.glue import models as glue_models
from experiments.glue import tasks as glue_tasks
from experiments.glue import train as glue_train
from experiments.glue.tasks import TASKS
from pabee_fast.scoring.teacher import full_depth_logits


def test_training_that_was_cut_ends_with_the_same_weights(
    encoder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, split = glue_models.load_tokenizer(encoder), glue_tasks.read_split(data, TASKS["sst2"], "train")
    recipe = glue_train.Recipe(epochs=3, batch_size=32)

    def train(checkpoint: Path | None) -> dict[str, torch.Tensor]:
        model = glue_models.new_classifier(encoder, TASKS["sst2"], 1, 0, {})
        return glue_train.finetune(model, tokenizer, split, recipe, checkpoint=checkpoint).state_dict()

    whole, save = train(None), glue_train._save

    def save_and_stop(path: Path, epochs: int, *state: object) -> None:
        save(path, epochs, *state)
        raise KeyboardInterrupt

    monkeypatch.setattr(glue_train, "_save", save_and_stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut")
    again = train(tmp_path / "cut")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "dtype"),
    [(True, False, "bfloat16"), (False, True, "bfloat16"), (False, False, "float32")],
)
def test_a_cpu_trains_in_bfloat16_only_where_it_multiplies_it_in_hardware(
    avx512_bf16: bool, amx: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert glue_train.choose_training_dtype(torch.device("cpu")) == dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_training_multiplies_in_the_dtype_of_its_recipe(dtype: str, encoder: Path, data: Path) -> None:
    tokenizer, split = glue_models.load_tokenizer(encoder), glue_tasks.read_split(data, TASKS["sst2"], "train")
    model, seen = glue_models.new_classifier(encoder, TASKS["sst2"], 1, 0, {}), set()
    model.bert.encoder.layer[0].intermediate.dense.register_forward_hook(lambda *call: seen.add(call[2].dtype))
    trained = glue_train.finetune(model, tokenizer, split, glue_train.Recipe(epochs=1, dtype=dtype))
    assert seen == {getattr(torch, dtype)}
    assert {weight.dtype for weight in trained.parameters()} == {torch.float32}


def test_batches_hold_every_row_once_and_rows_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, size=1_000)
    batches = glue_train.length_grouped(lengths, 8, np.random.default_rng(0))
    assert sorted(np.concatenate(batches)) == list(range(1_000))
    padding = sum(len(batch) * lengths[batch].max() for batch in batches) / lengths.sum() - 1
    assert padding < 0.06


@pytest.mark.parametrize("heads", [None, "linear"])
def test_a_taught_model_learns_what_its_teacher_says(heads: str | None, encoder: Path, data: Path) -> None:
    tokenizer, split = glue_models.load_tokenizer(encoder), glue_tasks.read_split(data, TASKS["sst2"], "train")
    recipe = glue_train.Recipe(epochs=12, batch_size=16, learning_rate=2e-3)
    labels = torch.tensor([int(label) for label in split.labels])
    reversed_logits = 20.0 * torch.nn.functional.one_hot(1 - labels, 2)

    def share_right(teacher_logits: torch.Tensor | None) -> float:
        model = glue_models.new_classifier(encoder, TASKS["sst2"], 1, 0, {})
        if heads is not None:
            pf.attach_heads(model, heads, pooling="mean")
        glue_train.finetune(model, tokenizer, split, recipe, teacher_logits=teacher_logits)
        answers = full_depth_logits(model, tokenizer, split.rows, max_length=48).argmax(dim=1)
        return float((answers == labels).double().mean())

    assert share_right(None) > 0.8
    assert share_right(reversed_logits) < 0.2


@pytest.mark.parametrize("heads", [None, "linear"])
def test_rows_without_a_teacher_are_learned_by_their_labels(heads: str | None, encoder: Path, data: Path) -> None:
    tokenizer, split = glue_models.load_tokenizer(encoder), glue_tasks.read_split(data, TASKS["sst2"], "train")
    model = glue_models.new_classifier(encoder, TASKS["sst2"], 1, 0, {})
    if heads is not None:
        pf.attach_heads(model, heads, pooling="mean")
    recipe = glue_train.Recipe(epochs=12, batch_size=16, learning_rate=2e-3)
    glue_train.finetune(model, tokenizer, split, recipe, teacher_logits=torch.full((len(split), 2), torch.nan))
    answers = full_depth_logits(model, tokenizer, split.rows, max_length=48).argmax(dim=1)
    assert (answers == torch.tensor([int(label) for label in split.labels])).double().mean() > 0.8
