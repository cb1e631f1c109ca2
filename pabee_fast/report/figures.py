"""The report's figures: each takes what was worked out and returns an SVG document."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pabee_fast.calibration.plots import ACCENT, INK, MARKERS, MUTED, SERIES, WARN, as_svg, new_figure, styled
from pabee_fast.report.metrics import neighbour_errors, overthinking, wrong_streaks
from pabee_fast.report.rule import Rule
from pabee_fast.report.study import Point, Study, mean_sd

Series = Sequence[tuple[float, float]]
"""Means and standard deviations."""

STORED = "#dc2626"
"""The colour of the stored rule."""
FASTEST = 4.0
"""Where curves of speed end, unless the stored rule is faster."""


def _line(axes: Any, x: Sequence[float], series: Series, **options: Any) -> None:
    """Means with bars of one standard deviation, where there is more than one seed."""
    means, deviations = [mean for mean, _ in series], [sd for _, sd in series]
    axes.plot(x, means, **options)
    if any(deviations):
        axes.errorbar(x, means, yerr=deviations, linestyle="none", color=options["color"], alpha=0.45, capsize=2,
                      elinewidth=0.8)  # fmt: skip


def _mark_rule(axes: Any, study: Study, where: Callable[[Rule], tuple[float, float | None]]) -> None:
    """The stored rule: a star at its x and y, or a line at its x alone."""
    if study.rule is None:
        return
    (x, y), label = where(study.rule), f"stored: {study.rule.stored.policy}"
    if y is None:
        axes.axvline(x, color=STORED, linewidth=1.2, linestyle="-.", label=label)
    else:
        axes.plot([x], [y], color=STORED, marker="*", markersize=13, linestyle="none", label=label, zorder=5)


def _own_score(study: Study, rule: Rule) -> float:
    return study.score((rule.answers(study.traces[0]),))[0]


def _layer_ticks(axes: Any, layers: int) -> None:
    axes.set_xticks([layer for layer in range(1, layers + 1) if layers <= 12 or layer % 2 == 0])


def heads_figure(study: Study) -> str:
    """Return the main metric of every head, of the ensemble, and of truncated models at their depth."""
    first = study.traces[0].first_layer
    x = list(range(first, study.layers + 1))
    by_head = [study.score(tuple(heads[i] for heads in study.heads)) for i in range(len(x))]
    with styled():
        figure, axes = new_figure(height=3.4)
        _line(axes, x, by_head, color=ACCENT, marker="o", label="head of the layer")
        axes.axhline(study.score(study.ensemble)[0], color=SERIES[3], linestyle="--", linewidth=1.2,
                     label="ensemble of all heads")  # fmt: skip
        axes.axhline(by_head[-1][0], color=MUTED, linestyle=":", linewidth=1.2, label="full depth")
        if study.truncated:
            depths = sorted(study.truncated)
            scores = [study.score(study.truncated[depth]) for depth in depths]
            _line(axes, depths, scores, color=WARN, marker="D", linestyle="none", label="truncated and fine-tuned")
        _mark_rule(axes, study, lambda rule: (rule.mean_exit_layer, _own_score(study, rule)))
        _layer_ticks(axes, study.layers)
        axes.set_xlabel("layer; the stored rule at its mean exit layer" if study.rule else "layer")
        axes.set_ylabel(study.main_metric)
        figure.legend(loc="outside right upper")
        return as_svg(figure)


def curves_figure(study: Study, curves: Sequence[tuple[str, Sequence[Point]]]) -> str:
    """Return the main metric of every rule against speed, which grows to the right."""
    with styled():
        figure, axes = new_figure(height=4.8)
        full, spread = study.score(study.full_depth)
        fastest = FASTEST if study.rule is None else max(FASTEST, study.rule.layer_ratio)
        for number, (rule, points) in enumerate(curves):
            style = {"color": SERIES[number % len(SERIES)], "marker": MARKERS[number % len(MARKERS)], "label": rule}
            seen = [p for p in points if p.speed[0] <= fastest]  # or lines would leave the axes
            _line(axes, [p.speed[0] for p in seen], [p.score for p in seen], markersize=3.5, linewidth=1.3, **style)
        depths = [depth for depth in sorted(study.truncated, reverse=True) if study.layers / depth <= fastest]
        if depths:
            scores = [study.score(study.truncated[depth]) for depth in depths]
            _line(axes, [study.layers / depth for depth in depths], scores, color=INK, marker="*", markersize=11,
                  linestyle="--", linewidth=1, label="truncated and fine-tuned")  # fmt: skip
        axes.axhline(full, color=MUTED, linestyle=":", linewidth=1.2, label="full depth")
        _line(axes, [1.0], [study.score(study.ensemble)], color=INK, marker="P", markersize=8, linestyle="none",
              label="ensemble of all heads")  # fmt: skip
        _mark_rule(axes, study, lambda rule: (rule.layer_ratio, _own_score(study, rule)))
        shown = [p.score[0] for _, points in curves for p in points if p.speed[0] <= fastest]
        shown += [study.score(study.truncated[depth])[0] for depth in depths]
        shown += [] if study.rule is None else [_own_score(study, study.rule)]
        low = min([full, *(score for score in shown if not math.isnan(score))])
        axes.set_ylim(bottom=low - 0.08 * (full - low + spread + 0.01))
        axes.set_xlim(0.95, 1.05 * fastest)
        axes.set_xlabel("speed-up by layers: tokens x layers of full depth / those spent")
        axes.set_ylabel(study.main_metric)
        figure.legend(loc="outside right upper")
        return as_svg(figure)


def neighbours_figure(study: Study) -> str:
    """P(wrong | head before right) and P(wrong | head before wrong), beside what independence predicts."""
    first = study.traces[0].first_layer
    every = [neighbour_errors(flags, first) for flags in study.right]
    x = [pair.layer + 1 for pair in every[0]]
    with styled():
        figure, (left, rest) = new_figure(height=3.4, columns=2)
        for name, label, colour, marker in (
            ("after_wrong", "wrong before", WARN, "s"),
            ("after_right", "right before", ACCENT, "o"),
        ):
            series = [mean_sd([getattr(seed[i], name) for seed in every]) for i in range(len(x))]
            _line(left, x, [(100 * m, 100 * sd) for m, sd in series], color=colour, marker=marker, label=label)
        independent = [100 * mean_sd([seed[i].independent for seed in every])[0] for i in range(len(x))]
        left.plot(x, independent, color=MUTED, linestyle="--", label="if independent")
        _mark_rule(left, study, lambda rule: (rule.mean_exit_layer, None))
        left.set_ylim(0, 100)
        _layer_ticks(left, study.layers)
        left.set_title("A head's errors, given the head before")
        left.set_xlabel("layer")
        left.set_ylabel("wrong, % of rows")
        left.legend(loc="best")
        streaks = [wrong_streaks(flags) for flags in study.right]
        heads = [streak.heads for streak in streaks[0]]
        observed = [100 * mean_sd([seed[i].observed for seed in streaks])[0] for i in range(len(heads))]
        expected = [100 * mean_sd([seed[i].independent for seed in streaks])[0] for i in range(len(heads))]
        rest.plot(heads, observed, color=WARN, marker="s", label="observed")
        rest.plot(heads, expected, color=MUTED, linestyle="--", marker=".", label="if independent")
        patience = getattr(study.stored and study.stored.policy, "patience", None)
        if patience is not None and patience < len(heads):
            _mark_rule(rest, study, lambda rule: (patience + 1, None))
        rest.set_yscale("log")
        rest.yaxis.set_major_formatter(lambda share, _: f"{share:g}")
        rest.set_xticks(heads)
        rest.set_title("Heads in a row, all wrong")
        rest.set_xlabel("heads in a row (patience + 1)")
        rest.set_ylabel("% of rows")
        rest.legend(loc="lower left")
        return as_svg(figure)


def overthinking_figure(study: Study) -> str:
    """Return rows that full depth gets wrong although an earlier head had them right, by the last such head."""
    found = [overthinking(flags) for flags in study.right]
    first = study.traces[0].first_layer
    x = list(range(first, study.layers))
    with styled():
        figure, axes = new_figure(height=2.8)
        series = [mean_sd([100 * seed.last_right[i] for seed in found]) for i in range(len(x))]
        errors = [sd for _, sd in series] if any(sd for _, sd in series) else None
        axes.bar(x, [mean for mean, _ in series], yerr=errors, color=ACCENT, width=0.7, capsize=2, ecolor=MUTED)
        _mark_rule(axes, study, lambda rule: (rule.mean_exit_layer, None))
        if study.rule is not None:
            axes.legend(loc="best")
        axes.set_ylim(bottom=0)
        _layer_ticks(axes, study.layers)
        axes.set_xlabel("last layer whose head was right")
        axes.set_ylabel("% of all rows")
        return as_svg(figure)


def exits_figure(study: Study, chosen: Sequence[tuple[str, torch.Tensor]]) -> str:
    """Return histograms of exit layers, one for each of some policies: [seeds, rows] of exit layers with a title."""
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    with styled():
        figure, axes = new_figure(height=0.4 + 2.1 * rows, rows=rows, columns=columns)
        grid = axes if len(chosen) > 1 else [axes]
        layers = torch.arange(1, study.layers + 1)
        for place, (title, exits) in zip(grid, chosen, strict=False):
            shares = (exits.flatten()[None] == layers[:, None]).double().mean(dim=1)
            place.bar(layers.tolist(), (100 * shares).tolist(), color=ACCENT, width=0.8)
            mean = float(exits.double().mean())
            place.axvline(mean, color=WARN, linewidth=1)
            broken = title.replace(",", ",\n", 1)
            place.set_title(f"{broken}\nmean {mean:.2f}", fontsize=7.5, fontweight="normal")
            place.set_xlim(0.3, study.layers + 0.7)
            place.set_xticks([1, study.layers // 2, study.layers])
        for place in grid[len(chosen) :]:
            place.set_visible(False)
        figure.supxlabel("exit layer", fontsize=9)
        figure.supylabel("% of rows", fontsize=9)
        return as_svg(figure)
