"""From texts to packed batches: the fast tokenizer's batch call, with truncation counted."""

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from pabee_fast.arguments import require_single_texts, require_whole
from pabee_fast.errors import InputError
from pabee_fast.modeling.directory import few_of, readable
from pabee_fast.models import family_of
from pabee_fast.runtime.pack import PackedBatch, pack_rows
from pabee_fast.scoring.texts import OwnTokenizer, Texts, Tokens
from pabee_fast.scoring.wordpiece import FastWordPiece

NO_TOKEN = "the tokenizer gives the text no token"
NO_EMBEDDING = "the text has a token that the model has no embedding for"
"""Why a row cannot be scored."""

CHECKED = 2_000
"""Rows that the model's own tokenizer and the one in its place both read, before that one is trusted."""

if TYPE_CHECKING:
    from pabee_fast.scoring.shards import Shards

logger = logging.getLogger(__name__)


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model directory or hub id.

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
    """Return how many ids the model has embeddings for, where a fast tokenizer has tokens beyond these, which is told.

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


class Encoded(NamedTuple):
    """Rows as the model takes them."""

    batch: PackedBatch | None  # the rows that can be scored, in their order, on the host; None: there are none
    lengths: np.ndarray  # [stretches] int64, 0 where the tokenizer gives the text no token
    truncated: int  # rows that were cut to the limit
    scorable: np.ndarray  # [rows of the batch] int64: their places among all rows
    refused: dict[str, np.ndarray]  # by error: the places of the other rows
    stretches: np.ndarray | None  # [rows of the batch] int64: how many each is in it; None: each is one, as it is cut


class Encoder:
    """A fast tokenizer that cuts rows at a length. It has its own copy of it, and may be called by many threads.

    Where `wordpiece.FastWordPiece` takes the tokenizer it serves in its place; its first CHECKED rows are tokenized by
    both, and any difference ends that. Where it does not, the model's own tokenizer serves, in processes if so many are
    asked for; then the encoder is to be closed.

    Args:
        tokenizer: a fast tokenizer.
        max_length: the most tokens of a row, special ones included; longer rows are cut as the tokenizer cuts them.
        model: what the rows are for.
        processes: of the model's own tokenizer; 0: it runs in the threads that call.
        stride: tokens by which stretches of a row of one text overlap, where longer ones are read whole in several;
            None: they are cut.

    Raises:
        InputError: a slow tokenizer, or one of another model, see `embedded_ids`; or a stride that is too large.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        model: PreTrainedModel,
        *,
        processes: int = 0,
        stride: int | None = None,
    ) -> None:
        core = _core_of(tokenizer)
        self._embedded = embedded_ids(tokenizer, model)
        self._fast, self.why_not_fast = None, "it reads long texts in stretches"
        if stride is None:
            self._fast, self.why_not_fast = _fast_of(tokenizer, core, max_length)
        else:
            _check_stride(stride, max_length - core.num_special_tokens_to_add(is_pair=False), max_length)
        self._unchecked = CHECKED
        core.enable_truncation(max_length, stride=stride or 0, direction=tokenizer.truncation_side)
        self._stride, in_stretches = stride, stride is not None
        self._own = OwnTokenizer(core, in_stretches=in_stretches)
        self._shards: Shards | None = None
        if processes and self._fast is None:
            from pabee_fast.scoring import shards  # needs pyarrow

            self._shards = shards.Shards(core, processes, in_stretches=in_stretches)
        self._model = model
        self._has_types = "token_type_ids" in tokenizer.model_input_names and (
            "token_type_ids" in family_of(model).inputs
        )

    def __call__(self, first: Sequence[str], second: Sequence[str | None] | None = None) -> Encoded:
        """Return the tokens of rows, at least one.

        Args:
            first: each row's text. An empty one has no tokens where the tokenizer adds no special ones.
            second: of pairs, the second texts; None where a row is one text.

        Raises:
            InputError: pairs that would be read in stretches.
        """
        texts = Texts.of(first, second)
        require_single_texts(self._stride, 1 if texts.second is None else 2)
        tokens = self._tokens(texts)
        inputs = {"input_ids": tokens.ids} | ({"token_type_ids": tokens.types} if self._has_types else {})
        rows = np.repeat(np.arange(len(tokens.stretches)), tokens.stretches)  # of each stretch
        refused = {NO_TOKEN: rows[tokens.lengths == 0]}
        if self._embedded is not None:
            places = np.flatnonzero(tokens.ids >= self._embedded)
            beyond = np.searchsorted(np.cumsum(tokens.lengths), places, side="right")
            refused[NO_EMBEDDING] = np.unique(rows[beyond])
        is_scorable = np.ones(len(tokens.stretches), dtype=bool)
        for wrong in refused.values():
            is_scorable[wrong] = False
        scorable, truncated = np.flatnonzero(is_scorable), int(tokens.cut.sum())
        if len(scorable) == 0:
            return Encoded(None, tokens.lengths, truncated, scorable, refused, None)
        is_kept = is_scorable[rows]
        kept = {name: flat[np.repeat(is_kept, tokens.lengths)] for name, flat in inputs.items()}
        batch = pack_rows(self._model, kept, tokens.lengths[is_kept])
        stretches = tokens.stretches[scorable] if self._stride is not None else None
        return Encoded(batch, tokens.lengths, truncated, scorable, refused, stretches)

    def _tokens(self, texts: Texts) -> Tokens:
        tokens = self._fast(texts) if self._fast is not None else None
        if tokens is None:
            return (self._shards or self._own)(texts)
        if self._unchecked > 0:
            sample = texts.part(0, self._unchecked)
            if not tokens.begins_with(self._own(sample)):
                self._fast, self.why_not_fast = None, "nanotoken gave other tokens for rows that were compared"
                logger.warning("the model's own tokenizer serves: %s", self.why_not_fast)
                return self._own(texts)
            self._unchecked -= len(sample.first)
        return tokens

    @property
    def served_by(self) -> str:
        """In words: what tokenizes."""
        if self._fast is not None:
            return "nanotoken"
        beside = f" in {self._shards.processes} processes" if self._shards else ""
        return f"the model's own tokenizer{beside} ({self.why_not_fast})"

    def close(self) -> None:
        """End its processes; it is not to be called after that."""
        if self._shards is not None:
            self._shards.close()


