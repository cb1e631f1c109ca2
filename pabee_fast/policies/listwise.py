"""Rows leave by how they compare with the other rows of their list: the candidates of one query."""

import math
from dataclasses import dataclass
from typing import ClassVar

from pabee_fast.arguments import require_whole
from pabee_fast.errors import InputError
from pabee_fast.policies.base import Among, AnswerKind, Policy


@dataclass(frozen=True)
class Shortlist(Policy):
    """A candidate leaves after a layer by whose head it scores more than a margin below the `top_k`-th best of its
    list, as in SEE (SIGIR 2025): it can hardly come among the best any more. `top_k` of each list reach full depth.

    Args:
        top_k: how many of a list are wanted.
        margins: one for each layer but the last, in units of its head's score, 0 or more; math.inf where none leaves,
            and the head does not run. `pabee-fast tune --top-k` finds them.
        label: the output that rows are compared by; of several, its log-odds.
    """

    is_listwise: ClassVar[bool] = True

    top_k: int
    margins: tuple[float, ...]
    label: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("top_k", self.top_k, at_least=1)
        require_whole("label", self.label, at_least=0)
        try:
            margins = tuple(float(margin) for margin in self.margins)
        except (TypeError, ValueError):
            raise InputError(f"margins={self.margins!r}: give numbers, one for each layer but the last") from None
        if wrong := [margin for margin in margins if not margin >= 0]:
            raise InputError(f"margins holds {wrong[0]}: give numbers of 0 or more, or inf where no candidate leaves")
        object.__setattr__(self, "margins", margins)

    def first_exit(self, layers: int) -> int:
        finite = (layer for layer, margin in enumerate(self.margins, 1) if margin < math.inf)
        return min(next(finite, layers), layers)

    def tests(self, layer: int, layers: int) -> bool:
        return layer == layers or self.among(layer) is not None

    def from_layer(self, first: int) -> "Shortlist":
        before = min(first - 1, len(self.margins))
        return Shortlist(self.top_k, (math.inf,) * before + self.margins[before:], self.label)

    def among(self, layer: int) -> Among | None:
        margin = self.margins[layer - 1] if layer <= len(self.margins) else math.inf
        return Among(self.top_k, margin, self.label) if margin < math.inf else None

    def check(self, layers: int, kind: AnswerKind, rows: int | None = None) -> None:
        if len(self.margins) != layers - 1:
            raise InputError(
                f"Shortlist has {len(self.margins)} margins, and the model {layers} layers: give {layers - 1}, one for "
                "each but the last"
            )
        if kind == "value" and self.label:
            raise InputError(f"label={self.label} on a model with one output: leave it out")

    def __str__(self) -> str:
        label = f",label={self.label}" if self.label else ""
        return f"shortlist:{self.top_k},margins={'/'.join(map(str, self.margins))}{label}"
