"""Texts in, answers out, window by window: tokenisation, the engine, and results in input order."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pabee_fast.arguments import require_one_of, require_whole
from pabee_fast.errors import InputError
from pabee_fast.models.heads import require_evaluation, stored_max_length
from pabee_fast.policies import FullDepth, Policy
from pabee_fast.runtime.engine import Engine, OnSettled, ignore
from pabee_fast.runtime.pack import PackedBatch
from pabee_fast.runtime.state import Results
from pabee_fast.scoring.answers import Answers, RowResult, label_names, row_results
from pabee_fast.scoring.conditions import Conditions
from pabee_fast.scoring.tally import Tally
from pabee_fast.scoring.tokens import Encoded, Encoder
from pabee_fast.transfer import ToHost

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

HALF_A_PAIR = "the text holds half of a surrogate pair, which is no character"

Row = str | Sequence[str | None] | None
"""A text, a pair of texts, or None where there is none."""


class Planned(NamedTuple):
    """A window's rows that are to be run."""

    places: np.ndarray  # [rows] int64, among all rows
    batch: PackedBatch  # on the host: of the rows, or of their stretches
    stretches: np.ndarray | None  # [rows] int64: how many each has; None: each is one


class Scorer:
    """Scores texts with a model, each row to its own exit layer.

    Args:
        model: a `*ForSequenceClassification` model of a supported family, in evaluation mode.
        tokenizer: its fast tokenizer.
        policy: when a row has settled; None: the one the model was accelerated with, otherwise full depth.
        max_length: the most tokens of a row, longer ones are cut; None: as many as the model's heads or its guarantee
            were made with, else what model and tokenizer allow.
        token_budget: the most tokens computed at once, and of a row; None: by device, and rows as above.
        window: rows that are tokenized and sorted by length together.
        tokenizers: processes that tokenize where only the model's own tokenizer can; `close` ends them. 0: none, it
            runs in the thread that calls.
        stride: a text of more than `max_length` tokens is read whole, in stretches of so many that overlap by `stride`:
            its logits are the mean of theirs, its exit layer the largest of theirs. Not for pairs. None: it is cut.

    Raises:
        InputError: the policy does not fit the model, or a number is out of range.
        UnsupportedError: no supported family.
    """

    has_lists = False
    """Whether its rows are candidates, which policies may compare."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        policy: Policy | None = None,
        max_length: int | None = None,
        token_budget: int | None = None,
        window: int = 8_192,
        tokenizers: int = 0,
        stride: int | None = None,
    ) -> None:
        require_evaluation(model)
        self.engine = Engine(model, token_budget=token_budget)
        self.model, self.tokenizer = model, tokenizer
        if policy is not None:
            self.choose(policy, "asked for")
        elif (own := getattr(model, "exit_policy", None)) is not None:
            self.choose(own, "the one that the model was accelerated with")
        else:
            reason = "the default, since no policy was named; Scorer.from_pretrained uses one stored with a model"
            self.choose(FullDepth(), reason)
        limit = min(self.engine.family.max_length(model), tokenizer.model_max_length, self.engine.longest_row)
        if max_length is not None and max_length > limit:
            raise InputError(
                f"max_length={max_length}: the model, its tokenizer and the token budget, where one is given, "
                f"allow {limit}"
            )
        self.max_length = min(stored_max_length(model.config) or limit, limit) if max_length is None else max_length
        require_whole("max_length", self.max_length, at_least=tokenizer.num_special_tokens_to_add(pair=True) + 2)
        require_whole("window", window, at_least=1)
        self.window = window
        require_whole("tokenizers", tokenizers, at_least=0)
        self.stride = stride
        self.encoder = Encoder(tokenizer, self.max_length, model, processes=tokenizers, stride=stride)
        self.labels = label_names(model.config)
        self.tally = Tally()

    @property
    def policy(self) -> Policy:
        """When a row has settled. `policy_reason` says why it is this one, and `guarantee` what is promised of it."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self.choose(policy, "asked for")

    def choose(self, policy: Policy, reason: str, guarantee: Any = None) -> None:
        """Use a policy from now on.

        Args:
            policy: when a row has settled.
            reason: why it is this one.
            guarantee: what is promised of it; None: nothing.

        Raises:
            InputError: it does not fit the model.
        """
        policy = self.engine.check(policy, has_lists=self.has_lists)
        if policy.exit_at() is not None:
            raise InputError(
                "policy=Scheduled(...): given exits are of the rows of one call; use pf.accelerate with it"
            )
        self._policy, self.policy_reason, self.guarantee = policy, reason, guarantee

    def close(self) -> None:
        """End the processes that tokenize, if there are any."""
        self.encoder.close()

    def conditions(self) -> Conditions:
        """Return what this scorer's answers depend on now; takes a hash of all weights."""
        return Conditions.of(self.model, self.tokenizer, self.max_length, None, self.stride)

    def score(self, rows: Iterable[Row]) -> Iterator[RowResult]:
        """Yield one result a row, in input order; a row that cannot be scored has an `error` and stops nothing.

        Memory holds one window. `self.tally` counts what the call begun last has done.
        """
        self.tally = tally = Tally()
        source = row_source(rows)
        while window := list(islice(source, self.window)):
            columns, refused = readable(window)
            answers = Answers.none_yet(len(window), refused, self.engine.classes)
            for planned in self.plan(columns, answers):
                found = self.run(planned.batch, self.policy)
                answers.put(planned.places, found.together(planned.stretches))
            answers.mark_not_finite()
            tally.add(answers)
            yield from row_results(answers, self.labels, self.engine.kind)

    def predict(self, rows: Iterable[Row], *, on_error: Literal["raise", "none"] = "raise") -> list[str | float | None]:
        """Return each row's label, or in regression its value, in input order; see `RowResult.prediction`.

        Args:
            rows: texts, or pairs of texts.
            on_error: what a row does that cannot be scored: "raise" an error, or have "none" for its answer.

        Raises:
            InputError: a row that cannot be scored, with on_error="raise".
        """
        require_one_of("on_error", on_error, ("raise", "none"))
        found: list[str | float | None] = []
        for result in self.score(rows):
            if result.error is not None and on_error == "raise":
                raise InputError(
                    f'row {len(found)}: {result.error}; leave such rows out, or give on_error="none" for None there'
                )
            found.append(result.prediction if result.error is None else None)
        return found

    def plan(self, columns: Sequence["pa.Array"], answers: Answers) -> Iterator["Planned"]:
        """Tokenize the rows that have no error, window by window.

        Args:
            columns: the rows' texts, as `readable` gives them.
            answers: of these rows; those that the tokenizer refuses get their error here, and the cut ones and those
                that are read in stretches are counted.

        Raises:
            InputError: pairs that would be read in stretches.
        """
        good = answers.scorable
        for start in range(0, len(good), self.window):
            yield from self.planned(good[start : start + self.window], columns, answers)

    def planned(self, rows: np.ndarray, columns: Sequence["pa.Array"], answers: Answers) -> Iterator["Planned"]:
        """Tokenize one window of `plan`, the given rows; yields nothing where none of them can be scored."""
        encoded = self.encoder(*(column.take(rows).to_pylist() for column in columns))
        answers.truncated += encoded.truncated
        for error, refused in encoded.refused.items():
            answers.refuse(rows[refused], error)
        if encoded.stretches is not None:
            many = encoded.stretches[encoded.stretches > 1]
            answers.long += len(many)
            answers.stretches += int(many.sum())
        if encoded.batch is not None:
            yield Planned(rows[encoded.scorable], encoded.batch, encoded.stretches)

    def batch(self, rows: Sequence[Row], first: int = 0) -> PackedBatch:
        """Return the batch of `encode`."""
        batch = self.encode(rows, first).batch
        assert batch is not None
        return batch

    def encode(self, rows: Sequence[Row], first: int = 0) -> Encoded:
        """Pack a window's rows as `score` runs them, on the host.

        Args:
            rows: the window.
            first: the number of its first row, for messages.

        Raises:
            InputError: a row that cannot be scored.
        """
        columns, wrong = readable(rows)
        if wrong:
            row = min(wrong)
            raise InputError(f"row {first + row}: {wrong[row]}; leave such rows out")
        encoded = self.encoder(*(column.to_pylist() for column in columns))
        for error, refused in encoded.refused.items():
            if len(refused):
                raise InputError(f"row {first + refused[0]}: {error}; leave such rows out")
        return encoded

    def tell_of_cut(self, cut: int, rows: int) -> None:
        """Warn of rows that were cut, where some were, and say what to do.

        Args:
            cut: how many.
            rows: of how many.
        """
        if cut:
            logger.warning(
                "%d of %d rows were longer than the limit and were cut at %d tokens: stride (--stride) reads texts "
                "whole, in stretches (not pairs); max length (--max-length) is the limit, as far as the model allows",
                cut,
                rows,
                self.max_length,
            )

    def run(self, batch: PackedBatch, policy: Policy, on_settled: OnSettled = ignore) -> Answers:
        """Return a batch's answers; a row that exceeds the device's memory all alone gets an error, and the others
        theirs.

        Args:
            on_settled: as for `Engine.run`.
        """
        return self.start(batch, policy, on_settled)()

    def start(self, batch: PackedBatch, policy: Policy, on_settled: OnSettled = ignore) -> Callable[[], Answers]:
        """Do what `run` does, and return what waits for the answers: the host can begin another batch while a GPU ends
        this one."""
        rows = len(batch.lengths)
        try:
            return on_their_way(self.engine.run(batch, policy, on_settled))
        except torch.OutOfMemoryError:
            if rows == 1:
                error = f"out of memory: its {int(batch.lengths[0])} tokens do not fit the device, even alone"
                return functools.partial(Answers.none_yet, 1, {0: error}, self.engine.classes)
        answers = Answers.none_yet(rows, {}, self.engine.classes)
        for half in np.array_split(np.arange(rows), 2):
            device = next(iter(batch.inputs.values())).device
            answers.put(half, self.run(batch.select(half, device), policy, on_settled))
        return lambda: answers


