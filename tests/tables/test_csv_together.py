"""What pyarrow reads of a csv is what Python's csv module reads, wherever the bytes that are read together end."""

import logging
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pabee_fast.tables import csv as tables_csv
from pabee_fast.tables.open import Reading, open_table
from pabee_fast.tables.read import Place
from tests.tables.cases import put, texts_of

DELIMITERS = [None, ";", "\t", " ", "|", "\xa7"]
# Pieces that a csv is made of, and what breaks one.
PIECES = st.sampled_from(
    [
        *(b"a", b"bc", b"", b",", b",", b"\t", b";", b" ", b'"', b'"', b'""', b'"a,b"', b'"a\nb"', b',"', b'",'),
        *(b"\n", b"\n", b"\r\n", b"\r", b"\n\n", b'\n"', b'"\n', b"\xc3\xa9", b"\xe9", b"\xef\xbb\xbf", b"\0", b"\xc2"),
        *(b"1,2\n", b"1,2\n", b'"1","2"\n', b'1,"x ""y"" z"\r\n', b'1,x "y" z\n', b'1\t"x\n', b"|", b"\xc2\xa7"),
    ]
)
CONTENT = st.lists(PIECES, max_size=60).map(b"".join)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING)
    return caplog


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400, deadline=None)
@given(
    content=CONTENT,
    header=st.sampled_from([b"text", b"id,text", b"id\ttext", b"text;id"]),
    suffix=st.sampled_from([".csv", ".tsv"]),
    delimiter=st.sampled_from(DELIMITERS),
    quoting=st.sampled_from(["auto", "minimal", "none"]),
    at_once=st.sampled_from([(16, 4), (64, 16), (2**20, 2**15)]),
    rows=st.sampled_from([1, 3, 100]),
    size=st.sampled_from([1, 150, 2**20]),
)
@example(b'1,"a\n2,b"\n3,c\n', b"id,text", ".csv", None, "auto", (16, 4), 3, 2**20)
@example(b'\xef\xbb\xbf1,a\n"\xef\xbb\xbf",b\n', b"id,text", ".csv", None, "auto", (16, 4), 3, 2**20)
def test_reading_together_gives_what_reading_one_by_one_gives(
    tmp_path: Path,
    told: pytest.LogCaptureFixture,
    content: bytes,
    header: bytes,
    suffix: str,
    delimiter: str | None,
    quoting: str,
    at_once: tuple[int, int],
    rows: int,
    size: int,
) -> None:
    path, reading = tmp_path / f"in{suffix}", Reading(delimiter, quoting)
    path.write_bytes(header + b"\n" + content)
    column = open_header(path, reading)

    def read() -> tuple[object, object]:
        told.clear()
        table = open_table(path, [column], chunk_rows=rows, chunk_bytes=size, reading=reading)
        chunks = [(c.batch.to_pylist(), c.texts, c.errors, c.end) for c in table.chunks(Place())]
        return chunks, told.messages[:]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables_csv.CsvTable, "_together", lambda *_, **__: None)
        patch.setattr(tables_csv, "_LEAST_AT_ONCE", 2**20)
        one_by_one = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables_csv, "_MOST_AT_ONCE", at_once[0])
        patch.setattr(tables_csv, "_LEAST_AT_ONCE", at_once[1])
        assert read() == one_by_one


def open_header(path: Path, reading: Reading) -> str:
    """Return the first column's name."""
    delimiter = reading.delimiter or ("\t" if path.suffix == ".tsv" else ",")
    return path.read_bytes().split(b"\n")[0].decode().split(delimiter)[0]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_broken_records_cost_few_others_the_speed_of_reading_together(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0
    one_by_one = tables_csv.CsvTable._one_by_one

    def counted(*args: object) -> object:
        nonlocal count
        run = one_by_one(*args)  # type: ignore[arg-type]
        count += len(run.errors)
        return run

    monkeypatch.setattr(tables_csv.CsvTable, "_one_by_one", counted)
    path = put(tmp_path / f"in{suffix}", [f"text {row} " + "pad " * 20 for row in range(20_000)])
    whole = texts_of(open_table(path, ["text"]))
    assert (len(whole), count) == (20_000, 0)
    lines = path.read_bytes().split(b"\n")
    lines[10_000] = lines[10_000].replace(b"pad", b'pad" "', 1)
    path.write_bytes(b"\n".join(lines))
    assert len(texts_of(open_table(path, ["text"]))) == 20_000
    assert 0 < count < 2_000
