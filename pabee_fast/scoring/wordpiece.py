"""WordPiece at array speed: the package `nanotoken`, an optional extra, in place of the model's own tokenizer.

It refuses tokenizers that it would read otherwise, and gives flat arrays without holding the interpreter's lock. Pairs
are put together here. Whether its tokens are the model's own is not taken on trust: `tokens.Encoder` compares.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from tokenizers import Tokenizer

from pabee_fast.scoring.texts import Texts, Tokens

CACHE_ENTRIES = 2**16
"""Words that it remembers, for each thread and level: 8 MiB of them, not 130, by which a job's memory would grow."""


class _Template(NamedTuple):
    """What stands around texts: special tokens with their types, and the type of each text's own tokens."""

    specials: list[list[tuple[int, int]]]  # before, between and behind the texts: (id, type)
    types: list[int]  # of each text

    @classmethod
    def of(cls, core: Tokenizer, texts: int) -> "_Template | None":
        """Read it off one row of so many texts; None where the row does not hold each text once, in order."""
        encoding = core.encode("a", "a" if texts == 2 else None)
        specials: list[list[tuple[int, int]]] = [[]]
        types: list[int] = []
        for number, kind, source in zip(encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True):
            if source is None:
                specials[-1].append((number, kind))
            elif source == len(types):  # a text begins
                types.append(kind)
                specials.append([])
            elif source != len(types) - 1 or specials[-1] or kind != types[-1]:
                return None
        return cls(specials, types) if len(types) == texts else None

    @property
    def width(self) -> int:
        """How many special tokens a row has."""
        return sum(map(len, self.specials))


class FastWordPiece:
    """Tokenizes rows of one text, or of two, as the model's own tokenizer does.

    Args:
        core: the model's own, without truncation and padding.
        max_length: the most tokens of a row.
        side: at which end rows are cut.

    Raises:
        ValueError: it cannot be read so; the message says why.
    """

    def __init__(self, core: Tokenizer, max_length: int, side: str) -> None:
        try:
            import nanotoken
        except ImportError:
            raise ValueError("nanotoken is not installed: pip install 'pabee-fast[fast-tokenizer]'") from None
        nanotoken.set_cache_entries(min(CACHE_ENTRIES, nanotoken.get_cache_entries()))
        self._core: Any = nanotoken.WordPieceTokenizer.from_json(core.to_str())
        self._max_length, self._side = max_length, side
        single, self._pair = _Template.of(core, 1), _Template.of(core, 2)
        if single is None or {kind for part in single.specials for _, kind in part} - set(single.types):
            raise ValueError("it does not put one text between special tokens of one type")
        self._type = single.types[0]

    def __call__(self, texts: Texts) -> Tokens | None:
        """Return the tokens of rows; None where they are of both kinds, or of pairs that it cannot put together."""
        if texts.second is None:
            return self._single(texts.first)
        if self._pair is None or None in texts.second:
            return None
        return self._pairs(self._pair, texts.first, cast(Sequence[str], texts.second))

    def _single(self, texts: Sequence[str]) -> Tokens:
        ids, lengths = self._encode(texts, max_length=self._max_length)
        cut = lengths == self._max_length
        if cut.any():  # or just so long
            longer = [texts[row] for row in np.flatnonzero(cut).tolist()]
            cut[cut] = self._encode(longer, max_length=self._max_length + 1)[1] > self._max_length
        return Tokens.of_rows(ids, np.full(len(ids), self._type, dtype=np.int32), lengths, cut)

    def _pairs(self, template: _Template, first: Sequence[str], second: Sequence[str]) -> Tokens:
        texts = [self._encode(each, add_special_tokens=False) for each in (first, second)]
        room = self._max_length - template.width
        whole = np.stack([lengths for _, lengths in texts])
        kept = _longest_first(whole, room)
        counts = [np.full(len(first), len(part)) for part in template.specials]
        # Segments in their order: specials, first text, specials, second text, specials.
        widths = np.stack([counts[0], kept[0], counts[1], kept[1], counts[2]])
        lengths = widths.sum(axis=0)
        starts = np.cumsum(lengths) - lengths + np.cumsum(widths, axis=0) - widths
        ids, types = np.empty((2, int(lengths.sum())), dtype=np.int32)
        for segment, part in zip((0, 2, 4), template.specials, strict=True):
            for offset, (number, kind) in enumerate(part):
                ids[starts[segment] + offset], types[starts[segment] + offset] = number, kind
        for segment, (own, full), count, kind in zip((1, 3), texts, kept, template.types, strict=True):
            begin = np.cumsum(full) - full + (full - count if self._side == "left" else 0)
            step = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
            where = np.repeat(starts[segment], count) + step
            ids[where], types[where] = own[np.repeat(begin, count) + step], kind
        return Tokens.of_rows(ids, types, lengths, np.any(kept < whole, axis=0))

    def _encode(self, texts: Sequence[str], **options: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of texts laid end to end, [tokens] int32, and how many each has, [texts] int64."""
        ids, offsets = self._core.encode_batch(texts, truncation_side=self._side, **options)
        return ids.astype(np.int32), np.diff(offsets)


def _longest_first(lengths: np.ndarray, room: int) -> np.ndarray:
    """Return how many tokens each text of a pair keeps, [2, pairs], as the strategy `longest_first` of tokenizers' Rust
    code cuts them (`truncate_encodings`): the longer one first, down to the shorter, then both to half of the room."""
    short = lengths.min(axis=0)
    cut_long = np.where(short > room, short, np.maximum(short, room - short))
    is_both = short + cut_long > room
    new_short = np.where(is_both, room // 2, short)
    new_long = np.where(is_both, room // 2 + room % 2, cut_long)
    is_first_longer = lengths[0] > lengths[1]
    cut = np.stack([np.where(is_first_longer, new_long, new_short), np.where(is_first_longer, new_short, new_long)])
    return np.where(lengths.sum(axis=0) > room, cut, lengths)
