"""Where rows leave is given, whatever their heads say."""

import functools
import operator
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pabee_fast.arguments import require_whole
from pabee_fast.errors import InputError
from pabee_fast.policies.base import AnswerKind, Policy, Rule, Stepping


@dataclass(frozen=True)
class FullDepth(Policy):
    """Every row is given every layer; no head but the model's own runs."""

    needs_heads: ClassVar[bool] = False


@dataclass(frozen=True)
class FixedDepth(Policy):
    """Every row leaves at layer `layers`, as a truncated model would; only that layer's head runs."""

    layers: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("layers", self.layers, at_least=1)

    def from_layer(self, first: int) -> "FixedDepth":
        if self.layers < first:
            raise InputError(f"FixedDepth({self.layers}): the model's heads begin at layer {first}; give that or more")
        return self

    def depth(self, layers: int) -> int:
        return min(self.layers, layers)

    def check(self, layers: int, kind: AnswerKind, rows: int | None = None) -> None:
        if self.layers > layers:
            raise InputError(f"FixedDepth({self.layers}): the model has {layers} layers; give 1 to {layers}")


@dataclass(frozen=True)
class Scheduled(Stepping):
    """Given exit layers, in input order of one call: for benchmarks, where exits must not depend on the answers.

    Head and streak run at every tested layer, as they do under Patience, so that the whole machinery is measured.
    """

    exit_layers: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            object.__setattr__(self, "exit_layers", tuple(operator.index(layer) for layer in self.exit_layers))
        except TypeError:
            raise InputError(f"exit_layers={self.exit_layers!r}: give whole numbers, one for each row") from None
        if self.exit_layers and self._span[0] < 1:
            raise InputError(f"exit_layers holds {self._span[0]}: layers are counted from 1")

    @functools.cached_property
    def _span(self) -> tuple[int, int]:
        """The first and the last of the exit layers: looked for once, since a run asks at every step."""
        return min(self.exit_layers), max(self.exit_layers)

    def first_exit(self, layers: int) -> int:
        return max(self.first_layer, self._span[0] if self.exit_layers else layers)

    def tests(self, layer: int, layers: int) -> bool:
        return layer == layers or (layer >= self.first_layer and (layer - self.first_layer) % self.every == 0)

    def rule(self, layer: int, classes: int) -> Rule:
        return Rule("given")

    def exit_at(self) -> Sequence[int]:
        return self._packed

    @functools.cached_property
    def _packed(self) -> "array[int]":
        """The exit layers as NumPy takes them up at once: a tuple of 32,768 takes it 0.7 ms, in which a GPU waits."""
        return array("q", self.exit_layers)

    def check(self, layers: int, kind: AnswerKind, rows: int | None = None) -> None:
        if rows is not None and rows != len(self.exit_layers):
            raise InputError(
                f"Scheduled has {len(self.exit_layers)} exit layers for {rows} rows: give one for each row"
            )
        if self.exit_layers and self._span[1] > layers:
            raise InputError(f"exit_layers holds {self._span[1]}: the model has {layers} layers")
