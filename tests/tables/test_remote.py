"""Tables at URLs are found, read and watched as local ones are; results stay local."""

import gzip
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile

from pabee_fast.errors import InputError
from pabee_fast.jobs.job import Columns, Job
from pabee_fast.scoring.examples import read_examples
from pabee_fast.tables.durable import check_writable
from pabee_fast.tables.files import find_files
from pabee_fast.tables.open import check_output, open_table
from pabee_fast.tables.source import Source
from tests.tables.cases import SUFFIXES, column_of, texts_of
from tests.tables.test_places import STREAMS, assert_every_end_is_a_start, put_any, rows_of

BIG = 2**30
Put = Callable[..., str]


@pytest.fixture
def put(tmp_path: Path) -> Iterator[Put]:
    """Puts a table, or bytes, into fsspec's memory, and gives its URL."""
    memory = fsspec.filesystem("memory")

    def put_there(name: str, content: list[str] | bytes) -> str:
        if isinstance(content, list):
            content = put_any(tmp_path / f"put-{name.replace('/', '-')}", content).read_bytes()
        memory.pipe_file(f"/in/{name}", content)
        return f"memory://in/{name}"

    yield put_there
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def names_of(*arguments: str) -> list[str]:
    return [str(path).removeprefix("memory:///in/") for path in find_files(arguments)]


@pytest.mark.parametrize("suffix", [*SUFFIXES, *STREAMS])
def test_every_format_is_read_from_any_row_on_at_a_url(suffix: str, put: Put, tmp_path: Path) -> None:
    texts = [f"text {row} \u00e9\n" for row in range(50)]
    table = open_table(put(f"in{suffix}", texts), ["text"], chunk_rows=7)
    local = open_table(put_any(tmp_path / f"in{suffix}", texts), ["text"], chunk_rows=7)
    assert rows_of(list(table)) == rows_of(list(local))
    assert_every_end_is_a_start(table)


def test_compressed_files_are_read_at_a_url(put: Put) -> None:
    for name, row in {"in.csv.gz": "text\na\n", "in.jsonl.gz": '{"text": "a"}\n'}.items():
        assert texts_of(open_table(put(name, gzip.compress(row.encode())), ["text"])) == ["a"]


@pytest.mark.parametrize(
    "named", ["", "*", "**", "[ab].csv", "**/*.csv", "*/*", "s*/*.csv", ".hidden.*", "b.csv", "sub/", "su?"]
)
def test_directories_and_globs_at_a_url_are_those_of_a_disk(named: str, put: Put, tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "sub/c.csv", ".hidden.csv", "_temporary/d.csv", "sub/.cache/e.csv", "sub/_f.csv"):
        put(name, b"text\n")
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    wanted = [path.relative_to(tmp_path / "in").as_posix() for path in find_files([f"{tmp_path}/in/{named}"])]
    assert names_of(f"memory://in/{named}") == wanted


def test_what_is_not_at_a_url_is_told(put: Put) -> None:
    for name in ("b.csv", "a.csv", "sub/c.csv"):
        put(name, b"text\n")
    assert names_of("memory://in/b.csv", "memory://in/a.csv") == ["b.csv", "a.csv"]
    assert Source(find_files(["memory://in"]), ["text"]).names == ["a.csv", "b.csv", "sub/c.csv"]
    for arguments, told in {
        ("memory://in", "memory://in/a.csv"): r"names 'memory:///in/a.csv' more than once",
        ("memory://in/*.jsonl",): r"memory://in/\*.jsonl: no file has such a name",
        ("memory://in/sub/x",): r"names no table format",
        ("memory://in/gone.csv",): r"memory:///in/gone.csv cannot be read: there is no such file",
    }.items():
        with pytest.raises(InputError, match=told):
            Source(find_files(arguments), ["text"])


