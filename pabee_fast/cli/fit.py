"""`pabee-fast fit`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pabee_fast.cli.options import (
    TABLES,
    Delimiter,
    Device,
    Encoding,
    MaxLength,
    OverwriteModel,
    Quoting,
    RememberRows,
    TextColumn,
    TextPairColumn,
    TokenBudget,
    reading,
    text_columns,
)
from pabee_fast.cli.show import progress_bar, quieten_transformers
from pabee_fast.shown import plain


def fit_command(
    table: Annotated[str, typer.Argument(metavar="TABLE", help=f"Texts: {TABLES}.")],
    model: Annotated[str, typer.Option(help="Model directory or hub id of a fine-tuned classifier.")],
    output: Annotated[Path, typer.Option(help="Directory for the model with heads.")],
    text_column: TextColumn = "text",
    text_pair_column: TextPairColumn = None,
    delimiter: Delimiter = None,
    quoting: Quoting = "auto",
    encoding: Encoding = "utf-8",
    label_column: Annotated[
        str | None, typer.Option(help="Column of labels, used where a row has one; default: none is needed.")
    ] = None,
    head: Annotated[str, typer.Option(help="pabee, own-pooler or linear; see pf.attach_heads.")] = "linear",
    pooling: Annotated[
        str, typer.Option(help="What heads read: the first token, the last, or the mean of all.")
    ] = "mean",
    first_layer: Annotated[int, typer.Option(help="First layer that gets a head.")] = 1,
    alpha: Annotated[float, typer.Option(help="The model's share in what is learned of a row with a label.")] = 0.5,
    held_out: Annotated[float, typer.Option(help="Share of the rows that only choose and scale.")] = 0.1,
    max_length: MaxLength = None,
    token_budget: TokenBudget = None,
    dtype: Annotated[str, typer.Option(help="Precision of the one run: auto, float32, bfloat16 or float16.")] = "auto",
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the rows held out.")] = 0,
    remember_rows: RememberRows = True,
    overwrite: OverwriteModel = False,
) -> None:
    """Give a fine-tuned classifier exits by texts alone; its backbone and its full-depth answers stay as they are."""
    from pabee_fast.training.fit_table import FitSettings, fit_table

    quieten_transformers()
    settings = FitSettings(
        table=table,
        model=model,
        output=str(output),
        text_columns=text_columns(text_column, text_pair_column),
        reading=reading(delimiter, quoting, encoding),
        label_column=label_column,
        head=head,
        pooling=pooling,
        first_layer=first_layer,
        alpha=alpha,
        held_out=held_out,
        max_length=max_length,
        token_budget=token_budget,
        device=device,
        dtype=dtype,
        seed=seed,
        remember_rows=remember_rows,
        overwrite=overwrite,
    )
    with progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("running", total=None, rate="")
        fitted = fit_table(
            settings,
            on_window=lambda rows: bar.update(task, completed=rows),
            on_head=lambda layer: bar.update(task, rate=f"head of layer {layer} fitted"),
        )
    _print_summary(fitted)
    print(plain(f"wrote {output}"))


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
