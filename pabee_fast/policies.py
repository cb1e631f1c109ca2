"""When a row has settled.

A policy is a frozen dataclass that answers three questions about layers: which are tested, from which one on a row may
leave, and what the exit step is told there. It knows neither torch nor the kernels, and nobody asks for its class.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pabee_fast.errors import InputError

AnswerKind = Literal["label", "value", "label_set"]


@dataclass(frozen=True)
class Rule:
    """What the exit step does at one layer, in the kernels' terms.

    `streak`: a row leaves when its streak reaches `patience`; `given`: when its given exit layer has come; `all`:
    every row leaves. `threshold` says which values count as the same answer when there is one output.
    """

    name: Literal["streak", "given", "all"]
    patience: int = 0
    threshold: float = 0.0


@dataclass(frozen=True)
class Policy:
    """Base of all policies: full depth unless a subclass says otherwise. Layers are 1-based.

    Args:
        first_layer: the first tested layer; earlier heads neither run nor count in a streak.
        every: the distance between tested layers.
    """

    first_layer: int = field(default=1, kw_only=True)
    every: int = field(default=1, kw_only=True)

    needs_heads: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_whole("first_layer", self.first_layer, at_least=1)
        require_whole("every", self.every, at_least=1)

    def depth(self, layers: int) -> int:
        """The last layer that any row is given, of a model with `layers` layers."""
        return layers

    def first_exit(self, layers: int) -> int:
        """The first layer at which a row can leave; `depth(layers)` when none leaves early."""
        return self.depth(layers)

    def tests(self, layer: int, layers: int) -> bool:
        """Whether the head of `layer` runs: the state needs it only where some row can still leave early."""
        last = self.depth(layers)
        if layer == last:
            return True
        on_grid = layer >= self.first_layer and (layer - self.first_layer) % self.every == 0
        return on_grid and layer < last and self.first_exit(layers) < last

    def rule(self, layer: int, layers: int) -> Rule:
        """What the exit step does at a tested layer."""
        return Rule("all")

    def exit_at(self) -> tuple[int, ...] | None:
        """Given exit layers in input order, where the policy has them."""
        return None

    def check(self, layers: int, kind: AnswerKind, rows: int | None = None) -> None:
        """Raises InputError where the policy does not fit a model of `layers` layers whose answers are of `kind`."""

    def warning(self, layers: int) -> str | None:
        """What a user should know before using it on a model of `layers` layers."""
        return None

    def select(self, rows: Sequence[int]) -> "Policy":
        """The policy for the given rows (0-based, by input order) of a longer input."""
        return self

    def __str__(self) -> str:
        """The command line's spelling, which `parse_policy` reads back."""
        own = [f for f in dataclasses.fields(self) if not f.kw_only]
        shared = [f for f in dataclasses.fields(self) if f.kw_only]
        words = [f"{getattr(self, f.name)}" for f in own[:1]]
        words += [f"{f.name}={getattr(self, f.name)}" for f in own[1:] + shared if getattr(self, f.name) != f.default]
        return ":".join([_spelling(type(self)), *([",".join(words)] if words else [])])


@dataclass(frozen=True)
class Patience(Policy):
    """PABEE (Zhou et al., NeurIPS 2020, section 3.2): leave after `patience` agreements of neighbouring tested heads.

    Args:
        patience: agreements in a row before a row leaves, so that patience t needs t + 1 equal answers.
        threshold: one-output models only; |y_i - y_(i-1)| < threshold counts as an agreement.
    """

    patience: int
    threshold: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("patience", self.patience, at_least=1, fix="use FullDepth() to run every layer")
        if self.threshold is not None and not 0 < float(self.threshold) < float("inf"):
            raise InputError(f"threshold={self.threshold!r}: give a positive, finite number")

    def first_exit(self, layers: int) -> int:
        return min(self.first_layer + self.patience * self.every, layers)

    def rule(self, layer: int, layers: int) -> Rule:
        return Rule("all") if layer == layers else Rule("streak", self.patience, self.threshold or 0.0)

    def check(self, layers: int, kind: AnswerKind, rows: int | None = None) -> None:
        if kind == "value" and self.threshold is None:
            raise InputError(
                f"Patience({self.patience}) on a model with one output: answers are values, "
                f"so say when two are the same, Patience({self.patience}, threshold=0.1) for instance"
            )
        if kind != "value" and self.threshold is not None:
            raise InputError(
                f"threshold={self.threshold} on a model that answers with labels: it belongs to one-output "
                f"(regression) models; use Patience({self.patience})"
            )

    def warning(self, layers: int) -> str | None:
        first = self.first_layer + self.patience * self.every
        if first < layers:
            return None
        return f"{self} leaves nowhere before layer {first}, and the model has {layers} layers: no row will leave early"


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

    def depth(self, layers: int) -> int:
        return min(self.layers, layers)

    def check(self, layers: int, kind: AnswerKind, rows: int | None = None) -> None:
        if self.layers > layers:
            raise InputError(f"FixedDepth({self.layers}): the model has {layers} layers; give 1 to {layers}")


