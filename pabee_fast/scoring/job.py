"""Scores a table into a table, chunk by chunk, and says how it went. The command line is a thin layer over this."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pabee_fast.scoring.answers import RowResult, label_names
from pabee_fast.scoring.scorer import Scorer, Tally
from pabee_fast.scoring.tables import Table, check_names, check_output, open_table, write_table


@dataclass(frozen=True)
class Columns:
    """Names of the columns read and written."""

    texts: Sequence[str]  # one, or two for pairs
    prefix: str = ""  # of the result columns
    all_scores: bool = False  # also one column a label, score_<label>


@dataclass(frozen=True)
class Summary:
    """How a job went: its rows, and the seconds from the first row read to the table in place."""

    tally: Tally
    seconds: float

    @property
    def rows_per_second(self) -> float:
        """Of the whole job, reading and writing included."""
        return self.tally.rows / self.seconds


def result_schema(scorer: Scorer, columns: Columns) -> pa.Schema:
    """The result columns: prediction, score, exit_layer, error, and with `all_scores` one for each label."""
    value = scorer.engine.kind == "value"
    fields = [
        pa.field("prediction", pa.float32() if value else pa.string()),
        pa.field("score", pa.float32()),
        pa.field("exit_layer", pa.int32()),
        pa.field("error", pa.string()),
    ]
    if columns.all_scores and not value:
        fields += [pa.field(f"score_{name}", pa.float32()) for name in label_names(scorer.model.config)]
    return pa.schema([field.with_name(columns.prefix + field.name) for field in fields])


def open_job(source: Path, output: Path, columns: Columns, *, overwrite: bool = False) -> Table:
    """Opens the table to score, and checks all that can be checked without the model.

    Raises:
        InputError: a column that is missing or taken, an unknown format, an output that is the input or exists.
    """
    check_output(output, source, overwrite)
    table = open_table(source, columns.texts)
    check_names(table.schema, ["prediction", "score", "exit_layer", "error"], columns.prefix)
    return table


def score_table(
    scorer: Scorer,
    table: Table,
    output: Path,
    columns: Columns,
    *,
    overwrite: bool = False,
    on_chunk: Callable[[Tally], None] = lambda tally: None,
) -> Summary:
    """Scores an open table into `output`: its own columns and the result columns, in its order.

    Memory holds one chunk. The output appears under its name only when it is whole.

    Args:
        scorer: what scores.
        table: of `open_job`.
        output: where to; the suffix names the format.
        columns: the texts' names, and how the result columns are called.
        overwrite: whether an existing output is replaced.
        on_chunk: told after each chunk.

    Raises:
        InputError: a result column's name is taken, or the output may not be written.
    """
    results = result_schema(scorer, columns)
    check_names(table.schema, [name.removeprefix(columns.prefix) for name in results.names], columns.prefix)
    started = time.perf_counter()
    scorer.tally = Tally()
    with write_table(output, table.schema, results, source=table.path, overwrite=overwrite) as writer:
        for chunk in table:
            writer.write(chunk, _batch(scorer.score_window(chunk.texts, chunk.errors), results))
            on_chunk(scorer.tally)
    return Summary(scorer.tally, time.perf_counter() - started)


def _batch(rows: Sequence[RowResult], schema: pa.Schema) -> pa.RecordBatch:
    values: list[list[object]] = [
        [row.prediction for row in rows],
        [row.score for row in rows],
        [row.exit_layer for row in rows],
        [row.error for row in rows],
    ]
    extra = len(schema) - len(values)
    values += [[row.scores[i] if row.scores else None for row in rows] for i in range(extra)]
    arrays = [pa.array(column, field.type) for column, field in zip(values, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
