"""`pabee-fast train`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pabee_fast.cli.options import (
    TABLES,
    Delimiter,
    Encoding,
    OverwriteModel,
    Quoting,
    RememberRows,
    TextColumn,
    TextPairColumn,
    reading,
    text_columns,
)
from pabee_fast.cli.show import quieten_transformers
from pabee_fast.shown import plain


def train_command(
    table: Annotated[str, typer.Argument(metavar="TRAIN", help=f"Labelled texts: {TABLES}.")],
    model: Annotated[str, typer.Option(help="Model directory or hub id: an encoder, a classifier, or one with heads.")],
    output: Annotated[Path, typer.Option(help="Directory for the trained model; written after every epoch.")],
    eval_table: Annotated[
        str | None, typer.Option("--eval", help="Such texts; every layer is evaluated on them after every epoch.")
    ] = None,
    text_column: TextColumn = "text",
    text_pair_column: TextPairColumn = None,
    delimiter: Delimiter = None,
    quoting: Quoting = "auto",
    encoding: Encoding = "utf-8",
    label_column: Annotated[
        str,
        typer.Option(
            help="Column of the labels: ids from 0, names, numbers (regression), or label sets, as lists of ids, "
            "of names, or of a 0 or 1 for every label."
        ),
    ] = "label",
    problem_type: Annotated[
        str | None,
        typer.Option(help="single_label_classification, multi_label_classification or regression; default: by labels."),
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="New heads: pabee, own-pooler or linear; see pf.attach_heads.")
    ] = None,
    pooling: Annotated[
        str | None, typer.Option(help="What new heads read: the first token, the last, or the mean of all.")
    ] = None,
    first_layer: Annotated[int | None, typer.Option(help="First layer that gets a head.")] = None,
    objective: Annotated[
        str, typer.Option(help="pabee, or self-distillation: every head also learns the last one's answers.")
    ] = "pabee",
    teacher: Annotated[
        str | None, typer.Option(help="A classifier whose answers are learned beside the labels (distillation).")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="The teacher's share of the loss, 0 to 1; default: 0.5.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Softens the teacher's and the heads' answers; default: 2.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the table.")] = 5,
    batch_size: Annotated[int, typer.Option(help="Rows of a step (on each device).")] = 32,
    accumulate: Annotated[int, typer.Option(help="Batches whose gradients make one optimizer step.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of AdamW.")] = 2e-5,
    schedule: Annotated[str, typer.Option(help="Learning rate after warm-up: linear, cosine or constant.")] = "linear",
    warmup: Annotated[float, typer.Option(help="Share of the steps in which the learning rate rises, 0 to 1.")] = 0.06,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of AdamW.")] = 0.01,
    max_length: Annotated[int, typer.Option(help="Tokens at which a text is cut.")] = 128,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16 mixed precision.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of new heads, dropout and the order of rows.")] = 0,
    remember_rows: RememberRows = True,
    overwrite: OverwriteModel = False,
) -> None:
    """Fine-tune a classifier together with the heads through which rows leave early (PABEE's joint loss)."""
    from pabee_fast.training.train import TrainSettings, train

    quieten_transformers()
    settings = TrainSettings(
        train=table,
        model=model,
        output=str(output),
        eval=eval_table,
        text_columns=text_columns(text_column, text_pair_column),
        reading=reading(delimiter, quoting, encoding),
        label_column=label_column,
        problem_type=problem_type,
        head=head,
        pooling=pooling,
        first_layer=first_layer,
        objective=objective,
        teacher=teacher,
        alpha=alpha,
        temperature=temperature,
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        schedule=schedule,
        warmup=warmup,
        weight_decay=weight_decay,
        max_length=max_length,
        bf16=bf16,
        seed=seed,
        remember_rows=remember_rows,
        overwrite=overwrite,
    )
    train(settings, Console())
    print(plain(f"wrote {output}"))