@dataclass(frozen=True)
class Scheduled(Policy):
    """Given exit layers, in input order of one call: for benchmarks, where exits must not depend on the answers.

    Head and streak run at every tested layer, as they do under Patience, so that the whole machinery is measured.
    """

    exit_layers: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "exit_layers", tuple(int(layer) for layer in self.exit_layers))
        if self.exit_layers and min(self.exit_layers) < 1:
            raise InputError(f"exit_layers holds {min(self.exit_layers)}: layers are counted from 1")

    def first_exit(self, layers: int) -> int:
        return max(self.first_layer, min(self.exit_layers, default=layers))

    def tests(self, layer: int, layers: int) -> bool:
        return layer == layers or (layer >= self.first_layer and (layer - self.first_layer) % self.every == 0)

    def rule(self, layer: int, layers: int) -> Rule:
        return Rule("all") if layer == layers else Rule("given")

    def exit_at(self) -> tuple[int, ...]:
        return self.exit_layers

    def check(self, layers: int, kind: AnswerKind, rows: int | None = None) -> None:
        if rows is not None and rows != len(self.exit_layers):
            raise InputError(
                f"Scheduled has {len(self.exit_layers)} exit layers for {rows} rows: give one for each row"
            )
        if self.exit_layers and max(self.exit_layers) > layers:
            raise InputError(f"exit_layers holds {max(self.exit_layers)}: the model has {layers} layers")

    def select(self, rows: Sequence[int]) -> "Scheduled":
        if len(rows) and max(rows) >= len(self.exit_layers):
            raise InputError(
                f"Scheduled has {len(self.exit_layers)} exit layers; there are more rows: give one for each"
            )
        return dataclasses.replace(self, exit_layers=tuple(self.exit_layers[row] for row in rows))


COMMAND_LINE: tuple[type[Policy], ...] = (Patience, FullDepth, FixedDepth)
"""The policies a user can name in a string; Scheduled needs a value for each row."""


def parse_policy(text: str) -> Policy:
    """Reads `name:value,option=value`, as in `patience:6,first_layer=4`, `patience:3,threshold=0.1`, `full-depth`.

    Raises:
        InputError: an unknown name or option (naming the valid ones), or a value that is not a number.
    """
    name, _, rest = text.strip().partition(":")
    by_name = {_spelling(cls): cls for cls in COMMAND_LINE}
    cls = by_name.get(name.strip().lower().replace("_", "-"))
    if cls is None:
        raise InputError(f"policy {text!r}: unknown name {name!r}; give one of {', '.join(by_name)}")
    own = [f for f in dataclasses.fields(cls) if not f.kw_only]
    options = own + [f for f in dataclasses.fields(cls) if f.kw_only]
    given: dict[str, Any] = {}
    for position, word in enumerate(filter(None, (w.strip() for w in rest.split(",")))):
        key, equals, value = (part.strip() for part in word.partition("="))
        if not equals:
            key, value = own[0].name if own and position == 0 else "", key
        if key not in {f.name for f in options} or key in given:
            raise InputError(
                f"policy {text!r}: cannot use {word!r}; {name} takes {', '.join(f.name for f in options)}, "
                f"each once, as in {_spelling(Patience)}:6,first_layer=4"
            )
        given[key] = _number(text, key, value)
    missing = [f.name for f in options if f.default is dataclasses.MISSING and f.name not in given]
    if missing:
        raise InputError(f"policy {text!r}: {missing[0]} is missing, as in {name}:6")
    return cls(**given)


def require_whole(name: str, value: Any, *, at_least: int, fix: str = "") -> None:
    """Raises InputError unless value is an int (no bool) >= at_least."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise InputError(f"{name}={value!r}: give a whole number of at least {at_least}" + (f"; {fix}" if fix else ""))


def _spelling(cls: type[Policy]) -> str:
    """FixedDepth -> fixed-depth."""
    return "".join("-" + c.lower() if c.isupper() and i else c.lower() for i, c in enumerate(cls.__name__))


def _number(text: str, key: str, value: str) -> int | float:
    try:
        return float(value) if key == "threshold" else int(value)
    except ValueError:
        kind = "number" if key == "threshold" else "whole number"
        raise InputError(f"policy {text!r}: {key}={value!r} is not a {kind}") from None
