"""What a job reads: whatever names files, as one table, cut into the same parts each time."""

from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pabee_fast.errors import InputError
from pabee_fast.tables.files import find_files
from pabee_fast.tables.read import Place
from pabee_fast.tables.source import Source
from tests.jobs.conftest import put_rows
from tests.tables.cases import in_tmp_path, put

BIG = 2**30


def names_of(*arguments: object) -> list[str]:
    return [path.name for path in find_files([str(argument) for argument in arguments])]


def test_files_directories_and_globs_are_found_by_name(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "sub/c.csv.gz", ".hidden.csv", "_manifest.csv", "_temporary/d.csv", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text\n")
    assert names_of(tmp_path) == ["a.csv", "b.csv", "c.csv.gz"]
    assert names_of(tmp_path / "[a-z].csv") == ["a.csv", "b.csv"]
    assert names_of(tmp_path / "b.csv", tmp_path / "a.csv") == ["b.csv", "a.csv"]
    with pytest.raises(InputError, match="more than once"):
        names_of(tmp_path, tmp_path / "a.csv")
    with pytest.raises(InputError, match="no file has such a name"):
        names_of(tmp_path / "*.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no table"):
        names_of(tmp_path / "empty")


def test_a_dataset_saved_by_hugging_face_is_read_without_its_library_and_equals_what_it_says(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"text": [f"text {row}" for row in range(2500)], "label": [0, 1] * 1250})
    whole.save_to_disk(tmp_path / "saved", num_shards=2)
    source = Source(find_files([str(tmp_path / "saved")]), ["text"])
    rows = [row for _, chunk in source.parts(700, BIG, {}) for row in chunk.batch.to_pylist()]
    assert rows == whole.to_list()
    assert source.rows == 2500
    chosen = whole.select([5, 3, 2400])
    chosen.save_to_disk(tmp_path / "chosen")
    chosen_source = Source(find_files([str(tmp_path / "chosen")]), ["text"])
    assert [t for _, chunk in chosen_source.parts(9, BIG, {}) for t in chunk.texts] == [(t,) for t in chosen["text"]]
    datasets.DatasetDict({"train": whole, "dev": chosen}).save_to_disk(tmp_path / "splits")
    with pytest.raises(InputError, match=r"name one, of 'dev', 'train'"):
        find_files([str(tmp_path / "splits")])
    assert len(find_files([str(tmp_path / "splits" / "dev")])) == 1


def test_files_of_a_job_have_one_format_and_the_same_columns(tmp_path: Path) -> None:
    one, other = put(tmp_path / "a.csv", ["x"]), put(tmp_path / "b.jsonl", ["x"])
    with pytest.raises(InputError, match="csv, jsonl: give files of one format"):
        Source([one, other], ["text"])
    (tmp_path / "c.csv").write_text("text,id\n")
    with pytest.raises(InputError, match=r"c\.csv has the columns text \(string\), id"):
        Source([one, tmp_path / "c.csv"], ["text"])


def test_columns_of_json_lines_are_those_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "n": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "b", "n": 2.5, "late": true}\n{"text": "c"}\n')
    source = Source(find_files([str(tmp_path)]), ["text"])
    assert source.schema == pa.schema([("text", pa.string()), ("n", pa.float64()), ("late", pa.bool_())])
    assert source.rows == 3
    again = Source(source.paths, ["text"], source.scan())
    assert again.schema == source.schema and again.rows == 3
    rows = [row for _, chunk in again.parts(9, BIG, {}) for row in chunk.batch.to_pylist()]
    assert rows[0] == {"text": "a", "n": 1.0, "late": None}


