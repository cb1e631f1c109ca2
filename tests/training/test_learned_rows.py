"""Which rows a model has learned from: what its config keeps of them, and what calibration makes of it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import pabee_fast as pf
from pabee_fast.calibration import learned_rows
from pabee_fast.calibration.known import Known
from pabee_fast.calibration.learned_rows import LEARNED, NOT_KNOWN, UNSEEN, LearnedRows
from pabee_fast.models.heads import BACKBONE
from pabee_fast.scoring.conditions import model_fingerprint
from tests.conftest import tiny_stock

WORDS = ["a", "and", "bad", "film", "good", "is", "long", "the", "very", "not"]
PLAIN = st.text("abc0", max_size=3)
ROWS = st.lists(PLAIN | st.tuples(PLAIN, PLAIN), max_size=40)


def sketch(rows: list[str | tuple[str, str]]) -> LearnedRows:
    learned = LearnedRows()
    learned.add(rows)
    return learned


def numbered(first: int, last: int) -> list[str]:
    """Texts, none of which is another, of words that the tiny tokenizer knows."""
    return [" ".join(WORDS[i // 10**digit % 10] for digit in range(5)) for i in range(first, last)]


@given(ROWS, ROWS)
def test_what_is_said_of_a_row_is_true_and_few_rows_are_all_known(rows: list, others: list) -> None:
    flags = sketch(rows).flags([*rows, *others])
    assert flags.tolist() == [LEARNED] * len(rows) + [LEARNED if row in rows else UNSEEN for row in others]


@given(ROWS, ROWS)
def test_the_sketch_of_all_rows_is_that_of_both_sketches(rows: list, others: list) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learned_rows, "MOST", 8)
        patch.setattr(learned_rows, "PART_ROWS", 5)
        one_after_the_other = sketch(rows)
        assert list(one_after_the_other.watch(others)) == others
        assert np.array_equal(one_after_the_other.hashes, sketch([*others, *rows]).hashes)
        assert len(one_after_the_other.hashes) == min(8, len({*rows, *others}))


def test_of_many_rows_a_uniform_share_is_known() -> None:
    learned = sketch(numbered(0, 20_000))
    assert len(learned.hashes) == learned_rows.MOST
    seen, unseen = learned.flags(numbered(0, 20_000)), learned.flags(numbered(20_000, 40_000))
    assert set(seen) == {NOT_KNOWN, LEARNED} and (seen == LEARNED).sum() == learned_rows.MOST
    assert set(unseen) == {NOT_KNOWN, UNSEEN}
    assert (unseen == UNSEEN).sum() == pytest.approx(learned_rows.MOST, rel=0.15)  # four standard deviations


def test_a_pair_is_told_from_another_of_the_same_letters() -> None:
    assert sketch([("a", "bc")]).flags([("ab", "c"), ("a", "bc"), "abc"]).tolist() == [UNSEEN, LEARNED, UNSEEN]


def test_case_and_white_space_make_no_other_row() -> None:
    assert sketch(["A  good Film"]).flags(["a good film ", "A\u00a0GOOD film", "agood film"]).tolist() == [1, 1, 0]


def known(model: PreTrainedModel, first: int, last: int) -> int:
    """Of these texts, those that a model's config says it has learned from; -1: it says nothing."""
    learned = LearnedRows.of(model.config)
    return -1 if learned is None else int((learned.flags(numbered(first, last)) == LEARNED).sum())


