"""Tokens are those of the tokenizer's own call, whatever the number of rows and threads."""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pabee_fast as pf
from pabee_fast.scoring import texts
from pabee_fast.scoring.tokens import NO_EMBEDDING, Encoder
from tests.conftest import tiny_stock
from tests.scoring.test_wordpiece import columns_of

WORDS = st.sampled_from(["good", "film", "unheard", "[SEP]", "[PAD]", ".", "VERY", "\u00e9", ""])
TEXTS = st.lists(WORDS, max_size=20).map(" ".join)
ROWS = st.one_of(st.tuples(TEXTS), st.tuples(TEXTS, TEXTS))


@pytest.fixture(autouse=True)
def _calls_of_three_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "_CALL_ROWS", 3)


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Any) -> Any:
    return tiny_stock("bert", vocab_size=len(tiny_tokenizer))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS, min_size=1, max_size=8), limit=st.integers(6, 20), side=st.sampled_from(["left", "right"]))
def test_tokens_are_those_of_the_tokenizers_own_call(
    tiny_tokenizer: Any, model: Any, rows: list[Any], limit: int, side: str
) -> None:
    tiny_tokenizer.truncation_side, before = side, tiny_tokenizer.truncation_side
    try:
        encoded = Encoder(tiny_tokenizer, limit, model)(*columns_of(rows))
        cut = 0
        for number, row in enumerate(rows):
            one = [row if len(row) == 2 else row[0]]  # a list: alone, an empty second text is taken for none
            own = {name: ids[0] for name, ids in tiny_tokenizer(one, truncation=True, max_length=limit).items()}
            cut += len(tiny_tokenizer(one)["input_ids"][0]) > limit
            assert encoded.batch is not None
            batch = encoded.batch.select(np.array([number]), torch.device("cpu"))
            for name, values in batch.inputs.items():
                if name in own:
                    assert values.tolist() == own[name]
            assert encoded.lengths[number] == len(own["input_ids"])
        assert encoded.truncated == cut
    finally:
        tiny_tokenizer.truncation_side = before


def test_many_threads_may_call_one_encoder_while_the_tokenizer_itself_is_used_otherwise(
    tiny_tokenizer: Any, model: Any
) -> None:
    encoder = Encoder(tiny_tokenizer, 12, model)
    rows = ["good film " * (1 + number % 9) for number in range(50)]
    wanted = encoder(rows)

    def other(number: int) -> Any:
        tiny_tokenizer("good " * 40, truncation=True, max_length=5 + number % 7, padding="max_length")
        return encoder(rows)

    with ThreadPoolExecutor(4) as threads:
        for got in threads.map(other, range(40)):
            assert torch.equal(got.batch.inputs["input_ids"], wanted.batch.inputs["input_ids"])


def test_an_empty_text_has_no_token_where_none_is_added(bare_tokenizer: Any, model: Any) -> None:
    encoded = Encoder(bare_tokenizer, 12, model)(["", "good", ""])
    assert encoded.lengths.tolist() == [0, 1, 0]
    assert encoded.batch is not None and encoded.batch.lengths.tolist() == [1]
    assert Encoder(bare_tokenizer, 12, model)([""]).batch is None


@pytest.fixture
def with_user_token(tiny_tokenizer: Any) -> Any:
    """The tokenizer with a token that the model has no embedding for."""
    longer = copy.deepcopy(tiny_tokenizer)
    longer.add_tokens(["@user"])
    return longer


def test_a_row_with_a_token_beyond_the_embeddings_is_an_error_and_stops_nothing(
    tiny_tokenizer: Any, with_user_token: Any, model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["good film", "@user very good", "", "bad", "a long @user film", "not bad"]
    scorer = pf.Scorer(model, with_user_token, window=2)
    (told,) = [record.getMessage() for record in caplog.records]
    assert f"1 of {len(with_user_token)} tokens (ids up to {len(tiny_tokenizer)})" in told
    assert f"the model's {len(tiny_tokenizer)} embeddings" in told and "(@user)" in told
    results = list(scorer.score(texts))
    assert [result.error for result in results] == [NO_EMBEDDING if "@user" in text else None for text in texts]
    assert [result.prediction for result in results if result.error] == [None, None]
    kept = [text for text in texts if "@user" not in text]
    alone = list(pf.Scorer(model, tiny_tokenizer).score(kept))
    assert [r.prediction for r in results if not r.error] == [r.prediction for r in alone]
    assert [r.score for r in results if not r.error] == pytest.approx([r.score for r in alone])
    assert (scorer.tally.errors, scorer.tally.failed) == (2, 0)


@given(rows=st.lists(st.lists(st.sampled_from(["good", "@user", "film"]), max_size=4), min_size=1, max_size=9))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_rows_refused_are_those_with_such_a_token_or_none(
    bare_tokenizer: Any, model: Any, rows: list[list[str]]
) -> None:
    longer = copy.deepcopy(bare_tokenizer)
    longer.add_tokens(["@user"])
    encoded = Encoder(longer, 12, model)([" ".join(row) for row in rows])
    assert encoded.refused[NO_EMBEDDING].tolist() == [i for i, row in enumerate(rows) if "@user" in row]
    assert encoded.scorable.tolist() == [i for i, row in enumerate(rows) if row and "@user" not in row]


def test_where_every_row_must_have_an_answer_such_a_row_is_named(with_user_token: Any, model: Any) -> None:
    with pytest.raises(pf.InputError, match=f"row 1: {NO_EMBEDDING}; leave such rows out"):
        pf.Scorer(model, with_user_token).batch(["good", "@user"])


def test_a_special_token_beyond_the_embeddings_is_no_other_models_tokenizer(
    tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    without = tiny_stock("bert", vocab_size=len(tiny_tokenizer) - 1)
    last = max(tiny_tokenizer.get_vocab(), key=tiny_tokenizer.get_vocab().get)
    with pytest.raises(pf.InputError, match=f"1 of .* tokens .* are beyond .*: '{last}' is one; give the tokenizer"):
        Encoder(tiny_tokenizer, 12, without)
    special = copy.deepcopy(tiny_tokenizer)
    special.mask_token = last
    assert Encoder(special, 12, without)(["good"]).scorable.tolist() == [0]
    assert len(caplog.records) == 1
