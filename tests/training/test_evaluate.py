"""Metrics of every head, against values that are known."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertTokenizer, DataCollatorWithPadding

import pabee_fast as pf
from pabee_fast.training.evaluate import evaluate_layers, score


def test_accuracy_of_labels_takes_the_lowest_of_equal_logits() -> None:
    logits = torch.tensor([[[1.0, 1.0], [0.0, 2.0]], [[0.0, 1.0], [3.0, 2.0]]])  # [layers, rows, classes]
    [accuracy] = score(logits, torch.tensor([0, 1]), "label")
    assert accuracy.by_layer == (1.0, 0.0)


def test_a_label_set_is_right_only_as_a_whole() -> None:
    logits = torch.tensor([[[1.0, -1.0], [2.0, 2.0]], [[1.0, 1.0], [0.5, 2.0]]])
    [accuracy] = score(logits, torch.tensor([[1.0, 0.0], [1.0, 1.0]]), "label_set")
    assert accuracy.by_layer == (1.0, 0.5)


def test_values_are_judged_by_squared_error_and_correlation() -> None:
    logits = torch.tensor([[[1.0], [2.0], [3.0]], [[-2.0], [-4.0], [-6.0]]])
    error, pearson = score(logits, torch.tensor([1.0, 2.0, 3.0]), "value")
    assert error.by_layer == pytest.approx((0.0, (9 + 36 + 81) / 3))
    assert pearson.by_layer == pytest.approx((1.0, -1.0))


def test_every_layer_agrees_with_a_model_cut_off_there(
    tiny_config: Callable[..., Any], tokenizer: BertTokenizer
) -> None:
    torch.manual_seed(0)
    model = pf.attach_heads(AutoModelForSequenceClassification.from_config(tiny_config(num_labels=2))).train()
    texts = ["a good film", "dull", "it is a very bad film", "fine film", "a", "bad"]
    rows = [{"input_ids": ids, "labels": i % 2} for i, ids in enumerate(tokenizer(texts)["input_ids"])]
    [accuracy] = evaluate_layers(model, rows, DataCollatorWithPadding(tokenizer), batch_size=4)
    assert model.training
    model.eval()
    for layer in (1, 2, 3):
        pf.accelerate(model, pf.FixedDepth(layer))
        out = model(**tokenizer(texts, padding=True, return_tensors="pt"))
        right = [int(answer) == i % 2 for i, answer in enumerate(out.logits.argmax(-1))]
        assert accuracy.by_layer[layer - 1] == pytest.approx(sum(right) / 6)
