"""`pabee-fast tune`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Column, Table

from pabee_fast.cli.options import (
    TABLES,
    Delimiter,
    Device,
    Encoding,
    MaxLength,
    Quoting,
    TextColumn,
    TextPairColumn,
    TokenBudget,
    reading,
    text_columns,
)
from pabee_fast.cli.show import quieten_transformers
from pabee_fast.shown import plain

if TYPE_CHECKING:
    from pabee_fast.calibration.calibrate import Calibration
    from pabee_fast.calibration.tune import Tuned

Item = TypeVar("Item")

SHOWN = 24
"""Lines of a table at most: more are thinned out evenly, and the JSON has them all."""


def tune_command(
    model: Annotated[str, typer.Option(help="Model directory with heads; the chosen policy is stored in its config.")],
    table: Annotated[
        str | None,
        typer.Argument(metavar="TABLE", help=f"Calibration texts, without labels: {TABLES}."),
    ] = None,
    risk: Annotated[
        str | None,
        typer.Option(
            help="What is bounded: disagreement (the answer is not full depth's), accuracy-loss (full depth is right "
            "and the answer is not; needs labels), or distance (regression: further than --tolerance from full depth). "
            "Default: disagreement, or distance for regression."
        ),
    ] = None,
    epsilon: Annotated[float, typer.Option(help="The most that the risk may be, as a share of the rows.")] = 0.01,
    delta: Annotated[float, typer.Option(help="The most that the probability of a broken promise may be.")] = 0.05,
    tolerance: Annotated[float | None, typer.Option(help="Of --risk distance, in units of the output.")] = None,
    order_share: Annotated[
        float | None,
        typer.Option(help="Share of the rows, drawn by --seed, that choose what is tested alone; default: 0.25."),
    ] = None,
    order_table: Annotated[
        str | None, typer.Option("--order", help="Other texts, that choose what is tested, instead.")
    ] = None,
    text_column: TextColumn = "text",
    text_pair_column: TextPairColumn = None,
    delimiter: Delimiter = None,
    quoting: Quoting = "auto",
    encoding: Encoding = "utf-8",
    label_column: Annotated[str | None, typer.Option(help="Column of the labels, for --risk accuracy-loss.")] = None,
    trace: Annotated[Path | None, typer.Option(help="A trace of the calibration texts, in place of TABLE.")] = None,
    max_length: MaxLength = None,
    token_budget: TokenBudget = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16; the promise holds in it.")] = "auto",
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Of the split by --order-share.")] = 0,
    allow_learned: Annotated[
        bool,
        typer.Option(
            "--allow-learned",
            help="Take rows although fit or train has learned from most: where texts recur as often in what is scored.",
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Directory for frontier.json and the plot; default: tuning, in the model's.")
    ] = None,
    plot: Annotated[str, typer.Option(help="svg or png.")] = "svg",
    store: Annotated[
        bool, typer.Option(help="Store the chosen policy and its guarantee in the model's config.")
    ] = True,
) -> None:
    """Choose the fastest policy whose risk is at most epsilon, with probability at least 1 - delta.

    The calibration texts must be unseen by training and fit, and exchangeable with the texts promised for: drawn from
    the same source in the same way. `pabee-fast score` then uses the policy by itself, as long as model, tokenizer,
    precision and maximum length stay the same.
    """
    from pabee_fast.calibration.tune import ASSUMPTION, TuneSettings, tune

    quieten_transformers()
    settings = TuneSettings(
        model=model,
        table=table,
        trace=str(trace) if trace else None,
        order_table=order_table,
        order_share=order_share,
        risk=risk,
        tolerance=tolerance,
        epsilon=epsilon,
        delta=delta,
        text_columns=text_columns(text_column, text_pair_column),
        reading=reading(delimiter, quoting, encoding),
        label_column=label_column,
        max_length=max_length,
        token_budget=token_budget,
        dtype=dtype,
        device=device,
        seed=seed,
        allow_learned=allow_learned,
        output=str(output) if output else None,
        plot=plot,
        store=store,
    )
    console = Console()
    tuned = tune(settings)
    console.print(_frontier_table(tuned.calibration))
    console.print(_tested_table(tuned.calibration))
    _print_choice(console, tuned, stored_in=model if store else None)
    console.print(ASSUMPTION, highlight=False)


def _frontier_table(found: "Calibration") -> Table:
    guarantee = found.guarantee
    title = f"Frontier by {guarantee.ordering_rows:,} ordering rows (estimates, no promise)"
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("policy", overflow="fold")
    for name in ("cost", "by layers", guarantee.risk.name):
        table.add_column(name, justify="right", no_wrap=True)
    for point in _thinned(found.frontier):
        table.add_row(str(point.policy), f"{point.cost:.3f}", f"{1 / point.cost:.2f}x", f"{point.risk:.2%}")
    return table


def _tested_table(found: "Calibration") -> Table:
    guarantee = found.guarantee
    title = f"Tests over {guarantee.rows:,} other rows: is the risk at most {guarantee.epsilon:.4g}?"
    table = Table(Column("walk", no_wrap=True), title=title, title_justify="left", min_width=len(title))
    table.add_column("policy", overflow="fold")
    for name in ("cost", "by layers", "errors", "p-value", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for step in _thinned(found.tested, lambda step: not step.passed or step.policy == guarantee.policy):
        table.add_row(
            str(step.walk + 1),
            str(step.policy),
            f"{step.cost:.3f}",
            f"{1 / step.cost:.2f}x",
            f"{step.errors}",
            f"{step.p_value:.2g}",
            "passed" if step.passed else "failed",
        )
    return table


def _thinned(items: Sequence[Item], kept: Callable[[Item], bool] = lambda item: False) -> list[Item]:
    """SHOWN of them or less, evenly, the last one among them, and all that must be kept."""
    every = max(1, -(-len(items) // SHOWN))
    return [item for i, item in enumerate(items) if (len(items) - 1 - i) % every == 0 or kept(item)]


def _print_choice(console: Console, tuned: "Tuned", stored_in: str | None) -> None:
    guarantee, setting = tuned.calibration.guarantee, tuned.setting
    console.print(f"chosen: [bold]{guarantee.policy}[/bold]", highlight=False)
    console.print(f"promise: {guarantee.statement()}", highlight=False)
    console.print(
        f"cost: {guarantee.cost:.3f} of full depth's tokens x layers ({1 / guarantee.cost:.2f}x by layers, of "
        f"{tuned.layers}); heads are not counted; measured on {setting.device_name}, {setting.dtype_name}",
        highlight=False,
    )
    if (accuracy := tuned.calibration.full_depth_accuracy) is not None:
        console.print(f"full depth is right on {accuracy:.1%} of these rows", highlight=False)
    console.print(str(tuned.calibration.known), highlight=False)
    for file in tuned.files:
        print(plain(f"wrote {file}"))
    if stored_in is not None:
        print(plain(f"stored in {Path(stored_in) / 'config.json'}"))
