"""The figures of `bench.endtoend` from seconds, as far as these go, and the table of them."""

import statistics
from collections.abc import Mapping
from typing import Any

from bench import timing

Seconds = Mapping[str, list[float]]
"""Variant -> seconds of each round so far."""


def speeds(seconds: Seconds, rows: int, layer_ratios: Mapping[str, float]) -> dict[str, Any]:
    """Return what the main variants' seconds say, without what cannot be said yet.

    Args:
        seconds: of "stock, batch N", "full depth", "early exit", "early exit, NAME" and "nobody leaves".
        rows: of a run.
        layer_ratios: the most that exits can save, by their name; "usual" are those of "early exit".
    """
    median = {name: statistics.median(times) for name, times in seconds.items() if times}
    stock = [name for name in median if name.startswith("stock")]
    best = min(stock, key=median.__getitem__, default="")
    cost = _ratio(seconds, "nobody leaves", "full depth")
    others = {}
    for name, most in layer_ratios.items():
        if name != "usual" and median.get(f"early exit, {name}"):
            others[name] = _known(
                vs_full_depth=_ratio(seconds, "full depth", f"early exit, {name}"),
                layer_ratio=most,
                exit_efficiency=_efficiency(seconds, "full depth", f"early exit, {name}", most),
            )
    return _known(
        rows_per_second={name: rows / value for name, value in median.items()},
        seconds=seconds,
        baseline=f"{best} (sdpa, length-sorted, padded to the longest of a batch)" if best else None,
        full_depth_vs_stock=_ratio(seconds, best, "full depth"),
        early_exit_vs_stock=_ratio(seconds, best, "early exit"),
        early_exit_vs_full_depth=_ratio(seconds, "full depth", "early exit"),
        layer_ratio=layer_ratios["usual"],
        exit_efficiency=_efficiency(seconds, "full depth", "early exit", layer_ratios["usual"]),
        other_exits=others,
        no_exit_cost=None if cost is None else cost - 1,
    )


def ways(seconds: Seconds, rows: int, layer_ratios: Mapping[str, float]) -> dict[str, Any]:
    """Return what other ways to run give, by their names, against the default one, which took turns with them.

    Args:
        seconds: of "full depth", "early exit" and, for each way, "full depth, WAY" and "early exit, WAY".
        rows: of a run.
        layer_ratios: the most that the exits can save, by ways: those that compute all of a last layer save more.
    """
    found = {}
    for full in seconds:
        way = full.removeprefix("full depth, ")
        early = f"early exit, {way}"
        if way == full or not (seconds[full] and seconds[early]):
            continue
        found[way] = _known(
            full_depth_speed=_ratio(seconds, "full depth", full),
            early_exit_speed=_ratio(seconds, "early exit", early),
            exit_efficiency=_efficiency(seconds, full, early, layer_ratios[way]),
            rows_per_second={"full depth": rows / statistics.median(seconds[full]),
                             "early exit": rows / statistics.median(seconds[early])},
        )  # fmt: skip
    return found


def _ratio(seconds: Seconds, numerator: str, denominator: str) -> float | None:
    above, below = seconds.get(numerator), seconds.get(denominator)
    return timing.median_ratio(above, below) if above and below else None


def _efficiency(seconds: Seconds, full: str, early: str, layer_ratio: float) -> float | None:
    saved = _ratio(seconds, full, early)
    return None if saved is None else saved / layer_ratio


def _known(**figures: Any) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if value is not None}


def table(figures: dict[str, Any]) -> str:
    """Return the figures as a README's table, in Markdown."""
    lengths = figures["tokens_per_row"]
    lines = [
        f"{figures['model']}, {figures['rows']} rows of {lengths['min']} to {lengths['max']} tokens "
        f"(mean {lengths['mean']:.1f}), {figures['dtype']}, {figures['hardware']}, torch {figures['torch']}, "
        f"transformers {figures['transformers']}:",
        "",
        "| | rows/s |",
        "|---|---|",
        *(f"| {name} | {rate:.1f} |" for name, rate in figures["rows_per_second"].items()),
        "",
        "| | |",
        "|---|---|",
        f"| full depth against the best stock batch | {figures['full_depth_vs_stock']:.2f}x |",
        f"| early exit against the best stock batch | {figures['early_exit_vs_stock']:.2f}x |",
        f"| early exit against our full depth | {figures['early_exit_vs_full_depth']:.2f}x |",
        f"| most that these exits allow | {figures['layer_ratio']:.2f}x |",
        f"| exit efficiency | {figures['exit_efficiency']:.3f} |",
        *(
            f"| exit efficiency, {name} exits ({each['vs_full_depth']:.2f}x of {each['layer_ratio']:.2f}x) "
            f"| {each['exit_efficiency']:.3f} |"
            for name, each in figures["other_exits"].items()
        ),
        f"| no-exit cost | {figures['no_exit_cost']:+.1%} |",
        f"| exit step, plan and gather, of the time | {figures['time_shares']['together']:.1%} |",
        f"| full depth, of the rate of a matrix product | {figures['utilisation']:.1%} |",
    ]
    if "memory" in figures:
        lines.append(f"| peak memory against stock, as many tokens | {figures['memory']['ratio']:.2f}x |")
    for name, each in figures["other_ways"].items():
        lines.append(
            f"| {name}: full depth, early exit against the default; exit efficiency | {each['full_depth_speed']:.3f}x, "
            f"{each['early_exit_speed']:.3f}x; {each['exit_efficiency']:.3f} |"
        )
    lines += [f"| {name} | not timed: {why} |" for name, why in figures["wrong_ways"].items()]
    return "\n".join(lines)
