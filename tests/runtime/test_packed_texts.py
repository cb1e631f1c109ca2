"""Several texts in one row, told apart by positions that start anew: as transformers takes them."""

import copy
from typing import Any

import pytest
import torch

import pabee_fast as pf
from tests import zoo
from tests.tolerances import assert_close

DECODERS = ["gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma"]
OTHERS = [v for v in zoo.VARIANTS if v not in DECODERS and not zoo.is_vision(v)]
PLACES = torch.tensor([[*range(9), *range(5), *range(12)], [*range(4), *range(3, 17), *range(8)]])
"""Two rows of three texts, one of which does not start at 0."""


def texts(variant: str) -> dict[str, torch.Tensor]:
    batch = zoo.rows(variant, [26, 22])  # padding at the end of the second row
    return {"input_ids": batch["input_ids"], "position_ids": PLACES + (2 if zoo.VARIANTS[variant][0] == "mpnet" else 0)}


def both(model: Any, **call: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the stock model answers, and the accelerated one."""
    with torch.no_grad():
        stock = model(**call).logits
    return stock, pf.accelerate(copy.deepcopy(model), pf.FullDepth())(**call).logits


@pytest.mark.parametrize("variant", DECODERS)
def test_without_a_cache_a_decoder_answers_for_the_last_text(variant: str) -> None:
    model, batch = zoo.stock_model(variant), texts(variant)
    stock, ours = both(model, **batch, use_cache=False)
    assert_close(ours, stock)
    one_row = {"input_ids": batch["input_ids"], "position_ids": PLACES[:1]}
    stock, ours = both(model, **one_row, use_cache=False)
    assert_close(ours, stock)
    alone = model(input_ids=batch["input_ids"][:1, 14:]).logits
    assert_close(ours[:1], alone)
    model.config.use_cache = False
    stock, without = both(model, **one_row)
    assert_close(without, stock)
    assert torch.equal(without, ours)


@pytest.mark.parametrize("variant", DECODERS)
@pytest.mark.parametrize("how", ["with a cache", "with a mask"])
def test_otherwise_a_decoder_reads_the_row_as_one_text(variant: str, how: str) -> None:
    model, batch = zoo.stock_model(variant), texts(variant)
    apart = both(model, **batch, use_cache=False)[1]
    call: dict[str, Any] = {} if how == "with a cache" else {"use_cache": False, "attention_mask": torch.ones(2, 26)}
    stock, ours = both(model, **batch, **call)
    assert_close(ours, stock)
    assert (ours - apart).abs().max() > 1e-2, "the test could not fail"


@pytest.mark.parametrize("variant", OTHERS)
def test_an_encoder_reads_the_row_as_one_text(variant: str) -> None:
    stock, ours = both(zoo.stock_model(variant), **texts(variant))
    assert_close(ours, stock)


@pytest.mark.parametrize("name", ["cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "seq_idx"])
def test_other_marks_of_where_texts_end_are_refused_by_name(name: str) -> None:
    model = pf.accelerate(zoo.stock_model("llama"), pf.FullDepth())
    with pytest.raises(pf.UnsupportedError, match=f"{name}: early exit packs rows itself"):
        model(**texts("llama"), **{name: torch.tensor([0, 9, 14, 26])})
