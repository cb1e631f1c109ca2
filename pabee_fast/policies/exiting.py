"""Rows leave on what their heads say."""

import math
from dataclasses import dataclass, fields
from typing import ClassVar

from pabee_fast.arguments import require_whole
from pabee_fast.errors import InputError
from pabee_fast.policies.base import AnswerKind, Rule, Stepping


@dataclass(frozen=True)
class Exiting(Stepping):
    """Base of the policies by which a row leaves on what its heads say."""

    _RANGES: ClassVar[dict[str, tuple[float, float]]] = {"threshold": (0.0, math.inf), "exponent": (0.0, math.inf)}

    def __post_init__(self) -> None:
        super().__post_init__()
        for f in fields(self):
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
        """Return how many layers must have been tested before a row can leave."""
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
    _RANGES: ClassVar[dict[str, tuple[float, float]]] = {"threshold": (0.0, 1.0)}

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
    _RANGES: ClassVar[dict[str, tuple[float, float]]] = {"threshold": (0.0, 1.0)}

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
        """Return the fewest votes by which a row leaves at the tests-th tested layer; tests + 1 where none is
        enough."""
        return next((v for v in range(1, tests + 1) if v / tests**self.exponent >= self.threshold), tests + 1)

    def least_tests(self, layers: int) -> int:
        return next((tests for tests in range(1, layers + 1) if self._votes(tests) <= tests), layers + 1)

    def rule(self, layer: int, classes: int) -> Rule:
        return Rule("vote", self._votes((layer - self.first_layer) // self.every + 1))