def test_what_heads_have_learned_from_goes_with_them(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = pf.fit(tiny_stock("bert"), tiny_tokenizer, numbered(0, 40))
    answers = model_fingerprint(model)
    model.save_pretrained(tmp_path)
    assert known(pf.from_pretrained(tmp_path), 0, 60) == 40
    pf.fit(model, tiny_tokenizer, numbered(40, 90))
    assert (known(model, 0, 40), known(model, 40, 90)) == (0, 50)
    forgetful = pf.fit(tiny_stock("bert"), tiny_tokenizer, numbered(0, 40), remember_rows=False)
    assert known(forgetful, 0, 60) == -1
    assert model_fingerprint(forgetful) == answers, "what is remembered is no part of what the model answers"
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert known(pf.attach_heads(stock), 0, 60) == -1


def test_what_a_backbone_has_learned_from_outlives_heads(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model, learned = pf.attach_heads(tiny_stock("bert")), LearnedRows()
    learned.add(numbered(100, 130))
    learned_rows.remember(model.config, BACKBONE, learned)
    model.save_pretrained(tmp_path)
    pf.fit(model, tiny_tokenizer, numbered(0, 40))
    assert (known(model, 0, 40), known(model, 100, 200)) == (40, 30)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert known(pf.attach_heads(stock), 0, 200) == 30
    pf.fit(model, tiny_tokenizer, numbered(0, 40), remember_rows=False)
    assert known(model, 0, 200) == -1, "rows that are not told of would pass as unseen"


def test_a_sketch_that_is_broken_is_said_to_be(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = pf.fit(tiny_stock("bert"), tiny_tokenizer, numbered(0, 40))
    for broken in ("abc", {"backbone": "abc"}, {"backbone": 3}):
        model.config.pabee_fast["learned_rows"] = broken
        with pytest.raises(pf.CheckpointError, match=r"learned_rows cannot be read .* remove it from config.json"):
            pf.trace(model, tiny_tokenizer, numbered(0, 3))


def test_a_trace_says_which_rows_the_model_knows_and_keeps_it(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    stock = tiny_stock("bert")
    model = pf.fit(stock, tiny_tokenizer, numbered(0, 40))
    made = pf.trace(model, tiny_tokenizer, numbered(30, 50), window=7)
    assert made.learned is not None
    assert made.learned.tolist() == [LEARNED] * 10 + [UNSEEN] * 10
    made.select(torch.tensor([0, 19])).save(tmp_path / "trace")
    back = pf.Trace.load(tmp_path / "trace").learned
    assert back is not None and back.tolist() == [LEARNED, UNSEEN]
    forgetful = pf.fit(stock, tiny_tokenizer, numbered(0, 40), remember_rows=False)
    assert pf.trace(forgetful, tiny_tokenizer, numbered(30, 50)).learned is None


def test_heads_agree_more_often_with_full_depth_on_rows_that_they_have_learned_from(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = pf.fit(tiny_stock("bert"), tiny_tokenizer, numbered(0, 60))

    def agreement(first: int, last: int) -> float:
        answers = pf.trace(model, tiny_tokenizer, numbered(first, last)).logits.argmax(dim=2)
        return float((answers[:-1] == answers[-1]).float().mean())

    assert agreement(0, 60) > agreement(60, 660) + 0.05


def test_no_promise_is_tested_on_rows_that_the_model_has_learned_from(
    tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    model = pf.fit(tiny_stock("bert"), tiny_tokenizer, numbered(0, 200))

    def looked_up(first: int, last: int, **options: Any) -> Known:
        rows = pf.trace(model, tiny_tokenizer, numbered(first, last))
        return pf.calibrate(rows, epsilon=0.3, delta=0.1, **options).known

    with pytest.raises(pf.InputError, match=r"has learned from 200 of 200 rows .* give rows that neither"):
        looked_up(0, 200)
    with pytest.raises(pf.InputError, match=r"has learned from 140 of 200"):
        looked_up(60, 260)
    with caplog.at_level(logging.WARNING, "pabee_fast"):
        assert looked_up(200, 400) == Known(200, 0)
        assert looked_up(190, 390) == Known(200, 10)
        assert not caplog.records, "some texts come often"
        assert looked_up(150, 350) == Known(200, 50)
        assert "has learned from 50 of 200 rows that could be looked up: they may be easier" in caplog.text
        assert looked_up(0, 200, allow_learned=True) == Known(200, 200)


def test_a_text_that_comes_often_counts_once_among_rows_that_are_known(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    often = numbered(7, 8) * 300
    model = pf.fit(tiny_stock("bert"), tiny_tokenizer, numbered(0, 50) + often)
    rows = pf.trace(model, tiny_tokenizer, numbered(100, 300) + often)
    assert pf.calibrate(rows, epsilon=0.4, delta=0.1).known == Known(201, 1)


def test_train_keeps_what_it_learned_from_unless_told_not_to(
    pabee_fast: Callable[..., int],
    table: Callable[..., Path],
    reviews: list[dict[str, Any]],
    encoder: Path,
    tmp_path: Path,
) -> None:
    words = ["train", table("train.csv", reviews), "--model", encoder, "--epochs", 1, "--max-length", 16]
    assert pabee_fast(*words, "--output", tmp_path / "known") == 0
    learned = LearnedRows.of(AutoConfig.from_pretrained(tmp_path / "known"))
    assert learned is not None
    assert learned.flags([*(row["text"] for row in reviews), "another"]).tolist() == [LEARNED] * len(reviews) + [UNSEEN]
    words[3] = tmp_path / "known"
    words[1] = table("more.csv", [{"text": "another", "label": 0}, {"text": "it", "label": 1}])
    assert pabee_fast(*words, "--output", tmp_path / "more") == 0
    both = LearnedRows.of(AutoConfig.from_pretrained(tmp_path / "more"))
    assert both is not None
    assert set(both.flags([*(row["text"] for row in reviews), "another"])) == {LEARNED}
    assert pabee_fast(*words, "--no-remember-rows", "--output", tmp_path / "forgotten") == 0
    assert LearnedRows.of(AutoConfig.from_pretrained(tmp_path / "forgotten")) is None