@pytest.mark.parametrize("named", ["", "/*", "/lang=*/part*"])
def test_folders_at_a_url_name_columns(named: str, put: Put) -> None:
    for lang in ("de", "en%20gb"):
        put(f"lang={lang}/part.parquet", [lang])
    (table, other) = Source(find_files([f"memory://in{named}"]), ["text"]).tables
    assert column_of(table, "lang") + column_of(other, "lang") == ["de", "en gb"]


def test_a_dataset_saved_at_a_url_is_read_by_its_state(put: Put) -> None:
    for name in ("data-0.arrow", "data-1.arrow", "cache-7.arrow"):
        put(f"train/{name}", [name])
    state = {"_data_files": [{"filename": "data-1.arrow"}, {"filename": "data-0.arrow"}]}
    put("train/state.json", json.dumps(state).encode())
    assert names_of("memory://in/train") == ["train/data-1.arrow", "train/data-0.arrow"]
    assert names_of("memory://in") == ["train/data-0.arrow", "train/data-1.arrow"]
    put("dataset_dict.json", b"{}")
    with pytest.raises(InputError, match="of several splits: name one, of 'train'"):
        names_of("memory://in")


def test_a_url_of_the_local_disk_is_a_path(tmp_path: Path) -> None:
    path = put_any(tmp_path / "in.csv", ["a"])
    assert list(find_files([f"file://{path}"])) == [path]
    assert list(find_files([f"file://{tmp_path}"])) == [path]


def test_a_local_name_that_looks_like_a_url_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("memory:").mkdir()
    put_any(Path("memory:") / "in.csv", ["a"])
    assert list(find_files(["memory://in.csv"])) == [Path("memory:/in.csv")]


@pytest.mark.parametrize("change", ["grow", "replace", "remove"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_remote_file_that_changes_while_it_is_read_is_told(suffix: str, change: str, put: Put) -> None:
    texts = [f"text {row}" for row in range(40)]
    source = Source(find_files([put(f"in{suffix}", texts)]), ["text"])
    parts = source.parts(10, BIG, {})
    next(parts)
    if change == "remove":
        fsspec.filesystem("memory").rm("/in", recursive=True)
    else:
        put(f"in{suffix}", texts + ["more"] * (change == "grow"))
    with pytest.raises(InputError, match="is gone while" if change == "remove" else "was written or replaced while"):
        list(parts)


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_driver_that_is_not_installed_is_named() -> None:
    with pytest.raises(InputError, match=r"s3://bucket/\*.csv cannot be read: .*s3fs"):
        find_files(["s3://bucket/*.csv"])


@pytest.mark.parametrize(
    ("url", "told"),
    [("nosuch://x.csv", "Protocol not known: nosuch"), ("zip://a.csv::memory://in.zip", "names files in files")],
)
def test_urls_that_cannot_be_read_are_told(url: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        find_files([url])


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".jsonl", ".parquet", ".arrow"])
@pytest.mark.parametrize("method", ["open", "read"])
def test_whatever_a_driver_raises_names_the_url(
    method: str, suffix: str, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no credentials")

    url = put(f"in{suffix}", b"text\n")
    if method == "open":
        monkeypatch.setattr(type(fsspec.filesystem("memory")), "_open", refuse)
    else:
        monkeypatch.setattr(MemoryFile, "read", refuse, raising=False)
    with pytest.raises(InputError, match=rf"memory:///in/in{suffix} cannot be read: RuntimeError: no credentials"):
        open_table(url, ["text"])


def test_examples_of_a_url_are_read(put: Put) -> None:
    examples = read_examples(put("in.csv", b"text,label\na,0\n"), ["text"], "label")
    assert (examples.texts, examples.column.values()) == ([("a",)], [0])


@pytest.mark.parametrize("output", ["memory://out.csv", "s3://bucket/out/", "memory:/out"])
def test_results_are_not_written_to_a_url(output: str, put: Put) -> None:
    for write in (check_output, lambda path: check_writable(Path(path))):
        with pytest.raises(InputError, match=r"is a URL, and results are .*write them to a local path"):
            write(output)
    with pytest.raises(InputError, match="is a URL"):
        Job([put("in.csv", ["a"])], output, Columns(["text"]))
