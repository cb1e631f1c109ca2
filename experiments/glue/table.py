"""The table of all runs, as Markdown, between two marks of a file that is otherwise written by hand."""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- written by `python -m experiments.glue --table` -->", "<!-- end -->"

Figures = dict[str, Any]
Row = list[str]


def write(results: Path, target: Path = TARGET) -> None:
    """Put the tables of all runs in `results` between the marks of `target`.

    Raises:
        SystemExit: no runs, or no marks.
    """
    runs, heads, convergence = (
        [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        for folder in (results, results / "heads", results / "convergence")
    )
    text = target.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not runs or not begin or not end:
        raise SystemExit(f"{results} holds {len(runs)} run(s), and {target} needs the lines {BEGIN} and {END}")
    target.write_text(f"{before}{BEGIN}\n{tables(runs, heads, convergence)}\n{END}{after}")


def tables(runs: Sequence[Figures], heads: Sequence[Figures] = (), convergence: Sequence[Figures] = ()) -> str:
    """Return all tables: a line for each model, task and budget, with mean ± standard deviation where there are more
    seeds.

    Args:
        heads: what `experiments.glue.heads` found.
        convergence: what `experiments.glue.convergence` found.
    """
    groups = [list(group) for _, group in groupby(sorted(runs, key=_group), key=_group)]
    parts = [
        _about(runs),
        _section("Full depth, fold by fold", DEPTH, [_full_depth(group) for group in groups]),
        _section("At most a point below full depth", WITHIN, [_within(group) for group in groups]),
        _section("At most 60 % of the layers", SHARED, [_shared(group) for group in groups]),
        _section("At equal layers, against truncated models", EQUAL, [r for group in groups for r in _equal(group)]),
        _section("Fit alone, without labels, calibrated", PROMISE, [r for group in groups for r in _promise(group)]),
        _section("PABEE against its own full depth", PATIENCE, [r for group in groups for r in _patience(group)]),
        _section("Every head", LAYERS, [r for group in groups for r in _layers(group)]),
    ]
    if heads:
        parts.append(_section("Heads fitted to a frozen model: agreement with full depth", KINDS, _kinds(heads)))
    if convergence:
        parts.append(_section("Convergence exits against fitted heads", CONVERGENCE, map(_convergence, convergence)))
    return "\n\n".join(parts)


DEPTH = "task | model | seeds | metric | stock model | its teacher"
WITHIN = (
    "task | model | seeds | full depth | exits | difference | p | mean exit layer | layer ratio | wall-clock | rule"
)
SHARED = "task | model | seeds | full depth | exits | difference | p | mean exit layer | rule"
EQUAL = "task | model | layers | mean exit layer | best rule | truncated | difference | p | heads"
PATIENCE = "task | model | patience | mean exit layer | exits | full depth | difference | p"
PROMISE = (
    "task | model | seed | rows of | policy | mean exit layer | disagreement | p"
    " | all draws: mean exit layer | rejected"
)
KINDS = "task | model | heads, pooling | after each layer but the last | mean"
CONVERGENCE = (
    "task | layers run: states | answers | heads | accuracy: full depth | states | answers | heads | p | layer ratio"
    " | wall-clock | own classifier after each layer | fitted heads"
)
LAYERS = "task | model | heads | score after each layer | all heads together"


def _about(runs: Sequence[Figures]) -> str:
    """Return what was measured on what, and which figures cannot be compared with published ones."""
    lines = []
    for run in sorted(runs, key=_group):
        rows = ", ".join(f"{count} {name}" for name, count in run["folds"].items())
        unlike = (
            f"; **not comparable with published tables** ({run['not_comparable']})" if run["not_comparable"] else ""
        )
        made = f" and {run['augmented']} texts made of their parts" if run["augmented"] else ""
        teacher = run["teacher"] and f"; teacher: {run['teacher']['rows']} rows, epochs: {run['teacher']['epochs']}"
        trained = f"{run['train_rows']} train rows{made}, {run['recipe']['epochs']} epochs{teacher or ''}"
        lines.append(f"- {_name(run)}, seed {_seed(run)}: {trained}; {rows}{unlike}")
    clocks = {(c["hardware"], c["dtype"]) for run in runs for c in run["wall_clock"] or ()}
    where = "; ".join(f"{hardware}, {dtype}" for hardware, dtype in sorted(clocks))
    return "\n".join([*lines, "", f"Wall-clock: {where or 'not measured'}."])


def _full_depth(group: Sequence[Figures]) -> Row:
    """Fold by fold, of the models without exits and of what taught them."""
    first, metric = group[0], _judged_metric(group[0])

    def by_fold(model: str) -> str:
        found = [run["full_depth"][model] for run in group if model in run["full_depth"]]
        folds = found[0] if found else ()
        return ", ".join(f"{fold} {_percent(scores[fold][metric] for scores in found)}" for fold in folds) or "-"

    return [first["task"], _model(first), str(len(group)), metric, by_fold("stock"), by_fold("teacher")]


def _within(group: Sequence[Figures]) -> Row:
    first, reached = group[0], [run["within_a_point"] for run in group if run["within_a_point"]["reached"]]
    start = [first["task"], _model(first), _seeds(reached, group)]
    if not reached:
        return [*start, *["not reached"] * 8]
    speed_ups = [c["policies"]["within a point"]["speed_up"] for run in group for c in run["wall_clock"] or ()]
    return [
        *start,
        *_against_full_depth(first, reached),
        f"{_mean(r['mean_exit_layer'] for r in reached)} of {_depth(first)}",
        _mean((r["layer_ratio"] for r in reached), "x"),
        _mean(speed_ups, "x"),
        _rules(reached),
    ]


def _shared(group: Sequence[Figures]) -> Row:
    first, reached = group[0], [run["within_layers"] for run in group if run["within_layers"]["reached"]]
    start = [first["task"], _model(first), _seeds(reached, group)]
    if not reached:
        return [*start, *["no rule leaves so early"] * 6]
    return [
        *start,
        *_against_full_depth(first, reached),
        f"{_mean(r['mean_exit_layer'] for r in reached)} of {_depth(first)}",
        _rules(reached),
    ]


def _seeds(reached: Sequence[Figures], group: Sequence[Figures]) -> str:
    """Return how many runs the line's means are over, and of how many."""
    return str(len(group)) if len(reached) in (0, len(group)) else f"{len(reached)} of {len(group)}"


def _against_full_depth(first: Figures, reached: Sequence[Figures]) -> Row:
    metric = _judged_metric(first)
    return [
        _percent(r["rival"][metric] for r in reached),
        _percent(r["metrics"][metric] for r in reached),
        _points(r["difference"] for r in reached),
        _each(r["p_value"] for r in reached),
    ]


def _rules(reached: Sequence[Figures]) -> str:
    return "; ".join(dict.fromkeys(f"`{c['policy']}` ({c['heads']})" for r in reached for c in r["choices"]))


def _equal(group: Sequence[Figures]) -> Iterable[Row]:
    first, metric = group[0], _judged_metric(group[0])
    for i, line in enumerate(first["equal_layers"]):
        lines = [run["equal_layers"][i] for run in group if run["equal_layers"][i]["reached"]]
        start = [first["task"], _model(first), str(line["layers"])]
        if not lines:
            yield [*start, *["no rule leaves so early"] * 6]
            continue
        yield [
            *start,
            _mean(x["mean_exit_layer"] for x in lines),
            _percent(x["metrics"][metric] for x in lines),
            _percent(x["truncated"][metric] for x in lines),
            _points(x["difference"] for x in lines),
            _each(x["p_value"] for x in lines),
            ", ".join(dict.fromkeys(c["heads"] for x in lines for c in x["choices"])),
        ]


def _patience(group: Sequence[Figures]) -> Iterable[Row]:
    first, metric = group[0], _judged_metric(group[0])
    for i, line in enumerate(first["patience"]):
        lines = [run["patience"][i] for run in group if run["patience"]]
        yield [
            first["task"],
            _model(first),
            line["choices"][0]["policy"].removeprefix("patience:"),
            _mean(x["mean_exit_layer"] for x in lines),
            _percent(x["metrics"][metric] for x in lines),
            _percent(x["rival"][metric] for x in lines),
            _points(x["difference"] for x in lines),
            _each(x["p_value"] for x in lines),
        ]


def _promise(group: Sequence[Figures]) -> Iterable[Row]:
    for run in group:
        found = run["promise"]
        if found is None:
            continue
        draws = found["draws"]
        yield [
            run["task"],
            _model(run),
            _seed(run),
            " + ".join(found["folds"]),
            f"`{found['policy']}`",
            f"{found['mean_exit_layer']:.2f} of {found['layers']}",
            f"{found['errors']} of {found['rows_left']}",
            f"{found['p_value']:.2g}",
            _mean(draws["mean_exit_layer"]),
            f"{draws['rejected']} of {draws['count']}",
        ]


def _layers(group: Sequence[Figures]) -> Iterable[Row]:
    first = group[0]
    for heads in first["by_layer"]:
        found = [run["by_layer"][heads] for run in group if heads in run["by_layer"]]
        layers = zip(*(f["layers"] for f in found), strict=True)
        yield [
            first["task"],
            _model(first),
            heads,
            _by_layer(statistics.fmean(layer) for layer in layers),
            _percent(f["ensemble"] for f in found),
        ]


def _kinds(runs: Sequence[Figures]) -> list[Row]:
    """Return a line for each task and kind, and one for each kind over all tasks."""
    rows = [
        [run["task"], _model(run), kind, _by_layer(layers), f"{100 * statistics.fmean(layers):.1f}"]
        for run in runs
        for kind, layers in run["agreement"].items()
    ]
    for kind in runs[0]["agreement"]:
        means = [statistics.fmean(run["agreement"][kind]) for run in runs]
        rows.append([f"mean of {len(runs)}", "", kind, "", f"{100 * statistics.fmean(means):.1f}"])
    return rows


def _convergence(found: Figures) -> Row:
    """Return a task's line; `p`, ratio and clock are those of fitted heads."""
    rules, clock = ("states", "answers", "heads"), found["wall_clock"]["policies"]["heads"]
    return [
        found["task"],
        *(f"{found['layers_run'][rule]:.2f}" for rule in rules),
        f"{100 * found['full_depth_accuracy']:.1f}",
        *(f"{100 * found['accuracy'][rule]:.1f}" for rule in rules),
        f"{found['p_value']['heads']:.2g}",
        f"{clock['layer_ratio']:.2f}x",
        f"{clock['speed_up']:.2f}x",
        *(_by_layer(found["accuracy_by_layer"][rule]) for rule in rules[1:]),
    ]


def _by_layer(shares: Iterable[float]) -> str:
    return " ".join(f"{100 * share:.1f}" for share in shares)


def _section(title: str, columns: str, rows: Iterable[Row]) -> str:
    line = "|" + "---|" * (columns.count("|") + 1)
    return "\n".join([f"### {title}", "", f"| {columns} |", line, *(f"| {' | '.join(row)} |" for row in rows)])


def _group(run: Figures) -> tuple[str, str, str, int, int, str]:
    """Return what runs that differ in their seed alone have in common."""
    teacher = json.dumps(run["teacher"], sort_keys=True) if run["taught"] else ""
    return run["model"], run["task"], run["budget"], len(run["averaged"]), run["augmented"], teacher


def _seed(run: Figures) -> str:
    """Return the run's, or those whose models it is the mean of."""
    return " + ".join(map(str, run["averaged"] or [run["seed"]]))


def _name(run: Figures) -> str:
    return f"{run['task']}, {_model(run)}"


def _model(run: Figures) -> str:
    unlike = [] if run["budget"] == "full" else [run["budget"]]
    unlike += [f"mean of {len(run['averaged'])}"] if run["averaged"] else []
    unlike += [f"{run['augmented']} augmented" if run["augmented"] else "taught"] if run["taught"] else []
    return run["model"] + (f" ({', '.join(unlike)})" if unlike else "")


def _depth(run: Figures) -> int:
    return len(next(iter(run["by_layer"].values()))["layers"])


def _judged_metric(run: Figures) -> str:
    """Return what the paired tests are about: they compare rows, so accuracy, whatever else the task's metric is."""
    return "Pearson" if run["metric"] == "Pearson" else "accuracy"


def _spread(values: Iterable[float], show: Callable[[float], str]) -> str:
    found = list(values)
    if not found:
        return "-"
    return show(statistics.fmean(found)) + (f" ± {show(statistics.stdev(found))}" if len(found) > 1 else "")


def _percent(values: Iterable[float]) -> str:
    return _spread(values, lambda x: f"{100 * x:.1f}")


def _points(values: Iterable[float]) -> str:
    """Signed, in points of a hundred."""
    found = list(values)
    return f"{100 * statistics.fmean(found):+.1f}" + (f" ± {100 * statistics.stdev(found):.1f}" if found[1:] else "")


def _mean(values: Iterable[float], unit: str = "") -> str:
    return _spread(values, lambda x: f"{x:.2f}") + unit


def _each(p_values: Iterable[float]) -> str:
    """Return one a seed: tests of several seeds over the same rows are not independent, so they are not joined."""
    return ", ".join("-" if math.isnan(p) else f"{p:.2g}" for p in p_values)
