"""How many rows were scored, and how. Knows no torch, so that a job can be looked at before a model is loaded."""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pabee_fast.scoring.answers import Answers


@dataclass
class Tally:
    """What a scorer has done so far."""

    rows: int = 0
    errors: int = 0
    failed: int = 0  # of the errors, those that came in computing
    truncated: int = 0
    exits: Counter[int] = field(default_factory=Counter)  # exit layer -> rows
    audited: int = 0  # rows that also ran to full depth
    disagreed: int = 0  # of those, the ones that have another answer there

    @property
    def mean_exit_layer(self) -> float:
        """Over the rows that were scored; NaN when there are none."""
        rows = self.exits.total()
        return sum(layer * count for layer, count in self.exits.items()) / rows if rows else float("nan")

    def add(self, answers: "Answers") -> None:
        """Counts the answers of rows."""
        exits = answers.exit_layers.bincount().tolist()
        errors = sum(error is not None for error in answers.errors)
        self.exits.update({layer: count for layer, count in enumerate(exits) if layer and count})
        self.rows += len(answers.errors)
        self.errors += errors
        self.failed += errors - answers.refused
        self.truncated += answers.truncated

    def merge(self, other: "Tally") -> None:
        """Adds what another one has counted."""
        self.rows += other.rows
        self.errors += other.errors
        self.failed += other.failed
        self.truncated += other.truncated
        self.exits.update(other.exits)
        self.audited += other.audited
        self.disagreed += other.disagreed

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes."""
        return {**vars(self), "exits": {str(layer): count for layer, count in sorted(self.exits.items())}}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Tally":
        """What `to_json` gave."""
        exits = Counter({int(layer): count for layer, count in record["exits"].items()})
        return cls(**{**record, "exits": exits})
