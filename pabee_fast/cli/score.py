"""`pabee-fast score`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pabee_fast.cli.show import progress_bar


def score_command(
    table: Annotated[Path, typer.Argument(metavar="INPUT", help="Table of texts: csv, tsv, jsonl or parquet.")],
    model: Annotated[str, typer.Option(help="Model directory or hub id; policies that can exit need one with heads.")],
    output: Annotated[Path, typer.Option(help="Table to write; its suffix names the format.")],
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    text_pair_column: Annotated[str | None, typer.Option(help="Column of the second texts, for pairs.")] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="When a row has settled: patience:6, confidence:0.9,first_layer=4, fixed-depth:8, full-depth. "
            "Default: what `pabee-fast tune` stored with the model, if its guarantee holds here, otherwise patience:6."
        ),
    ] = None,
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
    chosen = parse_policy(policy) if policy is not None else None
    columns = Columns([text_column, *([text_pair_column] if text_pair_column else [])], prefix, all_scores)
    job = open_job(table, output, columns, overwrite=overwrite)  # before a model is loaded
    setting = Setting.choose(device, dtype)
    scorer = load_scorer(model, chosen, setting, max_length=max_length, token_budget=token_budget)
    console = Console(stderr=True)
    with progress_bar(console) as bar:
        task = bar.add_task("scoring", total=job.rows, rate="")

        def advance(tally: Any) -> None:
            bar.update(task, completed=tally.rows, rate=f"mean exit layer {tally.mean_exit_layer:.2f}")

        summary = score_table(scorer, job, output, columns, overwrite=overwrite, on_chunk=advance)
    _print_summary(summary, setting, scorer, output)


def _print_summary(summary: Any, setting: Any, scorer: Any, output: Path) -> None:
    """What was done, in words and figures, and how many rows left at each layer."""
    tally, layers = summary.tally, len(scorer.engine.layers)
    print(
        f"{tally.rows} rows in {summary.seconds:.2f} s: {summary.rows_per_second:,.0f} rows/s, reading, tokenizing and "
        f"writing included\n"
        f"device {setting.device_name}, {setting.dtype_name} ({setting.dtype_reason})\n"
        f"policy {scorer.policy}: {scorer.policy_reason}"
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
