"""The manifest of a job: what it is a job of, and which of its parts are durable. The one truth about what is done.

A file of JSON lines that only grows. Each line holds a record and a hash over it and all lines before it, so that a
line that was altered, left out or put in is seen. Each append is synced before anything is built on it; a last line
that was cut short by a kill is no record, and is dropped. Only a job's coordinator writes it, under a lock. It names
every file of the job before that file has its name, so that what it does not name is never taken for the job's.
"""

import dataclasses
import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pabee_fast.errors import JobError
from pabee_fast.tables.durable import NO_LINK, reached, sha256_of, sync_directory
from pabee_fast.tables.read import Place
from pabee_fast.tables.source import Part

try:
    import fcntl
except ImportError:  # Windows: two jobs with one output are not kept apart there
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

NAME = "_manifest.jsonl"
_FILE_NAME = re.compile(r"part-\d{6,}\.[a-z]+|table\.[a-z]+(\.gz|\.bz2|\.zst)?")
_FORMAT = 1
_BEGINNING = b'{"chain": "'


@dataclass(frozen=True)
class PartRecord(Part):
    """A durable part: which rows it holds, and the file they are in.

    name         of its file, in the manifest's directory
    size, hash   of that file
    tally        its counts, as JSON
    """

    name: str
    size: int
    hash: str
    tally: dict[str, Any]

    def is_there(self, directory: Path, *, thoroughly: bool = True) -> bool:
        """Return whether the file is there; only its size is looked at unless thoroughly.

        Raises:
            JobError: it is not the one that was recorded.
        """
        path = directory / self.name
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(found.st_mode):
            raise JobError(f"{path} is no regular file, which is not what was written: {_REFUSED}")
        if found.st_size != self.size:
            raise JobError(f"{path} has {found.st_size} bytes, and its manifest says {self.size}: {_REFUSED}")
        if thoroughly and sha256_of(path) != self.hash:
            raise JobError(f"{path} is not what was written (its hash differs): {_REFUSED}")
        return True


_REFUSED = "remove it, and the same command makes it again; or use --overwrite to start the job anew"


class Manifest:
    """A job's manifest, open and locked.

    Args:
        directory: where it lies, beside the parts; it must exist.
        name: it has.
        discard_damaged: whether one whose later lines were tampered with is one of no job, which begins anew; the files
            that it names before them are still known.

    Raises:
        JobError: another process works on the job, or the manifest was tampered with, or is no job's at all: what lies
            under its name is then left as it is.
    """

    def __init__(self, directory: Path, name: str = NAME, *, discard_damaged: bool = False) -> None:
        self.directory = directory
        self.path = directory / name
        self.job: dict[str, Any] | None = None
        self.parts: dict[int, PartRecord] = {}
        self.files: set[str] = set()  # all names that the job's files have or had
        self.tables: list[dict[str, Any]] = []  # size and hash of each table that was made of the parts, the last last
        self.finished = False
        self._chain = ""
        flags = os.O_RDWR | os.O_CREAT | NO_LINK | getattr(os, "O_BINARY", 0)
        try:
            self._descriptor = os.open(self.path, flags, 0o644)
        except OSError as error:
            if not self.path.is_symlink():
                raise
            raise JobError(f"{self.path} is a symbolic link, and no job makes one: {_LEFT}") from error
        try:
            self._lock()
            try:
                self._load()
            except JobError:
                if self.job is None or not discard_damaged:
                    raise
                self.job = None
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> "Manifest":
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)

    def begin(self, job: Mapping[str, Any]) -> None:
        """Start the job that a record describes, forgetting what was there."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.job, self.parts, self.files, self.tables, self.finished = None, {}, set(), [], False
        self._chain = ""
        self._append({"kind": "job", "format": _FORMAT, **job})
        sync_directory(self.directory)

    def announce(self, name: str) -> None:
        """Record that a file of this name is about to be the job's."""
        self._append({"kind": "file", "name": name})

    def add_part(self, part: PartRecord) -> None:
        """Record that a part's file is durable."""
        self._append({"kind": "part", **dataclasses.asdict(part)})

    def forget_parts(self, indices: list[int]) -> None:
        """Record that parts are to be done again."""
        self._append({"kind": "forget", "parts": indices})

    def finish(self, table: Mapping[str, Any] | None) -> None:
        """Record that there are no more parts; and size and hash of the table of them, before it takes its name."""
        self._append({"kind": "finished", "table": table})

    def _lock(self) -> None:
        if fcntl is not None:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise JobError(f"{self.path}: {_BUSY}") from error
            except OSError as error:
                logger.warning("%s cannot be locked (%s): see that no other process works there", self.path, error)
        self._check_in_place()

    def _check_in_place(self) -> None:
        """Raise JobError where the open file is not, or no longer, the one that has its name."""
        try:
            if os.path.samestat(os.lstat(self.path), os.fstat(self._descriptor)):
                return
        except FileNotFoundError:
            pass
        raise JobError(f"{self.path} was removed or replaced meanwhile: {_BUSY}")

    def _append(self, record: dict[str, Any]) -> None:
        self._check_in_place()
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
        if not lines and not torn.startswith(_BEGINNING[: len(torn)]):
            raise JobError(f"{self.path} is not what was written by a job: {_LEFT}")
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)["record"]
                body = json.dumps(record, sort_keys=True)
                self._chain = _next(self._chain, body)
                if line != f'{{"chain": "{self._chain}", "record": {body}}}'.encode():
                    raise ValueError
                self._take(record)
            except (ValueError, KeyError, TypeError, RecursionError):
                fix = _LEFT if self.job is None else "it was changed; use --overwrite to start the job anew"
                raise JobError(f"{self.path}, line {number}, is not what was written by a job: {fix}") from None
        if not lines:
            return  # nothing yet, or the beginning of a job's first line: `begin` writes it
        os.ftruncate(self._descriptor, os.lseek(self._descriptor, 0, os.SEEK_END) - len(torn))
        os.lseek(self._descriptor, 0, os.SEEK_END)

    def _take(self, record: dict[str, Any]) -> None:
        kind = record["kind"]
        if (kind == "job") != (self.job is None):
            raise ValueError
        if kind == "job":
            if record["format"] != _FORMAT:
                raise ValueError
            self.job = record
        elif kind == "file":
            self._take_name(record["name"])
        elif kind == "part":
            fields = {name: value for name, value in record.items() if name != "kind"}
            part = PartRecord(**{**fields, "end": Place(*record["end"])})
            self._take_name(part.name)
            self.parts[part.index] = part
            self.finished = False
        elif kind == "forget":
            for index in record["parts"]:
                del self.parts[index]
            self.finished = False
        elif kind == "finished":
            self.tables += [record["table"]] if record["table"] else []
            self.finished = True
        else:
            raise ValueError

    def _take_name(self, name: str) -> None:
        if not _FILE_NAME.fullmatch(name):
            raise ValueError
        self.files.add(name)


_LEFT = "it was left as it is; move it away, or name another output"
_BUSY = "another process is at work on this job; wait for it, or end it"


def _next(chain: str, body: str) -> str:
    return hashlib.sha256((chain + body).encode()).hexdigest()
