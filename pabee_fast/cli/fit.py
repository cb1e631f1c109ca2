"""`pabee-fast fit`."""

from typing import Any

from rich.console import Console
from rich.table import Table

from pabee_fast.cli.loading import loading, use_threads
from pabee_fast.cli.options import takes
from pabee_fast.cli.show import progress_bar, quieten_transformers, stopped_in_words
from pabee_fast.cli.tune import print_tuned
from pabee_fast.shown import plain
from pabee_fast.training.settings import FitSettings


@takes(FitSettings)
def fit_command(settings: FitSettings) -> None:
    """Give a fine-tuned classifier exits by texts alone; its backbone and its full-depth answers stay as they are.

    With --tune it also chooses when rows leave, by texts that it keeps apart from the heads: then `pabee-fast score` is
    the next command. The texts must be unseen by the classifier's own training.
    """
    with loading():
        from pabee_fast.training.fit_table import fit_table

        if settings.tune:
            from pabee_fast.calibration.tune import tune

    use_threads(settings.threads)
    quieten_transformers()
    stopped = stopped_in_words("nothing is kept; the same command begins anew")
    with stopped, progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("running", total=None, rate="")
        fitted = fit_table(
            settings,
            on_window=lambda rows: bar.update(task, completed=rows),
            on_head=lambda layer: bar.update(task, rate=f"head of layer {layer} fitted"),
        )
    _print_summary(fitted)
    print(plain(f"wrote {settings.output}"))
    if settings.tune:
        rows, apart = fitted.record["rows"], len(fitted.calibration)
        print(
            f"of {rows + apart:,} rows {rows:,} fitted the heads and {apart:,} calibrate, by a hash of each text and "
            f"seed {settings.seed}; copies of a text are on one side"
        )
        kept = f"the model with its heads is in {settings.output}, and no policy was chosen; "
        with stopped_in_words(f"{kept}the same command with --overwrite does both anew"):
            print_tuned(tune(settings.tuning, fitted.calibration), stored_in=str(settings.output))


def _print_summary(fitted: Any) -> None:
    """How well the heads answer as the whole model does, and how long it took."""
    record = fitted.record
    names = [name for name in record["heads"][0] if name != "layer"] if record["heads"] else []
    title = f"held-out {record['held_out']} of {record['rows']} rows"
    shown = Table(title=title, title_justify="left", min_width=len(title))
    for name in ("layer", *names):
        shown.add_column(name, justify="right")
    for head in record["heads"]:
        shown.add_row(str(head["layer"]), *(f"{head[name]:.4f}" for name in names))
    Console().print(shown)
    if fitted.left_out:
        print(f"{fitted.left_out} rows without a text that can be scored were left out")
    if record["labelled"]:
        print(f"{record['labelled']} rows had a label")
    print(
        f"rows run once in {fitted.pass_seconds:.1f} s ({record['rows'] / fitted.pass_seconds:,.0f} rows/s), "
        f"heads trained in {fitted.head_seconds:.1f} s\n"
        f"device {fitted.setting.device_name}, {fitted.setting.dtype_name} ({fitted.setting.dtype_reason})"
    )
