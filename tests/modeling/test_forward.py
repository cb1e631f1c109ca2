"""The drop-in: a model after `pf.accelerate` is the model its owner knows, and what it cannot do it says."""

import copy
import inspect
import pickle
import warnings
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForTokenClassification, GPTNeoConfig, GPTNeoForSequenceClassification, pipeline
from transformers.modeling_outputs import SequenceClassifierOutput

import pabee_fast as pf
from tests.conftest import FAMILIES, padded_rows, tiny_model, tiny_stock
from tests.tolerances import assert_close

LENGTHS = [7, 1, 12, 30, 12, 5]


def full_depth_pair(family: str, **options: Any) -> tuple[Any, Any]:
    """A stock model, and a copy of it that runs its full depth packed."""
    stock = tiny_stock(family, **options)
    return stock, pf.accelerate(copy.deepcopy(stock), pf.FullDepth())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mask", ["right padding", "no mask", "left padding", "holes", "first token hidden"])
def test_masks_mean_what_they_mean_to_stock_transformers(family: str, mask: str) -> None:
    stock, ours = full_depth_pair(family)
    batch = padded_rows(LENGTHS, family=family)
    if mask == "no mask":
        del batch["attention_mask"]
    elif mask == "left padding":
        batch = {name: values.flip(1) for name, values in batch.items()}
    elif mask == "holes":
        batch["attention_mask"][3, [2, 9, 10]] = 0
        batch["attention_mask"][0, 3] = 0
    elif mask == "first token hidden":
        batch["attention_mask"][3, 0] = 0
    with torch.no_grad():
        assert_close(ours(**batch).logits, stock(**batch).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_that_is_all_padding_is_refused_by_number(family: str) -> None:
    _, ours = full_depth_pair(family)
    batch = padded_rows(LENGTHS, family=family)
    batch["attention_mask"][4] = 0
    with pytest.raises(pf.InputError, match="row 4"):
        ours(**batch)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("given", ["token_type_ids", "position_ids", "inputs_embeds"])
def test_other_inputs_mean_what_they_mean_to_stock_transformers(family: str, given: str) -> None:
    stock, ours = full_depth_pair(family, type_vocab_size=2)
    batch = padded_rows(LENGTHS, family=family)
    rows, longest = batch["input_ids"].shape
    if given == "token_type_ids":
        batch[given] = (torch.arange(longest) > 3).long().expand(rows, longest)
    elif given == "position_ids":
        batch[given] = torch.arange(longest).flip(0)[None] + 2
    else:
        batch[given] = stock.get_input_embeddings()(batch.pop("input_ids")).detach()
    with torch.no_grad():
        assert_close(ours(**batch).logits, stock(**batch).logits)


def test_the_last_state_of_a_mask_of_booleans_or_floats_is_the_same() -> None:
    _, ours = full_depth_pair("bert")
    batch = padded_rows(LENGTHS)
    expected = ours(**batch).logits
    for dtype in (torch.bool, torch.float32, torch.int32):
        assert torch.equal(ours(batch["input_ids"], batch["attention_mask"].to(dtype)).logits, expected)


def test_the_output_is_a_sequence_classifiers_with_exit_layers() -> None:
    model = pf.accelerate(tiny_model("bert"), pf.Patience(1))
    batch = padded_rows(LENGTHS)
    out = model(**batch)
    assert isinstance(out, SequenceClassifierOutput)
    assert out.exit_layers.dtype == torch.int64
    assert out.exit_layers.shape == (len(LENGTHS),)
    assert out.exit_layers.min() < 6
    logits, exit_layers = model(**batch, return_dict=False)
    assert torch.equal(logits, out.logits)
    assert torch.equal(exit_layers, out.exit_layers)


@pytest.mark.parametrize(
    "options", [{"num_labels": 3}, {"num_labels": 1}, {"problem_type": "multi_label_classification"}]
)
def test_labels_give_the_loss_of_the_returned_logits(options: dict[str, Any]) -> None:
    model = tiny_model("bert", **options)
    policy = pf.Patience(1, threshold=0.5 if model.config.num_labels == 1 else None)
    classes = model.config.num_labels
    labels = {1: torch.randn(6)}.get(classes, torch.arange(6) % 3)
    if options.get("problem_type"):
        labels = torch.randint(0, 2, (6, classes)).float()
    out = pf.accelerate(model, policy)(**padded_rows(LENGTHS), labels=labels)
    if classes == 1:
        expected = torch.nn.functional.mse_loss(out.logits[:, 0], labels)
    elif options.get("problem_type"):
        expected = torch.nn.functional.binary_cross_entropy_with_logits(out.logits, labels)
    else:
        expected = torch.nn.functional.cross_entropy(out.logits, labels)
    assert torch.isclose(out.loss, expected)


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("with_heads", [True, False])
def test_copies_are_bound_to_themselves(make_copy: Any, with_heads: bool) -> None:
    model = tiny_model("bert") if with_heads else tiny_stock("bert")
    pf.accelerate(model, pf.Patience(1) if with_heads else pf.FullDepth())
    batch = padded_rows(LENGTHS)
    before = model(**batch)
    twin = make_copy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    after = twin(**batch)
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.exit_layers, before.exit_layers)
    pf.restore(model)
    assert "exit_layers" in twin(**batch), "restoring the original reached into the copy"


