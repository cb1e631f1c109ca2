"""The command line: reads options, calls the library, shows its errors in one line.

Heavy imports wait for the command that needs them, so that `--help` answers at once.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from pabee_fast.errors import PabeeFastError

app = typer.Typer(
    help="Patience-based early exit that makes batches of a Hugging Face classifier faster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The console script `pabee-fast`: an error of ours is one line on stderr and exit status 2."""
    try:
        app()
    except PabeeFastError as error:
        print(f"pabee-fast: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _show_version(wanted: bool) -> None:
    if wanted:
        from pabee_fast import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _quieten_transformers() -> None:
    """Its reports on missing classifier weights are no news here, and bars are for terminals."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()


@app.command("score")
def score_command(
    table: Annotated[Path, typer.Argument(metavar="INPUT", help="Table of texts: csv, tsv, jsonl or parquet.")],
    model: Annotated[str, typer.Option(help="Model directory or hub id; policies that can exit need one with heads.")],
    output: Annotated[Path, typer.Option(help="Table to write; its suffix names the format.")],
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    text_pair_column: Annotated[str | None, typer.Option(help="Column of the second texts, for pairs.")] = None,
    policy: Annotated[
        str,
        typer.Option(help="When a row has settled: patience:6, patience:6,first_layer=4, fixed-depth:8, full-depth."),
    ] = "patience:6",
    max_length: Annotated[
        int | None, typer.Option(help="Tokens at which a text is cut; default: what model and tokenizer allow.")
    ] = None,
    token_budget: Annotated[
        int | None, typer.Option(help="The most tokens computed at once; default: by device.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    prefix: Annotated[str, typer.Option(help="Put before the names of the result columns.")] = "",
    all_scores: Annotated[bool, typer.Option("--all-scores", help="Add a column score_LABEL for every label.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Score a table of texts: its columns, and prediction, score, exit_layer and error for every row."""
    import transformers

    from pabee_fast.policies import parse_policy
    from pabee_fast.scoring.job import Columns, open_job, score_table
    from pabee_fast.scoring.load import Setting, load_scorer

    transformers.logging.disable_progress_bar()  # one bar is enough
    chosen = parse_policy(policy)
    columns = Columns([text_column, *([text_pair_column] if text_pair_column else [])], prefix, all_scores)
    job = open_job(table, output, columns, overwrite=overwrite)  # before a model is loaded
    setting = Setting.choose(device, dtype)
    scorer = load_scorer(model, chosen, setting, max_length=max_length, token_budget=token_budget)
    console = Console(stderr=True)
    with _progress(console) as bar:
        task = bar.add_task("scoring", total=job.rows, rate="")

        def advance(tally: Any) -> None:
            bar.update(task, completed=tally.rows, rate=f"mean exit layer {tally.mean_exit_layer:.2f}")

        summary = score_table(scorer, job, output, columns, overwrite=overwrite, on_chunk=advance)
    _print_summary(summary, setting, chosen, len(scorer.engine.layers), output)


def _progress(console: Console) -> Progress:
    """A bar with rows per second; silent where the output is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} rows"),
        RowsPerSecond(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


class RowsPerSecond(ProgressColumn):
    """The speed of a progress bar that counts rows."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:,.0f} rows/s")


def _print_summary(summary: Any, setting: Any, policy: Any, layers: int, output: Path) -> None:
    """What was done, in words and figures, and how many rows left at each layer."""
    tally = summary.tally
    print(
        f"{tally.rows} rows in {summary.seconds:.2f} s: {summary.rows_per_second:,.0f} rows/s, reading, tokenizing and "
        f"writing included\n"
        f"device {setting.device_name}, {setting.dtype_name} ({setting.dtype_reason}); policy {policy}"
    )
    if not tally.rows:
        print("the table has no rows: an empty table with the result columns was written")
    if tally.exits:
        print(f"mean exit layer {tally.mean_exit_layer:.2f} of {layers}")
        most = max(tally.exits.values())
        for layer in range(1, layers + 1):
            count = tally.exits[layer]
            print(f"  {layer:>3} {'#' * round(40 * count / most):<40} {count:>8} {count / tally.exits.total():>6.1%}")
    if tally.truncated:
        print(f"{tally.truncated} rows were longer than the limit and were cut")
    if tally.errors:
        print(f"{tally.errors} rows could not be scored: see the column error")
    print(f"wrote {output}")


@app.command("info")
def info_command(
    model: Annotated[str | None, typer.Option(help="Model directory: also tells its family and heads.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Tell what would run here, and why: device, precision, attention, kernels."""
    import torch
    import transformers

    from pabee_fast import FullDepth, __version__
    from pabee_fast.models import FAMILIES
    from pabee_fast.models.heads import has_heads
    from pabee_fast.scoring.load import Setting, load_scorer

    setting = Setting.choose(device, dtype)
    lines = {
        "pabee-fast": __version__,
        "torch, transformers": f"{torch.__version__}, {transformers.__version__}",
        "device": setting.device_name,
        "dtype": f"{setting.dtype_name} ({setting.dtype_reason})",
        "exit step, compaction": setting.kernels,
        "attention": setting.attention(),
        "families": ", ".join(FAMILIES),
    }
    if model is not None:
        engine = load_scorer(model, FullDepth(), setting).engine
        config = engine.model.config
        heads = f"{len(engine.layers)}, the model's own included" if has_heads(engine.model) else "none but its own"
        lines |= {
            "attention": setting.attention(config.hidden_size // config.num_attention_heads),
            "model": f"{config.model_type}, {len(engine.layers)} layers of {config.hidden_size}, {engine.kind} answers",
            "heads": heads,
            "token budget": str(engine.token_budget),
        }
    for name, value in lines.items():
        print(f"{name + ':':<24}{value}")


@app.command("train")
def train_command(
    table: Annotated[Path, typer.Argument(metavar="TRAIN", help="Table of labelled texts: csv, tsv, jsonl, parquet.")],
    model: Annotated[str, typer.Option(help="Model directory or hub id: an encoder, a classifier, or one with heads.")],
    output: Annotated[Path, typer.Option(help="Directory for the trained model; written after every epoch.")],
    eval_table: Annotated[
        Path | None, typer.Option("--eval", help="Table on which every layer is evaluated after every epoch.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    text_pair_column: Annotated[str | None, typer.Option(help="Column of the second texts, for pairs.")] = None,
    label_column: Annotated[
        str, typer.Option(help="Column of the labels: ids from 0, names, numbers (regression), lists (label sets).")
    ] = "label",
    problem_type: Annotated[
        str | None,
        typer.Option(help="single_label_classification, multi_label_classification or regression; default: by labels."),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="A classifier whose answers are learned beside the labels (distillation).")
    ] = None,
    alpha: Annotated[float, typer.Option(help="The teacher's share of the loss, 0 to 1.")] = 0.5,
    temperature: Annotated[float, typer.Option(help="Softens the teacher's and the heads' answers.")] = 2.0,
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a directory that has files.")] = False,
) -> None:
    """Fine-tune a classifier together with the heads through which rows leave early (PABEE's joint loss)."""
    from pabee_fast.training.train import TrainSettings, train

    _quieten_transformers()
    settings = TrainSettings(
        train=str(table),
        model=model,
        output=str(output),
        eval=str(eval_table) if eval_table else None,
        text_column=text_column,
        text_pair_column=text_pair_column,
        label_column=label_column,
        problem_type=problem_type,
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
        overwrite=overwrite,
    )
    console = Console()
    train(settings, console)
    console.print(f"wrote {output}", soft_wrap=True)


if __name__ == "__main__":
    main()
