"""The figures to reach on an H200 in bfloat16, and where each stands among the steps of a record.

A figure is not reached because a command printed it: only a record in bench/results counts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Steps = Mapping[str, Any]
"""Name of a step of bench/gpu.sh -> what it measured."""


@dataclass(frozen=True)
class Goal:
    """One line of the table."""

    figure: str
    read: Callable[[Steps], float]
    """Raises KeyError where a record lacks the step."""
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "times"

    def show(self, value: float) -> str:
        """A value as the table prints it."""
        return f"{value:.1%}" if self.unit == "share" else f"{value:.2f}x" if self.unit == "times" else f"{value:.3f}"

    @property
    def limit(self) -> str:
        """The goal in words."""
        limit = self.at_least if self.at_least is not None else self.at_most
        if limit is None:
            return "reported"
        sign = ">=" if self.at_least is not None else "<="
        return f"{sign} {limit:.0%}" if self.unit == "share" else f"{sign} {limit:g}{'x' * (self.unit == 'times')}"

    def is_met(self, value: float) -> bool | None:
        """Whether a value reaches the goal; None where it is only reported."""
        if self.at_least is not None:
            return value >= self.at_least
        return value <= self.at_most if self.at_most is not None else None


def _at(step: str, *path: str) -> Callable[[Steps], float]:
    def read(steps: Steps) -> float:
        value = steps[step]
        for key in path:
            value = value[key]
        return float(value)

    return read


def _exit_step(classes: int) -> Callable[[Steps], float]:
    return lambda steps: float(
        steps["micro"]["exit_step behind a pooler"][f"4096x768x{classes}"]["runtime"]["times_least"]
    )


def _slowest_gather(steps: Steps) -> float:
    """Of the cases of BERT-base in which at least half of a full wave's rows stay."""
    shares = [
        variants["kernel"]["share_of_copy_bandwidth"]
        for size, variants in steps["micro"]["gather"].items()
        if "768 wide" in size and " 64 rows" not in size and not size.endswith("10% stay")
    ]
    if not shares:
        raise KeyError("gather")
    return float(min(shares))


GOALS = [
    Goal("full depth, BERT-base, 128 tokens, large waves: share of the measured matrix rate",
         _at("bert-base-128", "utilisation"), at_least=0.65, unit="share"),
    Goal("the same with sst2-like lengths (mean about 25 tokens, unpadded)",
         _at("bert-base-sst2", "utilisation"), at_least=0.55, unit="share"),
    Goal("exit efficiency, BERT-base, the exits of `bench/cases.py`",
         _at("bert-base-sst2", "exit_efficiency"), at_least=0.95, unit="ratio"),
    Goal("exit efficiency, BERT-base, skewed exits",
         _at("bert-base-sst2", "other_exits", "skewed", "exit_efficiency"), at_least=0.95, unit="ratio"),
    Goal("exit efficiency, BERT-large, the exits of `bench/cases.py`",
         _at("bert-large-sst2", "exit_efficiency"), at_least=0.95, unit="ratio"),
    Goal("exit efficiency, BERT-large, skewed exits",
         _at("bert-large-sst2", "other_exits", "skewed", "exit_efficiency"), at_least=0.95, unit="ratio"),
    Goal("no-exit cost (all heads and exit steps run, nobody leaves)",
         _at("bert-base-sst2", "no_exit_cost"), at_most=0.02, unit="share"),
    Goal("exit step, plan and gather: share of GPU time",
         _at("bert-base-sst2", "time_shares", "together"), at_most=0.03, unit="share"),
    Goal("`exit_step` behind its pooler, 4,096 rows, hidden 768, 2 classes, over its bound",
         _exit_step(2), at_most=1.3),
    Goal("the same with 1,000 classes", _exit_step(1000)),
    Goal("`gather`, share of the measured copy bandwidth", _slowest_gather, at_least=0.85, unit="share"),
    Goal("rows/s against stock transformers at its best batch, full depth",
         _at("bert-base-sst2", "full_depth_vs_stock"), at_least=1.5),
    Goal("the same, early exit", _at("bert-base-sst2", "early_exit_vs_stock"), at_least=2.3),
    Goal("peak memory against stock at equal tokens in flight",
         _at("bert-base-128", "memory", "ratio"), at_most=1.0),
]  # fmt: skip
