"""The manifest of a job: what it is a job of, and which of its parts are durable. The one truth about what is done.

A file of JSON lines that only grows. Each line holds a record and a hash over it and all lines before it, so that a
line that was altered, left out or put in is seen. Each append is synced before anything is built on it; a last line
that was cut short by a kill is no record, and is dropped. Only a job's coordinator writes it, under a lock.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pabee_fast.errors import JobError
from pabee_fast.scoring.durable import reached, sha256_of, sync_directory
from pabee_fast.scoring.tables_read import Place

try:
    import fcntl
except ImportError:  # Windows: two jobs with one output are not kept apart there
    fcntl = None  # type: ignore[assignment]

NAME = "_manifest.jsonl"
_PART_NAME = re.compile(r"part-\d{6,}\.[a-z]+")
_FORMAT = 1


@dataclass(frozen=True)
class PartRecord:
    """A durable part: which rows it holds, and the file they are in.

    index, file  its number in the job, its input file's
    first_row    its first row's number in that file
    rows, end    how many rows, and where the next part begins
    name         of its file, in the manifest's directory
    size, hash   of that file
    tally        its counts, as JSON
    """

    index: int
    file: int
    first_row: int
    rows: int
    end: Place
    name: str
    size: int
    hash: str
    tally: dict[str, Any]

    def check(self, directory: Path, *, thoroughly: bool = True) -> None:
        """Raises JobError where the file is not the one that was recorded; only its size is read unless thoroughly."""
        path = directory / self.name
        found = path.stat().st_size if path.is_file() else None
        if found != self.size:
            raise JobError(f"{path} has {found} bytes, and its manifest says {self.size}: {_REFUSED}")
        if thoroughly and sha256_of(path) != self.hash:
            raise JobError(f"{path} is not what was written (its hash differs): {_REFUSED}")


_REFUSED = "it was changed or lost; use --overwrite to start the job anew"


class Manifest:
    """A job's manifest, open and locked.

    Args:
        directory: where it lies, beside the parts; it must exist.
        discard_damaged: whether one that was tampered with is emptied.

    Raises:
        JobError: another process works on the job, or the manifest was tampered with.
    """

    def __init__(self, directory: Path, *, discard_damaged: bool = False) -> None:
        self.directory = directory
        self.path = directory / NAME
        self.job: dict[str, Any] | None = None
        self.parts: dict[int, PartRecord] = {}
        self.table: dict[str, Any] | None = None  # size and hash of the table that was last made of the parts
        self.finished = False
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        try:
            self._chain = ""
            self._lock()
            try:
                self._load()
            except JobError:
                if not discard_damaged:
                    raise
                self._forget()
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> "Manifest":
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)

    def begin(self, job: Mapping[str, Any]) -> None:
        """Starts the job that a record describes, forgetting what was there."""
        self._forget()
        self._append({"kind": "job", "format": _FORMAT, **job})
        sync_directory(self.directory)

    def add_part(self, part: PartRecord) -> None:
        """Records that a part's file is durable."""
        self._append({"kind": "part", **dataclasses.asdict(part)})

    def forget_parts(self, indices: list[int]) -> None:
        """Records that parts are to be done again."""
        self._append({"kind": "forget", "parts": indices})

    def finish(self, table: Mapping[str, Any] | None) -> None:
        """Records that there are no more parts; and size and hash of the table of them, before it takes its name."""
        self._append({"kind": "finished", "table": table})

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise JobError(f"{self.path}: another process is at work on this job; wait for it, or end it") from error

    def _forget(self) -> None:
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.job, self.parts, self.table, self.finished, self._chain = None, {}, None, False, ""

    def _append(self, record: dict[str, Any]) -> None:
        body = json.dumps(record, sort_keys=True)
        chain = _next(self._chain, body)
        line = f'{{"chain": "{chain}", "record": {body}}}\n'.encode()
        if os.write(self._descriptor, line) != len(line):
            raise JobError(f"{self.path} cannot be written: is the disk full?")
        os.fsync(self._descriptor)
        reached("manifest: after the append")
        self._chain = chain
        self._take(record)

    def _load(self) -> None:
        with open(self._descriptor, "rb", closefd=False) as file:
            *lines, torn = file.read().split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)["record"]
                body = json.dumps(record, sort_keys=True)
                self._chain = _next(self._chain, body)
                if line != f'{{"chain": "{self._chain}", "record": {body}}}'.encode():
                    raise ValueError
                self._take(record)
            except (ValueError, KeyError, TypeError):
                raise JobError(f"{self.path}, line {number}, is not what was written: {_REFUSED}") from None
        os.ftruncate(self._descriptor, os.lseek(self._descriptor, 0, os.SEEK_END) - len(torn))
        os.lseek(self._descriptor, 0, os.SEEK_END)

    def _take(self, record: dict[str, Any]) -> None:
        kind = record["kind"]
        if kind == "job":
            if record["format"] != _FORMAT:
                raise ValueError
            self.job = record
        elif kind == "part":
            fields = {name: value for name, value in record.items() if name != "kind"}
            part = PartRecord(**{**fields, "end": Place(*record["end"])})
            if not _PART_NAME.fullmatch(part.name):
                raise ValueError
            self.parts[part.index] = part
            self.finished = False
        elif kind == "forget":
            for index in record["parts"]:
                del self.parts[index]
            self.finished = False
        elif kind == "finished":
            self.table, self.finished = record["table"], True
        else:
            raise ValueError


def _next(chain: str, body: str) -> str:
    return hashlib.sha256((chain + body).encode()).hexdigest()
