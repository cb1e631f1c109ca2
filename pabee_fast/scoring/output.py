"""What a job leaves behind: its parts as files, and the one table that they make, or a directory of them.

While a job runs, its parts and their manifest lie in a directory: the output itself, or `OUTPUT.parts` beside a table.
Knows files; knows nothing of models or of who computed what.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pabee_fast.errors import InputError
from pabee_fast.scoring.durable import (
    check_writable,
    durable_file,
    reached,
    remove_temporaries,
    sha256_of,
    sync_directory,
)
from pabee_fast.scoring.manifest import NAME, Manifest, PartRecord
from pabee_fast.scoring.scorer import Tally
from pabee_fast.scoring.source import Part
from pabee_fast.scoring.tables import Chunk
from pabee_fast.scoring.tables_read import WRITTEN_FORMATS, Place
from pabee_fast.scoring.tables_write import check_output, join_tables, open_writer, output_format


@dataclass(frozen=True)
class Output:
    """Where a job's results go.

    table      the file to leave; None: a directory of parts is left
    directory  where the parts and the manifest lie
    format     of the parts, and so of the table
    """

    table: Path | None
    directory: Path
    format: str

    @classmethod
    def choose(cls, path: str, inputs: Sequence[Path], format: str | None, *, overwrite: bool) -> "Output":
        """The output that a path names: a table by its suffix; a directory where it is one or ends with a slash.

        Args:
            path: as the user gave it.
            inputs: the input's files, which must not be overwritten.
            format: of the parts of a directory; None: parquet.
            overwrite: whether an output that is not of an unfinished job is replaced.

        Raises:
            InputError: a suffix that names no format, an output that exists, or is the input, or holds other files.
        """
        if not path:
            raise InputError("output is empty, as an unset variable gives it: name a table, or a directory for parts")
        if path.endswith(("/", os.sep)) or Path(path).is_dir():
            kind = format or "parquet"
            if kind not in WRITTEN_FORMATS:
                raise InputError(f"format={format!r}: give {', '.join(WRITTEN_FORMATS)}")
            output = cls(None, Path(os.path.realpath(path)), kind)
            if not output.directory.parent.is_dir():
                raise InputError(f"{path}: there is no directory {output.directory.parent}; make it first")
        else:
            kind = output_format(path)
            if format not in (None, kind):
                raise InputError(f"format={format!r}, but the suffix of {path} says {kind}: give one of them")
            target = Path(os.path.realpath(path))
            output = cls(target, target.with_name(target.name + ".parts"), kind)
            check_output(path, overwrite=overwrite or output.is_begun)
            for source in inputs:
                check_output(path, source, overwrite=True)
        for source in inputs:
            if output.directory in Path(os.path.realpath(source)).parents:
                raise InputError(f"{source} lies in {output.directory}, where the results go: choose another output")
        check_writable(output.directory)
        if output.table is not None:  # which is renamed into its place, so that its own permissions do not matter
            check_writable(output.table.parent)
        if not output.is_begun and output.directory.is_dir() and any(output.directory.iterdir()):
            raise InputError(f"{output.directory} holds files that are not of a job; give a new or empty directory")
        return output

    @property
    def is_begun(self) -> bool:
        """Whether a job was begun there."""
        return (self.directory / NAME).is_file()

    @property
    def place(self) -> Path:
        """What is left for the user."""
        return self.table or self.directory

    def prepare(self) -> None:
        """Makes the directory."""
        self.directory.mkdir(exist_ok=True)
        sync_directory(self.directory.parent)

    def clear(self) -> None:
        """Removes all but the manifest, which must be open, and is begun anew or removed next."""
        remove_temporaries(self.directory)
        for path in (*self.directory.glob("part-*"), *self.directory.glob("table.*")):
            path.unlink()

    def write_part(
        self, part: Part, chunk: Chunk, results: pa.RecordBatch, results_schema: pa.Schema, tally: Tally
    ) -> PartRecord:
        """Writes a part's rows, durable when it returns; what to record of it."""
        name = f"part-{part.index:06d}.{self.format}"
        path = self.directory / name
        with durable_file(path, "part") as file:
            writer = open_writer(self.format, file, chunk.batch.schema, results_schema)
            try:
                writer.write(chunk, results)
            finally:
                writer.close()
        record = (part.index, part.file, part.first_row, part.rows, part.end)
        return PartRecord(*record, name, path.stat().st_size, sha256_of(path), tally.to_json())

    def write_no_rows(self, schema: pa.Schema, results_schema: pa.Schema) -> PartRecord:
        """A part without rows, for an input without rows: it has the columns."""
        none = [pa.RecordBatch.from_pylist([], one) for one in (schema, results_schema)]
        return self.write_part(
            Part(0, 0, 0, 0, Place()), Chunk(none[0], [], [], Place()), none[1], results_schema, Tally()
        )

    def check_parts(self, manifest: Manifest) -> None:
        """Raises JobError unless every recorded part is the one that was written."""
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            list(threads.map(lambda part: part.check(self.directory), manifest.parts.values()))

    def finish(self, manifest: Manifest, *, overwrite: bool, keep_parts: bool) -> None:
        """Leaves what the job was to make, once all parts are durable.

        Raises:
            InputError: another file has taken the table's name, and is not to be overwritten.
            JobError: a part is not what was written.
        """
        if self.table is None:
            if not manifest.finished:
                manifest.finish(None)
            return
        if not self.is_finished(manifest):
            parts = [manifest.parts[index] for index in range(len(manifest.parts))]
            for part in parts:
                part.check(self.directory, thoroughly=False)
            whole = self.directory / f"table.{self.format}"
            with durable_file(whole, "table") as file:
                join_tables(self.format, [self.directory / part.name for part in parts], file)
            manifest.finish({"size": whole.stat().st_size, "hash": sha256_of(whole)})
            if self.table.exists() and not overwrite:
                raise InputError(f"{self.table} has come to exist meanwhile; it was left alone, the table is {whole}")
            whole.replace(self.table)
            sync_directory(self.table.parent)
            reached("job: the table has its name")
        if not keep_parts:
            self.clear()
            manifest.path.unlink()  # last, so that a kill meanwhile leaves a job that is known to be finished
            self.directory.rmdir()
            sync_directory(self.directory.parent)

    def is_finished(self, manifest: Manifest) -> bool:
        """Whether what the job was to make is there."""
        return manifest.finished and (self.table is None or self.has_its_table(manifest))

    def has_its_table(self, manifest: Manifest) -> bool:
        """Whether the file under the table's name is one that this job made."""
        if self.table is None or manifest.table is None or not self.table.is_file():
            return False
        record = manifest.table
        return self.table.stat().st_size == record["size"] and sha256_of(self.table) == record["hash"]
