"""The model's own tokenizer: a long text that is cut before it is tokenized has the tokens of the whole one."""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from pabee_fast.scoring import texts
from pabee_fast.scoring.texts import OwnTokenizer, Texts

ODD = "aAb\u03a3\u03c3\u0301é1,.'-\n\t \u3000\u200bßİ\u0345Å中[]<>"
WORDS = st.text(st.sampled_from(list("abcs1z")), min_size=1, max_size=20)
TEXTS = st.lists(st.one_of(WORDS, st.text(st.sampled_from(list(ODD)), max_size=6)), max_size=60).map(" ".join)

SPLITS = {
    "bert": (normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()),
    "gpt2": (None, pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "roberta": (normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "xlm-roberta": (
        normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]),
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
    ),
    "digits": (
        normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]),
        pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]),
    ),
}
MODELS: dict[str, Any] = {
    "bpe": (lambda: models.BPE(), lambda **same: trainers.BpeTrainer(**same)),
    "wordpiece": (lambda: models.WordPiece(unk_token="<unk>"), lambda **same: trainers.WordPieceTrainer(**same)),
    "unigram": (lambda: models.Unigram(), lambda **same: trainers.UnigramTrainer(unk_token="<unk>", **same)),
}


def tokenizer(kind: str, split: str, limit: int = 8) -> Tokenizer:
    make, trainer = MODELS[kind]
    core = Tokenizer(make())
    core.normalizer, core.pre_tokenizer = SPLITS[split]
    special = ["<s>", "</s>", "<unk>", "[c]"]
    corpus = ["abc abs cab, bca. 'abc's 11 1ab", "\u03a3\u03c3a é ba ab abba c1", "aaa bbb ccc sss abcs"] * 3
    core.train_from_iterator(corpus, trainer(vocab_size=90, special_tokens=special, show_progress=False))
    core.add_special_tokens([AddedToken("[c]", lstrip=True, rstrip=True)])
    core.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    core.enable_truncation(limit)
    return core


@pytest.fixture(autouse=True)
def _short_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "_CHARACTERS", 2)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_text_that_is_cut_before_it_is_tokenized_has_the_tokens_of_the_whole(kind: str, split: str) -> None:
    core = tokenizer(kind, split)
    own = OwnTokenizer(core)
    assert own._prefix == 16

    @settings(max_examples=60, deadline=None)
    @given(rows=st.lists(TEXTS, min_size=1, max_size=4))
    @example(rows=["abca" * 5 + "z" + " a" * 40])  # the whole word is unknown, and its beginning is not
    def same(rows: list[str]) -> None:
        found = own(Texts(rows, None))
        wanted = core.encode_batch(rows)
        assert found.ids.tolist() == [number for row in wanted for number in row.ids]
        assert found.lengths.tolist() == list(map(len, wanted))
        assert found.cut.tolist() == [bool(row.overflowing) for row in wanted]

    same()


class Asked:
    """A tokenizer that notes how many characters it was given."""

    def __init__(self, core: Tokenizer) -> None:
        self.core, self.truncation, self.characters = core, core.truncation, 0
        self.to_str = core.to_str

    def encode_batch_fast(self, rows: list[Any]) -> list[Any]:
        self.characters += sum(map(len, rows))
        return self.core.encode_batch_fast(rows)


def characters(core: Tokenizer, text: str) -> int:
    asked: Any = Asked(core)
    OwnTokenizer(asked)(Texts([text], None))
    return asked.characters


def test_of_a_long_text_no_more_than_the_beginning_is_read() -> None:
    core = tokenizer("bpe", "gpt2")
    assert characters(core, "abc " * 10_000) < 17
    assert characters(core, "ab " * 10) == 30, "not long enough to be worth it"


def test_a_beginning_with_too_few_tokens_is_not_believed() -> None:
    core, text = tokenizer("wordpiece", "bert"), f"{'x' * 15} " * 400
    assert characters(core, text) > len(text), "a word is one unknown token: the beginning was not enough"


@pytest.mark.parametrize(
    "change",
    [
        lambda core: core.enable_truncation(8, direction="left"),
        lambda core: core.add_tokens(["a b"]),
        lambda core: setattr(core, "normalizer", normalizers.Replace("b a", "c")),
        lambda core: setattr(core, "pre_tokenizer", None),
        lambda core: setattr(core, "pre_tokenizer", pre_tokenizers.Split(Regex("b a"), "isolated")),
        lambda core: setattr(core, "pre_tokenizer", pre_tokenizers.Metaspace(split=False)),
        lambda core: core.no_truncation(),
    ],
)
def test_where_what_follows_a_space_may_matter_the_whole_text_is_read(change: Any) -> None:
    core = tokenizer("bpe", "gpt2")
    change(core)
    text = "abc " * 1_000
    assert characters(core, text) == len(text)


def test_a_text_without_spaces_is_read_whole() -> None:
    assert characters(tokenizer("bpe", "gpt2"), "abc" * 1_000) == 3_000
    assert characters(tokenizer("bpe", "gpt2"), " " * 1_000) == 1_000
