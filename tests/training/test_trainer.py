"""A model with heads in the stock transformers.Trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

import pabee_fast as pf
from pabee_fast.models.heads import heads_of

ROWS = [{"input_ids": [2, 5 + i % 4, 9 + i % 3, 3], "attention_mask": [1, 1, 1, 1], "labels": i % 2} for i in range(8)]


def make_model(config: Any) -> Any:
    torch.manual_seed(0)
    model = pf.attach_heads(AutoModelForSequenceClassification.from_config(config))
    for head in heads_of(model):  # far from zero, so that one step moves the whole model
        torch.nn.init.normal_(head.weight)
    return model


def make_trainer(model: Any, folder: Path, **arguments: Any) -> Trainer:
    fixed: dict[str, Any] = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    return Trainer(model, TrainingArguments(str(folder), **fixed, **arguments), train_dataset=ROWS, eval_dataset=ROWS)


def after_one_step(config: Any, folder: Path, batch_size: int, accumulate: int) -> dict[str, torch.Tensor]:
    model = make_model(config)
    make_trainer(
        model,
        folder,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulate,
        max_steps=1,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
    ).train()
    return model.state_dict()


def test_accumulated_batches_make_the_step_of_one_large_batch(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    start = make_model(tiny_config(num_labels=2)).state_dict()
    accumulated = after_one_step(tiny_config(num_labels=2), tmp_path, batch_size=2, accumulate=4)
    at_once = after_one_step(tiny_config(num_labels=2), tmp_path, batch_size=8, accumulate=1)
    assert max((at_once[name] - start[name]).abs().max().item() for name in start) > 1e-3
    for name in at_once:
        torch.testing.assert_close(accumulated[name], at_once[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("policy", [None, pf.Patience(1)], ids=["full depth", "early exit"])
def test_stock_trainer_trains_evaluates_and_predicts(
    tiny_config: Callable[..., Any], tmp_path: Path, policy: pf.Policy | None
) -> None:
    model = make_model(tiny_config(num_labels=2))
    if policy is not None:
        pf.accelerate(model, policy)
    trainer = make_trainer(model, tmp_path, max_steps=20, learning_rate=1e-2, per_device_train_batch_size=8)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    predictions = trainer.predict(ROWS).predictions
    assert isinstance(predictions, np.ndarray)
    assert predictions.shape == (len(ROWS), 2)