def row_source(rows: Iterable[Row]) -> Iterator[Row]:
    """Return the rows one by one; raises InputError for a string, whose rows would be its letters, and for a table."""
    if isinstance(rows, str):
        raise InputError(f"rows is one text ({rows[:40]!r}): give a list of texts")
    kind = type(rows)
    if isinstance(rows, Mapping) or hasattr(kind, "columns") or hasattr(kind, "column_names"):
        raise InputError(f"rows is a {kind.__name__}, which holds columns: give one of them, of texts")
    try:
        return iter(rows)
    except TypeError:
        raise InputError(f"rows is a {kind.__name__}: give a list of texts") from None


def on_their_way(results: Results) -> Callable[[], Answers]:
    """Return what waits for the engine's results, and returns them as answers."""
    travelling = ToHost(results.logits, results.exit_layers)

    def answers() -> Answers:
        logits, exit_layers = travelling.tensors()
        return Answers(logits, exit_layers, {})

    return answers


def readable(rows: Sequence[Row]) -> tuple[list["pa.Array"], dict[int, str]]:
    """Return rows as columns, and by row why it cannot be scored.

    Returns:
        The texts, [rows] large strings, null where a row is refused; and where any row is a pair the second texts, null
        where a row is one text.
    """
    import pyarrow as pa  # engines and traces are used where there is none

    refused = {place: error for place, row in enumerate(rows) if (error := _why_not(row))}
    texts: list[Any] = [
        () if place in refused else (row,) if isinstance(row, str) else row for place, row in enumerate(rows)
    ]
    width = max([1, *map(len, texts)])
    columns = [[row[at] if at < len(row) else None for row in texts] for at in range(width)]
    return [pa.array(column, pa.large_string()) for column in columns], refused


def _why_not(row: Row) -> str | None:
    """Return why a row cannot be scored, or None."""
    if row is None:
        return "the text is null"
    if isinstance(row, str):
        return None if _is_text(row) else HALF_A_PAIR
    if not isinstance(row, Sequence) or len(row) not in (1, 2):
        return f"a row is a text or a pair of texts, not {type(row).__name__}"
    wrong = [part for part in row if not isinstance(part, str)]
    if wrong:
        return f"the text is {'null' if wrong[0] is None else type(wrong[0]).__name__}, not a string"
    return None if all(_is_text(part) for part in row if part is not None) else HALF_A_PAIR


def _is_text(text: str) -> bool:
    """Return whether it holds characters alone: half of a surrogate pair, as in JSON that was cut, is none."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
