"""The libraries around a model, each the real one: what works with an accelerated model, and what says why not."""

import copy
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import peft
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from sentence_transformers import CrossEncoder
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    ViTImageProcessor,
    pipeline,
)

import pabee_fast as pf
from tests import zoo
from tests.tolerances import TOLERANCES

TEXTS = ["a good film", "bad", "what a long and good and bad film this is", "the film", "film"] * 3
PAIRS = [("a good film", text) for text in TEXTS]
LENGTHS = [7, 1, 12, 30, 12, 5]


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert actual.dtype == expected.dtype
    assert (actual.float() - expected.float()).abs().max() <= tolerance * expected.float().abs().max()


@pytest.mark.parametrize("variant", ["distilbert", "deberta-v2", "gpt2", "llama"])
def test_text_pipelines_answer_as_before(variant: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = zoo.stock_model(variant, vocab_size=len(tiny_tokenizer))
    expected = pipeline("text-classification", model=model, tokenizer=tiny_tokenizer)(TEXTS)
    pf.accelerate(model, pf.FullDepth())
    classify = pipeline("text-classification", model=model, tokenizer=tiny_tokenizer, batch_size=4)
    for got, want in zip(classify(TEXTS), expected, strict=True):
        assert got["label"] == want["label"]
        assert got["score"] == pytest.approx(want["score"], rel=1e-4)


def test_image_pipelines_answer_as_before() -> None:
    model, processor = zoo.stock_model("vit"), ViTImageProcessor(size={"height": 12, "width": 12})
    noise = np.random.default_rng(0).integers(0, 255, (5, 20, 20, 3), dtype=np.uint8)
    images = [Image.fromarray(pixels) for pixels in noise]
    expected = pipeline("image-classification", model=model, image_processor=processor)(images)
    pf.accelerate(model, pf.FullDepth())
    got = pipeline("image-classification", model=model, image_processor=processor, batch_size=3)(images)
    assert [a[0]["label"] for a in got] == [a[0]["label"] for a in expected]
    assert [a[0]["score"] for a in got] == pytest.approx([a[0]["score"] for a in expected], rel=1e-4)


@pytest.mark.parametrize("variant", ["bert", "llama", "vit"])
def test_trainer_evaluates_and_predicts(variant: str, tmp_path: Path) -> None:
    model = pf.accelerate(zoo.model_with_heads(variant), pf.Patience(1))
    batch = zoo.rows(variant, LENGTHS)
    data = [{name: values[i] for name, values in batch.items()} | {"label": i % 2} for i in range(6)]
    options = TrainingArguments(str(tmp_path), per_device_eval_batch_size=4, use_cpu=True, report_to="none")
    trainer = Trainer(model, options)
    expected = model(**batch)
    predictions = trainer.predict(data).predictions
    assert_near(torch.from_numpy(predictions), expected.logits, TOLERANCES[torch.float32])
    loss = nn.functional.cross_entropy(expected.logits, torch.tensor([0, 1, 0, 1, 0, 1]))
    assert trainer.evaluate(data)["eval_loss"] == pytest.approx(float(loss), rel=1e-4)


@pytest.fixture
def cross_encoder(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> CrossEncoder:
    """Of a directory with heads, which sentence-transformers loads without them."""
    zoo.model_with_heads("bert", num_labels=1, vocab_size=len(tiny_tokenizer)).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    return CrossEncoder(str(tmp_path), device="cpu")


def test_a_cross_encoder_is_accelerated_as_it_is_and_restored(
    cross_encoder: CrossEncoder, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    full = cross_encoder.predict(PAIRS)
    assert pf.accelerate(cross_encoder, pf.FullDepth()) is cross_encoder
    assert cross_encoder.predict(PAIRS) == pytest.approx(full, rel=1e-5)

    pf.accelerate(cross_encoder, pf.Patience(2, threshold=1.0))
    early = cross_encoder.predict(PAIRS)
    tokens = tiny_tokenizer(*map(list, zip(*PAIRS, strict=True)), padding=True, return_tensors="pt")
    with torch.no_grad():
        out = pf.from_pretrained(cross_encoder.model.name_or_path, policy=pf.Patience(2, threshold=1.0))(**tokens)
    assert early == pytest.approx(out.logits[:, 0].sigmoid().numpy(), rel=1e-4)
    assert out.exit_layers.min() < 6
    assert spearmanr(full, early).statistic < 1, "the same order: it cannot be told from full depth"

    assert pf.restore(cross_encoder) is cross_encoder
    assert cross_encoder.predict(PAIRS) == pytest.approx(full, rel=1e-5)


def test_a_cross_encoder_without_heads_gets_some(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    zoo.stock_model("bert", num_labels=1, vocab_size=len(tiny_tokenizer)).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    reranker = CrossEncoder(str(tmp_path), device="cpu")
    with pytest.raises(pf.InputError, match="has no heads"):
        pf.accelerate(reranker, pf.Patience(2, threshold=1.0))
    assert pf.attach_heads(reranker) is reranker
    assert len(reranker.model.exit_heads) == 5
    pf.accelerate(reranker, pf.Patience(2, threshold=1.0))
    assert len(reranker.predict(PAIRS)) == len(PAIRS)


# Stock DeBERTa v1 fails under autocast: it fills bfloat16 scores with the least float32.
HALVES = [
    (variant, how)
    for variant in zoo.VARIANTS
    for how in ("autocast", "bfloat16", "float16")
    if (variant, how) != ("deberta", "autocast")
]


@pytest.mark.parametrize(("variant", "how"), HALVES)
def test_half_precision_stays_near_stock(variant: str, how: str) -> None:
    dtype = torch.float16 if how == "float16" else torch.bfloat16
    # Of the size that trained weights have: larger ones multiply rounding errors from layer to layer.
    stock = zoo.stock_model(variant, initializer_range=0.05)
    batch = zoo.rows(variant, LENGTHS)
    if how != "autocast":
        stock = stock.to(dtype)
        batch = {name: v.to(dtype) if v.is_floating_point() else v for name, v in batch.items()}
    ours = pf.accelerate(copy.deepcopy(stock), pf.FullDepth())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        got, expected = ours(**batch).logits, stock(**batch).logits
    assert_near(got.to(expected.dtype), expected, TOLERANCES[dtype])


@pytest.mark.parametrize("variant", ["bert", "llama"])
def test_a_compiled_model_answers_as_it_does_uncompiled(variant: str) -> None:
    model = pf.accelerate(zoo.model_with_heads(variant), pf.Patience(1))
    batch = zoo.rows(variant, LENGTHS)
    expected = model(**batch)
    out = torch.compile(model)(**batch)
    assert torch.equal(out.logits, expected.logits)
    assert torch.equal(out.exit_layers, expected.exit_layers)


def with_adapters(model: PreTrainedModel) -> peft.PeftModel:
    """LoRA on all layers and a classifier of its own, none of which leaves answers as they were."""
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear", modules_to_save=["classifier"])
    return disturbed(peft.get_peft_model(model, config).eval())


def disturbed(model: nn.Module) -> Any:
    """The same model: what adapters add begins as nothing, and is random now."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize(
    ("wrap", "says"),
    [
        (nn.DataParallel, "DataParallel or DDP; give the one inside"),
        (torch.compile, "torch.compile; give the one inside"),
        (with_adapters, r"PEFT; merge it first: model.merge_and_unload\(\)"),
    ],
)
def test_a_wrapped_model_is_refused_with_the_way_out(wrap: Any, says: str) -> None:
    with pytest.raises(pf.UnsupportedError, match=says):
        pf.accelerate(wrap(zoo.stock_model("bert")), pf.FullDepth())


@pytest.mark.parametrize("variant", ["bert", "roberta", "deberta-v2"])
def test_merged_adapters_answer_as_peft_does_and_unmerged_ones_where_the_classifier_stays_linear(variant: str) -> None:
    stock, batch = zoo.stock_model(variant), zoo.rows(variant, LENGTHS)
    with torch.no_grad():
        before = stock(**batch).logits
        adapted = with_adapters(stock)
        expected = adapted(**batch).logits
    assert (expected - before).abs().max() > 0.1, "the test could not fail"
    if variant != "roberta":  # whose classifier ends in a linear layer inside the module that peft replaces
        with pytest.raises(pf.UnsupportedError, match=r"ModulesToSaveWrapper.*merge_and_unload"):
            pf.accelerate(adapted.base_model.model, pf.FullDepth())
    else:
        inner = pf.accelerate(adapted.base_model.model, pf.FullDepth())
        assert_near(inner(**batch).logits, expected, TOLERANCES[torch.float32])
        pf.restore(inner)
    merged = pf.accelerate(adapted.merge_and_unload(), pf.FullDepth())
    assert_near(merged(**batch).logits, expected, TOLERANCES[torch.float32])


def test_adapters_that_transformers_adds_itself_are_run() -> None:
    model, batch = zoo.stock_model("bert"), zoo.rows("bert", LENGTHS)
    with torch.no_grad():
        before = model(**batch).logits
        model.add_adapter(peft.LoraConfig(r=2, target_modules=["query", "value"]))
        expected = disturbed(model).eval()(**batch).logits
    assert (expected - before).abs().max() > 0.1, "the test could not fail"
    assert_near(pf.accelerate(model, pf.FullDepth())(**batch).logits, expected, TOLERANCES[torch.float32])


def test_weights_that_are_elsewhere_or_no_floats_are_refused() -> None:
    with torch.device("meta"):
        empty = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert"))
    with pytest.raises(pf.UnsupportedError, match="meta device"):
        pf.accelerate(empty.eval(), pf.FullDepth())

    offloaded = accelerate.cpu_offload(zoo.stock_model("bert"), torch.device("cpu"))
    with pytest.raises(pf.UnsupportedError, match="dispatched by accelerate"):
        pf.accelerate(offloaded, pf.FullDepth())

    quantised = zoo.stock_model("bert")
    quantised.bert.encoder.layer[0].output.dense.weight = nn.Parameter(torch.zeros(32, 48).char(), requires_grad=False)
    with pytest.raises(pf.UnsupportedError, match=r"quantised in loading.*\(model.bert = torch.ao\S+quantize_dynamic"):
        pf.accelerate(quantised, pf.FullDepth())

    adapted = zoo.stock_model("bert")
    adapted.classifier = nn.Sequential(adapted.classifier)
    with pytest.raises(pf.UnsupportedError, match=r"the classifier is a torch\S+Sequential: .*merge"):
        pf.accelerate(adapted, pf.FullDepth())


@pytest.mark.parametrize(
    ("variant", "asked", "says"),
    [
        ("llama", {"use_cache": True}, "use_cache"),
        ("llama", {"past_key_values": ()}, "past_key_values"),
        ("gpt2", {"encoder_hidden_states": torch.zeros(6, 3, 32)}, "encoder_hidden_states"),
        ("electra", {"output_attentions": True}, "output_attentions"),
        ("vit", {"interpolate_pos_encoding": True}, "interpolate_pos_encoding"),
        ("vit", {"pixel_values": torch.zeros(2, 3, 16, 16)}, r"pixel_values is \[2, 3, 16, 16\].*3, 12, 12"),
        ("vit", {"pixel_values": None}, "pixel_values is missing"),
        ("vit", {"attention_mask": torch.ones(6, 10)}, "attention_mask: images"),
    ],
)
def test_arguments_of_other_uses_are_refused(variant: str, asked: dict[str, Any], says: str) -> None:
    model = pf.accelerate(zoo.stock_model(variant), pf.FullDepth())
    with pytest.raises(ValueError, match=says):
        model(**{**zoo.rows(variant, LENGTHS), **asked})


@pytest.mark.parametrize(
    ("variant", "options", "says"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "batch-mates"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ],
)
def test_variants_that_mean_something_else_when_packed_are_refused(
    variant: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(pf.UnsupportedError, match=says):
        pf.accelerate(zoo.stock_model(variant, **options), pf.FullDepth())


def test_decoders_without_a_padding_token_take_one_row_at_a_time() -> None:
    stock = zoo.stock_model("llama", pad_token_id=None)
    ours, batch = pf.accelerate(copy.deepcopy(stock), pf.FullDepth()), zoo.rows("llama", [9, 4])
    with pytest.raises(pf.InputError, match=r"model.config.pad_token_id = tokenizer.pad_token_id"):
        ours(**batch)
    alone = {name: values[:1] for name, values in batch.items()}
    with torch.no_grad():
        assert_near(ours(**alone).logits, stock(**alone).logits, TOLERANCES[torch.float32])


def test_a_decoder_reads_the_last_token_that_is_no_padding_whatever_the_mask_says() -> None:
    stock = zoo.stock_model("llama")
    ours, batch = pf.accelerate(copy.deepcopy(stock), pf.FullDepth()), zoo.rows("llama", [9, 4, 6])
    batch["input_ids"][0, 7:] = 0  # the padding token inside what the mask shows, as where padding and end are one
    batch["input_ids"][2] = 0
    with torch.no_grad():
        assert_near(ours(**batch).logits, stock(**batch).logits, TOLERANCES[torch.float32])


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_decoders_have_no_heads_over_the_first_token(pooling: str) -> None:
    model = zoo.stock_model("llama")
    if pooling == "first":
        with pytest.raises(pf.InputError, match="pooling='first'"):
            pf.attach_heads(model, pooling=pooling)
        return
    pf.attach_heads(model, "own-pooler", pooling=pooling)
    assert model.score.bias is None
    assert model.exit_heads[0].bias is not None


def test_registering_what_is_no_family_or_taken_is_refused() -> None:
    class Nameless(pf.Family):
        pass

    class Taken(pf.Family):
        model_type = "bert"

    for wrong, says in (
        (pf.Family, "custom_family.py"),
        (Nameless(), "model_type is empty"),
        (Taken(), "replace=True"),
    ):
        with pytest.raises(pf.InputError, match=says):
            pf.register_family(wrong)  # type: ignore[arg-type]
