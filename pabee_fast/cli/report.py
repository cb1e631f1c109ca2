"""`pabee-fast report`."""

from pathlib import Path
from typing import Annotated

import typer

from pabee_fast.cli.options import (
    TABLES,
    Delimiter,
    Device,
    Dtype,
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


def report_command(
    tables: Annotated[list[str], typer.Argument(metavar="TABLE...", help=f"Labelled texts, a section each: {TABLES}.")],
    model: Annotated[
        list[str], typer.Option(help="Model directory with heads; give it again for other seeds of the same recipe.")
    ],
    output: Annotated[Path, typer.Option(help="HTML file to write.")],
    truncated: Annotated[
        list[str], typer.Option(help="A shallower model, fine-tuned at its depth; may be given again.")
    ] = [],  # noqa: B006 - typer wants a list and copies it
    text_column: TextColumn = "text",
    text_pair_column: TextPairColumn = None,
    delimiter: Delimiter = None,
    quoting: Quoting = "auto",
    encoding: Encoding = "utf-8",
    label_column: Annotated[str, typer.Option(help="Column of the labels.")] = "label",
    metric: Annotated[
        str | None,
        typer.Option(
            help="The main one: accuracy, F1 (of two classes; of more macro-F1, of label sets micro-F1), Matthews, "
            "Pearson or Spearman; default: accuracy or Pearson."
        ),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Regression: answers this close to their label count as right.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the report calls the model; default: its directory.")] = None,
    max_length: MaxLength = None,
    token_budget: TokenBudget = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Write one HTML page: what every head, rule and truncated model is worth, what it saves, and how sure that is."""
    from pabee_fast.report.make import ReportSettings, make_report

    quieten_transformers()
    settings = ReportSettings(
        tables=tuple(map(str, tables)),
        models=tuple(model),
        output=str(output),
        truncated=tuple(truncated),
        text_columns=text_columns(text_column, text_pair_column),
        reading=reading(delimiter, quoting, encoding),
        label_column=label_column,
        metric=metric,
        tolerance=tolerance,
        name=name,
        max_length=max_length,
        token_budget=token_budget,
        dtype=dtype,
        device=device,
        overwrite=overwrite,
    )
    make_report(settings)
    print(plain(f"wrote {output}"))
