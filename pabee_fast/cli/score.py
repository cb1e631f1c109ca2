"""`pabee-fast score`."""

import sys
from typing import Annotated, Any

import typer

from pabee_fast.cli.options import (
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
from pabee_fast.cli.watch import Watch, choose_watch
from pabee_fast.shown import plain


def score_command(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Tables of texts (csv, tsv, jsonl, parquet, arrow; .gz, .bz2, .zst), directories or globs of them "
            "(whose folders NAME=VALUE become columns), a dataset saved by Hugging Face, or - for jsonl on standard "
            "input.",
        ),
    ],
    model: Annotated[str, typer.Option(help="Model directory or hub id; policies that can exit need one with heads.")],
    output: Annotated[
        str,
        typer.Option(help="Table to write, its suffix names the format; DIRECTORY/ for parts; - for standard output."),
    ],
    text_column: TextColumn = "text",
    text_pair_column: TextPairColumn = None,
    delimiter: Delimiter = None,
    quoting: Quoting = "auto",
    encoding: Encoding = "utf-8",
    policy: Annotated[
        str | None,
        typer.Option(
            help="When a row has settled: patience:6, confidence:0.9,first_layer=4, fixed-depth:8, full-depth. "
            "Default: what `pabee-fast tune` stored with the model, or full-depth if its guarantee is void here; "
            "patience:6 where none is stored and the model is deeper."
        ),
    ] = None,
    max_length: MaxLength = None,
    token_budget: TokenBudget = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    devices: Annotated[
        str | None, typer.Option(help="Several devices, a process for each: all, or cuda:0,cuda:1, or cpu,cpu.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local, or ray for a cluster (pip install 'pabee-fast\\[ray]').")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(help="With --engine ray: how many workers; default: one for each GPU, or machine.")
    ] = None,
    prefix: Annotated[str, typer.Option(help="Put before the names of the result columns.")] = "",
    all_scores: Annotated[bool, typer.Option("--all-scores", help="Add a column score_LABEL for every label.")] = False,
    part_rows: Annotated[
        int | None, typer.Option(help="Rows of a part, which is written and resumed as one; default: by device.")
    ] = None,
    format: Annotated[str | None, typer.Option(help="Of the parts of a directory: parquet, jsonl, csv or tsv.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an output that exists, or a begun job that differs.")
    ] = False,
    max_errors: Annotated[int | None, typer.Option(help="Stop when more rows than these have errors.")] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Do parts again whose rows failed in computing.")
    ] = False,
    audit: Annotated[float, typer.Option(help="Share of the rows that also run to full depth, 0.01 say.")] = 0.0,
    log_format: Annotated[str, typer.Option(help="text, or json: a line on stderr for every part.")] = "text",
) -> None:
    """Score a table of texts: its columns, and prediction, score, exit_layer and error for every row.

    The job is done in parts. Killed or stopped, the same command goes on with the parts that are missing.
    """
    import transformers

    from pabee_fast.errors import InputError
    from pabee_fast.jobs.executors import open_executor
    from pabee_fast.jobs.job import Columns, Job, JobOptions
    from pabee_fast.jobs.recipe import Recipe
    from pabee_fast.policies import parse_policy

    transformers.logging.disable_progress_bar()  # one bar is enough
    watch = choose_watch(log_format)
    columns = Columns(text_columns(text_column, text_pair_column), prefix, reading(delimiter, quoting, encoding))
    recipe = Recipe(
        model=model,
        policy=None if policy is None else parse_policy(policy),
        device=device,
        dtype=dtype,
        max_length=max_length,
        token_budget=token_budget,
        all_scores=all_scores,
        audit=audit,
        texts=len(columns.texts),
    )
    options = JobOptions(
        part_rows, format=format, overwrite=overwrite, max_errors=max_errors, retry_errors=retry_errors
    )
    if "-" in (*inputs, output):
        if inputs != ["-"] or output != "-":
            raise InputError("standard input goes to standard output: give - for both, or files for both")
        given = {"part_rows": part_rows, "format": format, "overwrite": overwrite, "retry_errors": retry_errors}
        given["log_format json"] = log_format != "text"
        given |= columns.reading.settings()
        if unused := [f"--{name.replace('_', '-')}" for name, value in given.items() if value]:
            raise InputError(
                f"{', '.join(unused)}: standard input is JSON Lines, scored as they come, without parts; leave it out"
            )
        _stream(recipe, columns, devices, engine, workers, max_errors)
        return
    job = Job(inputs, output, columns, options)  # before a model is loaded
    try:
        with open_executor(recipe, devices, engine, workers, watch.on_rows) as executor, watch:
            summary = job.run(executor, watch.on_part)
    except KeyboardInterrupt:
        _say_stopped(job, watch)
        raise typer.Exit(130) from None
    _say_done(summary, executor.about, job.output.place, watch, log_format)


def _stream(
    recipe: Any, columns: Any, devices: str | None, engine: str, workers: int | None, max_errors: int | None
) -> None:
    from pabee_fast.cli.summary import audit_lines, policy_line
    from pabee_fast.errors import InputError
    from pabee_fast.jobs.executors import open_executor
    from pabee_fast.jobs.stream import score_stream

    for stream, name in ((sys.stdin, "input"), (sys.stdout, "output")):
        if stream is None:
            raise InputError(f"standard {name} is closed: give it a file or a pipe")
    # Unbuffered: a buffer has a lock, which a thread that waits for input holds, and which Python's end would take.
    source = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    try:
        with open_executor(recipe, devices, engine, workers) as executor:
            print(plain(policy_line(executor.about)), file=sys.stderr)
            tally = score_stream(source, sys.stdout.buffer, columns, executor, max_errors)
            guarantee = executor.about.guarantee
    except KeyboardInterrupt:
        print("pabee-fast: stopped", file=sys.stderr)
        raise typer.Exit(130) from None
    if tally.audited:
        print("\n".join(audit_lines(tally, guarantee)), file=sys.stderr)
    none = ": none could be scored, see the field error of each" if tally.errors == tally.rows > 0 else ""
    print(f"{tally.rows} rows, {tally.errors} with errors{none}", file=sys.stderr)


def _say_stopped(job: Any, watch: Watch) -> None:
    progress = job.progress
    known = f" of {progress.total}" if progress.total is not None else ""
    line = f"stopped: {progress.tally.rows}{known} rows are done; the same command goes on from there"
    watch.on_end("stopped", rows=progress.tally.rows, total=progress.total)
    print(f"pabee-fast: {line}", file=sys.stderr)


def _say_done(summary: Any, about: Any, place: Any, watch: Watch, log_format: str) -> None:
    from pabee_fast.cli.summary import summary_figures, summary_lines

    watch.on_end("end", **summary_figures(summary, about, place))
    if log_format == "text":
        print("\n".join(map(plain, summary_lines(summary, about, place))))