def test_the_signature_the_class_name_and_isinstance_stay() -> None:
    stock = tiny_stock("albert")
    signature, cls = inspect.signature(stock.forward), type(stock)
    model = pf.accelerate(stock, pf.FullDepth())
    assert inspect.signature(model.forward) == signature
    assert type(model).__name__ == cls.__name__
    assert isinstance(model, cls)


def test_restore_gives_the_original_back() -> None:
    stock = tiny_stock("bert")
    cls, batch = type(stock), padded_rows(LENGTHS)
    settings = stock.config.to_dict()
    expected = stock(**batch)
    model = pf.accelerate(stock, pf.FullDepth())
    assert model is stock
    assert pf.restore(model) is stock
    assert type(stock) is cls
    assert stock.config.to_dict() == settings
    assert stock.config._attn_implementation == "sdpa"
    assert torch.equal(stock(**batch, output_hidden_states=True).logits, expected.logits)
    assert pf.restore(stock) is stock


def test_restore_keeps_the_heads_of_a_model_that_has_them() -> None:
    model = tiny_model("bert")
    batch, heads = padded_rows(LENGTHS), model.exit_heads
    expected = model(**batch).logits
    pf.restore(pf.accelerate(model, pf.Patience(1)))
    assert model.exit_heads is heads
    assert torch.equal(model(**batch).logits, expected)


def test_accelerating_again_replaces_the_policy() -> None:
    model = pf.accelerate(tiny_model("bert"), pf.FixedDepth(2))
    assert set(model(**padded_rows(LENGTHS)).exit_layers.tolist()) == {2}
    pf.accelerate(model, pf.FixedDepth(3))
    assert set(model(**padded_rows(LENGTHS)).exit_layers.tolist()) == {3}


def test_scheduled_rows_leave_where_they_are_told_by_input_order() -> None:
    exits = (6, 2, 4, 1, 3, 2)
    model = pf.accelerate(tiny_model("albert"), pf.Scheduled(exits), token_budget=31)
    assert tuple(model(**padded_rows(LENGTHS)).exit_layers.tolist()) == exits
    with pytest.raises(ValueError, match="6 exit layers for 2 rows"):
        model(**padded_rows([3, 4]))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"output_attentions": True}, "output_attentions.*pf.restore"),
        ({"output_hidden_states": True}, "output_hidden_states.*pf.restore"),
        ({"cu_seq_lens_q": torch.tensor([0, 7])}, "cu_seq_lens_q.*leave it out"),
        ({"head_mask": torch.ones(6, 4)}, "head_mask"),
        ({"attention_mask": torch.ones(6, 30, 30)}, "three or four dimensions"),
        ({"attention_mask": torch.ones(6, 1, 30, 30)}, "three or four dimensions"),
        ({"input_ids": None}, "exactly one of input_ids and inputs_embeds"),
    ],
)
def test_what_early_exit_cannot_honour_raises_and_says_what_to_do(asked: dict[str, Any], says: str) -> None:
    model = pf.accelerate(tiny_model("bert"), pf.Patience(1))
    with pytest.raises(ValueError, match=says):
        model(**{**padded_rows(LENGTHS), **asked})


