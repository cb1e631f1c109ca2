"""The fast tokenizer gives the model's own tokens, whatever the text, or does not serve."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, Whitespace
from tokenizers.processors import BertProcessing, TemplateProcessing
from transformers import PreTrainedTokenizerFast

from pabee_fast.scoring import tokens
from pabee_fast.scoring.texts import Texts
from pabee_fast.scoring.tokens import Encoder, tokenizer_in_use
from pabee_fast.scoring.wordpiece import FastWordPiece
from tests.conftest import tiny_stock

pytest.importorskip("nanotoken", reason="the extra fast-tokenizer is not installed")

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "b",
    "##a",
    "##b",
    "ab",
    "##ab",
    "é",
    "e",
    "##e",
    "中",
    "!",
    "-",
]
WORDS = st.sampled_from(
    ["ab", "abab", "b", "é", "e\u0301", "É", "中国", "x", "ab!", "-ab-", "[SEP]", "[CLS]ab", "\u0130", "ﬁ"]
)
ODD = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TEXTS = st.lists(st.one_of(WORDS, ODD), max_size=12).map(" ".join)
PROCESSORS = {
    "bert": BertProcessing(("[SEP]", 3), ("[CLS]", 2)),
    "template": TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    ),
    "nothing": TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[]),
}
NORMALIZERS = {
    "uncased": BertNormalizer(lowercase=True),
    "cased": BertNormalizer(lowercase=False),
    "lower, accents kept": BertNormalizer(lowercase=True, strip_accents=False),
    "chinese as words": BertNormalizer(handle_chinese_chars=False),
}


def columns_of(rows: Sequence[tuple[str, ...]]) -> tuple[list[str], list[str | None]]:
    """The first and the second texts of rows of one or two."""
    return [row[0] for row in rows], [row[1] if len(row) == 2 else None for row in rows]


def core_of(processor: str, normalizer: str) -> Tokenizer:
    core = Tokenizer(
        WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]", max_input_chars_per_word=9)
    )
    core.normalizer, core.pre_tokenizer = NORMALIZERS[normalizer], BertPreTokenizer()
    core.post_processor = PROCESSORS[processor]
    core.add_special_tokens(PIECES[:5])
    return core


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_tokens_types_lengths_and_cuts_are_the_models_own(processor: str, normalizer: str, data: st.DataObject) -> None:
    side = data.draw(st.sampled_from(["right", "left"]))
    limit = data.draw(st.integers(5, 12))
    row = st.tuples(TEXTS) if data.draw(st.booleans()) else st.tuples(TEXTS, TEXTS)
    rows = data.draw(st.lists(row, min_size=1, max_size=6))
    core = core_of(processor, normalizer)
    found = FastWordPiece(core, limit, side)(Texts.of(*columns_of(rows)))
    assert found is not None
    core.enable_truncation(limit, direction=side)
    own = core.encode_batch([row if len(row) == 2 else row[0] for row in rows])
    assert found.lengths.tolist() == [len(one) for one in own]
    assert found.ids.tolist() == [number for one in own for number in one.ids]
    assert found.types.tolist() == [kind for one in own for kind in one.type_ids]
    assert found.cut.tolist() == [bool(one.overflowing) for one in own]


def test_rows_of_both_kinds_are_left_to_the_models_own() -> None:
    assert FastWordPiece(core_of("bert", "uncased"), 12, "right")(Texts(["a", "a"], [None, "b"])) is None


def hugging_face(core: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=32, **options,
    )  # fmt: skip


def test_an_encoder_uses_it_and_says_so() -> None:
    tokenizer = hugging_face(core_of("bert", "uncased"))
    encoder = Encoder(tokenizer, 12, tiny_stock("bert", vocab_size=len(PIECES)))
    assert encoder._fast is not None and encoder.why_not_fast == ""
    assert tokenizer_in_use(tokenizer) == "nanotoken, held against the model's own (2000 rows)"
    for texts in ([("ab a",), ("b",)], [("ab", "b"), ("a", "abab b")], [("ab",), ("a", "b")]):
        fast = encoder(*columns_of(texts))
        encoder._fast, kept = None, encoder._fast
        own = encoder(*columns_of(texts))
        encoder._fast = kept
        assert fast.batch is not None and own.batch is not None
        assert all((fast.batch.inputs[name] == own.batch.inputs[name]).all() for name in own.batch.inputs)


def test_any_difference_in_the_rows_compared_ends_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tokens, "CHECKED", 3)
    encoder = Encoder(hugging_face(core_of("bert", "uncased")), 12, tiny_stock("bert", vocab_size=len(PIECES)))
    real = encoder._fast
    assert real is not None

    def wrong(texts: Any) -> Any:
        found = real(texts)
        assert found is not None
        return found._replace(ids=np.where(found.ids == 5, 6, found.ids))

    encoder._fast = wrong  # type: ignore[assignment]
    assert encoder(["b", "ab"]).lengths.tolist() == [3, 3]
    assert encoder._fast is wrong, "no row so far tells them apart"
    got = encoder(["a", "b"])
    assert encoder._fast is None and "gave other tokens" in encoder.why_not_fast
    assert got.batch is not None and got.batch.inputs["input_ids"].tolist() == [2, 5, 3, 2, 6, 3]
    assert len([record for record in caplog.records if "the model's own tokenizer serves" in record.message]) == 1


def test_after_the_rows_compared_the_models_own_is_asked_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CHECKED", 3)
    encoder = Encoder(hugging_face(core_of("bert", "uncased")), 12, tiny_stock("bert", vocab_size=len(PIECES)))
    asked, real = [], encoder._own
    monkeypatch.setattr(encoder, "_own", lambda texts: (asked.append(len(texts.first)), real(texts))[1])
    for _ in range(3):
        encoder(["a", "b"])
    assert asked == [2, 1]


def test_a_tokenizer_that_it_would_read_otherwise_is_left_to_the_models_own() -> None:
    core = Tokenizer(BPE({"[UNK]": 0, "a": 1, "b": 2, "[PAD]": 3, "[CLS]": 4, "[SEP]": 5}, [], unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    assert tokenizer_in_use(hugging_face(core)).startswith("the model's own (")
    splitting = hugging_face(core_of("bert", "uncased"), split_special_tokens=True)
    assert tokenizer_in_use(splitting) == "the model's own (it splits special tokens that texts spell)"


def test_without_the_package_the_models_own_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nanotoken", None)
    encoder = Encoder(hugging_face(core_of("bert", "uncased")), 12, tiny_stock("bert", vocab_size=len(PIECES)))
    assert "pip install 'pabee-fast[fast-tokenizer]'" in encoder.why_not_fast
    assert encoder(["ab a"]).lengths.tolist() == [4]
    assert json.dumps(encoder.why_not_fast)
