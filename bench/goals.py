"""The figures to reach on an H200 in bfloat16, and where each stands among the steps of a record.

A figure is not reached because a command printed it: only a record in bench/results counts.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Steps = Mapping[str, Any]
"""Name of a step of bench/gpu.sh -> what it measured."""


@dataclass(frozen=True)
class Goal:
    """One line of the table."""

    figure: str
    step: str
    read: Callable[[Any], float]
    """The figure, from those of the step; raises KeyError where they lack it."""
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "times"
    """times, ratio, share or rows/s."""

    def show(self, value: float) -> str:
        """Return a value as the table prints it."""
        if self.unit == "rows/s":
            return f"{value:,.0f} rows/s"
        return f"{value:.1%}" if self.unit == "share" else f"{value:.2f}x" if self.unit == "times" else f"{value:.3f}"

    @property
    def limit(self) -> str:
        """The goal in words."""
        limit = self.at_least if self.at_least is not None else self.at_most
        if limit is None:
            return "reported"
        sign = ">=" if self.at_least is not None else "<="
        if self.unit == "rows/s":
            return f"{sign} {limit:,.0f} rows/s"
        return f"{sign} {limit:.0%}" if self.unit == "share" else f"{sign} {limit:g}{'x' * (self.unit == 'times')}"

    def is_met(self, value: float) -> bool | None:
        """Return whether a value reaches the goal; None where it is only reported."""
        if self.at_least is not None:
            return value >= self.at_least
        return value <= self.at_most if self.at_most is not None else None


def _at(*path: str) -> Callable[[Any], float]:
    def read(figures: Any) -> float:
        for key in path:
            figures = figures[key]
        return float(figures)

    return read


def _exit_step(classes: int) -> Callable[[Any], float]:
    return _at("exit_step behind a pooler", f"4096x768x{classes}", "runtime", "times_least")


def _slowest_gather(micro: Any) -> float:
    """Of the cases of BERT-base in which at least half of a full wave's rows stay."""
    return _least(
        variants["kernel"]["share_of_copy_bandwidth"]
        for size, variants in micro["gather"].items()
        if "768 wide" in size and " 64 rows" not in size and not size.endswith("10% stay")
    )


def _slowest_call(way: str) -> Callable[[Any], float]:
    """Of the drop-in's batch sizes on CUDA."""
    return lambda dropin: _least(each[way] for each in dropin["cuda"]["by_rows"].values())


def _least(figures: Iterable[float]) -> float:
    found = list(figures)
    if not found:
        raise KeyError
    return min(found)


def _short_attention(attention: Any) -> float:
    return float(attention["sst2"]["short"] / attention["sst2"]["least"])


SST2, LARGE = "bert-base-sst2", "bert-large-sst2"

GOALS = [
    Goal("full depth, BERT-base, sst2's lengths (mean about 25 tokens, unpadded)",
         SST2, _at("rows_per_second", "full depth"), at_least=120_000, unit="rows/s"),
    Goal("the same, share of the measured matrix rate", SST2, _at("utilisation"), at_least=0.62, unit="share"),
    Goal("the same with 128 tokens, large waves", "bert-base-128", _at("utilisation"), at_least=0.65, unit="share"),
    Goal("exit efficiency, BERT-base, the exits of `bench/cases.py`",
         SST2, _at("exit_efficiency"), at_least=0.95, unit="ratio"),
    Goal("exit efficiency, BERT-base, skewed exits",
         SST2, _at("other_exits", "skewed", "exit_efficiency"), at_least=0.95, unit="ratio"),
    Goal("exit efficiency, BERT-large, the exits of `bench/cases.py`",
         LARGE, _at("exit_efficiency"), at_least=0.95, unit="ratio"),
    Goal("exit efficiency, BERT-large, skewed exits",
         LARGE, _at("other_exits", "skewed", "exit_efficiency"), at_least=0.95, unit="ratio"),
    Goal("no-exit cost (all heads and exit steps run, nobody leaves)",
         SST2, _at("no_exit_cost"), at_most=0.02, unit="share"),
    Goal("exit step, plan and gather: share of GPU time",
         SST2, _at("time_shares", "together"), at_most=0.03, unit="share"),
    Goal("attention for short rows, a wave of sst2's lengths, over its bound",
         "attention", _short_attention, at_most=1.5),
    Goal("DeBERTa v3's shape: full depth against stock transformers at its best batch",
         "families", _at("deberta-v2", "full_depth_vs_stock"), at_least=1.15),
    Goal("the same, exit efficiency", "families", _at("deberta-v2", "exit_efficiency"), at_least=0.93,
         unit="ratio"),
    Goal("host time of a layer with exit step, plan and read-back, against transformers' layer",
         "host", _at("ratio"), at_most=0.4),
    Goal("the same of 8 rows that are replayed, of which counts are read back at every third layer",
         "host", _at("replayed", "ratio"), at_most=0.4),
    Goal("the slowest call of the drop-in against stock's, 1 to 256 rows, full depth",
         "dropin", _slowest_call("full_depth_vs_stock"), at_least=1.0),
    Goal("the slowest call of the drop-in against stock's, early exit",
         "dropin", _slowest_call("early_exit_vs_stock"), at_least=1.0),
    Goal("whole job, csv to parquet, against the slower of engine and tokenizer alone, full depth",
         "whole-job", _at("jobs", "full-depth", "of_its_bound"), at_least=0.90, unit="ratio"),
    Goal("the same, every row to layer 4",
         "whole-job", _at("jobs", "fixed-depth:4", "of_its_bound"), at_least=0.90, unit="ratio"),
    Goal("rows/s against stock transformers at its best batch, full depth",
         SST2, _at("full_depth_vs_stock"), at_least=1.5),
    Goal("the same, early exit", SST2, _at("early_exit_vs_stock"), at_least=2.3),
    Goal("peak memory against stock at equal tokens in flight",
         "bert-base-128", _at("memory", "ratio"), at_most=1.0),
    Goal("`exit_step` behind its pooler, 4,096 rows, hidden 768, 2 classes, over its bound",
         "micro", _exit_step(2), at_most=1.3),
    Goal("the same with 1,000 classes", "micro", _exit_step(1000)),
    Goal("`gather`, share of the measured copy bandwidth", "micro", _slowest_gather, at_least=0.85, unit="share"),
]  # fmt: skip