@in_tmp_path
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    rows=st.integers(1, 4),
    missing=st.sets(st.integers(0, 12)),
    suffix=st.sampled_from([".csv", ".jsonl", ".parquet"]),
)
def test_the_parts_that_are_missing_are_those_of_the_first_plan(
    tmp_path: Path, sizes: list[int], rows: int, missing: set[int], suffix: str
) -> None:
    if suffix == ".parquet":
        sizes = [max(size, 1) for size in sizes]  # where it has no rows, `put` writes another type
    paths = [put(tmp_path / f"{i}{suffix}", [f"{i}.{row}" for row in range(size)]) for i, size in enumerate(sizes)]
    source = Source(paths, ["text"])
    plan = list(source.parts(rows, BIG, {}))
    assert [part.index for part, _ in plan] == list(range(len(plan)))
    whole_and_rest = [[rows] * (size // rows) + [size % rows] * (size % rows > 0) for size in sizes]
    assert [part.rows for part, _ in plan] == list(chain.from_iterable(whole_and_rest))
    done: Any = {
        part.index: SimpleNamespace(file=part.file, rows=part.rows, end=part.end)
        for part, _ in plan
        if part.index not in missing
    }
    left = list(source.parts(rows, BIG, done))
    wanted = [(part, chunk) for part, chunk in plan if part.index in missing]
    assert [part for part, _ in left] == [part for part, _ in wanted]
    assert [chunk.texts for _, chunk in left] == [chunk.texts for _, chunk in wanted]


def test_of_a_parquet_file_only_the_row_groups_that_are_missing_are_read(tmp_path: Path) -> None:
    texts = [f"text {row}" for row in range(40)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet", row_group_size=10, compression="none")
    content = bytearray((tmp_path / "in.parquet").read_bytes())
    first = pq.ParquetFile(tmp_path / "in.parquet").metadata.row_group(0).column(0)
    content[4 : 4 + first.total_compressed_size] = bytes(first.total_compressed_size)
    (tmp_path / "in.parquet").write_bytes(content)
    source = Source([tmp_path / "in.parquet"], ["text"])
    with pytest.raises(InputError, match="is damaged"):
        list(source.parts(10, BIG, {}))
    done: Any = {0: SimpleNamespace(file=0, rows=10, end=Place(10))}
    assert [t for _, chunk in source.parts(10, BIG, done) for t in chunk.texts] == [(t,) for t in texts[10:]]


def test_what_tells_inputs_from_others_is_relative_and_sees_content(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    path = put_rows(tmp_path / "in.jsonl", 30)
    before = Source([path], ["text"]).identity(tmp_path / "job")
    assert before[0]["path"] == "../in.jsonl"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    after = Source([path], ["text"]).identity(tmp_path / "job")
    assert after[0]["size"] == before[0]["size"] and after != before


def test_a_directory_leaves_no_table_out_without_a_word(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    for path in (folder / "a.csv", folder / "B.CSV", folder / "C.Csv.gz", elsewhere / "d.csv"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("text\n")
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)  # no end without a look at where links lead
    assert names_of(folder) == ["B.CSV", "C.Csv.gz", "a.csv", "d.csv"]
    (folder / "2026-11").mkdir()
    (folder / "2026-11" / "e.csv").write_text("text\n")
    (folder / "0-latest").symlink_to(folder / "2026-11")  # its file is there once
    found = find_files([str(folder)])
    assert [path.relative_to(folder).as_posix() for path in found if path.name == "e.csv"] == ["2026-11/e.csv"]
    (folder / "gone.csv").symlink_to(tmp_path / "nowhere.csv")
    with pytest.raises(InputError, match=r"gone\.csv is a link to .*nowhere\.csv, which does not exist"):
        names_of(folder)


def test_what_a_job_writes_is_no_input_of_it(tmp_path: Path) -> None:
    for name in ("a.csv", "out.csv", "out.csv.parts/part-000000.csv", "parts/part-000000.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text\n")
    every = sorted(path.name for path in find_files([str(tmp_path)]))
    assert every == ["a.csv", "out.csv", "part-000000.csv", "part-000000.csv"]
    assert [p.name for p in find_files([str(tmp_path)], str(tmp_path / "out.csv"))] == ["a.csv", "part-000000.csv"]
    assert [p.name for p in find_files([f"{tmp_path}/*.csv"], f"{tmp_path}/out.csv")] == ["a.csv"]
    assert [p.name for p in find_files([f"{tmp_path}/out.csv"], f"{tmp_path}/out.csv")] == ["out.csv"]  # named itself
    with pytest.raises(InputError, match="nothing but what lies in"):
        find_files([f"{tmp_path}/parts"], f"{tmp_path}/parts")


def test_an_input_without_a_name_is_refused() -> None:
    with pytest.raises(InputError, match="an input is empty, as an unset variable gives it"):
        names_of("")


def test_a_glob_that_finds_a_directory_and_its_files_names_them_once(tmp_path: Path) -> None:
    for name in ("a.csv", "sub/b.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text\n")
    assert names_of(f"{tmp_path}/**") == ["a.csv", "b.csv"]


@pytest.mark.parametrize(("name", "text"), [("state.json", '{"epoch": 3}'), ("dataset_dict.json", "{")])
def test_a_file_that_is_called_as_those_of_datasets_are_does_not_make_one(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "a.csv").write_text("text\n")
    assert names_of(tmp_path) == ["a.csv"]


def test_relative_and_absolute_names_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "sub/b.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text\nx\n")
    assert Source(find_files(["a.csv", str(tmp_path / "sub" / "b.csv")]), ["text"]).names == ["a.csv", "sub/b.csv"]


def test_columns_that_differ_only_in_being_nullable_are_told_apart(tmp_path: Path) -> None:
    for name, nullable in (("a", True), ("b", False)):
        schema = pa.schema([pa.field("text", pa.string(), nullable=nullable)])
        pq.write_table(pa.table([["x"]], schema=schema), tmp_path / f"{name}.parquet")
    with pytest.raises(InputError, match=r"b.parquet has the columns text \(string not null\), and .* text \(string\)"):
        Source(find_files([str(tmp_path)]), ["text"])
