"""Csv and tsv by any delimiter, quoting and encoding: no row is swallowed, and what is made of quotes is told."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pabee_fast.errors import InputError
from pabee_fast.tables.open import Chunk, Reading, Table, open_table
from pabee_fast.tables.read import Place
from pabee_fast.tables.source import Source
from tests.tables.cases import TEXTS, column_of, convert, errors_of, in_tmp_path, put, texts_of

NONE, MINIMAL = Reading(quoting="none"), Reading(quoting="minimal")


@pytest.fixture
def tsv(tmp_path: Path) -> Callable[..., Table]:
    """Opens lines as a tsv with the column `text` and others."""

    def open_lines(*lines: str, reading: Reading = Reading()) -> Table:  # noqa: B008 - frozen
        path = tmp_path / "in.tsv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
        return open_table(path, ["text"], reading=reading)

    return open_lines


def test_a_stray_quote_in_a_tsv_swallows_no_row(tsv: Callable[..., Table], caplog: pytest.LogCaptureFixture) -> None:
    table = tsv("text", '"w7 w8', "w9 w10", 'w11"', "w12")
    assert texts_of(table) == ['"w7 w8', "w9 w10", 'w11"', "w12"]
    assert texts_of(table) == ['"w7 w8', "w9 w10", 'w11"', "w12"]
    (told,) = caplog.messages  # once, however often the file is read
    assert "in.tsv, line 2: a quote that is closed on a later line is read as a character" in told
    assert "--quoting minimal" in told


def test_lines_that_are_rows_by_themselves_are_no_cell(tsv: Callable[..., Table]) -> None:
    table = tsv("id\ttext", '1\t"a', "2\tb", '3\tc"', "4\td")
    assert texts_of(table) == ['"a', "b", 'c"', "d"]
    table = tsv("text\tid", '"a\t1', "b\t2", 'c"\t3', "d\t4")
    assert texts_of(table) == ['"a', "b", 'c"', "d"]


@pytest.mark.parametrize("stray", ['"never closed', '"closed" too early', '"he said "hi" twice"'])
def test_quotes_that_close_no_cell_of_a_tsv_are_characters(
    tsv: Callable[..., Table], stray: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = tsv("id\ttext", "1\ta", f"2\t{stray}", '3\t"in ""quotes"""', "4\td")
    assert texts_of(table) == ["a", stray, 'in "quotes"', "d"]
    assert errors_of(table) == [None] * 4
    assert "line 3: a quote that does not close a cell is read as a character" in caplog.text


def test_a_cell_of_several_lines_in_a_tsv_is_one_and_told(
    tsv: Callable[..., Table], caplog: pytest.LogCaptureFixture
) -> None:
    table = tsv("id\ttext", "1\ta", '2\t"one', "", 'two\tthree"', "3\tb")
    assert texts_of(table) == ["a", "one\n\ntwo\tthree", "b"]
    assert "in.tsv, line 3: a cell in quotes spans several lines" in caplog.text and "--quoting none" in caplog.text


def test_a_record_over_lines_that_fits_no_header_gives_its_lines_back(tsv: Callable[..., Table]) -> None:
    table = tsv("id\ttext", '1\t"a', "2\tb", '3\tc"\td', "4\te")
    assert column_of(table, "id") == ["1", "2", "3", "4"]
    assert [error is None for error in errors_of(table)] == [True, True, False, True]


def test_without_quoting_every_line_of_csv_and_tsv_is_a_row(tsv: Callable[..., Table], tmp_path: Path) -> None:
    assert texts_of(tsv("text", '"a', 'b"', '"c"', reading=NONE)) == ['"a', 'b"', '"c"']
    (tmp_path / "in.csv").write_text('text,n\n"a,1\nb",2\n')
    assert texts_of(open_table(tmp_path / "in.csv", ["text"], reading=NONE)) == ['"a', 'b"']


def test_with_minimal_quoting_a_tsv_is_read_as_a_csv_is(tsv: Callable[..., Table]) -> None:
    table = tsv("id\ttext", '1\t"a', '2\tb"', '3\t"stray', "4\tc", reading=MINIMAL)
    assert texts_of(table) == ["a\n2\tb", None, "c"]
    assert "line 4 is not valid csv" in str(errors_of(table)[1])


def test_a_csv_record_that_is_broken_stays_an_error_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('id,text\n1,"stray\n2,b\n')
    assert texts_of(open_table(tmp_path / "in.csv", ["text"])) == [None, "b"]


@in_tmp_path
@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5), name=TEXTS)
def test_what_is_written_as_tsv_is_read_back_exactly(tmp_path: Path, rows: list[tuple[str, str]], name: str) -> None:
    path = tmp_path / "in.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["text", f"x{name}"], *rows])
    output = convert(open_table(path, ["text"]), tmp_path / "out.tsv", overwrite=True)
    for reading in (Reading(), MINIMAL):
        table = open_table(output, ["text"], reading=reading)
        assert table.schema.names == ["text", f"x{name}", "label", "exit_layer"]
        assert list(zip(texts_of(table), column_of(table, f"x{name}"), strict=True)) == rows
        assert errors_of(table) == [None] * len(rows)


