"""How figures look, and the frontier's. They are matplotlib's, made without its global state, the same every time."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pabee_fast.calibration.calibrate import Calibration
from pabee_fast.errors import InputError
from pabee_fast.extras import require

INK, MUTED, FAINT = "#1f2933", "#6b7785", "#e3e8ee"
ACCENT, WARN = "#0b6e99", "#c2410c"
SERIES = ("#0b6e99", "#d97706", "#4d7c0f", "#7c3aed", "#be185d", "#0f766e", "#92400e", "#475569")
"""Colours of the lines of one figure, in order; told apart by people who see few colours, with MARKERS."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")

STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],  # matplotlib's own, so that every machine has it
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a label's name may hold dollar signs
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "figure.dpi": 150,
    "svg.hashsalt": "pabee_fast",  # names of elements are drawn by it: the same for the same figure
}


@contextmanager
def styled() -> Iterator[None]:
    """Figures made and saved meanwhile look like ours."""
    with require("matplotlib").rc_context(STYLE):
        yield


def new_figure(width: float = 7.2, height: float = 4.2, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """Return a figure of that many inches, and its axes, or a list of them where there are several; call it
    `styled`."""
    figure = require("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    return figure, axes[0] if len(axes) == 1 else axes


def as_svg(figure: Any) -> str:
    """Return the figure as an SVG document, without a date; call it `styled`."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def save_figure(figure: Any, path: Path) -> None:
    """Write a PNG or SVG, by the path's suffix; call it `styled`.

    Raises:
        InputError: another suffix.
    """
    if path.suffix == ".svg":
        path.write_text(as_svg(figure), encoding="utf-8")
    elif path.suffix == ".png":
        figure.savefig(path, format="png", metadata={"Software": None})
    else:
        raise InputError(f"{path}: a plot is written as .png or .svg")


def frontier_figure(found: Calibration) -> Any:
    """Risk against speed: the frontier by the ordering rows, and the walks over the testing rows."""
    guarantee = found.guarantee
    with styled():
        figure, axes = new_figure()
        share = 100 * guarantee.errors / guarantee.rows
        top = max(
            300 * guarantee.epsilon, 1.15 * max(share, *(100 * s.errors / guarantee.rows for s in found.tested), 0)
        )
        inside = [point for point in found.frontier if 100 * point.risk <= top]  # or its line would leave the axes
        axes.plot(
            [1 / point.cost for point in inside],
            [100 * point.risk for point in inside],
            color=MUTED, marker=".", linewidth=1, label=f"frontier by {guarantee.ordering_rows:,} ordering rows",
        )  # fmt: skip
        for walk in sorted({step.walk for step in found.tested}):
            steps = [step for step in found.tested if step.walk == walk]
            label = f"walk {walk + 1} over {guarantee.rows:,} testing rows ({type(steps[0].policy).__name__})"
            speeds, risks = [1 / step.cost for step in steps], [100 * step.errors / guarantee.rows for step in steps]
            axes.plot(speeds, risks, color=SERIES[walk], marker=MARKERS[walk], markersize=3.5, label=label)
            for step, speed, risk in zip(steps, speeds, risks, strict=True):
                if not step.passed:
                    axes.plot([speed], [risk], color=WARN, marker="x", markersize=8, linestyle="none")
        axes.axhline(100 * guarantee.epsilon, color=WARN, linestyle="--", linewidth=1)
        axes.annotate(
            f"epsilon = {guarantee.epsilon:.3g}", (1, 100 * guarantee.epsilon), xycoords=("axes fraction", "data"),
            xytext=(-2, 3), textcoords="offset points", ha="right", color=WARN, fontsize=8,
        )  # fmt: skip
        axes.plot(
            [1 / guarantee.cost], [share], marker="o", markersize=10, markerfacecolor="none", color=ACCENT,
            linestyle="none", markeredgewidth=1.8, label=f"chosen: {guarantee.policy}",
        )  # fmt: skip
        axes.set_xlabel("speed-up by layers: tokens x layers of full depth / those of the policy")
        axes.set_ylabel(f"{guarantee.risk.name}, % of rows")
        axes.set_ylim(-0.02 * top, top)
        seen = [1 / point.cost for point in inside] + [1 / step.cost for step in found.tested]
        axes.set_xlim(0.97, 1.08 * max(seen, default=1.0))
        axes.set_title("What exits save, and what they risk")
        axes.legend(loc="best")
    return figure
