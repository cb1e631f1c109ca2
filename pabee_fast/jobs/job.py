"""A job: a table of texts scored into a table, part by part, so that whatever happens to it, it can go on.

It ties the source, an executor, the output and the manifest together. The command line is a thin layer over this. What
needs torch is imported when the job runs: by then its executor has.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pabee_fast.errors import InputError, JobError
from pabee_fast.jobs.columns import RANKED, prefixed, result_schema
from pabee_fast.jobs.differences import differences
from pabee_fast.jobs.manifest import Manifest
from pabee_fast.jobs.output import Output
from pabee_fast.scoring.tally import Seconds, Tally
from pabee_fast.tables.durable import remove_temporaries
from pabee_fast.tables.files import Found, find_files
from pabee_fast.tables.open import CHUNK_BYTES, Chunk, check_names
from pabee_fast.tables.read import USUAL, Reading
from pabee_fast.tables.source import Part, Source, check_label_column, outwardly
from pabee_fast.tables.write import check_columns

if TYPE_CHECKING:
    from pabee_fast.jobs.executor import Executor
    from pabee_fast.jobs.worker import About, Scored

logger = logging.getLogger(__name__)

PART_ROWS = {"cuda": 16_384, "cpu": 4_096}
"""Rows of a part by default. Of a GPU a window: nothing is computed while the first part is read, nor while the last is
written, so that a job of small ones ends sooner. Of a CPU a minute or two of its work."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns read and written."""

    texts: Sequence[str]  # one, or two for pairs
    prefix: str = ""  # of the result columns
    reading: Reading = USUAL  # of csv and tsv
    labels: str | None = None  # that answers are held against
    are_lists: bool = False  # whether texts are a query and a candidate, so that no part cuts a query's rows


@dataclass(frozen=True)
class JobOptions:
    """How a job is cut, stopped and resumed.

    part_rows     most rows of a part; None: by device, see PART_ROWS
    part_bytes    most bytes of a part, unless one row is larger
    format        of the parts of a directory; None: parquet
    overwrite     whether an output that exists, and a job of another kind that was not finished, are replaced
    max_errors    the job stops when more rows than these have errors; None: never
    retry_errors  whether parts with rows that failed in computing are done again
    """

    part_rows: int | None = None
    part_bytes: int = CHUNK_BYTES
    format: str | None = None
    overwrite: bool = False
    max_errors: int | None = None
    retry_errors: bool = False

    def __post_init__(self) -> None:
        for name in ("part_rows", "part_bytes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name}={value}: give 1 or more")
        if self.max_errors is not None and self.max_errors < 0:
            raise InputError(f"max_errors={self.max_errors}: give 0 or more")


@dataclass
class Progress:
    """How far a job is, and how it went.

    tally    of the parts that are durable, those of earlier runs included; its seconds are this run's
    resumed  rows that earlier runs had scored
    total    how many rows there are; None where that is not known
    total_estimated  whether that is estimated by the bytes of rows that are read, since only reading all would tell
    parts    how many are durable
    seconds  of this run, from the first row read to the output in place; 0 before
    workers  devices that compute
    cores    that this process has kept busy, on average
    labels   the column that answers were held against, if any
    """

    tally: Tally
    resumed: int = 0
    total: int | None = None
    total_estimated: bool = field(default=False, kw_only=True)
    parts: int = 0
    seconds: float = 0.0
    workers: int = 1
    cores: float = 0.0
    labels: str | None = None

    @property
    def rows(self) -> int:
        """Rows that this run has scored."""
        return self.tally.rows - self.resumed

    @property
    def rows_per_second(self) -> float:
        """Of this run, reading and writing included."""
        return self.rows / self.seconds

    @property
    def wait(self) -> float:
        """Seconds that devices had nothing to compute, summed over them."""
        spent = self.tally.seconds
        return max(0.0, self.seconds * self.workers - spent["compute"] - spent["audit"])

    @property
    def bound(self) -> str:
        """The stage that bounds the job: computing where devices hardly wait, otherwise the busiest of those that feed
        them, of which one thread reads, one writes, and several tokenize for each device."""
        if self.wait <= 0.1 * self.seconds * self.workers:
            return "compute"
        spent = self.tally.seconds
        busy = {"read": spent["read"], "write": spent["write"], "tokenise": spent["tokenise"] / self.workers}
        return max(busy, key=busy.__getitem__)