def test_lines_of_a_written_cell_that_look_like_rows_are_read_back_as_one_cell(tmp_path: Path) -> None:
    texts = ["a\tb\tc\td\nx", "plain"]
    output = convert(open_table(put(tmp_path / "in.parquet", texts), ["text"]), tmp_path / "out.tsv")
    assert texts_of(open_table(output, ["text"])) == texts


def test_the_delimiter_of_european_csv_is_named(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('id;text\n1;"a;b"\n2;c, d\n')
    assert texts_of(open_table(tmp_path / "in.csv", ["text"], reading=Reading(";"))) == ["a;b", "c, d"]
    with pytest.raises(InputError, match=r"has no column 'text'; its columns are 'id;text'.*--delimiter"):
        open_table(tmp_path / "in.csv", ["text"])
    (tmp_path / "in.csv").write_text("id\ttext\n1\ta\n")
    assert texts_of(open_table(tmp_path / "in.csv", ["text"], reading=Reading(r"\t"))) == ["a"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32", "utf-8-sig", "gb18030"])
def test_any_encoding_is_read_from_any_row_on(suffix: str, encoding: str, tmp_path: Path) -> None:
    texts = [f"caf\xe9 {row} \xa7\n" for row in range(9)]
    path = put(tmp_path / f"in{suffix}", texts)
    path.write_bytes(path.read_bytes().decode().encode(encoding))
    table = open_table(path, ["text"], reading=Reading(encoding=encoding), chunk_rows=2)
    chunks: list[Chunk] = list(table)
    assert [text for chunk in chunks for (text,) in chunk.texts] == texts
    for at, chunk in enumerate(chunks):
        assert [later.texts for later in table.chunks(chunk.end)] == [later.texts for later in chunks[at + 1 :]]
    assert chunks[-1].end > Place(0, 9)


def test_an_encoding_goes_with_a_compression(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "in.csv.gz").write_bytes(gzip.compress("text\ncaf\xe9\n".encode("utf-16")))
    assert texts_of(open_table(tmp_path / "in.csv.gz", ["text"], reading=Reading(encoding="utf-16"))) == ["caf\xe9"]


@pytest.mark.parametrize(
    ("encoding", "bad"), [("cp1252", b"\x81"), ("utf-16-le", b"\x00\xd8"), ("ascii", b"\xe9"), ("gb18030", b"\xff")]
)
def test_bytes_that_an_encoding_lacks_give_their_row_an_error(encoding: str, bad: bytes, tmp_path: Path) -> None:
    start, end = "text\na".encode(encoding), "\nb\n".encode(encoding)
    (tmp_path / "in.csv").write_bytes(start + bad + end)
    table = open_table(tmp_path / "in.csv", ["text"], reading=Reading(encoding=encoding))
    assert texts_of(table) == [None, "b"]
    assert errors_of(table)[0] == f"line 2 holds bytes that are not {encoding.upper()}"


def test_a_file_that_ends_within_a_character_is_told(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes("text\na\n".encode("utf-16") + b"x")
    with pytest.raises(InputError, match=r"in.csv cannot be read as utf-16: .*truncated"):
        texts_of(open_table(tmp_path / "in.csv", ["text"], reading=Reading(encoding="utf-16")))


def test_a_header_of_another_encoding_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes("text,caf\xe9\na,b\n".encode("latin-1"))
    with pytest.raises(InputError, match="header is not UTF-8; name the file's encoding by --encoding"):
        open_table(tmp_path / "in.csv", ["text"])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"delimiter": ";;"}, "delimiter=';;': give one character"),
        ({"delimiter": ""}, "delimiter=''"),
        ({"delimiter": '"'}, "no quote or line break"),
        ({"delimiter": "\n"}, "no quote or line break"),
        ({"quoting": "all"}, "quoting='all': give one of auto, minimal, none"),
        ({"encoding": "utf8x"}, "encoding='utf8x': give one that Python knows"),
        ({"encoding": "hex"}, "encoding='hex'"),
        ({"encoding": "rot13"}, "encoding='rot13'"),
        ({"encoding": "undefined"}, "encoding='undefined'"),
        ({"encoding": "utf\0"}, "encoding="),
    ],
)
def test_a_way_of_reading_that_there_is_not_is_refused(given: dict[str, str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Reading(**given)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_is_for_csv_and_tsv_is_refused_for_other_tables(suffix: str, tmp_path: Path) -> None:
    path = put(tmp_path / f"in{suffix}", ["a"])
    with pytest.raises(InputError, match=r"encoding='cp1252': for csv and tsv, and .* is"):
        open_table(path, ["text"], reading=Reading(encoding="windows-1252"))
    with pytest.raises(InputError, match=r"delimiter=';': for csv and tsv"):
        Source([path], ["text"], reading=Reading(";"))
