"""Rows of texts and of tokens, and the model's own tokenizer between them.

It imports neither torch nor transformers, so that a process that does nothing else is up at once.
"""

import json
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

_CALL_ROWS = 1_024
"""Rows of one call to the tokenizer: what it returns takes some kilobytes a row, and turning it into arrays holds the
interpreter's lock."""


class Texts(NamedTuple):
    """Rows of texts: `second` is None where none of them is a pair, and in it None where one is not."""

    first: Sequence[str]
    second: Sequence[str | None] | None

    @classmethod
    def of(cls, first: Sequence[str], second: Sequence[str | None] | None) -> "Texts":
        """Return them with `second` left out where it says nothing."""
        return cls(first, None if second is None or all(text is None for text in second) else second)

    def part(self, start: int, most: int) -> "Texts":
        """Return at most so many rows from `start` on."""
        end = start + most
        return Texts.of(self.first[start:end], None if self.second is None else self.second[start:end])

    def rows(self) -> list[str | tuple[str, str]]:
        """Return them as `tokenizers` takes them."""
        if self.second is None:
            return list(self.first)
        return [one if other is None else (one, other) for one, other in zip(self.first, self.second, strict=True)]


class Tokens(NamedTuple):
    """Rows as a tokenizer gives them, laid end to end; each is one stretch, unless long ones are read in several."""

    ids: np.ndarray  # [tokens] int32
    types: np.ndarray  # [tokens] int32
    lengths: np.ndarray  # [stretches] int64
    cut: np.ndarray  # [rows] bool: whether the row was cut to the limit
    stretches: np.ndarray  # [rows] int64: in how many it was read

    @classmethod
    def of_rows(cls, ids: np.ndarray, types: np.ndarray, lengths: np.ndarray, cut: np.ndarray) -> "Tokens":
        """Return rows of one stretch each."""
        return cls(ids, types, lengths, cut, np.ones(len(lengths), dtype=np.int64))

    def begins_with(self, other: "Tokens") -> bool:
        """Return whether the first rows are those of `other`."""
        rows, tokens = len(other.lengths), len(other.ids)
        return (
            np.array_equal(self.lengths[:rows], other.lengths)
            and np.array_equal(self.ids[:tokens], other.ids)
            and np.array_equal(self.types[:tokens], other.types)
            and np.array_equal(self.cut[:rows], other.cut)
        )


class OwnTokenizer:
    """The model's own tokenizer, which cuts rows as it was told to.

    A long text is cut before it is tokenized, where a beginning of it provably has the tokens that are kept: the time
    would grow with all its characters.

    Args:
        core: it; may be called by many threads.
        in_stretches: whether long rows, of one text, are read whole, in stretches that overlap by its stride.
    """

    def __init__(self, core: Tokenizer, *, in_stretches: bool = False) -> None:
        self.core, self.in_stretches = core, in_stretches
        told: Any = core.truncation
        is_cut_early = not in_stretches and _tells_at_a_space(core)
        self._prefix = _CHARACTERS * told["max_length"] if is_cut_early else None

    def __call__(self, texts: Texts) -> Tokens:
        """Return the tokens of rows, at least one."""
        ids: list[np.ndarray] = []
        types: list[np.ndarray] = []
        lengths: list[int] = []
        cut: list[bool] = []
        stretches: list[int] = []
        for start in range(0, len(texts.first), _CALL_ROWS):
            encodings = self._encode(texts.part(start, _CALL_ROWS).rows())
            rest = [row.overflowing for row in encodings]
            if self.in_stretches:
                cut += [False] * len(encodings)
                stretches += (1 + len(others) for others in rest)
                encodings = [one for row, others in zip(encodings, rest, strict=True) for one in (row, *others)]
            else:
                cut += map(bool, rest)
                stretches += [1] * len(encodings)
            lengths += map(len, encodings)
            ids.append(_flat(row.ids for row in encodings))
            types.append(_flat(row.type_ids for row in encodings))
        of_stretches, of_rows = (np.array(counts, dtype=np.int64) for counts in (lengths, stretches))
        return Tokens(np.concatenate(ids), np.concatenate(types), of_stretches, np.array(cut), of_rows)

    def _encode(self, rows: list[str | tuple[str, str]]) -> list[Any]:
        most = self._prefix
        if most is None:
            return self.core.encode_batch_fast(rows)
        # Of pairs each text's share depends on the whole length of the other.
        long = {row: text for row, text in enumerate(rows) if isinstance(text, str) and len(text) > 2 * most}
        begun = {row: text[: _end(text, most)] for row, text in long.items()}
        encodings = self.core.encode_batch_fast([begun.get(row, text) for row, text in enumerate(rows)])
        for row, text in long.items():
            if not encodings[row].overflowing:  # too few tokens to say that the rest would be cut
                encodings[row] = self.core.encode_batch_fast([text])[0]
        return encodings


_CHARACTERS = 12
"""Of a text for each token that is kept: more than a token has of nearly all texts."""

_SPACE = " {2,}"
_SPLIT = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
_SPLIT_WITHIN = {"Digits", "Punctuation", "Metaspace", "ByteLevel"}
_LOCAL = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents", "Precompiled"}


def _end(text: str, most: int) -> int:
    """Return where a text's last space within `most` characters stands that follows no other; its length without."""
    end = text.rfind(" ", 1, most)
    while end > 0 and text[end - 1].isspace():
        end = text.rfind(" ", 1, end)
    return end if end > 0 else len(text)


def _tells_at_a_space(core: Tokenizer) -> bool:
    """Return whether what a text's tokens are up to a space does not depend on what follows, and the end is what is
    cut.

    So it is where every step changes characters by their neighbours alone, none of which is a space, and splits words
    at spaces before it makes tokens of each.
    """
    told = json.loads(core.to_str())
    if told["truncation"] is None or told["truncation"]["direction"] != "Right":
        return False
    if any(" " in token["content"] for token in told["added_tokens"]):
        return False
    splits = _steps(told["pre_tokenizer"], "pretokenizers")
    is_split = any(
        step["type"] in _SPLIT
        or (step["type"] == "ByteLevel" and step["use_regex"])
        or (step["type"] == "Metaspace" and step["split"])
        for step in splits
    )
    return (
        is_split
        and all(step["type"] in _SPLIT | _SPLIT_WITHIN for step in splits)
        and all(
            step["type"] in _LOCAL or (step["type"] == "Replace" and step["pattern"] == {"Regex": _SPACE})
            for step in _steps(told["normalizer"], "normalizers")
        )
    )


def _steps(told: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer, which may be a sequence of them."""
    if told is None:
        return []
    return [step for part in told[name] for step in _steps(part, name)] if told["type"] == "Sequence" else [told]


def _flat(rows: Iterable[list[int]]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(rows), dtype=np.int32)
