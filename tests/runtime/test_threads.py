"""Threads that share a model: each gets its own answers, and the model is as it was afterwards."""

import copy
import threading
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import pabee_fast as pf
from tests import zoo

LENGTHS = [7, 1, 12, 30, 12, 5]


@pytest.mark.parametrize("shared", ["the model", "one layer"])
@pytest.mark.parametrize("variant", ["bert", "modernbert", "gpt2"])
def test_a_call_that_outlasts_another_answers_as_it_would_alone(variant: str, shared: str) -> None:
    model, batch = zoo.stock_model(variant), zoo.rows(variant, LENGTHS)
    attention = model.config._attn_implementation
    layers: Any = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    other = model
    if shared == "one layer":
        other = copy.deepcopy(model)
        next(module for module in other.modules() if isinstance(module, nn.ModuleList))[1] = layers[1]
    with torch.no_grad():
        stock = model(**batch).logits
    for each in (model, other):
        pf.accelerate(each, pf.FullDepth())
    inside, left = {"first": threading.Event(), "second": threading.Event()}, threading.Event()

    def hook(*_: object) -> None:
        name = threading.current_thread().name
        if name in inside:
            inside[name].set()
            # Without a turn for each, the second is inside beside the first, and still there when that one leaves.
            (inside["second"] if name == "first" else left).wait(timeout=0.5)

    layers[1].register_forward_pre_hook(hook)
    expected, answers = model(**batch).logits, {}

    def call(which: PreTrainedModel) -> None:
        answers[threading.current_thread().name] = which(**batch).logits

    first = threading.Thread(target=call, args=(model,), name="first")
    second = threading.Thread(target=call, args=(other,), name="second")
    first.start()
    inside["first"].wait()
    second.start()
    first.join()
    left.set()
    second.join()
    assert torch.equal(answers["first"], expected)
    assert torch.equal(answers["second"], expected)
    assert {model.config._attn_implementation, other.config._attn_implementation} == {attention}
    with torch.no_grad():
        assert torch.equal(pf.restore(model)(**batch).logits, stock)
