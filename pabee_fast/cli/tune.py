"""`pabee-fast tune`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from pabee_fast.calibration.settings import TuneSettings
from pabee_fast.cli.loading import loading, use_threads
from pabee_fast.cli.options import takes
from pabee_fast.cli.show import quieten_transformers
from pabee_fast.cli.tune_lists import tune_lists_for
from pabee_fast.shown import plain

if TYPE_CHECKING:
    from pabee_fast.calibration.calibrate import Calibration
    from pabee_fast.calibration.tune import Tuned

Item = TypeVar("Item")

SHOWN = 24
"""Lines of a table at most: more are thinned out evenly, and the JSON has them all."""


@takes(TuneSettings)
def tune_command(settings: TuneSettings) -> None:
    """Choose the fastest policy whose risk is at most epsilon, with probability at least 1 - delta.

    The calibration texts must be unseen by training and fit, and exchangeable with the texts promised for: drawn from
    the same source in the same way. `pabee-fast score` then uses the policy by itself, as long as model, tokenizer,
    precision and maximum length stay the same. With --top-k it chooses when `pabee-fast rerank` drops candidates.
    """
    if settings.top_k is not None:
        tune_lists_for(settings)
        return
    with loading():
        from pabee_fast.calibration.tune import tune

    use_threads(settings.threads)
    quieten_transformers()
    print_tuned(tune(settings), stored_in=settings.model if settings.store else None)


def print_tuned(tuned: "Tuned", stored_in: str | None) -> None:
    """Show what was chosen, what is promised of it and whom its errors befall; then how it was found."""
    from pabee_fast.calibration.tune import ASSUMPTION

    console = Console()
    _print_choice(console, tuned)
    if tuned.calibration.by_answer:
        console.print(_answers_table(tuned))
    console.print(ASSUMPTION, highlight=False)
    console.print(_frontier_table(tuned.calibration))
    console.print(_tested_table(tuned.calibration))
    for file in tuned.files:
        print(plain(f"wrote {file}"))
    if stored_in is not None:
        print(plain(f"stored in {Path(stored_in) / 'config.json'}"))


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


def _print_choice(console: Console, tuned: "Tuned") -> None:
    guarantee, setting = tuned.calibration.guarantee, tuned.setting
    console.print(f"chosen: [bold]{guarantee.policy}[/bold]", highlight=False)
    console.print(f"promise: {guarantee.statement()}", highlight=False)
    if guarantee.conditions.stride is not None:
        console.print(f"score with --stride {guarantee.conditions.stride}: the promise is of texts read so")
    console.print(
        f"cost: {guarantee.cost:.3f} of full depth's tokens x layers ({1 / guarantee.cost:.2f}x by layers, of "
        f"{tuned.layers}); heads are not counted; measured on {setting.device_name}, {setting.dtype_name}",
        highlight=False,
    )
    if (accuracy := tuned.calibration.full_depth_accuracy) is not None:
        console.print(f"full depth is right on {accuracy:.1%} of these rows", highlight=False)
    console.print(str(tuned.calibration.known), highlight=False)
    if tuned.is_trivial:
        console.print(
            f"full depth gives {tuned.alike:.1%} of these rows one and the same answer, so that hardly any policy "
            "could break the promise: it says little of the other answers. What each loses stands below",
            highlight=False,
        )


def _answers_table(tuned: "Tuned") -> Table:
    """Return the SHOWN answers that lose the largest share of their rows."""
    found = tuned.calibration
    title = f"{found.guarantee.risk.name} of each answer, over the {found.guarantee.rows:,} rows that tested it"
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("at full depth", overflow="fold")
    for name in ("rows", "errors", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    named = [(name, of) for name, of in zip(tuned.names, found.by_answer, strict=True) if of.rows]
    worst = sorted(named, key=lambda one: -one[1].errors / one[1].rows)[:SHOWN]
    for name, of in worst:
        table.add_row(escape(plain(name)), f"{of.rows:,}", f"{of.errors}", f"{of.errors / of.rows:.2%}")
    return table
