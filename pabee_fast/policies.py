"""When a row has settled.

A policy is a frozen dataclass that answers three questions about layers: which are tested, from which one on a row may
leave, and what the exit step is told there. It knows neither torch nor the kernels, and nobody asks for its class.
"""

import dataclasses
import math
import numbers
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pabee_fast.arguments import require_whole
from pabee_fast.errors import InputError

AnswerKind = Literal["label", "value", "label_set"]


@dataclass(frozen=True)
class Rule:
    """What the exit step does at one layer; `kernels.reference.exit_step` says what each name means."""

    name: Literal["agreement", "confidence", "entropy", "divergence", "vote", "given", "none"]
    patience: int = 0
    threshold: float = 0.0


@dataclass(frozen=True)
class Policy:
    """Base of all policies: full depth unless a subclass says otherwise. Layers are 1-based."""

    needs_heads: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):  # NumPy's numbers, which sweeps give, become Python's
            given = getattr(self, f.name)
            if isinstance(given, numbers.Real) and not isinstance(given, bool):
                object.__setattr__(self, f.name, int(given) if isinstance(given, numbers.Integral) else float(given))

    def depth(self, layers: int) -> int:
        """The last layer that any row is given, of a model with `layers` layers."""
        return layers

    def first_exit(self, layers: int) -> int:
        """The first layer at which a row can leave; `depth(layers)` when none leaves early."""
        return self.depth(layers)

    def tests(self, layer: int, layers: int) -> bool:
        """Whether the head of `layer` runs: the state needs it only where some row can still leave early."""
        return layer == self.depth(layers)

    def from_layer(self, first: int) -> "Policy":
        """The policy for a model whose heads begin at layer `first`: no layer before it is tested.

        Raises:
            InputError: it tests an earlier layer alone.
        """
        return self

    def rule(self, layer: int, classes: int) -> Rule:
        """What the exit step does at a tested layer of a model with so many classes; its name never changes."""
        return Rule("none")

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
        """The command line's spelling, which `parse_policy` reads back where the policy is among COMMAND_LINE."""
        own = [f for f in dataclasses.fields(self) if not f.kw_only]
        shared = [f for f in dataclasses.fields(self) if f.kw_only]
        words = [f"{getattr(self, f.name)}" for f in own[:1]]
        words += [f"{f.name}={getattr(self, f.name)}" for f in own[1:] + shared if getattr(self, f.name) != f.default]
        return ":".join([_spelling(type(self)), *([",".join(words)] if words else [])])


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


@dataclass(frozen=True)
class Exiting(Stepping):
    """Base of the policies by which a row leaves on what its heads say."""

    _RANGES: ClassVar[dict[str, tuple[float, float]]] = {"threshold": (0.0, math.inf), "exponent": (0.0, math.inf)}

    def __post_init__(self) -> None:
        super().__post_init__()
        for f in dataclasses.fields(self):
            given = getattr(self, f.name)
            if f.name == "patience":
                require_whole("patience", given, at_least=1, fix="use FullDepth() to run every layer")
            elif f.name in self._RANGES and given is not None:
                low, high = self._RANGES[f.name]
                if isinstance(given, bool) or not isinstance(given, int | float) or not low < given < high:
                    wanted = (
                        "a positive, finite number" if high == math.inf else f"a number between {low:g} and {high:g}"
                    )
                    raise InputError(f"{f.name}={given!r}: give {wanted}")

    def least_tests(self, layers: int) -> int:
        """How many layers must have been tested before a row can leave."""
        raise NotImplementedError

    def first_exit(self, layers: int) -> int:
        return min(self._unbounded_first_exit(layers), layers)

    def _unbounded_first_exit(self, layers: int) -> int:
        return self.first_layer + (self.least_tests(layers) - 1) * self.every

    def check(self, layers: int, kind: AnswerKind, rows: int | None = None) -> None:
        if kind != "label":
            what = "one output" if kind == "value" else "several labels at once"
            raise InputError(
                f"{self} on a model that answers with {what}: it needs classes that exclude one another; "
                f"use {'Patience(6, threshold=0.1)' if kind == 'value' else 'Patience(6)'}, for instance"
            )

    def warning(self, layers: int) -> str | None:
        first = self._unbounded_first_exit(layers)
        if first < layers:
            return None
        return f"{self} leaves nowhere before layer {first}, and the model has {layers} layers: no row will leave early"


@dataclass(frozen=True)
class Patience(Exiting):
    """PABEE (Zhou et al., NeurIPS 2020, section 3.2): leave after `patience` agreements of neighbouring tested heads.

    Args:
        patience: agreements in a row before a row leaves, so that patience t needs t + 1 equal answers.
        threshold: one-output models only; |y_i - y_(i-1)| < threshold counts as an agreement.
    """

    patience: int
    threshold: float | None = None

    def least_tests(self, layers: int) -> int:
        return self.patience + 1

    def rule(self, layer: int, classes: int) -> Rule:
        return Rule("agreement", self.patience, self.threshold or 0.0)

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


