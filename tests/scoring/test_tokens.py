"""Tokens are those of the tokenizer's own call, whatever the number of rows and threads."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pabee_fast.scoring import tokens
from pabee_fast.scoring.tokens import Encoder
from tests.conftest import tiny_stock

WORDS = st.sampled_from(["good", "film", "unheard", "[SEP]", "[PAD]", ".", "VERY", "\u00e9", ""])
TEXTS = st.lists(WORDS, max_size=20).map(" ".join)
ROWS = st.one_of(st.tuples(TEXTS), st.tuples(TEXTS, TEXTS))


@pytest.fixture(autouse=True)
def _calls_of_three_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_CALL_ROWS", 3)


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
        encoded = Encoder(tiny_tokenizer, limit, model)(rows)
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
    rows = [("good film " * (1 + number % 9),) for number in range(50)]
    wanted = encoder(rows)

    def other(number: int) -> Any:
        tiny_tokenizer("good " * 40, truncation=True, max_length=5 + number % 7, padding="max_length")
        return encoder(rows)

    with ThreadPoolExecutor(4) as threads:
        for got in threads.map(other, range(40)):
            assert torch.equal(got.batch.inputs["input_ids"], wanted.batch.inputs["input_ids"])


def test_an_empty_text_has_no_token_where_none_is_added(bare_tokenizer: Any, model: Any) -> None:
    encoded = Encoder(bare_tokenizer, 12, model)([("",), ("good",), ("",)])
    assert encoded.lengths.tolist() == [0, 1, 0]
    assert encoded.batch is not None and encoded.batch.lengths.tolist() == [1]
    assert Encoder(bare_tokenizer, 12, model)([("",)]).batch is None
