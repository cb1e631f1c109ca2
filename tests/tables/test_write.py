"""A table appears only when it is whole, and never in place of what must stay."""

import bz2
import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pabee_fast.errors import InputError
from pabee_fast.tables.bytes import open_bytes
from pabee_fast.tables.open import check_names, check_output, open_table, write_table
from tests.tables.cases import RESULTS, SUFFIXES, convert, put, results_of, texts_of


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_exception_midway_leaves_no_output(tmp_path: Path, suffix: str, error: type[BaseException]) -> None:
    table = open_table(put(tmp_path / "in.csv", ["a", "b"]), ["text"], chunk_rows=1)
    with pytest.raises(error), write_table(tmp_path / f"out{suffix}", table.schema, RESULTS) as writer:
        for chunk in table:
            writer.write(chunk, results_of(chunk))
            raise error
    assert names_in(tmp_path) == ["in.csv"]


def test_an_exception_midway_leaves_an_older_output_as_it_was(tmp_path: Path) -> None:
    table = open_table(put(tmp_path / "in.csv", ["a"]), ["text"])
    (tmp_path / "out.csv").write_text("older")
    with (
        pytest.raises(RuntimeError),
        write_table(tmp_path / "out.csv", table.schema, RESULTS, overwrite=True) as writer,
    ):
        writer.write(next(iter(table)), results_of(next(iter(table))))
        raise RuntimeError
    assert (tmp_path / "out.csv").read_text() == "older"
    assert names_in(tmp_path) == ["in.csv", "out.csv"]


def test_nothing_stands_under_the_output_path_before_the_table_is_whole(tmp_path: Path) -> None:
    table = open_table(put(tmp_path / "in.csv", ["a"]), ["text"])
    with write_table(tmp_path / "out.csv", table.schema, RESULTS) as writer:
        for chunk in table:
            writer.write(chunk, results_of(chunk))
        assert not (tmp_path / "out.csv").exists()
    assert names_in(tmp_path) == ["in.csv", "out.csv"]


