"""Which files the user names: files, directories, globs, datasets saved by Hugging Face, at URLs too. Knows no rows."""

import glob
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pabee_fast.errors import InputError
from pabee_fast.tables.bytes import compression
from pabee_fast.tables.read import FORMATS, quoted
from pabee_fast.tables.remote import File, Remote, named

Found = dict[File, dict[str, str | None]]
"""Files in the order of their rows, each with the columns that its folders name: lang=en/ says {"lang": "en"}."""
STATE, INFO = "state.json", "dataset_info.json"
"""What `datasets.Dataset.save_to_disk` leaves beside the data."""
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def find_files(arguments: Sequence[str], output: str | None = None) -> Found:
    """Return the files that arguments name: files, directories (read whole, by name), globs, saved datasets.

    In directories, names that begin with "." or "_" are passed over, as Spark and pyarrow do. Folders called NAME=VALUE
    below a directory, or below what stands in a glob before its first wildcard, name a column, as they do there.

    Args:
        output: where results go: what lies there is no input, unless it is named itself.

    Raises:
        InputError: nothing is there, a directory without tables, a link to nowhere, a dataset of several splits, or one
            that is damaged.
    """
    own = None if output is None else os.path.realpath(output)
    found: Found = {}
    paths: list[File] = []
    for argument in arguments:
        root, files = _files_of(argument)
        if root is not None:
            files = [path for path in files if not _lies_in(path, own)]
            if not files:
                raise InputError(f"{argument} holds nothing but what lies in {output}, where the results go")
        paths += files
        found |= {path: {} if root is None else _said_by_folders(path, root) for path in files}
    counts = Counter(map(_own_name, paths))
    if twice := sorted(path for path, count in counts.items() if count > 1):
        raise InputError(f"the input names {quoted(twice)} more than once")
    return found


def _said_by_folders(path: Any, root: Any) -> dict[str, str | None]:
    """Return the columns that folders between a root and a file name."""
    said: dict[str, str | None] = {}
    for folder in path.relative_to(root).parent.parts:
        name, is_column, value = folder.partition("=")
        if not is_column or not name:
            continue
        if unquote(name) in said:
            raise InputError(f"{path}: two of its folders name the column {unquote(name)!r}; rename one")
        said[unquote(name)] = None if value == HIVE_NULL else unquote(value)
    return said


def _own_name(path: File) -> str:
    """Return a file's name, links followed."""
    return str(path) if isinstance(path, Remote) else os.path.realpath(path)


def _lies_in(path: File, output: str | None) -> bool:
    """Return whether a file is an output, or lies in it or among its parts."""
    real = _own_name(path)
    return output is not None and (real == output or real.startswith((f"{output}{os.sep}", f"{output}.parts{os.sep}")))


def _files_of(argument: str) -> tuple[File | None, list[File]]:
    """Return what an argument names, and below what its folders name columns; None: they name none."""
    if not argument:
        raise InputError("an input is empty, as an unset variable gives it: name a file or a directory, . for this one")
    path = named(argument)
    if path.is_dir():
        if splits := _splits(path):
            raise InputError(f"{path} is a dataset of several splits: name one, of {quoted(splits)}: {path}/SPLIT")
        return path, _saved_dataset(path) or _tables_in(path)
    if not path.exists() and glob.has_magic(argument):
        matches = _matches(path)
        if not matches:
            raise InputError(f"{argument}: no file has such a name")
        files = [file for match in matches for file in (_tables_in(match) if match.is_dir() else [match])]
        wild = next(at for at, part in enumerate(path.parts) if glob.has_magic(part))
        above = path.parts[:wild]
        root = Remote(path.fs, "/".join(above)) if isinstance(path, Remote) else Path(*above)
        return root, list(dict.fromkeys(files))  # `**` finds a directory, and what lies in it
    return None, [path]


def _matches(pattern: File) -> list[File]:
    """Return what a glob names, by name, and as in a shell nothing that begins with "." unless it says so."""
    if isinstance(pattern, Remote):
        return [match for match in pattern.glob() if "/." in pattern.inside or "/." not in match.inside]
    return [*sorted(Path(match) for match in glob.glob(str(pattern), recursive=True))]


def _tables_in(directory: File) -> list[File]:
    tables: list[Any] = []
    for parent, names in _walk(directory):
        tables += (STATE in names and _saved_dataset(parent)) or [
            parent / name for name in names if not _is_hidden(name) and _is_table(name)
        ]
    if not tables:
        raise InputError(f"{directory} holds no table: files that end with {', '.join(FORMATS)}")
    if isinstance(directory, Remote):
        return sorted(tables, key=str)
    if nowhere := [path for path in tables if not path.exists()]:
        raise InputError(f"{nowhere[0]} is a link to {_own_name(nowhere[0])}, which does not exist")
    # A file that links lead to as well is read once, under its own name.
    by_own_name = sorted(tables, key=lambda path: (_own_name(path) != os.path.abspath(str(path)), path))
    return sorted({_own_name(path): path for path in reversed(by_own_name)}.values())


def _walk(directory: File) -> Iterator[tuple[File, list[str]]]:
    """Yield the directories below one, and itself, that are not hidden, each with the names of its files."""
    if isinstance(directory, Remote):
        for folder, names in directory.walk():
            if not any(map(_is_hidden, folder.relative_to(directory).parts)):
                yield folder, names
        return
    seen: set[str] = set()
    for parent, inside, names in os.walk(directory, followlinks=True):
        seen.add(os.path.realpath(parent))
        inside[:] = [name for name in inside if not _is_hidden(name) and _is_new(Path(parent, name), seen)]
        yield Path(parent), names


def _splits(directory: File) -> list[str]:
    """Return the names of what `datasets.DatasetDict.save_to_disk` wrote there; none where it is no such directory."""
    if not (directory / "dataset_dict.json").is_file():
        return []
    return sorted(
        child.parts[-1] for child in directory.iterdir() if any((child / name).is_file() for name in (STATE, INFO))
    )


def _saved_dataset(directory: File) -> list[File]:
    """Return the files of what `datasets.Dataset.save_to_disk` wrote; none where it is no such directory.

    Raises:
        InputError: one that is damaged, has no rows, or selects its rows by an index.
    """
    if not (directory / STATE).is_file():
        return []
    try:
        state = json.loads((directory / STATE).read_bytes())
        names = [entry["filename"] for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if not (directory / INFO).is_file():
            return []  # another program's file of that name
        raise InputError(
            f"{directory / STATE} is damaged ({type(error).__name__}: {error}); save the dataset anew"
        ) from error
    if state.get("_indices_data_files"):
        raise InputError(f"{directory} selects rows by an index: save it once more after dataset.flatten_indices()")
    if not names:
        raise InputError(f"{directory} is a dataset without rows; name another")
    if wrong := [name for name in names if not isinstance(name, str) or name == ".." or Path(name).name != name]:
        raise InputError(f"{directory / STATE} names {quoted(wrong)}, no file in the dataset; save it anew")
    files = [directory / name for name in names]
    if absent := [path for path in files if not path.is_file()]:
        raise InputError(f"{absent[0]} is absent, a part of the dataset by its {STATE}; copy or save it anew")
    return files


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))


def _is_new(directory: Path, seen: set[str]) -> bool:
    """Return whether a directory is none that the walk has been in, as a link to one above it is."""
    return not directory.is_symlink() or os.path.realpath(directory) not in seen


def _is_table(name: str) -> bool:
    path = Path(name)
    return (path.with_suffix("") if compression(path) else path).suffix.lower() in FORMATS