class Job:
    """A job that is checked and not begun: all that can be checked without the model.

    Args:
        inputs: files, directories, globs, datasets saved by Hugging Face; paths or URLs that fsspec knows.
        output: a table, or a directory for parts.
        columns: the texts' names, and how the result columns are called.
        options: how it is cut, stopped and resumed.

    Raises:
        InputError: a column that is missing or taken, an unknown format, an output that is the input or exists.
        JobError: another process works on it, or its manifest was tampered with.
    """

    def __init__(self, inputs: Sequence[str], output: str, columns: Columns, options: JobOptions | None = None) -> None:
        self.columns, self.options = columns, options or JobOptions()
        found = find_files(inputs, output)
        local = [path for path in found if isinstance(path, Path)]
        self.output = Output.choose(output, local, self.options.format, overwrite=self.options.overwrite)
        if self.options.retry_errors and not self.output.is_begun:
            raise InputError(
                f"retry_errors: {self.output.directory} holds no job. Parts are kept where rows failed in computing; "
                "the errors of other rows are in the input"
            )
        self.progress = Progress(Tally())
        self.source = self._open(found)
        results = RANKED if columns.are_lists else result_schema([], "label")
        check_names(self.source.schema, results.names, columns.prefix)
        if columns.labels is not None:
            check_label_column(", ".join(inputs), self.source.tables, columns.labels, ", or leave the option out")
        check_columns(self.output.format, self.source.schema)
        self.progress.total = self.source.rows

    def _open(self, found: Found) -> Source:
        """Return the source; a job that was begun on the same files spares reading them first."""
        scan = None
        if self.output.is_begun:
            with Manifest(self.output.directory, discard_damaged=self.options.overwrite) as manifest:
                record = manifest.job
                if record is None or self.options.overwrite:
                    self.output.check_files(manifest)
                self.progress = _progress(manifest)
            if record is not None and record["scan"] is not None:
                quick = [outwardly(path, self.output.directory) for path in found]
                before = [{name: one.get(name) for name in ("path", "size", "modified")} for one in record["inputs"]]
                is_same = quick == before and all(one["modified"] for one in quick)
                scan = record["scan"] if is_same and record["texts"] == list(self.columns.texts) else None
        return Source(found, self.columns.texts, scan, self.columns.reading, whole_lists=self.columns.are_lists)

    def run(self, executor: "Executor", on_part: Callable[[Progress], None] = lambda progress: None) -> Progress:
        """Score what is not scored yet, and leave the output.

        Args:
            executor: what scores.
            on_part: told when the job begins, and whenever a part is durable.

        Returns:
            How it went.

        Raises:
            InputError: a result column's name is taken, or the output holds a job that differs, by what it names.
            JobError: parts are not what was written, or more rows have errors than `max_errors`.
        """
        from pabee_fast.jobs.marks import Marks
        from pabee_fast.jobs.parts import run_parts

        started, began, options = time.perf_counter(), time.process_time(), self.options
        about = executor.about
        check_names(self.source.schema, about.schema.names, self.columns.prefix)
        results = prefixed(about.schema, self.columns.prefix)
        part_rows = options.part_rows or PART_ROWS.get(about.device_type, 4_096)
        column = self.columns.labels
        marks = None if column is None else Marks(about.labels, self.source, column)
        self.output.prepare()
        with Manifest(self.output.directory, discard_damaged=options.overwrite) as manifest:
            is_done, replace = self._begin_or_resume(manifest, about, part_rows)
            progress = self.progress = _progress(manifest, self.source.rows, executor.workers, column)
            on_part(progress)
            self._check_errors(progress.tally)  # parts of an earlier run may have too many already

            def commit(part: Part, chunk: Chunk, scored: "Scored") -> None:
                if marks is not None:
                    marks.count(part, chunk, scored)
                named = pa.RecordBatch.from_arrays(scored.results.columns, schema=results)
                self.output.write_part(manifest, part, chunk, named, results, scored.tally)
                if joining is not None:
                    joining.look()
                progress.tally.merge(scored.tally)
                progress.parts += 1
                if self.source.rows is None:
                    total, progress.total_estimated = self.source.total()
                    progress.total = total and max(total, progress.tally.rows)
                on_part(progress)
                self._check_errors(progress.tally)

            spent = Seconds()
            with self.output.joining(manifest, is_done=is_done) as joining:
                if not is_done:
                    parts = self.source.parts(part_rows, options.part_bytes, dict(manifest.parts))
                    spent = run_parts(parts, self.source.names, executor, about.schema, commit)
                    if not manifest.parts:
                        self.output.write_no_rows(manifest, self.source.schema, results)
                computed = time.perf_counter()
                keep = progress.tally.failed > 0
                self.output.finish(manifest, joining, is_done=is_done, overwrite=replace, keep_parts=keep)
        ended = time.perf_counter()
        spent["write"] += ended - computed
        progress.tally.seconds, progress.seconds = spent, ended - started
        progress.cores = (time.process_time() - began) / progress.seconds
        return progress

    def _begin_or_resume(self, manifest: Manifest, about: "About", part_rows: int) -> tuple[bool, bool]:
        """Ready the manifest; whether all is done already, and whether a table of that name is replaced."""
        output, overwrite = self.output, self.options.overwrite
        job = self._identity(about, part_rows)
        found = [] if manifest.job is None else differences(manifest.job, job)
        if found and not overwrite:
            raise InputError(
                f"{output.directory} holds a job that differs: {'; '.join(found)}. Run it as it was begun, or "
                "use --overwrite (overwrite=True) to begin anew"
            )
        made = output.made_table(manifest)
        if output.table is not None and output.table.exists() and not (overwrite or made):
            raise InputError(f"{output.table} exists; write to another file, or use --overwrite (overwrite=True)")
        is_done = output.is_finished(manifest, made)
        failed = [index for index, part in manifest.parts.items() if part.tally["failed"]]
        # A table that is there, and none of whose rows failed, lacks nothing but the end of tidying up.
        again = overwrite and is_done and (output.table is None or bool(failed))
        if manifest.job is None or found or again or not self._keeps_parts(manifest, is_done, failed):
            output.check_files(manifest)
            output.clear(manifest)
            manifest.begin(job)
            return False, overwrite
        remove_temporaries(output.directory)
        assert manifest.job is not None
        if manifest.job["device"] != about.device:
            logger.warning(
                "the job was begun on %s and goes on on %s: scores may differ in their last digits between parts",
                manifest.job["device"],
                about.device,
            )
        return is_done and manifest.finished, overwrite or made is not None

    def _keeps_parts(self, manifest: Manifest, is_done: bool, failed: list[int]) -> bool:
        """Forget parts that are lost, and those of failed rows where these are tried again; whether to keep the rest.

        Raises:
            JobError: a part is not what was written, and nothing is to be overwritten.
        """
        again = failed if self.options.retry_errors else []
        if is_done and not again and self.output.table is not None:
            return True  # the parts may be gone, and their table is there
        try:
            lost = self.output.lost_parts(manifest, thoroughly=not is_done or bool(again))
        except JobError:
            if not self.options.overwrite:
                raise
            return False
        if lost:
            logger.warning("%d parts are gone from %s: they are made again", len(lost), self.output.directory)
        if lost or again:
            manifest.forget_parts(sorted({*lost, *again}))
        return True

    def _identity(self, about: "About", part_rows: int) -> dict[str, Any]:
        """Return all that changes results, and so must be the same when the job goes on."""
        return {
            "settings": {
                **about.identity,
                "text columns": ", ".join(self.columns.texts),
                "prefix": self.columns.prefix,
                "the result columns": ", ".join(about.schema.names),
                "part_rows": str(part_rows),
                "part_bytes": str(self.options.part_bytes),
                "format": self.output.format,
                **self.columns.reading.settings(),
                **({"the folders' columns": ", ".join(folders)} if (folders := self.source.folder_columns) else {}),
            },
            "inputs": self.source.identity(self.output.directory),
            "texts": list(self.columns.texts),
            "scan": self.source.scan(),
            "device": about.device,
        }

    def _check_errors(self, tally: Tally) -> None:
        most = self.options.max_errors
        if most is not None and tally.errors > most:
            raise JobError(
                f"stopped: {tally.errors} of {tally.rows} rows have errors, more than max_errors={most}. What is done "
                f"is kept in {self.output.directory}; the same command goes on with a larger --max-errors, or without"
            )


def _progress(manifest: Manifest, total: int | None = None, workers: int = 1, labels: str | None = None) -> Progress:
    tally = Tally()
    for part in manifest.parts.values():
        tally.merge(Tally.from_json(part.tally))
    return Progress(tally, tally.rows, total, len(manifest.parts), workers=workers, labels=labels)