def test_asking_for_nothing_is_honoured() -> None:
    model = pf.accelerate(tiny_model("bert"), pf.Patience(1))
    batch = padded_rows(LENGTHS)
    out = model(**batch, output_attentions=False, output_hidden_states=None)
    assert torch.equal(out.logits, model(**batch).logits)


def test_training_mode_without_heads_raises_with_the_three_ways_out() -> None:
    model = pf.accelerate(tiny_stock("bert"), pf.FullDepth()).train()
    with pytest.raises(pf.UnsupportedError, match=r"model.eval\(\).*pf.restore.*pf.attach_heads"):
        model(**padded_rows(LENGTHS))


def test_a_policy_that_can_exit_needs_heads() -> None:
    for policy in (pf.Patience(2), pf.FixedDepth(2), pf.Scheduled((2,))):
        with pytest.raises(pf.InputError, match="has no heads"):
            pf.accelerate(tiny_stock("bert"), policy)


def test_a_useless_policy_warns_when_it_is_chosen_and_not_at_every_call() -> None:
    with pytest.warns(UserWarning, match="no row will leave early"):
        model = pf.accelerate(tiny_model("bert"), pf.Patience(6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(model(**padded_rows(LENGTHS)).exit_layers.tolist()) == {6}


def test_models_that_early_exit_does_not_serve_are_refused() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    gpt_neo = GPTNeoConfig(hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global"], 2]])
    with pytest.raises(pf.UnsupportedError, match=r"'gpt_neo'.*bert, albert, roberta.*examples/custom_family.py"):
        pf.accelerate(GPTNeoForSequenceClassification(gpt_neo), pf.FullDepth())
    with pytest.raises(pf.UnsupportedError, match="AutoModelForSequenceClassification"):
        pf.accelerate(BertForTokenClassification(BertConfig(**sizes)), pf.FullDepth())
    with pytest.raises(pf.UnsupportedError, match="is_decoder"):
        pf.accelerate(tiny_stock("bert", is_decoder=True), pf.FullDepth())
    with pytest.raises(pf.InputError, match="give a policy"):
        pf.accelerate(tiny_model("bert"), 6)  # type: ignore[arg-type]


def test_a_stock_forward_between_calls_runs_its_own_attention() -> None:
    model = pf.accelerate(tiny_model("bert"), pf.Patience(1))
    model(**padded_rows(LENGTHS))
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(pf.InputError):
        model(input_ids=None)
    assert model.config._attn_implementation == "sdpa"


def test_importing_registers_and_patches_nothing(run_python: Any) -> None:
    run_python(
        "import os, transformers\n"
        "before = dict(os.environ)\n"
        "forward = transformers.BertForSequenceClassification.forward\n"
        "import pabee_fast\n"
        "from transformers import AttentionInterface\n"
        "assert 'pabee_fast_packed' not in AttentionInterface().keys()\n"
        "assert transformers.BertForSequenceClassification.forward is forward\n"
        "assert dict(os.environ) == before\n"
        "import sys; assert 'triton' not in sys.modules or 'pabee_fast.kernels.exit_step' not in sys.modules\n"
        "import torch; assert not torch.cuda.is_initialized()\n"
    )


def test_the_pipeline_works_unchanged_text_pairs_included(tiny_tokenizer: Any) -> None:
    model = tiny_model("bert", vocab_size=len(tiny_tokenizer))
    texts = ["a good film", "bad", "what a long and good and bad film this is", "", "film"] * 3
    pairs = [{"text": "a good film", "text_pair": "bad"}, {"text": "bad", "text_pair": "a long film"}]
    expected = [pipeline("text-classification", model=model, tokenizer=tiny_tokenizer)(item) for item in (texts, pairs)]
    pf.accelerate(model, pf.FullDepth())
    classify = pipeline("text-classification", model=model, tokenizer=tiny_tokenizer, batch_size=64)
    for item, wanted in zip((texts, pairs), expected, strict=True):
        for got, want in zip(classify(item), wanted, strict=True):
            assert got["label"] == want["label"]
            assert got["score"] == pytest.approx(want["score"], rel=1e-5)
    pf.accelerate(model, pf.Patience(1))
    assert len(classify(texts)) == len(texts)
