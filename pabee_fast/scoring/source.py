"""What a job reads: files found from what the user named, as one long table, cut into parts.

Knows files, rows and parts; knows nothing of models or of output.
"""

import base64
import glob
import hashlib
import json
import os
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pabee_fast.errors import InputError
from pabee_fast.scoring.manifest import PartRecord
from pabee_fast.scoring.tables import CHUNK_BYTES, CHUNK_ROWS, check_file, open_table
from pabee_fast.scoring.tables_bytes import compression
from pabee_fast.scoring.tables_jsonl import JsonTable, scan_json
from pabee_fast.scoring.tables_read import FORMATS, USUAL, Chunk, Place, Reading, Table, quoted

_SAMPLE = 64 * 2**10


@dataclass(frozen=True)
class Part:
    """A range of a file's rows, the one unit of planning, durability, retry and distribution."""

    index: int
    file: int
    first_row: int
    rows: int
    end: Place


Parts = Generator[tuple[Part, Chunk], None, None]


class Source:
    """Files of one format and the same columns, as one table.

    Args:
        paths: of the files, in the order of their rows.
        text_columns: one name, or two for pairs.
        scan: what `scan` gave when the same files were opened before, so that they need not be read to be opened.
        reading: how csv and tsv are read.

    Raises:
        InputError: a file that cannot be read or has other columns than the first, or no text column.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        text_columns: Sequence[str],
        scan: Any = None,
        reading: Reading = USUAL,
    ) -> None:
        self.paths = list(paths)
        kinds = {check_file(path, reading) for path in self.paths}
        if len(kinds) > 1:
            raise InputError(f"the input files are {', '.join(sorted(kinds))}: give files of one format")
        self.tables = (
            _open_json(self.paths, text_columns, scan)
            if kinds == {"jsonl"}
            else [open_table(path, text_columns, reading=reading) for path in self.paths]
        )
        self.schema = self.tables[0].schema
        for table in self.tables[1:]:
            if not table.schema.equals(self.schema):
                raise InputError(
                    f"{table.path} has the columns {_told(table.schema)}, and {self.tables[0].path} has "
                    f"{_told(self.schema)}: files that are read as one table must have the same"
                )
        whole = [path.absolute() for path in self.paths]
        parent = os.path.commonpath([path.parent for path in whole])
        self.names = [Path(os.path.relpath(path, parent)).as_posix() for path in whole]

    @property
    def rows(self) -> int | None:
        """How many rows there are; None where only reading them all would tell."""
        known = [table.rows for table in self.tables if table.rows is not None]
        return sum(known) if len(known) == len(self.tables) else None

    def scan(self) -> Any:
        """What opening has learnt by reading, as JSON; None where it needs no reading."""
        if not isinstance(self.tables[0], JsonTable):
            return None
        types = [(name, kind or pa.null()) for name, kind in self.tables[0].types.items()]
        columns = base64.b64encode(pa.schema(types).serialize()).decode()
        return {"columns": columns, "rows": [table.rows for table in self.tables]}

    def identity(self, directory: Path) -> list[dict[str, Any]]:
        """What tells these inputs from others: paths relative to `directory`, sizes, a hash of three samples, and when
        they were last written, since samples do not see all of a large file."""
        return [
            {
                "path": Path(os.path.relpath(path.resolve(), directory.resolve())).as_posix(),
                "size": path.stat().st_size,
                "sample": _sample(path),
                "modified": path.stat().st_mtime_ns,
            }
            for path in self.paths
        ]

    def parts(self, part_rows: int, part_bytes: int, done: Mapping[int, PartRecord]) -> Parts:
        """The parts that are not done yet, each with its rows, in order.

        Which rows a part holds depends only on the files and the two sizes. Rows of done parts are not read, except
        those between two parts whose records are missing.
        """
        index = 0
        for file, table in enumerate(self.tables):
            table.chunk_rows, table.chunk_bytes = part_rows, part_bytes
            place, row = Place(), 0
            while True:
                while index in done and done[index].file == file:
                    place, row = done[index].end, row + done[index].rows
                    index += 1
                read = False
                for chunk in table.chunks(place):
                    read = True
                    place = chunk.end
                    yield Part(index, file, row, chunk.batch.num_rows, place), chunk
                    index, row = index + 1, row + chunk.batch.num_rows
                    if index in done:
                        break
                if not read or index not in done or done[index].file != file:
                    break


def find_files(arguments: Sequence[str], output: str | None = None) -> list[Path]:
    """The files that arguments name: files, directories (read whole, by name), globs, datasets saved by Hugging Face.

    In directories, names that begin with "." or "_" are passed over, as Spark and pyarrow do.

    Args:
        output: where results go: what lies there is no input, unless it is named itself.

    Raises:
        InputError: nothing is there, a directory without tables, a link to nowhere, or a dataset of several splits.
    """
    own = None if output is None else os.path.realpath(output)
    found: list[Path] = []
    for argument in arguments:
        files = _files_of(argument)
        if files != [Path(argument)]:
            files = [path for path in files if not _lies_in(path, own)]
            if not files:
                raise InputError(f"{argument} holds nothing but what lies in {output}, where the results go")
        found += files
    counts = Counter(os.path.realpath(path) for path in found)
    if twice := sorted(path for path, count in counts.items() if count > 1):
        raise InputError(f"the input names {quoted(twice)} more than once")
    return found


def _lies_in(path: Path, output: str | None) -> bool:
    """Whether a file is an output, or lies in it or among its parts."""
    real = os.path.realpath(path)
    return output is not None and (real == output or real.startswith((f"{output}{os.sep}", f"{output}.parts{os.sep}")))


def _files_of(argument: str) -> list[Path]:
    if not argument:
        raise InputError("an input is empty, as an unset variable gives it: name a file or a directory, . for this one")
    path = Path(argument)
    if path.is_dir():
        if splits := _json(path / "dataset_dict.json").get("splits"):
            raise InputError(f"{path} is a dataset of several splits: name one, of {quoted(splits)}: {path}/SPLIT")
        return _saved_dataset(path) or _tables_in(path)
    if not path.exists() and glob.has_magic(argument):
        matches = sorted(Path(match) for match in glob.glob(argument, recursive=True))
        if not matches:
            raise InputError(f"{argument}: no file has such a name")
        files = [file for match in matches for file in (_tables_in(match) if match.is_dir() else [match])]
        return list(dict.fromkeys(files))  # `**` finds a directory, and what lies in it
    return [path]


def _tables_in(directory: Path) -> list[Path]:
    tables: list[Path] = []
    seen: set[str] = set()
    for parent, inside, names in os.walk(directory, followlinks=True):
        seen.add(os.path.realpath(parent))
        inside[:] = [name for name in inside if not _is_hidden(name) and _is_new(Path(parent, name), seen)]
        tables += [Path(parent, name) for name in names if not _is_hidden(name) and _is_table(name)]
    if not tables:
        raise InputError(f"{directory} holds no table: files that end with {', '.join(FORMATS)}")
    if nowhere := [path for path in tables if not path.exists()]:
        raise InputError(f"{nowhere[0]} is a link to {os.path.realpath(nowhere[0])}, which does not exist")
    # A file that links lead to as well is read once, under its own name.
    by_own_name = sorted(tables, key=lambda path: (os.path.realpath(path) != os.path.abspath(path), path))
    return sorted({os.path.realpath(path): path for path in reversed(by_own_name)}.values())


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))


def _is_new(directory: Path, seen: set[str]) -> bool:
    """Whether a directory is none that the walk has been in, as a link to one above it is."""
    return not directory.is_symlink() or os.path.realpath(directory) not in seen


def _is_table(name: str) -> bool:
    path = Path(name)
    return (path.with_suffix("") if compression(path) else path).suffix.lower() in FORMATS


def _json(path: Path) -> dict[str, Any]:
    """What a file of Hugging Face's datasets says; empty where it is absent, or another program's of that name."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _saved_dataset(directory: Path) -> list[Path]:
    """The files of what `datasets.Dataset.save_to_disk` wrote; empty where it is no such directory."""
    state = _json(directory / "state.json")
    names = [entry["filename"] for entry in state.get("_data_files", [])]
    if state.get("_indices_data_files"):
        raise InputError(f"{directory} selects rows by an index: save it once more after dataset.flatten_indices()")
    if any(Path(name).name != name for name in names):
        raise InputError(f"{directory}/state.json names a file outside of the dataset; save it anew")
    return [directory / name for name in names]


def _open_json(paths: Sequence[Path], text_columns: Sequence[str], scan: Any) -> list[Table]:
    """JSON Lines files whose columns are those of all of them together."""
    if len(paths) == 1 and scan is None:
        return [open_table(paths[0], text_columns)]
    if scan is not None:
        read = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(scan["columns"])))
        columns = {field.name: None if pa.types.is_null(field.type) else field.type for field in read}
        rows = scan["rows"]
    else:
        found = scan_json(paths, text_columns, CHUNK_ROWS, CHUNK_BYTES)
        columns, rows = found.columns, found.rows
    return [
        JsonTable(path, tuple(text_columns), CHUNK_ROWS, CHUNK_BYTES, columns, count)
        for path, count in zip(paths, rows, strict=True)
    ]


def _sample(path: Path) -> str:
    """A hash over a file's beginning, middle and end."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for start in (0, size // 2, max(size - _SAMPLE, 0)):
            file.seek(start)
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def _told(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type}{'' if field.nullable else ' not null'})" for field in schema)
