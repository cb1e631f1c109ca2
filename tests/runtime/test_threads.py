"""Threads that share a model: each gets its own answers, and the model is as it was afterwards."""

import threading

import pytest
import torch

import pabee_fast as pf
from tests import zoo

LENGTHS = [7, 1, 12, 30, 12, 5]


@pytest.mark.parametrize("variant", ["bert", "modernbert", "gpt2"])
def test_a_call_that_outlasts_another_answers_as_it_would_alone(variant: str) -> None:
    model, batch = zoo.stock_model(variant), zoo.rows(variant, LENGTHS)
    attention = model.config._attn_implementation
    with torch.no_grad():
        stock = model(**batch).logits
    pf.accelerate(model, pf.FullDepth())
    inside, left = {"first": threading.Event(), "second": threading.Event()}, threading.Event()

    def hook(*_: object) -> None:
        name = threading.current_thread().name
        if name in inside:
            inside[name].set()
            # Without a turn for each, the second is inside beside the first, and still there when that one leaves.
            (inside["second"] if name == "first" else left).wait(timeout=0.5)

    layer = model.transformer.h[1] if variant == "gpt2" else pf.models.family_of(model).layers(model)[1]
    layer.register_forward_pre_hook(hook)
    expected, answers = model(**batch).logits, {}

    def call() -> None:
        answers[threading.current_thread().name] = model(**batch).logits

    first, second = threading.Thread(target=call, name="first"), threading.Thread(target=call, name="second")
    first.start()
    inside["first"].wait()
    second.start()
    first.join()
    left.set()
    second.join()
    assert torch.equal(answers["first"], expected)
    assert torch.equal(answers["second"], expected)
    assert model.config._attn_implementation == attention
    with torch.no_grad():
        assert torch.equal(pf.restore(model)(**batch).logits, stock)
