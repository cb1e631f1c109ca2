"""`pabee-fast score`."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from pabee_fast.arguments import require_between, require_model, require_whole
from pabee_fast.cli.loading import loading
from pabee_fast.cli.options import takes
from pabee_fast.cli.watch import Watch, choose_watch
from pabee_fast.errors import InputError
from pabee_fast.jobs.places import check_places
from pabee_fast.options import MODEL, READ, RUN, WRITTEN, Argument, Option, RunOptions, TextOptions
from pabee_fast.policies import Policy, parse_policy
from pabee_fast.shown import plain


@dataclass(frozen=True, kw_only=True)
class TableOptions(TextOptions, RunOptions):
    """What the commands are asked for that write a table part by part."""

    inputs: Annotated[
        list[str],
        Argument(
            "INPUT...",
            "Tables of texts (csv, tsv, jsonl, parquet, arrow; .gz, .bz2, .zst), directories or globs of them (whose "
            "folders NAME=VALUE become columns), a dataset saved by Hugging Face, or - for jsonl on standard input.",
        ),
    ]
    model: Annotated[str, Option(MODEL, "Model directory or hub id; policies that can exit need one with heads.")]
    policy: Annotated[
        str | None,
        Option(
            MODEL,
            "When a row has settled: patience:6, confidence:0.9,first_layer=4, fixed-depth:8, full-depth. Default: "
            "what `pabee-fast tune` stored with the model, or full-depth if its guarantee is void here; patience:6 "
            "where none is stored and the model is deeper.",
        ),
    ] = None
    output: Annotated[
        str,
        Option(
            WRITTEN, "Table to write, as its suffix says (.csv.gz too); DIRECTORY/ for parts; - for standard output."
        ),
    ]
    overwrite: Annotated[bool, Option(WRITTEN, "Replace an output that exists, or a begun job that differs.")] = False
    prefix: Annotated[str, Option(WRITTEN, "Put before the names of the result columns.")] = ""
    format: Annotated[str | None, Option(WRITTEN, "Of the parts of a directory: parquet, jsonl, csv or tsv.")] = None
    part_rows: Annotated[
        int | None, Option(WRITTEN, "Rows of a part, which is written and resumed as one; default: by device.")
    ] = None
    devices: Annotated[
        str | None, Option(RUN, "Several devices, a process for each: all, or cuda:0,cuda:1, or cpu,cpu.")
    ] = None
    tokenizers: Annotated[
        int | None,
        Option(
            RUN,
            "Processes that tokenize for each device where only the model's own tokenizer can; default: up to 8 for a "
            "GPU, by cores, and none for a CPU.",
        ),
    ] = None
    engine: Annotated[str, Option(RUN, "local, or ray for a cluster (pip install 'pabee-fast\\[ray]').")] = "local"
    workers: Annotated[
        int | None, Option(RUN, "With --engine ray: how many workers; default: one for each GPU, or machine.")
    ] = None
    max_errors: Annotated[int | None, Option(RUN, "Stop when more rows than these have errors.")] = None
    retry_errors: Annotated[bool, Option(RUN, "Do parts again whose rows failed in computing.")] = False
    log_format: Annotated[str, Option(RUN, "text, or json: a line on stderr for every part.")] = "text"

    @property
    def rule(self) -> Policy | None:
        """The policy; None: the one stored with the model."""
        return None if self.policy is None else parse_policy(self.policy)

    @property
    def is_stream(self) -> bool:
        """Whether rows come by standard input."""
        return "-" in (*self.inputs, self.output)

    def check(self) -> None:
        super().check()
        choose_watch(self.log_format)
        require_model(self.model)
        _ = self.rule
        if self.tokenizers is not None:
            require_whole("tokenizers", self.tokenizers, at_least=0)
        check_places(self.devices, self.engine, self.workers)


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(TableOptions):
    """What `pabee-fast score` was asked for."""

    label_column: Annotated[
        str | None, Option(READ, "Column of labels, that answers are held against: how many are right.")
    ] = None
    all_scores: Annotated[bool, Option(WRITTEN, "Add a column score_LABEL for every label.")] = False
    audit: Annotated[float, Option(RUN, "Share of the rows that also run to full depth, 0.01 say.")] = 0.0

    def check(self) -> None:
        super().check()
        require_between("audit", self.audit, 0, 1)
        if not self.is_stream:
            return
        if self.inputs != ["-"] or self.output != "-":
            raise InputError("standard input goes to standard output: give - for both, or files for both")
        unused = ("label_column", "part_rows", "format", "overwrite", "retry_errors")
        given = {name: getattr(self, name) for name in unused}
        given["log_format json"] = self.log_format != "text"
        given |= self.reading.settings()
        if told := [f"--{name.replace('_', '-')}" for name, value in given.items() if value]:
            raise InputError(
                f"{', '.join(told)}: standard input is JSON Lines, scored as they come, without parts; leave it out"
            )


@takes(ScoreOptions)
def score_command(options: ScoreOptions) -> None:
    """Score a table of texts: its columns, and prediction, score, exit_layer and error for every row.

    The job is done in parts. Killed or stopped, the same command goes on with the parts that are missing.
    """
    from pabee_fast.jobs.job import Columns

    columns = Columns(options.text_columns, options.prefix, options.reading, options.label_column)
    if options.is_stream:
        _stream(options, columns)
    else:
        run_job(options, columns, lambda watch: _executor(options, watch))


def run_job(options: TableOptions, columns: Any, open_executor: Callable[[Watch], Any]) -> None:
    """Run a job over tables, watched, and tell how it went.

    Args:
        options: of the command.
        columns: `jobs.job.Columns`.
        open_executor: loads the model; told who watches.
    """
    from pabee_fast.jobs.job import Job, JobOptions

    watch = choose_watch(options.log_format)
    how = JobOptions(
        options.part_rows,
        format=options.format,
        overwrite=options.overwrite,
        max_errors=options.max_errors,
        retry_errors=options.retry_errors,
    )
    job = Job(options.inputs, options.output, columns, how)  # all that can be said of it before torch is imported
    try:
        with open_executor(watch) as executor, watch:
            summary = job.run(executor, watch.on_part)
    except KeyboardInterrupt:
        _say_stopped(job, watch)
        raise typer.Exit(130) from None
    _say_done(summary, executor.about, job.output.place, watch, options.log_format)


def _executor(options: ScoreOptions, watch: Watch) -> Any:
    """Return what scores; here torch and transformers are imported, and the model is loaded."""
    with loading():
        import transformers

        from pabee_fast.jobs.executors import open_executor
        from pabee_fast.jobs.recipe import Recipe

    transformers.logging.disable_progress_bar()  # one bar is enough
    recipe = Recipe(all_scores=options.all_scores, audit=options.audit, **recipe_options(options))
    return open_executor(recipe, options.devices, options.engine, options.workers, watch.on_rows)


def recipe_options(options: TableOptions) -> dict[str, Any]:
    """Return what a recipe takes of what the commands share."""
    return {
        "model": options.model,
        "policy": options.rule,
        "device": options.device,
        "dtype": options.dtype,
        "max_length": options.max_length,
        "stride": options.stride,
        "token_budget": options.token_budget,
        "tokenizers": options.tokenizers,
        "texts": len(options.text_columns),
    }


def _stream(options: ScoreOptions, columns: Any) -> None:
    from pabee_fast.cli.summary import audit_lines, length_lines, policy_line

    for stream, name in ((sys.stdin, "input"), (sys.stdout, "output")):
        if stream is None:
            raise InputError(f"standard {name} is closed: give it a file or a pipe")
    # Unbuffered: a buffer has a lock, which a thread that waits for input holds, and which Python's end would take.
    source = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    try:
        with _executor(options, Watch()) as executor:
            from pabee_fast.jobs.stream import score_stream

            print(plain(policy_line(executor.about)), file=sys.stderr)
            tally = score_stream(source, sys.stdout.buffer, columns, executor, options.max_errors)
            guarantee = executor.about.guarantee
    except KeyboardInterrupt:
        print("pabee-fast: stopped", file=sys.stderr)
        raise typer.Exit(130) from None
    if tally.audited:
        print("\n".join(audit_lines(tally, guarantee)), file=sys.stderr)
    for line in length_lines(tally, executor.about):
        print(line, file=sys.stderr)
    none = ": none could be scored, see the field error of each" if tally.errors == tally.rows > 0 else ""
    print(f"{tally.rows} rows, {tally.errors} with errors{none}", file=sys.stderr)


def _say_stopped(job: Any, watch: Watch) -> None:
    progress = job.progress
    about = "about " if progress.total_estimated else ""
    known = f" of {about}{progress.total}" if progress.total is not None else ""
    line = f"stopped: {progress.tally.rows}{known} rows are done; the same command goes on from there"
    figures = {"total": progress.total, "total_estimated": progress.total_estimated}
    watch.on_end("stopped", rows=progress.tally.rows, **figures)
    print(f"pabee-fast: {line}", file=sys.stderr)


def _say_done(summary: Any, about: Any, place: Any, watch: Watch, log_format: str) -> None:
    from pabee_fast.cli.summary import summary_figures, summary_lines

    watch.on_end("end", **summary_figures(summary, about, place))
    if log_format == "text":
        print("\n".join(map(plain, summary_lines(summary, about, place))))
