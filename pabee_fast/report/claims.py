"""Every claim of "better" that a report makes, with its test."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pabee_fast.report.metrics import right
from pabee_fast.report.significance import RESAMPLES, holm, mcnemar, paired_bootstrap
from pabee_fast.report.study import PABEE, Candidates, SeedAnswers, Study, looks_at_rows

LEVEL = 0.05


@dataclass(frozen=True)
class Claim:
    """One side's metric against another's on the same rows."""

    first: str
    second: str
    difference: float  # of the main metric, the first's less the second's; mean over seeds
    low: float  # of its 95 % interval over rows
    high: float
    test: str
    p_value: float
    adjusted: float = float("nan")  # for the number of claims in the report

    @property
    def verdict(self) -> str:
        """In words, at LEVEL after adjustment."""
        if not self.adjusted <= LEVEL:
            return "no difference shown"
        return "better" if self.difference > 0 else "worse"


def claims(study: Study, candidates: Candidates) -> list[Claim]:
    """Exit rules against truncated models of the same cost, and PABEE, the best rule and the ensemble against full
    depth; p-values adjusted together."""
    found = [_claim(study, *sides) for sides in _pairs(study, candidates)]
    adjusted = holm([claim.p_value if claim.p_value == claim.p_value else 1.0 for claim in found])
    return [replace(claim, adjusted=p) for claim, p in zip(found, adjusted, strict=True)]


def _pairs(study: Study, candidates: Candidates) -> Iterator[tuple[str, SeedAnswers, str, SeedAnswers]]:
    for depth, answered in sorted(study.truncated.items(), reverse=True):
        point = candidates.best(looks_at_rows, depth / study.layers, "best exit rule")
        if point is not None:
            yield (
                f"best exit rule at the cost of {depth} layers ({point.speed[0]:.2f}x)",
                point.answers,
                f"truncated to {depth} layers and fine-tuned ({study.layers / depth:.2f}x)",
                answered,
            )
    for name, rule in ((PABEE, PABEE.__eq__), ("best exit rule", looks_at_rows)):
        point = candidates.best(rule, 1.0, name)
        if point is not None:
            yield f"{name} at any cost ({point.speed[0]:.2f}x)", point.answers, "full depth", study.full_depth
    yield "ensemble of all heads (1.00x)", study.ensemble, "full depth", study.full_depth


def _claim(study: Study, first: str, ours: SeedAnswers, second: str, theirs: SeedAnswers) -> Claim:
    bootstrap = paired_bootstrap(study.main_metric, ours, theirs, study.labels, resamples=RESAMPLES)
    test, p_value = "paired bootstrap", bootstrap.p_value
    if study.main_metric == "accuracy" and len(ours) == len(theirs) == 1:
        test = "McNemar, exact"
        p_value = mcnemar(right(ours[0], study.labels), right(theirs[0], study.labels)).p_value
    return Claim(first, second, bootstrap.difference, bootstrap.low, bootstrap.high, test, p_value)
