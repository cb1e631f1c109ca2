"""The table of `bench.rivals`, and where it and its figures are kept."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def table(figures: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    lengths, trained = figures["tokens_per_row"], figures["trained"]
    packages = ", ".join(f"{name} {version}" for name, version in figures["packages"].items())
    lines = [
        f"{figures['model']}{'' if trained else ' with random weights'}, {figures['rows']} rows of {lengths['min']} to "
        f"{lengths['max']} tokens (mean {lengths['mean']:.1f}), float32 where nothing else is said, "
        f"{figures['hardware']}, medians of {figures['rounds']} rounds; {packages}:",
        "",
        "| | batch | rows/s | against stock | equal labels | largest difference |" + " accuracy |" * trained,
        "|---|---|---|---|---|---|" + "---|" * trained,
    ]
    for name, way in sorted(figures["ways"].items(), key=lambda item: item[1]["rows_per_second"]):
        exits = ""
        if "early exit" in name:
            rule = f"`{way['policy']}`, " if trained else ""
            exits = f" ({rule}{way['layer_ratio']:.2f}x by layers)"
        cells = [
            name + exits,
            way["batch"] or "-",
            f"{way['rows_per_second']:,.0f}" if trained else f"{way['rows_per_second']:,.1f}",
            f"{way['against_stock']:.2f}x",
            f"{way['equal_labels']:.1%}" if trained or "early exit" not in name else "-",
            f"{way['largest_difference']:.1e}" if trained or "early exit" not in name else "-",
            *([f"{way['accuracy']:.1%}"] if trained else []),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    if figures["left_out"]:
        lines += ["", "Left out:", ""]
        lines += [f"- {name}: {why}" for name, why in figures["left_out"].items()]
    return "\n".join(lines)


def marks(name: str) -> tuple[str, str]:
    """Return the lines of the README between which the table of a model stands."""
    return f"<!-- rivals of {name}, written by `python -m bench.rivals --keep` -->", f"<!-- end of rivals of {name} -->"


def keep(figures: Mapping[str, Any]) -> None:
    """Write the figures beside this file, and their table into the README.

    Raises:
        SystemExit: the README lacks the marks.
    """
    name, readme = figures["model"], HERE / "README.md"
    begin, end = marks(name)
    text = readme.read_text()
    if begin not in text or end not in text:
        raise SystemExit(f"{readme} lacks the lines {begin} and {end}, between which the table goes")
    target = HERE / "figures" / f"rivals-{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(figures, indent=1) + "\n")
    head, _, rest = text.partition(begin)
    readme.write_text(f"{head}{begin}\n{table(figures)}\n{end}{rest.partition(end)[2]}")
