"""Which rows of a trace the model has learned from, as far as its config can tell, and which are copies of others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pabee_fast.calibration.learned_rows import LEARNED, UNSEEN, LearnedRows
from pabee_fast.calibration.trace import Trace
from pabee_fast.errors import InputError
from pabee_fast.extras import require
from pabee_fast.scoring.scorer import Row

WORTH_SAYING = 0.1
"""Of the rows, the share that the model may have learned from without a word."""
MOST = 0.5
"""Of the rows, the share beyond which none is calibrated on: some texts occur often, and so are among both."""


@dataclass(frozen=True)
class Known:
    """Of a trace's rows that differ, those that could be looked up among the rows that `fit` and `train` kept.

    See `training.learned_rows`; there are none where a model's config says nothing of its rows.
    """

    rows: int
    learned: int

    @classmethod
    def of(cls, trace: Trace) -> "Known":
        """Return what is known of the rows of a trace."""
        if trace.learned is None:
            return cls(0, 0)
        learned, unseen = (distinct_rows(trace.select(trace.learned == flag), trace) for flag in (LEARNED, UNSEEN))
        return cls(len(learned | unseen), len(learned))

    @classmethod
    def of_texts(cls, config: Any, texts: Sequence[Row]) -> "Known":
        """Return what a model's config says of texts before the model runs over them; more or less what their trace
        does."""
        learned = LearnedRows.of(config)
        return cls(0, 0) if learned is None else cls(*learned.look_up(texts))

    def refuse_most(self) -> None:
        """Raise InputError where the model has learned from significantly more than MOST of the rows.

        Such rows are no draw of those promised for: the model's heads are surer of them.
        """
        if self.is_more_than(MOST):
            raise InputError(
                f"{self}, and a model is surer of such rows than of those promised for: give rows that neither has "
                "seen; or, if texts recur as often in what will be scored, say so by allow_learned (--allow-learned)"
            )

    def is_more_than(self, share: float) -> bool:
        """Return whether the model has learned from more than this share of all rows (one-sided exact binomial test, 5
        %)."""
        return float(require("scipy.stats").binom.sf(self.learned - 1, self.rows, share)) <= 0.05

    def __str__(self) -> str:
        if not self.rows:
            return "no row could be looked up among those that fit or train has learned from"
        return f"fit or train has learned from {self.learned:,} of {self.rows:,} rows that could be looked up"


def distinct_rows(trace: Trace, like: Trace | None = None) -> set[tuple[int, bytes]]:
    """Return the rows by tokens and rounded logits, as copies of a text agree in them but for the last bits.

    Args:
        like: by whose rows it is rounded: each logit to a fiftieth of its median distance from its median, and no finer
            than to 1/5,000 of its median size, which is above the noise of a head that hardly varies; None: `trace`.
    """
    of = trace if like is None else like
    logits = of.logits.nan_to_num()
    middle = logits.median(dim=1, keepdim=True).values
    spread = (logits - middle).abs().median(dim=1, keepdim=True).values
    unit = torch.maximum(spread, 0.01 * logits.abs().median(dim=1, keepdim=True).values).double() / 50
    steps = trace.logits.double().nan_to_num() / torch.where(unit > 0, unit, 1.0)
    rows = steps.transpose(0, 1).round().clamp(-(2**62), 2**62).long().numpy()
    return {(length, row.tobytes()) for length, row in zip(trace.lengths.tolist(), rows, strict=True)}