def tokenizer_in_use(tokenizer: PreTrainedTokenizerBase) -> str:
    """In words: what tokenizes rows for a model, and why."""
    fast, why = _fast_of(tokenizer, _core_of(tokenizer), tokenizer.model_max_length)
    return (
        "the model's own" + f" ({why})" if fast is None else f"nanotoken, held against the model's own ({CHECKED} rows)"
    )


def _check_stride(stride: int, room: int, max_length: int) -> None:
    """Raise InputError for a stride by which stretches would not advance; `room`: the text's own tokens in one."""
    require_whole("stride", stride, at_least=0)
    if stride >= room:
        raise InputError(
            f"stride={stride}: of {max_length} tokens {room} are the text's own, and stretches must overlap by fewer; "
            f"give at most {room - 1}"
        )


def _core_of(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return a copy of what tokenizes in a fast tokenizer."""
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} is not a fast tokenizer: load it with AutoTokenizer, use_fast=True"
        )
    core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    core.no_padding()
    core.no_truncation()
    core.encode_special_tokens = tokenizer.split_special_tokens
    return core


def _fast_of(tokenizer: PreTrainedTokenizerBase, core: Tokenizer, max_length: int) -> tuple[FastWordPiece | None, str]:
    """Return what serves in the place of a tokenizer, or in words why nothing does."""
    if tokenizer.split_special_tokens:
        return None, "it splits special tokens that texts spell"
    try:
        return FastWordPiece(core, max_length, tokenizer.truncation_side), ""
    except ValueError as error:  # nanotoken's own error, too, for what it would read otherwise
        return None, str(error)
