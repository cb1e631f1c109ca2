"""Texts in, answers out, window by window: tokenisation, the engine, and results in input order."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pabee_fast.errors import InputError
from pabee_fast.policies import FullDepth, Policy, require_whole
from pabee_fast.runtime.engine import Engine
from pabee_fast.scoring.answers import RowResult, failed, row_results
from pabee_fast.scoring.tokens import tokenize

Row = str | Sequence[str | None] | None
"""A text, a pair of texts, or None where there is none."""


@dataclass
class Tally:
    """What a scorer has done so far."""

    rows: int = 0
    errors: int = 0
    truncated: int = 0
    exits: Counter[int] = field(default_factory=Counter)  # exit layer -> rows

    @property
    def mean_exit_layer(self) -> float:
        """Over the rows that were scored; NaN when there are none."""
        rows = self.exits.total()
        return sum(layer * count for layer, count in self.exits.items()) / rows if rows else float("nan")


class Scorer:
    """Scores texts with a model, each row to its own exit layer.

    Args:
        model: a `*ForSequenceClassification` model of a supported family, in evaluation mode.
        tokenizer: its fast tokenizer.
        policy: when a row has settled; None: the one the model was accelerated with, otherwise full depth.
        max_length: the most tokens of a row, longer ones are cut; None: what model and tokenizer allow.
        token_budget: the most tokens computed at once; None: by device.
        window: rows that are tokenized and sorted by length together.

    Raises:
        InputError: the policy does not fit the model, or a number is out of range.
        UnsupportedError: no supported family.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        policy: Policy | None = None,
        max_length: int | None = None,
        token_budget: int | None = None,
        window: int = 8_192,
    ) -> None:
        if model.training:
            raise InputError("the model is in training mode: call model.eval() first")
        self.engine = Engine(model, token_budget=token_budget)
        self.model, self.tokenizer = model, tokenizer
        self.policy = self.engine.check(policy or getattr(model, "exit_policy", None) or FullDepth())
        limit = min(self.engine.family.max_length(model), tokenizer.model_max_length, self.engine.token_budget)
        if max_length is not None and max_length > limit:
            raise InputError(
                f"max_length={max_length}: the model, its tokenizer and the token budget "
                f"({self.engine.token_budget}) allow {limit}"
            )
        self.max_length = limit if max_length is None else max_length
        require_whole("max_length", self.max_length, at_least=tokenizer.num_special_tokens_to_add(pair=True) + 2)
        require_whole("window", window, at_least=1)
        self.window = window
        self.policy_reason = "asked for"
        self.tally = Tally()

    def score(self, rows: Iterable[Row]) -> Iterator[RowResult]:
        """One result a row, in input order; a row that cannot be scored has an `error` and stops nothing.

        Memory holds one window. `self.tally` counts what this call has done.

        Raises:
            InputError: `Scheduled` with another number of exit layers than rows.
        """
        self.tally = Tally()
        source = iter(rows)
        while window := list(islice(source, self.window)):
            yield from self.score_window(window)
        given = self.policy.exit_at()
        if given is not None and len(given) != self.tally.rows:
            raise InputError(
                f"Scheduled has {len(given)} exit layers for {self.tally.rows} rows: give one for each row"
            )

    def score_window(self, rows: Sequence[Row], errors: Sequence[str | None] | None = None) -> list[RowResult]:
        """Results of rows that are tokenized and sorted together; adds to `self.tally`.

        Args:
            rows: the rows.
            errors: for each row why it cannot be scored, where the caller knows; such rows are not looked at.
        """
        known = errors if errors is not None else [None] * len(rows)
        results = [failed(error or _why_not(row) or "") for row, error in zip(rows, known, strict=True)]
        good = [i for i, result in enumerate(results) if not result.error]
        if good:
            texts = [_texts(rows[i]) for i in good]
            batch, truncated = tokenize(self.tokenizer, texts, self.max_length, self.model)
            out = self.engine.run(batch, self.policy.select([self.tally.rows + i for i in good]))
            answers = row_results(out.logits, out.exit_layers, self.model.config, self.engine.kind)
            for i, answer in zip(good, answers, strict=True):
                results[i] = answer
            self.tally.truncated += truncated
            self.tally.exits.update(out.exit_layers.tolist())
        self.tally.rows += len(rows)
        self.tally.errors += sum(result.error is not None for result in results)
        return results

    @staticmethod
    def texts(rows: Sequence[Row]) -> list[tuple[str, ...]]:
        """The rows as the tokenizer takes them.

        Raises:
            InputError: a row that cannot be scored.
        """
        for number, row in enumerate(rows):
            if error := _why_not(row):
                raise InputError(f"row {number}: {error}; leave such rows out")
        return [_texts(row) for row in rows]


def _texts(row: Row) -> tuple[str, ...]:
    return (row,) if isinstance(row, str) else tuple(part for part in row or () if part is not None)


def _why_not(row: Row) -> str | None:
    """Why a row cannot be scored, or None."""
    if row is None:
        return "the text is null"
    if isinstance(row, str):
        return None
    if not isinstance(row, Sequence) or len(row) not in (1, 2):
        return f"a row is a text or a pair of texts, not {type(row).__name__}"
    wrong = [part for part in row if not isinstance(part, str)]
    return f"the text is {'null' if wrong[0] is None else type(wrong[0]).__name__}, not a string" if wrong else None
