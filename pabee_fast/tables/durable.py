"""Files that are there whole or not at all, whatever moment the process is killed at."""

import hashlib
import io
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from pabee_fast.errors import InputError
from pabee_fast.tables.remote import refuse_url

_TEMPORARY = ".pabee-fast-{}.tmp"
_IS_TEMPORARY = re.compile(r"\.pabee-fast-[0-9a-f]{16}\.tmp")

NO_LINK = getattr(os, "O_NOFOLLOW", 0)
"""The flag with which a file of ours is opened: a link in its place is another's, and is not followed."""


def reached(point: str) -> None:
    """Called at the moments at which a kill could matter; tests put something in its place that kills."""


def check_writable(place: Path) -> None:
    """Raise InputError where a file or directory could not be made at `place`, or could not be replaced: said before
    the work rather than after it."""
    refuse_url(place)
    there = next(parent for parent in (place, *place.absolute().parents) if parent.exists())
    if there.is_file() and there != place:
        raise InputError(f"{place} cannot be written: {there} is a file")
    if not os.access(there, os.W_OK):
        raise InputError(f"{place} cannot be written: no permission to write to {there}; name another place")


@contextmanager
def durable_file(
    target: Path, what: str, *, replace: bool = True, permissions: Path | None = None
) -> Iterator[BinaryIO]:
    """Open a file that takes its place under `target` when the block ends well, and then survives a power cut.

    It is written under a temporary name in the same directory, synced and renamed, and the directory synced. When the
    block ends in an exception nothing is left, and an older file stays as it was.

    Args:
        target: the file's name.
        what: it is, in names of moments.
        replace: whether a file that has come to exist meanwhile is replaced.
        permissions: whose permissions it has; None: the older file's. Where there is none, the umask's.

    Raises:
        InputError: the directory cannot be written to, or the target exists and is not to be replaced.
    """
    temporary = target.with_name(_TEMPORARY.format(secrets.token_hex(8)))
    try:
        file = temporary.open("xb")
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror}") from error
    try:
        with file:
            with suppress(FileNotFoundError):
                temporary.chmod(stat.S_IMODE((permissions or target).stat().st_mode))
            reached(f"{what}: before the write")
            yield file
            file.flush()
            os.fsync(file.fileno())
        reached(f"{what}: after fsync")
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if target.exists() and not replace:
        raise InputError(f"{target} has come to exist meanwhile; it was left alone, and the new table is {temporary}")
    temporary.replace(target)
    sync_directory(target.parent)
    reached(f"{what}: after the rename")


def sync_directory(directory: Path) -> None:
    """Make names that came or went in the directory durable."""
    if os.name != "posix":  # elsewhere directories cannot be opened
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_temporary(path: Path) -> bool:
    """Return whether a name is one under which `durable_file` writes."""
    return _IS_TEMPORARY.fullmatch(path.name) is not None


def remove_temporaries(directory: Path) -> None:
    """Remove what a killed process left half written. Nobody else may be writing there."""
    for path in filter(is_temporary, directory.iterdir()):
        path.unlink(missing_ok=True)


class Hashed(io.RawIOBase):
    """What writes into an open file, from its beginning on, and knows the hash of all that it wrote.

    Args:
        file: it stays open.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file, self._sha256 = file, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self._sha256.update(content)
        return self._file.write(content)

    def sha256(self) -> str:
        """Return the hash, as `sha256_of` gives that of the file."""
        return self._sha256.hexdigest()


def sha256_of(path: Path) -> str:
    """Return the hash of a file's content; raises OSError for a link."""
    with open(os.open(path, os.O_RDONLY | NO_LINK | getattr(os, "O_BINARY", 0)), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
