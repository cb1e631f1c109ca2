"""How many rows a source has is exact where it is known, and estimated by bytes where only reading would tell."""

import gzip
from pathlib import Path

import pytest

from pabee_fast.tables.files import find_files
from pabee_fast.tables.read import Reading
from pabee_fast.tables.source import Source
from tests.tables.cases import put

BIG = 2**30


def source_of(path: Path, encoding: str = "utf-8") -> Source:
    return Source(find_files([str(path)]), ["text"], reading=Reading(encoding=encoding))


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_the_total_is_estimated_as_parts_are_read_and_exact_in_the_end(suffix: str, tmp_path: Path) -> None:
    (folder := tmp_path / "lang=en").mkdir()
    for name, rows in (("a", 60), ("b", 40)):
        put(folder / f"{name}{suffix}", [f"the same length {row:03}" for row in range(rows)])
    source = source_of(tmp_path)
    assert source.rows is None and source.total() == (None, False)
    told = [(source.total(), part) for part, _ in source.parts(10, BIG, {})]
    assert all(is_estimated for (_, is_estimated), _ in told[:-1])
    assert all(abs(total - 100) <= 15 for (total, _), _ in told if total is not None)
    assert source.total() == (100, False)

    resumed = source_of(tmp_path)
    list(resumed.parts(10, BIG, {part.index: part for _, part in told}))
    assert resumed.total() == (100, False)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_total_of_other_formats_is_exact_at_once(suffix: str, tmp_path: Path) -> None:
    assert source_of(put(tmp_path / f"in{suffix}", ["a"] * 7)).total() == (7, False)


@pytest.mark.parametrize(("name", "encoding"), [("in.csv.gz", "utf-8"), ("in.csv", "utf-16")])
def test_no_total_is_told_where_bytes_say_nothing_until_all_is_read(name: str, encoding: str, tmp_path: Path) -> None:
    content = put(tmp_path / "plain.csv", ["a"] * 30).read_text().encode(encoding)
    (path := tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    source = source_of(path, encoding)
    assert {source.total() for _ in source.parts(10, BIG, {})} == {(None, False)}
    assert source.total() == (30, False)
