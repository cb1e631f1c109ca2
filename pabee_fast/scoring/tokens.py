"""From texts to a packed batch: the fast tokenizer's batch call, with truncation counted."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pabee_fast.errors import InputError
from pabee_fast.models import family_of
from pabee_fast.runtime.packed import PackedBatch, pack

Texts = tuple[str, ...]
"""One text, or the two of a pair."""


class Tokenized(NamedTuple):
    """A window's rows as the runtime takes them."""

    batch: PackedBatch
    truncated: int  # rows that were cut to the limit


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Texts],
    max_length: int,
    model: PreTrainedModel,
) -> Tokenized:
    """Tokenizes rows and packs them, in their order.

    Args:
        tokenizer: a fast tokenizer.
        texts: one or two strings for each row, at least one row.
        max_length: the most tokens of a row, special ones included; longer rows are cut as the tokenizer cuts them.
        model: what the rows are packed for.

    Raises:
        InputError: a slow tokenizer.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} is not a fast tokenizer: load it with AutoTokenizer, use_fast=True"
        )
    encoded = tokenizer(
        [row if len(row) == 2 else row[0] for row in texts],
        truncation=True,
        max_length=max_length,
        return_attention_mask=False,
        verbose=False,
    )
    truncated = sum(bool(row.overflowing) for row in encoded.encodings)
    lengths = np.fromiter(map(len, encoded["input_ids"]), dtype=np.int64, count=len(texts))
    if int(lengths.min()) == 0:
        raise InputError(
            f"{type(tokenizer).__name__} gives an empty text no token at all: use a tokenizer that adds special tokens"
        )
    mask = np.arange(int(lengths.max())) < lengths[:, None]  # [rows, longest]
    # Positions belong to the padded layout, so the rows pass through it once, right-padded.
    # The model's padding, not the tokenizer's: some find the end of a row by it.
    pad = model.config.pad_token_id if model.config.pad_token_id is not None else tokenizer.pad_token_id
    padded = {
        name: _padded(rows, mask, pad or 0 if name == "input_ids" else 0)
        for name, rows in encoded.items()
        if name in ("input_ids", "token_type_ids") and name in family_of(model).inputs
    }
    return Tokenized(pack(model, attention_mask=torch.from_numpy(mask), **padded), truncated)


def _padded(rows: Sequence[Sequence[int]], mask: np.ndarray, fill: int) -> Any:
    out = np.full(mask.shape, fill, dtype=np.int64)
    out[mask] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return torch.from_numpy(out)
