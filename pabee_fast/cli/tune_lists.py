"""`pabee-fast tune --top-k`."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table

from pabee_fast.calibration.settings import TuneSettings
from pabee_fast.cli.loading import loading, use_threads
from pabee_fast.cli.show import quieten_transformers
from pabee_fast.shown import plain

if TYPE_CHECKING:
    from pabee_fast.reranking.tune import TunedLists


def tune_lists_for(settings: TuneSettings) -> None:
    """Choose when candidates are dropped, and show what is promised of it and how it was found."""
    with loading():
        from pabee_fast.reranking.tune import ASSUMPTION, tune_lists

    use_threads(settings.threads)
    quieten_transformers()
    tuned = tune_lists(settings)
    guarantee, console = tuned.calibration.guarantee, Console()
    console.print(f"chosen: [bold]{guarantee.policy}[/bold]", highlight=False)
    console.print(f"promise: {guarantee.statement()}", highlight=False)
    console.print(
        f"cost: {guarantee.cost:.3f} of full depth's tokens x layers ({1 / guarantee.cost:.2f}x by layers, of "
        f"{tuned.layers}), over {tuned.rows:,} candidates of {tuned.lists:,} queries; heads are not counted; measured "
        f"on {tuned.setting.device_name}, {tuned.setting.dtype_name}",
        highlight=False,
    )
    console.print(ASSUMPTION, highlight=False)
    console.print(_tested_table(tuned))
    print(plain(f"wrote {tuned.file}"))
    if settings.store:
        print(plain(f"stored in {Path(settings.model) / 'config.json'}"))


def _tested_table(tuned: "TunedLists") -> Table:
    guarantee = tuned.calibration.guarantee
    title = f"Tests over {guarantee.rows:,} lists: is the mean loss at most {guarantee.epsilon:.4g}?"
    table = Table(Column("margins", overflow="fold"), title=title, title_justify="left", min_width=len(title))
    for name in ("cost", "by layers", "loss", "lists", "p-value", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for step in tuned.calibration.tested:
        table.add_row(
            " ".join(f"{margin:g}" for margin in step.policy.margins),
            f"{step.cost:.3f}",
            f"{1 / step.cost:.2f}x",
            f"{step.loss:.3%}",
            f"{step.losing}",
            f"{step.p_value:.2g}",
            "passed" if step.passed else "failed",
        )
    return table
