"""What was done with rows, and what it took. Knows no torch: a job is looked at before a model is loaded."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pabee_fast.scoring.answers import Answers

STAGES = ("read", "tokenise", "compute", "audit", "write")
"""Where a job's time goes."""


class Seconds(defaultdict[str, float]):
    """Seconds by stage; a stage that nobody named took none."""

    def __init__(self, *seconds: Mapping[str, float]) -> None:
        super().__init__(float, *seconds)

    def __reduce__(self) -> Any:
        return Seconds, (dict(self),)

    def update(self, other: Mapping[str, float]) -> None:  # type: ignore[override]
        """Add those of another one."""
        for stage, seconds in other.items():
            self[stage] += seconds


@dataclass
class Tally:
    """Counts of rows, and seconds; tallies of some rows and of others add up.

    rows       all of them
    errors     those without an answer
    failed     of these, those whose error came in computing
    truncated  those that were cut
    long       those that were read in several stretches
    stretches  in how many, of these together
    exits      exit layer -> rows
    audited    those that also ran to full depth
    disagreed  of these, those that have another answer there
    labelled   those with an answer and a label, where a job was told of labels
    right      of these, those whose answer is the label; of label sets, the whole set
    squared    of values, the sum over these of squared differences from the label
    seconds    stage -> seconds, summed over all threads and devices that did it
    """

    rows: int = 0
    errors: int = 0
    failed: int = 0
    truncated: int = 0
    long: int = 0
    stretches: int = 0
    exits: Counter[int] = field(default_factory=Counter)
    audited: int = 0
    disagreed: int = 0
    labelled: int = 0
    right: int = 0
    squared: float = 0.0
    seconds: Seconds = field(default_factory=Seconds)

    @property
    def mean_exit_layer(self) -> float:
        """Over the rows that were scored; NaN when there are none."""
        rows = self.exits.total()
        return sum(layer * count for layer, count in self.exits.items()) / rows if rows else float("nan")

    def add(self, answers: "Answers") -> None:
        """Count the answers of rows."""
        exits = np.bincount(answers.exit_layers.numpy()).tolist()
        self.exits.update({layer: count for layer, count in enumerate(exits) if layer and count})
        self.rows += len(answers.exit_layers)
        self.errors += len(answers.errors)
        self.failed += len(answers.errors) - answers.refused
        self.truncated += answers.truncated
        self.long += answers.long
        self.stretches += answers.stretches

    def merge(self, other: "Tally") -> None:
        """Add what another one has counted."""
        for name, value in vars(other).items():
            if isinstance(value, Counter | Seconds):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)

    def to_json(self) -> dict[str, Any]:
        """Return the counts, without the seconds, as `from_json` takes them."""
        counts = {name: value for name, value in vars(self).items() if name != "seconds"}
        return {**counts, "exits": {str(layer): count for layer, count in sorted(self.exits.items())}}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Tally":
        """Return what `to_json` was called on."""
        exits = Counter({int(layer): count for layer, count in record["exits"].items()})
        return cls(**{**record, "exits": exits})