def test_an_existing_output_is_refused_unless_it_may_be_overwritten(tmp_path: Path) -> None:
    table = open_table(put(tmp_path / "in.csv", ["a"]), ["text"])
    (tmp_path / "out.jsonl").write_text("older")
    with pytest.raises(InputError, match=r"exists; .*--overwrite"):
        convert(table, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "older"
    convert(table, tmp_path / "out.jsonl", overwrite=True)
    assert texts_of(open_table(tmp_path / "out.jsonl", ["text"])) == ["a"]


def test_an_output_that_appears_meanwhile_is_kept_and_so_is_the_new_table(tmp_path: Path) -> None:
    table = open_table(put(tmp_path / "in.csv", ["a"]), ["text"])
    with (
        pytest.raises(InputError, match=r"has come to exist meanwhile") as caught,
        write_table(tmp_path / "out.csv", table.schema, RESULTS) as writer,
    ):
        for chunk in table:
            writer.write(chunk, results_of(chunk))
        (tmp_path / "out.csv").write_text("someone else's")
    assert (tmp_path / "out.csv").read_text() == "someone else's"
    (kept,) = tmp_path.glob(".pabee-fast-*.tmp")
    assert str(kept) in str(caught.value)
    assert kept.read_text() == "id,text,label,exit_layer\n0,a,even,0\n"


def links_to(path: Path) -> Iterator[Path]:
    yield path
    yield path.parent / "." / "sub" / ".." / path.name
    (path.parent / "soft.csv").symlink_to(path)
    yield path.parent / "soft.csv"
    (path.parent / "hard.csv").hardlink_to(path)
    yield path.parent / "hard.csv"


def test_writing_over_the_input_is_refused_through_any_link(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = put(tmp_path / "in.csv", ["a"])
    content = path.read_bytes()
    for output in links_to(path):
        with pytest.raises(InputError, match=r"is the input itself"):
            convert(open_table(path, ["text"]), output, overwrite=True)
    assert path.read_bytes() == content


def test_an_output_that_is_a_link_stays_one_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "out.csv").symlink_to(tmp_path / "data" / "real.csv")
    convert(open_table(put(tmp_path / "in.csv", ["a"]), ["text"]), tmp_path / "out.csv")
    assert (tmp_path / "out.csv").is_symlink()
    assert names_in(tmp_path / "data") == ["real.csv"]
    assert texts_of(open_table(tmp_path / "out.csv", ["text"])) == ["a"]


def test_an_output_that_cannot_be_made_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no directory"):
        check_output(tmp_path / "absent" / "out.csv")
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(InputError, match=r"is not a regular file"):
        check_output(tmp_path / "out.csv", overwrite=True)


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_the_output_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    output = convert(open_table(put(tmp_path / "in.csv", ["a"]), ["text"]), tmp_path / "out.csv")
    assert output.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_result_column_that_the_input_has_is_named_with_the_fix(tmp_path: Path) -> None:
    schema = pa.schema([("text", pa.string()), ("pabee_label", pa.string())])
    assert check_names(schema, ["label", "exit_layer"], "my_") == ["my_label", "my_exit_layer"]
    with pytest.raises(InputError, match=r"has a column 'pabee_label' already; choose another --prefix than 'pabee_'"):
        check_names(schema, ["label", "exit_layer"], "pabee_")
    with (
        pytest.raises(InputError, match=r"has a column 'pabee_label' already"),
        write_table(tmp_path / "out.csv", schema, pa.schema([("pabee_label", pa.string())])),
    ):
        pass
    assert names_in(tmp_path) == []


def test_results_that_do_not_fit_the_rows_are_refused(tmp_path: Path) -> None:
    table = open_table(put(tmp_path / "in.csv", ["a", "b"]), ["text"])
    (chunk,) = table
    results = results_of(chunk)
    with write_table(tmp_path / "out.csv", table.schema, RESULTS) as writer:
        with pytest.raises(ValueError, match=r"results has 1 rows for a chunk of 2"):
            writer.write(chunk, results.slice(0, 1))
        with pytest.raises(ValueError, match=r"results has the columns"):
            writer.write(chunk, results.rename_columns(["a", "b"]))
        writer.write(chunk, results)
    assert texts_of(open_table(tmp_path / "out.csv", ["text"])) == ["a", "b"]


def test_parquet_row_groups_gather_small_chunks(tmp_path: Path) -> None:
    table = open_table(put(tmp_path / "in.csv", [str(row) for row in range(300)]), ["text"], chunk_rows=10)
    assert pq.ParquetFile(convert(table, tmp_path / "out.parquet")).num_row_groups == 1


def test_a_table_that_is_replaced_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.touch()
    path.chmod(0o600)
    with write_table(path, pa.schema([("text", pa.string())]), RESULTS, overwrite=True):
        assert [one.stat().st_mode & 0o777 for one in tmp_path.iterdir()] == [0o600, 0o600]  # from its first byte on
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("end", [".gz", ".bz2", ".ZST"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_compressed_table_holds_the_same_bytes_and_is_made_alike_twice(suffix: str, end: str, tmp_path: Path) -> None:
    table = open_table(put(tmp_path / f"in{suffix}", ["a", 'b, "c"', "d\ne"] * 50), ["text"])
    plain = convert(table, tmp_path / f"plain{suffix}").read_bytes()
    one, two = (convert(table, tmp_path / f"{name}{suffix}{end}") for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes() != plain
    with open_bytes(one) as file:
        assert file.read() == plain
    unpack = {".gz": gzip.decompress, ".bz2": bz2.decompress}.get(end)
    assert unpack is None or unpack(one.read_bytes()) == plain


def test_a_compressed_table_that_fails_leaves_nothing_and_parquet_has_its_own_compression(tmp_path: Path) -> None:
    for end in (".gz", ".bz2", ".zst"):
        with (
            pytest.raises(RuntimeError, match="stop"),
            write_table(tmp_path / f"out.csv{end}", pa.schema([("text", pa.string())]), RESULTS),
        ):
            raise RuntimeError("stop")
        with pytest.raises(InputError, match=r"all but \.parquet may be followed by one of \.gz, \.bz2, \.zst"):
            check_output(tmp_path / f"out.parquet{end}")
    assert not list(tmp_path.iterdir())
