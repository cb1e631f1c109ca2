"""Tokenizers that give token_type_ids to every model: one without types passes them over, as transformers does."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import CrossEncoder
from torch import Tensor
from transformers import PreTrainedTokenizerFast, pipeline

import pabee_fast as pf
from examples.custom_family import Pocket, PocketConfig, PocketForSequenceClassification
from tests import zoo
from tests.tolerances import assert_close

PAIRS = [("a good film", text) for text in ("bad", "what a long and good and bad film this is", "the film", "film")]
TEXTS = [variant for variant in zoo.VARIANTS if not zoo.is_vision(variant)]
WITHOUT = [variant for variant in TEXTS if "token_type_ids" not in pf.models.FAMILIES[zoo.VARIANTS[variant][0]].inputs]


@pytest.fixture
def tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """One that gives token types, of which those of second texts are 1."""
    rules = type(tiny_tokenizer.backend_tokenizer).from_str(tiny_tokenizer.backend_tokenizer.to_str())
    return PreTrainedTokenizerFast(
        tokenizer_object=rules,
        pad_token="[PAD]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=tiny_tokenizer.model_max_length,
    )


def model_for(tokenizer: PreTrainedTokenizerFast, variant: str, **options: Any) -> Any:
    return zoo.stock_model(variant, vocab_size=len(tokenizer), type_vocab_size=2, **options)


@pytest.mark.parametrize("variant", TEXTS)
def test_pipelines_and_the_scorer_answer_as_before(variant: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model, pairs = model_for(tokenizer, variant), [{"text": first, "text_pair": second} for first, second in PAIRS]
    expected = pipeline("text-classification", model=model, tokenizer=tokenizer)(pairs)
    pf.accelerate(model, pf.FullDepth())
    got = pipeline("text-classification", model=model, tokenizer=tokenizer, batch_size=2)(pairs)
    scored = list(pf.Scorer(model, tokenizer).score(PAIRS))
    for want, piped, row in zip(expected, got, scored, strict=True):
        assert piped["label"] == row.prediction == want["label"]
        assert piped["score"] == pytest.approx(want["score"], rel=1e-4)


@pytest.mark.parametrize("variant", ["bert", *WITHOUT])
def test_a_cross_encoder_predicts_as_before(variant: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model_for(tokenizer, variant, num_labels=1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reranker = CrossEncoder(str(tmp_path), device="cpu")
    expected = reranker.predict(PAIRS)
    pf.accelerate(reranker.model, pf.FullDepth())
    assert reranker.predict(PAIRS) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("variant", WITHOUT)
def test_what_is_passed_over_is_said_once_a_model(variant: str, caplog: pytest.LogCaptureFixture) -> None:
    model, batch = zoo.stock_model(variant), zoo.rows(variant, [7, 3, 12])
    batch["token_type_ids"] = torch.ones_like(batch["input_ids"])
    with torch.no_grad():
        expected = model(**batch).logits
    caplog.set_level(logging.WARNING, "pabee_fast")
    pf.accelerate(model, pf.FullDepth())
    for _ in range(2):
        assert_close(model(**batch).logits, expected)
    said = [record.message for record in caplog.records if "token_type_ids" in record.message]
    assert said == [f"token_type_ids are passed over: {type(model).__name__} takes none"]


class TypedPocket(PocketForSequenceClassification):
    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None, **kwargs: Any) -> Any:
        return super().forward(input_ids if token_type_ids is None else input_ids + token_type_ids, **kwargs)


TypedPocket.__name__ = "TypedPocketForSequenceClassification"


def test_types_that_a_model_reads_and_its_family_does_not_know_of_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pf.models.FAMILIES, "pocket", Pocket())
    model, ids = TypedPocket(PocketConfig(num_labels=2)).eval(), torch.ones(2, 5).long()
    pf.accelerate(model, pf.FullDepth())
    with pytest.raises(pf.InputError, match=r"token_type_ids: TypedPocket\w+ takes input_ids, position_ids; leave it"):
        model(ids, token_type_ids=ids)
