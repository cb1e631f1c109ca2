"""What all policies have: the questions that the layer loop asks of them, and how they are written."""

import dataclasses
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from pabee_fast.arguments import require_whole
from pabee_fast.errors import InputError

AnswerKind = Literal["label", "value", "label_set"]


@dataclass(frozen=True)
class Rule:
    """What the exit step does at one layer; `kernels.reference.exit_step` says what each name means."""

    name: Literal["agreement", "confidence", "entropy", "divergence", "vote", "given", "none"]
    patience: int = 0
    threshold: float = 0.0


class Among(NamedTuple):
    """Which rows of a list leave after a layer: those that score more than `margin` below the `top_k`-th best of the
    list, by the output `label`."""

    top_k: int
    margin: float
    label: int = 0


@dataclass(frozen=True)
class Policy:
    """Base of all policies: full depth unless a subclass says otherwise. Layers are 1-based."""

    needs_heads: ClassVar[bool] = True
    is_listwise: ClassVar[bool] = False
    """Whether rows leave by how they compare with others of their list."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):  # NumPy's numbers, which sweeps give, become Python's
            given = getattr(self, f.name)
            if isinstance(given, numbers.Real) and not isinstance(given, bool):
                object.__setattr__(self, f.name, int(given) if isinstance(given, numbers.Integral) else float(given))

    def depth(self, layers: int) -> int:
        """Return the last layer that any row is given, of a model with `layers` layers."""
        return layers

    def first_exit(self, layers: int) -> int:
        """Return the first layer at which a row can leave; `depth(layers)` when none leaves early."""
        return self.depth(layers)

    def tests(self, layer: int, layers: int) -> bool:
        """Return whether the head of `layer` runs: the state needs it only where some row can still leave early."""
        return layer == self.depth(layers)

    def from_layer(self, first: int) -> "Policy":
        """Return the policy for a model whose heads begin at layer `first`: no layer before it is tested.

        Raises:
            InputError: it tests an earlier layer alone.
        """
        return self

    def rule(self, layer: int, classes: int) -> Rule:
        """Return what the exit step does at a tested layer of a model with so many classes; its name never changes."""
        return Rule("none")

    def among(self, layer: int) -> Among | None:
        """Return which rows of a list leave after a layer; None where none does, and in a policy that looks at each row
        alone."""
        return None

    def exit_at(self) -> Sequence[int] | None:
        """Given exit layers in input order, where the policy has them."""
        return None

    def check(self, layers: int, kind: AnswerKind, rows: int | None = None) -> None:
        """Raise InputError where the policy does not fit a model of `layers` layers whose answers are of `kind`."""

    def warning(self, layers: int) -> str | None:
        """Return what a user should know before using it on a model of `layers` layers."""
        return None

    def __str__(self) -> str:
        """Return the command line's spelling, which `parse_policy` reads back where the policy is among
        COMMAND_LINE."""
        own = [f for f in dataclasses.fields(self) if not f.kw_only]
        shared = [f for f in dataclasses.fields(self) if f.kw_only]
        words = [f"{getattr(self, f.name)}" for f in own[:1]]
        words += [f"{f.name}={getattr(self, f.name)}" for f in own[1:] + shared if getattr(self, f.name) != f.default]
        return ":".join([spelling(type(self)), *([",".join(words)] if words else [])])


@dataclass(frozen=True)
class Stepping(Policy):
    """Base of the policies by which rows leave at several layers.

    Args:
        first_layer: the first tested layer; earlier heads neither run nor count in a streak.
        every: the distance between tested layers.
    """

    first_layer: int = field(default=1, kw_only=True)
    every: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("first_layer", self.first_layer, at_least=1)
        require_whole("every", self.every, at_least=1)

    def tests(self, layer: int, layers: int) -> bool:
        on_grid = layer >= self.first_layer and (layer - self.first_layer) % self.every == 0
        return layer == layers or (on_grid and self.first_exit(layers) < layers)

    def from_layer(self, first: int) -> "Stepping":
        return self if first <= self.first_layer else dataclasses.replace(self, first_layer=first)


def require_policy(policy: Any, name: str = "policy") -> None:
    """Raise InputError unless it is a Policy."""
    if not isinstance(policy, Policy):
        raise InputError(f"{name}={policy!r}: give a policy, pf.Patience(6) for instance")


def spelling(cls: type[Policy]) -> str:
    """FixedDepth -> fixed-depth."""
    return "".join("-" + c.lower() if c.isupper() and i else c.lower() for i, c in enumerate(cls.__name__))
