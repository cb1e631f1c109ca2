"""From texts to packed batches: the fast tokenizer's batch call, with truncation counted."""

import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from pabee_fast.errors import InputError
from pabee_fast.models import family_of
from pabee_fast.models.stored import few_of, readable
from pabee_fast.runtime.packed import PackedBatch, pack

Texts = tuple[str, ...]
"""One text, or the two of a pair."""

PLACES = 2**20
"""Of the padded layout that rows pass through at once: one long row among many short ones makes it wide."""

NO_TOKEN = "the tokenizer gives the text no token"
NO_EMBEDDING = "the text has a token that the model has no embedding for"
"""Why a row cannot be scored."""

logger = logging.getLogger(__name__)

_CALL_ROWS = 1_024
"""Rows of one call to the tokenizer: what it returns takes some kilobytes a row, and turning it into arrays holds the
interpreter's lock."""


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory or hub id.

    Raises:
        InputError: there is none, one that cannot be read, or one that knows no word, as transformers makes it where
            its files are absent.
    """
    with readable(f"the tokenizer of {path}"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        words = tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)
        if not isinstance(longest := tokenizer.model_max_length, int | float) or not longest >= 1:
            raise InputError(f"the tokenizer of {path} says model_max_length={longest!r}; give a number of tokens")
        # Where its template or its unknown word is broken, that shows only here.
        tokenizer("a \u2603", "b", verbose=False)
    if not words:
        raise InputError(
            f"{path} has no tokenizer, so every text would be unknown words: save the model's there, "
            f"tokenizer.save_pretrained({path!r})"
        )
    return tokenizer


def embedded_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int | None:
    """How many ids the model has embeddings for, where a fast tokenizer has tokens beyond these, which is told.

    Returns:
        None where every token of the tokenizer has an embedding.

    Raises:
        InputError: words of its vocabulary have none, so that it is another model's; tokens that were added to it, and
            special ones, may be left out of a model, since few texts or none use them.
    """
    ids = tokenizer.get_vocab()
    largest = max(ids.values(), default=0)
    rows = getattr(model.get_input_embeddings(), "num_embeddings", sys.maxsize)
    if largest < rows:
        return None
    beyond = {token for token, number in ids.items() if number >= rows}
    told = f"{len(beyond)} of {len(ids)} tokens (ids up to {largest}) are beyond the model's {rows} embeddings"
    core = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    if words := beyond & core.keys() - set(tokenizer.all_special_tokens):
        raise InputError(f"{told}: {min(words)!r} is one; give the tokenizer that the model was trained with")
    logger.warning(
        "%s: a row with one is an error (%s); if they are meant to be used, call "
        "model.resize_token_embeddings(len(tokenizer)) and train",
        told,
        few_of(beyond),
    )
    return rows


@dataclass(frozen=True)
class Encoded:
    """Rows as the tokenizer gives them, laid end to end."""

    inputs: dict[str, np.ndarray]  # input_ids and perhaps token_type_ids, each [tokens] int32
    lengths: np.ndarray  # [rows] int64
    truncated: int  # rows that were cut to the limit
    padding: dict[str, int]  # what fills the padded layout of each input, unless the model has its own
    refused: dict[str, np.ndarray]  # by error: the places of rows that cannot be scored

    @property
    def scorable(self) -> np.ndarray:
        """The places of the other rows, in order."""
        is_scorable = np.ones(len(self.lengths), dtype=bool)
        for rows in self.refused.values():
            is_scorable[rows] = False
        return np.flatnonzero(is_scorable)

    def pack(self, rows: np.ndarray, model: PreTrainedModel) -> PackedBatch:
        """The given rows, at least one, in the given order, as the model takes them."""
        at_once = max(1, PLACES // int(self.lengths[rows].max()))
        parts = [self._pack(rows[first : first + at_once], model) for first in range(0, len(rows), at_once)]
        if len(parts) == 1:
            return parts[0]
        # Rows that are padded on the right have neither masks nor positions to join.
        inputs = {name: torch.cat([part.inputs[name] for part in parts]) for name in parts[0].inputs}
        return PackedBatch(inputs, np.concatenate([part.lengths for part in parts]))

    def _pack(self, rows: np.ndarray, model: PreTrainedModel) -> PackedBatch:
        lengths = self.lengths[rows]
        starts = (np.cumsum(self.lengths) - self.lengths)[rows]
        column = np.arange(int(lengths.max()))
        mask = column < lengths[:, None]  # [rows, longest]
        # Positions belong to the padded layout, so the rows pass through it once, right-padded.
        where = np.minimum(starts[:, None] + column, len(self.inputs["input_ids"]) - 1)
        # The model's own, as it is now, before the tokenizer's: some models find the end of a row by it.
        own = {} if model.config.pad_token_id is None else {"input_ids": model.config.pad_token_id}
        fill = self.padding | own
        padded = {
            name: torch.from_numpy(np.where(mask, flat[where], fill[name]).astype(np.int64))
            for name, flat in self.inputs.items()
        }
        return pack(model, attention_mask=torch.from_numpy(mask), **padded)


class Encoder:
    """A fast tokenizer that cuts rows at a length. It has its own copy of it, and may be called by many threads.

    Args:
        tokenizer: a fast tokenizer.
        max_length: the most tokens of a row, special ones included; longer rows are cut as the tokenizer cuts them.
        model: what the rows are for.

    Raises:
        InputError: a slow tokenizer, or one of another model, see `embedded_ids`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, model: PreTrainedModel) -> None:
        if not tokenizer.is_fast:
            raise InputError(
                f"{type(tokenizer).__name__} is not a fast tokenizer: load it with AutoTokenizer, use_fast=True"
            )
        self._embedded = embedded_ids(tokenizer, model)
        self._core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._core.no_padding()
        self._core.enable_truncation(max_length, direction=tokenizer.truncation_side)
        self._core.encode_special_tokens = tokenizer.split_special_tokens
        self._padding = {"input_ids": tokenizer.pad_token_id or 0}
        if "token_type_ids" in tokenizer.model_input_names and "token_type_ids" in family_of(model).inputs:
            self._padding["token_type_ids"] = 0

    def __call__(self, texts: Sequence[Texts]) -> Encoded:
        """The tokens of rows of one or two strings each, at least one row.

        An empty text has none where the tokenizer adds no special ones.
        """
        ids: list[np.ndarray] = []
        types: list[np.ndarray] = []
        lengths: list[int] = []
        truncated = 0
        for first in range(0, len(texts), _CALL_ROWS):
            rows = [row if len(row) == 2 else row[0] for row in texts[first : first + _CALL_ROWS]]
            encodings = self._core.encode_batch_fast(rows)
            lengths += map(len, encodings)
            truncated += sum(bool(row.overflowing) for row in encodings)
            ids.append(_flat(row.ids for row in encodings))
            if "token_type_ids" in self._padding:
                types.append(_flat(row.type_ids for row in encodings))
        inputs = {"input_ids": np.concatenate(ids)}
        if types:
            inputs["token_type_ids"] = np.concatenate(types)
        of_rows = np.array(lengths, dtype=np.int64)
        refused = {NO_TOKEN: np.flatnonzero(of_rows == 0)}
        if self._embedded is not None:
            places = np.flatnonzero(inputs["input_ids"] >= self._embedded)
            refused[NO_EMBEDDING] = np.unique(np.searchsorted(np.cumsum(of_rows), places, side="right"))
        return Encoded(inputs, of_rows, truncated, self._padding, refused)


def _flat(rows: Iterable[list[int]]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(rows), dtype=np.int32)