@dataclass(frozen=True)
class Confidence(Exiting):
    """Shallow-Deep Networks (Kaya et al., ICML 2019, section 4.2): leave when the largest probability is above
    `threshold`, between 0 and 1."""

    threshold: float
    _RANGES: ClassVar = {"threshold": (0.0, 1.0)}

    def least_tests(self, layers: int) -> int:
        return 1

    def rule(self, layer: int, classes: int) -> Rule:
        return Rule("confidence", 1, self.threshold)


@dataclass(frozen=True)
class Entropy(Exiting):
    """BranchyNet (Teerapittayanon et al., ICPR 2016), DeeBERT (Xin et al., ACL 2020): leave when the entropy of the
    probabilities is below `threshold`, in nats. FastBERT's is divided by ln classes."""

    threshold: float

    def least_tests(self, layers: int) -> int:
        return 1

    def rule(self, layer: int, classes: int) -> Rule:
        return Rule("entropy", 1, self.threshold)


@dataclass(frozen=True)
class PatientConfidence(Exiting):
    """PCEE-BERT (Zhang et al., Findings of NAACL 2022, as its code has it): leave after `patience` tested layers in a
    row whose entropy / ln classes was below `threshold`, between 0 and 1; they need not agree."""

    patience: int
    threshold: float
    _RANGES: ClassVar = {"threshold": (0.0, 1.0)}

    def least_tests(self, layers: int) -> int:
        return self.patience

    def rule(self, layer: int, classes: int) -> Rule:
        return Rule("entropy", self.patience, self.threshold * math.log(classes))


@dataclass(frozen=True)
class PatientDivergence(Exiting):
    """F-PABEE (Gao et al., ICASSP 2023): leave after `patience` tested layers in a row whose probabilities differed
    from those of the tested layer before by a Jensen-Shannon divergence below `threshold`, in nats (at most ln 2)."""

    patience: int
    threshold: float

    def least_tests(self, layers: int) -> int:
        return self.patience + 1

    def rule(self, layer: int, classes: int) -> Rule:
        return Rule("divergence", self.patience, self.threshold)


@dataclass(frozen=True)
class Vote(Exiting):
    """Ensemble of internal classifiers (Sun et al., 2021): leave when votes / tested layers ** exponent >= threshold
    for the class that most heads answered. With exponent 1 and threshold 1 or less, rows leave at the first test."""

    threshold: float
    exponent: float = 0.5

    def _votes(self, tests: int) -> int:
        """The fewest votes by which a row leaves at the tests-th tested layer; tests + 1 where none is enough."""
        return next((v for v in range(1, tests + 1) if v / tests**self.exponent >= self.threshold), tests + 1)

    def least_tests(self, layers: int) -> int:
        return next((tests for tests in range(1, layers + 1) if self._votes(tests) <= tests), layers + 1)

    def rule(self, layer: int, classes: int) -> Rule:
        return Rule("vote", self._votes((layer - self.first_layer) // self.every + 1))


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
        if self.exit_layers and min(self.exit_layers) < 1:
            raise InputError(f"exit_layers holds {min(self.exit_layers)}: layers are counted from 1")

    def first_exit(self, layers: int) -> int:
        return max(self.first_layer, min(self.exit_layers, default=layers))

    def tests(self, layer: int, layers: int) -> bool:
        return layer == layers or (layer >= self.first_layer and (layer - self.first_layer) % self.every == 0)

    def rule(self, layer: int, classes: int) -> Rule:
        return Rule("given")

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


COMMAND_LINE: tuple[type[Policy], ...] = (
    Patience,
    Confidence,
    Entropy,
    PatientConfidence,
    PatientDivergence,
    Vote,
    FullDepth,
    FixedDepth,
)
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
    takes = f"{name} takes {', '.join(f.name for f in options) or 'no options'}"
    given: dict[str, Any] = {}
    for position, word in enumerate(filter(None, (w.strip() for w in rest.split(",")))):
        key, equals, value = (part.strip() for part in word.partition("="))
        if not equals:
            key, value = own[0].name if own and position == 0 else "", key
        if key not in {f.name for f in options} or key in given:
            raise InputError(
                f"policy {text!r}: cannot use {word!r}; {takes}, each once, as in {_spelling(Patience)}:6,first_layer=4"
            )
        given[key] = _number(text, key, value)
    missing = [f.name for f in options if f.default is dataclasses.MISSING and f.name not in given]
    if missing:
        raise InputError(f"policy {text!r}: {missing[0]} is missing; {takes}")
    return cls(**given)


def require_policy(policy: Any, name: str = "policy") -> None:
    """Raises InputError unless it is a Policy."""
    if not isinstance(policy, Policy):
        raise InputError(f"{name}={policy!r}: give a policy, pf.Patience(6) for instance")


def _spelling(cls: type[Policy]) -> str:
    """FixedDepth -> fixed-depth."""
    return "".join("-" + c.lower() if c.isupper() and i else c.lower() for i, c in enumerate(cls.__name__))


def _number(text: str, key: str, value: str) -> int | float:
    try:
        return float(value) if key in Exiting._RANGES else int(value)
    except ValueError:
        kind = "number" if key in Exiting._RANGES else "whole number"
        raise InputError(f"policy {text!r}: {key}={value!r} is not a {kind}") from None
