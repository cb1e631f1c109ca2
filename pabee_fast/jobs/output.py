"""What a job leaves behind: its parts as files, and the one table that they make, or a directory of them.

While a job runs, its parts and their manifest lie in a directory: the output itself, or `OUTPUT.parts` beside a table.
Knows files; knows nothing of models or of who computed what.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from pabee_fast.errors import InputError, JobError
from pabee_fast.jobs.joining import Joining
from pabee_fast.jobs.manifest import NAME, Manifest, PartRecord
from pabee_fast.scoring.tally import Tally
from pabee_fast.tables.bytes import compressed, compression
from pabee_fast.tables.durable import (
    Hashed,
    check_writable,
    durable_file,
    is_temporary,
    reached,
    remove_temporaries,
    sha256_of,
    sync_directory,
)
from pabee_fast.tables.open import Chunk
from pabee_fast.tables.read import WRITTEN_FORMATS, Place, quoted
from pabee_fast.tables.remote import refuse_url
from pabee_fast.tables.source import Part
from pabee_fast.tables.write import check_output, join_tables, open_writer, output_format

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Output:
    """Where a job's results go.

    table      the file to leave; None: a directory of parts is left
    directory  where the parts and the manifest lie
    format     of the parts, and so of the table
    packed     the suffix of what the table is compressed by, such as .gz, as it is made of the parts; "": not at all
    """

    table: Path | None
    directory: Path
    format: str
    packed: str = ""

    @classmethod
    def choose(cls, path: str, inputs: Sequence[Path], format: str | None, *, overwrite: bool) -> "Output":
        """Return the output that a path names: a table by its suffix; a directory where it is one or ends with a slash.

        Args:
            path: as the user gave it.
            inputs: the input's local files, which must not be overwritten.
            format: of the parts of a directory; None: parquet.
            overwrite: whether an output that is not of an unfinished job is replaced.

        Raises:
            InputError: a suffix that names no format, an output that exists, or is the input, or holds other files.
        """
        if not path:
            raise InputError("output is empty, as an unset variable gives it: name a table, or a directory for parts")
        refuse_url(path)
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
            packed = Path(path).suffix.lower() if compression(path) else ""
            output = cls(target, target.with_name(target.name + ".parts"), kind, packed)
            output._take_back()
            check_output(path, overwrite=overwrite or output.is_begun)
            for source in inputs:
                check_output(path, source, overwrite=True)
        for source in inputs:
            if output.directory in Path(os.path.realpath(source)).parents:
                raise InputError(f"{source} lies in {output.directory}, where the results go: choose another output")
        output._check_directory()
        check_writable(output.directory)
        if output.table is not None:  # which is renamed into its place, so that its own permissions do not matter
            check_writable(output.table.parent)
        if not output.is_begun and output.directory.is_dir() and any(output.directory.iterdir()):
            raise InputError(f"{output.directory} {_FOREIGN}")
        return output

    @property
    def is_begun(self) -> bool:
        """Whether a job was begun there."""
        return os.path.lexists(self.directory / NAME)

    @property
    def place(self) -> Path:
        """What is left for the user."""
        return self.table or self.directory

    def prepare(self) -> None:
        """Make the directory."""
        if not os.path.lexists(self.directory):
            self.directory.mkdir(exist_ok=True)
            sync_directory(self.directory.parent)
            reached("job: the directory is made")
        self._check_directory()

    def _check_directory(self) -> None:
        """Raise InputError where the directory's name is that of something else: a link leads to what is not ours."""
        if os.path.lexists(self.directory) and (self.directory.is_symlink() or not self.directory.is_dir()):
            raise InputError(f"{self.directory} is a link or a file; move it away, or name another output")

    def check_files(self, manifest: Manifest) -> None:
        """Raise InputError where files lie in the directory that are not of the manifest's job."""
        known = {NAME, *manifest.files}
        others = (path.name for path in self.directory.iterdir() if path.name not in known and not is_temporary(path))
        if foreign := sorted(others)[:3]:
            raise InputError(f"{self.directory} {_FOREIGN}, or move {quoted(foreign)} away")

    def clear(self, manifest: Manifest) -> None:
        """Remove the job's files but the manifest, which is begun anew or removed next."""
        remove_temporaries(self.directory)
        for name in sorted(manifest.files):
            (self.directory / name).unlink(missing_ok=True)
            reached("job: a file was removed")

    def write_part(
        self,
        manifest: Manifest,
        part: Part,
        chunk: Chunk,
        results: pa.RecordBatch,
        results_schema: pa.Schema,
        tally: Tally,
    ) -> None:
        """Write a part's rows, durable when it returns, and record it.

        Raises:
            JobError: the part's name is taken by a file that is not of the job.
        """
        path = self._announced(manifest, f"part-{part.index:06d}.{self.format}")
        with durable_file(path, "part") as file:
            writer = open_writer(self.format, file, chunk.batch.schema, results_schema)
            try:
                writer.write(chunk, results)
            finally:
                writer.close()
        record = (part.index, part.file, part.first_row, part.rows, part.end)
        manifest.add_part(PartRecord(*record, path.name, path.stat().st_size, sha256_of(path), tally.to_json()))

    def write_no_rows(self, manifest: Manifest, schema: pa.Schema, results_schema: pa.Schema) -> None:
        """Write a part without rows, for an input without rows: it has the columns."""
        rows, results = (pa.RecordBatch.from_pylist([], one) for one in (schema, results_schema))
        chunk = Chunk(rows, (), {}, Place())
        self.write_part(manifest, Part(0, 0, 0, 0, Place()), chunk, results, results_schema, Tally())

    def _announced(self, manifest: Manifest, name: str) -> Path:
        """Return the path of a file that is about to be written, once the manifest names it."""
        path = self.directory / name
        if name not in manifest.files:
            if os.path.lexists(path):
                raise JobError(f"{path} is not of this job: move it away, and the same command goes on")
            manifest.announce(name)
        return path

    def lost_parts(self, manifest: Manifest, *, thoroughly: bool) -> list[int]:
        """Return the numbers of recorded parts whose files are gone; raises JobError where one is not what was written.

        Only sizes are looked at unless thoroughly.
        """
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            there = threads.map(
                lambda part: part.is_there(self.directory, thoroughly=thoroughly), manifest.parts.values()
            )
            return [index for index, is_there in zip(manifest.parts, there, strict=True) if not is_there]

    def joining(self, manifest: Manifest, *, is_done: bool) -> AbstractContextManager[Joining | None]:
        """Begin to make the table of the parts that are durable and of those that come; ends with what it gives.

        Args:
            manifest: the job's.
            is_done: whether the table is there already; then, and for a directory of parts, nothing is made.

        Raises:
            JobError: the name under which it is made is taken by a file that is not of the job.
        """
        if self.table is None or is_done:
            return nullcontext()
        whole = self._announced(manifest, self._whole)

        def join(parts: Iterator[Path]) -> str:
            with durable_file(whole, "table", permissions=self.table) as file:
                hashed = Hashed(file)
                with compressed(cast(BinaryIO, hashed), compression(whole)) as packed:
                    join_tables(self.format, parts, packed)
            return hashed.sha256()

        return Joining(manifest, join)

    def finish(
        self, manifest: Manifest, joining: Joining | None, *, is_done: bool, overwrite: bool, keep_parts: bool
    ) -> None:
        """Leave what the job was to make, once all parts are durable.

        Args:
            manifest: the job's.
            joining: what makes the table; None where none is to be made.
            is_done: whether it is there already, as `is_finished` says.
            overwrite: whether another file that has the table's name is replaced.
            keep_parts: whether the parts stay beside the table.

        Raises:
            InputError: another file has taken the table's name, and is not to be overwritten.
            JobError: a part is not what was written.
        """
        if self.table is None:
            if not is_done:
                manifest.finish(None)
            return
        if joining is not None:
            self._put_in_place(manifest, joining, self.table, overwrite=overwrite)
        if not keep_parts:
            self.clear(manifest)
            self._remove_directory(manifest)

    def _put_in_place(self, manifest: Manifest, joining: Joining, table: Path, *, overwrite: bool) -> None:
        """Give the table of all parts its name."""
        if lost := self.lost_parts(manifest, thoroughly=False):
            name = manifest.parts[lost[0]].name
            raise JobError(f"{self.directory / name} was lost meanwhile: the same command makes it again")
        made = joining.finish()
        whole = self.directory / self._whole
        manifest.finish({"size": whole.stat().st_size, "hash": made})
        if table.exists() and not overwrite:
            raise InputError(f"{table} has come to exist meanwhile; it was left alone, the table is {whole}")
        whole.replace(table)
        sync_directory(table.parent)
        reached("job: the table has its name")

    @property
    def _whole(self) -> str:
        """The table's name among the parts, before it is whole and in its place."""
        return f"table.{self.format}{self.packed}"

    @property
    def _aside(self) -> Path:
        """Where the manifest is while the directory goes, so that at no moment a kill leaves a job that nothing tells
        of."""
        return self.directory.with_name(f".{self.directory.name}.done")

    def _remove_directory(self, manifest: Manifest) -> None:
        """Remove the directory, of which nothing but the manifest is left."""
        manifest.path.replace(self._aside)
        reached("job: the manifest is aside")
        try:
            self.directory.rmdir()
        except OSError as error:
            self._aside.replace(manifest.path)
            logger.warning("%s is left, with files that are not of the job (%s)", self.directory, error.strerror)
            return
        reached("job: the directory is gone")
        self._aside.unlink(missing_ok=True)
        sync_directory(self.directory.parent)

    def _take_back(self) -> None:
        """Put the manifest back that a kill has left aside; raises JobError where what lies there is none."""
        if not os.path.lexists(self._aside):
            return
        self._check_directory()
        with Manifest(self._aside.parent, self._aside.name):
            if not self.is_begun:
                self.directory.mkdir(exist_ok=True)
                self._aside.replace(self.directory / NAME)

    def is_finished(self, manifest: Manifest, made: dict[str, Any] | None) -> bool:
        """Return whether what the job was to make is there; `made`: what `made_table` says."""
        return manifest.finished and (self.table is None or (made is not None and made == manifest.tables[-1]))

    def made_table(self, manifest: Manifest) -> dict[str, Any] | None:
        """Return the manifest's record of the file under the table's name; None where it is none that this job made."""
        if self.table is None or not self.table.is_file():
            return None
        size = self.table.stat().st_size
        records = [record for record in manifest.tables if record["size"] == size]
        found = sha256_of(self.table) if records else None
        return next((record for record in records if record["hash"] == found), None)


_FOREIGN = "holds files that are not of a job; give a new or empty directory"
