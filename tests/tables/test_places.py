"""Reading can begin at any chunk's end, compressed or not, and goes on exactly as if it had begun at the start."""

import bz2
import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pabee_fast.errors import InputError
from pabee_fast.tables.open import Chunk, Table, open_table
from tests.tables.cases import RESULTS, SUFFIXES, TEXTS, in_tmp_path, put, read_raw, texts_of

STREAMS = [".arrow", "-stream.arrow"]
HARD = {
    ".csv": b'\xef\xbb\xbfid,text\r\n1,a\r\n\r\n2,"b\nc"\r\n3,"x\r\n4,caf\xe9\r\n5\r\n6,\xc3\xa9 \xe2\x82\xac\r\n7,z',
    ".jsonl": b'\xef\xbb\xbf\n{"text": "\xc3\xa9"}\n\n  \nnot json\n{"text": "caf\xe9"}\r\n[1]\n{"text": "z", "x": 1}',
}


def put_any(path: Path, texts: list[str]) -> Path:
    """Writes what `put` writes, in a few row groups or record batches."""
    table = pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=3)
    elif path.suffix == ".arrow":
        new = pa.ipc.new_stream if path.stem.endswith("-stream") else pa.ipc.new_file
        with new(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    else:
        put(path, texts)
    return path


def rows_of(chunks: list[Chunk]) -> list[object]:
    return [
        row
        for chunk in chunks
        for row in zip(chunk.batch.to_pylist(), chunk.texts, chunk.errors, chunk.lines or chunk.errors, strict=True)
    ]


def assert_every_end_is_a_start(table: Table) -> None:
    chunks = list(table)
    for number, chunk in enumerate(chunks):
        rest = list(table.chunks(chunk.end))
        assert [c.end for c in rest] == [c.end for c in chunks[number + 1 :]]
        assert rows_of(rest) == rows_of(chunks[number + 1 :])


@pytest.mark.parametrize("suffix", [*SUFFIXES, *STREAMS])
@in_tmp_path
@given(texts=st.lists(TEXTS, max_size=10), rows=st.integers(1, 4), size=st.sampled_from([1, 30, 2**20]))
def test_every_chunk_ends_where_reading_can_begin(
    tmp_path: Path, suffix: str, texts: list[str], rows: int, size: int
) -> None:
    path = put_any(tmp_path / f"in{suffix}", texts)
    table = open_table(path, ["text"], chunk_rows=rows, chunk_bytes=size)
    assert texts_of(table) == texts
    assert_every_end_is_a_start(table)


@pytest.mark.parametrize("suffix", HARD)
@pytest.mark.parametrize("rows", [1, 2])
def test_broken_and_blank_lines_and_marks_do_not_shift_the_places(tmp_path: Path, suffix: str, rows: int) -> None:
    table = read_raw(tmp_path / f"in{suffix}", HARD[suffix], chunk_rows=rows)
    assert len(list(table)) > 2
    assert_every_end_is_a_start(table)


@pytest.mark.parametrize("compression", ["gz", "bz2", "zst"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_compressed_text_tables_are_read_and_entered_in_the_middle(
    tmp_path: Path, suffix: str, compression: str
) -> None:
    plain = put(tmp_path / f"plain{suffix}", [f"text {row} \u00e9" for row in range(50)])
    path = tmp_path / f"in{suffix}.{compression}"
    with pa.output_stream(path, compression={"gz": "gzip", "zst": "zstd"}.get(compression, compression)) as file:
        file.write(plain.read_bytes())
    table = open_table(path, ["text"], chunk_rows=7)
    assert rows_of(list(table)) == rows_of(list(open_table(plain, ["text"], chunk_rows=7)))
    assert_every_end_is_a_start(table)


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_compressed_files_that_were_joined_are_read_to_their_end(tmp_path: Path, suffix: str, compress: object) -> None:
    path = tmp_path / f"in.csv{suffix}"
    path.write_bytes(compress(b"text\na\n") + compress(b"b\n"))  # type: ignore[operator]
    assert texts_of(open_table(path, ["text"])) == ["a", "b"]


def test_damaged_and_doubly_compressed_files_are_input_errors(tmp_path: Path) -> None:
    packed = gzip.compress(b"text\n" + bytes(range(1, 10)) * 2**18, mtime=0)
    with pytest.raises(InputError, match="cannot be read as gzip"):
        list(read_raw(tmp_path / "in.csv.gz", packed[: len(packed) // 2]))
    with pytest.raises(InputError, match="cannot be read as zstd"):
        read_raw(tmp_path / "in.csv.zst", b"plain text")
    with pytest.raises(InputError, match="compressed inside"):
        read_raw(tmp_path / "in.parquet.gz", gzip.compress(b""))
    with pytest.raises(InputError, match="cannot be read as arrow"):
        read_raw(tmp_path / "in.arrow", b"ARROW1 no")


def test_a_batch_is_zero_copy_where_it_fits_and_dictionaries_of_several_batches_are_joined(tmp_path: Path) -> None:
    path = tmp_path / "in-stream.arrow"
    schema = pa.schema([("text", pa.dictionary(pa.int32(), pa.string()))])
    with pa.ipc.new_stream(path, schema, options=pa.ipc.IpcWriteOptions(emit_dictionary_deltas=False)) as writer:
        for words in (["a", "b"], ["c"], ["d", "a"]):
            writer.write_batch(pa.record_batch([pa.array(words).dictionary_encode()], schema=schema))
    assert texts_of(open_table(path, ["text"], chunk_rows=4)) == ["a", "b", "c", "d", "a"]


def test_results_are_not_written_in_formats_that_are_only_read(tmp_path: Path) -> None:
    from pabee_fast.tables.open import write_table

    for name in ("out.arrow", "out.parquet.gz"):
        with (
            pytest.raises(InputError, match=r"written as \.csv, \.tsv, \.jsonl, \.parquet"),
            write_table(tmp_path / name, pa.schema([]), RESULTS),
        ):
            pass
