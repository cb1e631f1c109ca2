"""`pabee-fast score` in one call of Python."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pabee_fast.calibration.guarantee import Guarantee
from pabee_fast.calibration.scorer import warn_of_void
from pabee_fast.jobs.executors import open_executor
from pabee_fast.jobs.job import Columns, Job, JobOptions, Progress
from pabee_fast.jobs.marks import rightness
from pabee_fast.jobs.recipe import Recipe
from pabee_fast.policies import Policy
from pabee_fast.tables.read import Reading


@dataclass(frozen=True)
class TableSummary:
    """What was done with a table, and how.

    output           the table, or the directory of its parts
    rows             all of them; `resumed` of these were done by an earlier run
    errors           rows without an answer, see the column error; `failed` of these, in computing
    truncated        rows that were cut to the longest that the model takes
    long             rows that were read in several stretches, `stretches` of them together
    mean_exit_layer  of the rows with an answer, of `layers`; NaN without any
    exits            exit layer -> rows
    audited          rows that also ran to full depth, `disagreed` of which have another answer there
    seconds          of this run, and its rows_per_second, reading and writing included
    policy           when a row had settled, and policy_reason why it was that one
    guarantee        what is promised of the policy; None: nothing
    device           what computed
    labelled         rows with an answer and a label, where a label column was named
    accuracy         of these, the share that is right (of label sets, as a whole); None: nothing is known of it
    mean_squared_error  of these, of values; likewise
    """

    output: str
    rows: int
    resumed: int
    errors: int
    failed: int
    truncated: int
    long: int
    stretches: int
    mean_exit_layer: float
    layers: int
    exits: dict[int, int]
    audited: int
    disagreed: int
    seconds: float
    rows_per_second: float
    policy: str
    policy_reason: str
    guarantee: Guarantee | None
    device: str
    labelled: int
    accuracy: float | None
    mean_squared_error: float | None


def score_table(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    model: str | Path,
    policy: Policy | str | None = None,
    *,
    text_column: str = "text",
    text_pair_column: str | None = None,
    label_column: str | None = None,
    prefix: str = "",
    all_scores: bool = False,
    overwrite: bool = False,
    format: str | None = None,
    part_rows: int | None = None,
    max_errors: int | None = None,
    retry_errors: bool = False,
    audit: float = 0.0,
    device: str = "auto",
    dtype: str = "auto",
    devices: str | None = None,
    engine: str = "local",
    workers: int | None = None,
    max_length: int | None = None,
    stride: int | None = None,
    token_budget: int | None = None,
    tokenizers: int | None = None,
    threads: int | None = None,
    delimiter: str | None = None,
    quoting: str = "auto",
    encoding: str = "utf-8",
    on_part: Callable[[Progress], None] = lambda progress: None,
) -> TableSummary:
    """Score a table of texts into another one, as `pabee-fast score` does: part by part, resumed where it was stopped.

    The output has the input's columns, and prediction, score, exit_layer and error for every row. On a GPU, or on
    several devices, workers are processes that import the script they are started from: there, call this below
    `if __name__ == "__main__":`.

    Args:
        inputs: tables of texts (csv, tsv, jsonl, parquet, arrow; compressed too), directories or globs of them, or
            datasets saved by Hugging Face.
        output: the table to write, whose suffix names its format and compression (.csv.gz); "DIRECTORY/" for parts.
        model: a model directory or hub id.
        policy: when a row has settled, or its spelling ("patience:6"); None: the one stored with the model, as for
            `Scorer.from_pretrained`.
        text_column: the column of the texts, and text_pair_column of the second ones, of pairs.
        label_column: labels that answers are held against; a row may be without one.
        prefix: put before the names of the result columns.
        all_scores: whether there is a column `score_LABEL` for every label.
        overwrite: whether an output that exists, or a begun job that differs, is replaced.
        format: of the parts of a directory: "parquet", "jsonl", "csv" or "tsv".
        part_rows: rows of a part; None: by device.
        max_errors: the job stops when more rows than these have errors; None: never.
        retry_errors: whether parts are done again whose rows failed in computing.
        audit: the share of the rows that also run to full depth.
        device: "auto", "cpu", "cuda" or "cuda:1"; dtype "auto", "float32", "bfloat16" or "float16".
        devices: several, a process for each: "all", "cuda:0,cuda:1".
        engine: "local", or "ray" with so many workers.
        max_length: as for `Scorer`, and so are stride and token_budget; tokenizers too, None: by cores.
        threads: of the CPU; None: torch's choice.
        delimiter: how csv and tsv are read, with quoting and encoding, as the command takes them.
        on_part: told when the job begins, and whenever a part is durable.

    Raises:
        CheckpointError: weights, heads or a guarantee that are absent or broken.
        InputError: an argument, a table or a model that cannot be used.
        JobError: another process works on the output, or more rows have errors than `max_errors`.
        WorkerError: a worker's process that cannot be started.
    """
    names = [text_column] if text_pair_column is None else [text_column, text_pair_column]
    job = Job(
        [str(one) for one in ([inputs] if isinstance(inputs, str | Path) else inputs)],
        str(output),
        Columns(names, prefix, Reading(delimiter, quoting, encoding), label_column),
        JobOptions(part_rows, format=format, overwrite=overwrite, max_errors=max_errors, retry_errors=retry_errors),
    )
    recipe = Recipe(
        str(model),
        policy,
        device,
        dtype,
        max_length=max_length,
        stride=stride,
        token_budget=token_budget,
        threads=threads,
        tokenizers=tokenizers,
        all_scores=all_scores,
        audit=audit,
        texts=len(names),
    )
    with open_executor(recipe, devices, engine, workers) as executor:
        about = executor.about
        if about.is_void:
            warn_of_void(str(model), about.policy_reason)
        progress = job.run(executor, on_part)
    tally = progress.tally
    return TableSummary(
        str(job.output.place),
        tally.rows,
        progress.resumed,
        tally.errors,
        tally.failed,
        tally.truncated,
        tally.long,
        tally.stretches,
        tally.mean_exit_layer,
        about.layers,
        dict(sorted(tally.exits.items())),
        tally.audited,
        tally.disagreed,
        progress.seconds,
        progress.rows_per_second,
        about.identity["policy"],
        about.policy_reason,
        about.guarantee,
        about.device,
        tally.labelled,
        *rightness(tally, about.labels),
    )
