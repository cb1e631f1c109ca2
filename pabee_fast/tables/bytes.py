"""What a text table's bytes are: decompressed, and as UTF-8 whatever encoding they were written in; and how one is
compressed that is written so."""

import bz2
import codecs
import gzip
import io
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from pabee_fast.errors import InputError
from pabee_fast.tables.remote import File, Remote

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
GZIP_LEVEL = 6
"""gzip's own; that of Python and pyarrow is 9, at several times the time for hardly less."""
READ_BUFFER = 2**20
UTF8 = "utf-8"


def compression(path: str | os.PathLike[str] | File) -> str | None:
    """Return what a path's suffix says the file is compressed by: gzip, bz2, zstd or None."""
    return COMPRESSIONS.get(Path(str(path)).suffix.lower())


def open_bytes(path: File, at: int = 0, encoding: str = UTF8) -> BinaryIO:
    """Return the file's bytes from `at` on, decompressed and as UTF-8, which `at` counts.

    Reaching a place in a compressed file or one of another encoding reads what is before it. Bytes that are none of the
    encoding's characters become bytes that are not UTF-8.

    Reading raises InputError where the compressed data are damaged, or the encoding cannot go on.
    """
    kind = compression(path)
    if kind is None and encoding == UTF8:
        if isinstance(path, Path):
            local = path.open("rb", buffering=READ_BUFFER)
            local.seek(at)
            return local
        raw: Any = path.open()
        with suppress(ValueError):  # some web servers' files are streams
            at -= raw.seek(at)
    else:
        raw = path.open("rb") if kind is None else _Decompressed(path, kind)
    if encoding != UTF8:
        raw = _Recoded(raw, path, encoding)
    file = io.BufferedReader(raw, READ_BUFFER)
    while at and (skipped := len(file.read(min(at, READ_BUFFER)))):
        at -= skipped
    return file


@contextmanager
def compressed(file: BinaryIO, kind: str | None) -> Iterator[BinaryIO]:
    """Open what compresses into an open file, which stays open; `kind` None: that file itself.

    The same content makes the same bytes: gzip's header names no time and no file.
    """
    if kind is None:
        yield file
        return
    stream: Any
    if kind == "gzip":
        stream = gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0)
    elif kind == "bz2":
        stream = bz2.BZ2File(file, "wb")
    else:
        stream = pa.CompressedOutputStream(pa.PythonFile(_KeptOpen(file), "w"), kind)
    with closing(stream):
        yield cast(BinaryIO, stream)


def open_file(path: File) -> pa.NativeFile:
    """Open a file with pyarrow, which takes a name that is not UTF-8 as bytes alone."""
    if isinstance(path, Remote):
        return pa.PythonFile(path.open(), "r")
    return pa.OSFile(os.fsencode(path))


def check_encoding(name: str) -> str:
    """Return an encoding's own name; raises InputError where Python knows no such encoding of texts."""
    try:
        " ".encode(name)
        codecs.getincrementaldecoder(name)
        found = codecs.lookup(name).name
    except (LookupError, ValueError):
        raise InputError(
            f"encoding={name!r}: give one that Python knows, such as utf-8, utf-16, latin-1 or cp1252"
        ) from None
    return UTF8 if found == "utf-8-sig" else found


class _KeptOpen(io.RawIOBase):
    """Writes into a file and leaves it open when it is closed, as pyarrow's streams close what they write to."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(data)


class _Decompressed(io.RawIOBase):
    """A compressed file's content, through pyarrow, which knows zstd too."""

    def __init__(self, path: File, kind: str) -> None:
        self._path, self._kind = path, kind
        self._stream = pa.input_stream(open_file(path), compression=kind, buffer_size=READ_BUFFER)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self._path} cannot be read as {self._kind}: {error}") from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


class _Recoded(io.RawIOBase):
    """A file's content as UTF-8; what its encoding cannot read comes out as bytes that UTF-8 cannot read either."""

    def __init__(self, source: Any, path: File, encoding: str) -> None:
        self._source, self._path, self._encoding = source, path, encoding
        # Of UTF-16 and UTF-32 only a lone surrogate can be passed on; of the others, any byte above 127.
        self._errors = "surrogatepass" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
        self._decoder = codecs.getincrementaldecoder(encoding)(self._errors)
        self._ready = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._ended:
            data = self._source.read(READ_BUFFER)
            self._ended = not data
            try:
                self._ready = self._decoder.decode(data, self._ended).encode(UTF8, self._errors)
            except UnicodeError as error:
                raise InputError(f"{self._path} cannot be read as {self._encoding}: {error}") from error
        data, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()
