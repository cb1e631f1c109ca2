"""Files at URLs, by fsspec: as much of pathlib's interface as finding and reading them asks for."""

import io
import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from pabee_fast.errors import InputError

_URL = re.compile("[A-Za-z][A-Za-z0-9+.-]+:/")
_VERSIONS = (
    *("ETag", "etag", "Content-MD5", "md5Hash", "sha", "blob_id", "generation"),
    *("Last-Modified", "LastModified", "last_modified", "updated", "modified", "mtime", "created"),
)
"""What file systems call that which changes with a file's content; the first that one tells is used."""


@dataclass(frozen=True)
class Remote:
    """A file or directory of an fsspec file system; `inside` is its path there.

    Every method raises InputError where the file system cannot be asked.
    """

    fs: Any
    inside: str

    def __str__(self) -> str:
        return str(self.fs.unstrip_protocol(self.inside))

    def __truediv__(self, name: str) -> "Remote":
        return Remote(self.fs, posixpath.join(self.inside, name))

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.inside.split("/"))

    def relative_to(self, root: "Remote") -> PurePosixPath:
        return PurePosixPath(self.inside[len(root.inside) :].lstrip("/"))

    def is_file(self) -> bool:
        with self.asked():
            return bool(self.fs.isfile(self.inside))

    def is_dir(self) -> bool:
        # To see that a file is no directory, a web server would have to send it whole.
        looks_like_a_file = posixpath.splitext(self.inside)[1] != ""
        with self.asked():
            return not (looks_like_a_file and self.fs.isfile(self.inside)) and bool(self.fs.isdir(self.inside))

    def exists(self) -> bool:
        with self.asked():
            return bool(self.fs.exists(self.inside))

    def iterdir(self) -> Iterator["Remote"]:
        with self.asked():
            return iter([Remote(self.fs, path) for path in self.fs.ls(self.inside, detail=False)])

    def glob(self) -> list["Remote"]:
        """Return what the path names as a pattern, by name."""
        with self.asked():
            return [Remote(self.fs, path) for path in sorted(self.fs.glob(self.inside))]

    def walk(self) -> Iterator[tuple["Remote", list[str]]]:
        """Yield the directories below, each with the names of its files."""
        with self.asked():
            found = sorted(map(posixpath.split, self.fs.find(self.inside)))
        for folder, files in groupby(found, key=lambda file: file[0]):
            yield Remote(self.fs, folder), [name for _, name in files]

    def read_bytes(self) -> bytes:
        with self.asked():
            return bytes(self.fs.cat_file(self.inside))

    def open(self, mode: str = "rb") -> "RemoteBytes":
        with self.asked():
            return RemoteBytes(self, self.fs.open(self.inside, mode))

    def state(self) -> tuple[int | None, str] | None:
        """Return the size and the version, as far as the file system tells them; None where there is no such file."""
        with self.asked():
            try:
                info = self.fs.info(self.inside)
            except FileNotFoundError:
                return None
            told = [f"{name} {info[name]}" for name in _VERSIONS if info.get(name)]
            return info.get("size"), told[0] if told else ""

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Turn whatever a driver raises into an InputError."""
        try:
            yield
        except FileNotFoundError as error:
            raise InputError(f"{self} cannot be read: there is no such file") from error
        except Exception as error:  # every driver has errors of its own
            raise InputError(f"{self} cannot be read: {type(error).__name__}: {error}") from error


class RemoteBytes(io.RawIOBase):
    """A remote file's bytes."""

    def __init__(self, place: Remote, file: Any) -> None:
        self._place, self._file = place, file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._place.asked():
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, at: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(at, whence))

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


File = Path | Remote


def named(argument: str) -> File:
    """Return the file or directory that a path or a URL names; a local one that has the very name goes first.

    Raises:
        InputError: fsspec knows no such URL, or the package that it needs is not installed.
    """
    if not _URL.match(argument) or os.path.lexists(argument):
        return Path(argument)
    if "::" in argument:
        raise InputError(f"{argument} names files in files; name one that is a table")
    import fsspec.core

    try:
        fs, inside = fsspec.core.url_to_fs(argument)
    except Exception as error:  # a driver that is absent, unknown, or refuses what it was given
        raise InputError(f"{argument} cannot be read: {error}") from error
    if "file" in fs.protocol:
        return Path(inside)
    fs.invalidate_cache()
    return Remote(fs, inside)


def refuse_url(place: str | Path) -> None:
    """Raise InputError where results are to be written to a URL."""
    if _URL.match(str(place)) and not os.path.lexists(str(place).partition("/")[0]):
        raise InputError(
            f"{place} is a URL, and results are renamed into their place, which only a local disk does safely: write "
            "them to a local path, and copy what is finished"
        )
