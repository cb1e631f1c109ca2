"""Folders that name columns, damaged datasets, and files that change while they are read."""

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pabee_fast.errors import InputError
from pabee_fast.jobs.executors import Executor
from pabee_fast.jobs.job import Columns, Job, JobOptions
from pabee_fast.scoring.examples import read_examples
from pabee_fast.tables.files import find_files
from pabee_fast.tables.source import Source
from tests.jobs.conftest import RunJob, put_rows
from tests.jobs.test_job import begin
from tests.tables.cases import SUFFIXES, column_of, put

BIG = 2**30


def open_source(*arguments: object, columns: tuple[str, ...] = ("text",)) -> Source:
    return Source(find_files([str(argument) for argument in arguments]), columns)


def rows_of(source: Source) -> list[dict[str, Any]]:
    return [row for _, chunk in source.parts(2, BIG, {}) for row in chunk.batch.to_pylist()]


@pytest.fixture
def hive(tmp_path: Path) -> Callable[..., Path]:
    """A folder with one table in each of the folders named."""

    def make(*folders: str, suffix: str = ".parquet") -> Path:
        for row, folder in enumerate(folders):
            (tmp_path / "hive" / folder).mkdir(parents=True)
            put(tmp_path / "hive" / folder / f"part{suffix}", [f"text {row}"])
        return tmp_path / "hive"

    return make


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("named", ["", "*", "lang=*/*/part*", "**/part*"])
def test_folders_that_name_a_column_are_one_for_directories_and_globs(
    hive: Callable[..., Path], suffix: str, named: str
) -> None:
    folder = hive("lang=de/year=2023", "lang=en/year=007", suffix=suffix)
    source = open_source(f"{folder}/{named}")
    assert source.schema.names == ["id", "text", "lang", "year"]
    told = [(row["text"], row["lang"], row["year"]) for row in rows_of(source)]
    assert told == [("text 0", "de", "2023"), ("text 1", "en", "007")]


def test_values_of_folders_are_unquoted_and_may_be_null(hive: Callable[..., Path]) -> None:
    folder = hive("a%20b=x%2Fy%3D", "a%20b=__HIVE_DEFAULT_PARTITION__", "a%20b=")
    assert [row["a b"] for row in rows_of(open_source(folder))] == ["", None, "x/y="]


def test_folders_above_what_is_named_and_files_named_themselves_give_no_column(hive: Callable[..., Path]) -> None:
    folder = hive("lang=en/year=2023")
    assert open_source(folder / "lang=en").schema.names == ["id", "text", "year"]
    assert open_source(folder / "lang=en" / "year=2023" / "part.parquet").schema.names == ["id", "text"]
    assert open_source(f"{folder}/lang=en/*").schema.names == ["id", "text", "year"]


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        (("text=a",), r"has the column 'text', which the name of a folder gives too"),
        (("a=1/a=2",), r"two of its folders name the column 'a'"),
        (("a=1", "b=1"), r"must have the same"),
        (("a=1", "plain"), r"must have the same"),
    ],
)
def test_folders_that_contradict_a_file_or_each_other_are_refused(
    hive: Callable[..., Path], folders: tuple[str, ...], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        open_source(hive(*folders))


def test_a_folder_may_name_the_labels(hive: Callable[..., Path]) -> None:
    examples = read_examples(hive("label=0", "label=1"), ["text"], "label")
    assert examples.column.values() == [0, 1]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("target", SUFFIXES)
def test_a_job_keeps_the_columns_of_folders(
    hive: Callable[..., Path], suffix: str, target: str, run_job: RunJob, tmp_path: Path
) -> None:
    run_job(hive("lang=de", "lang=en", suffix=suffix), tmp_path / f"out{target}")
    assert column_of(open_source(tmp_path / f"out{target}").tables[0], "lang") == ["de", "en"]


def test_a_job_goes_on_only_with_the_same_columns_of_folders(
    hive: Callable[..., Path], local: Executor, tmp_path: Path
) -> None:
    folder = hive("lang=de", "lang=en")
    begin(folder, tmp_path / "out.jsonl", local, parts=1)
    files = [str(path) for path in find_files([str(folder)])]
    with pytest.raises(InputError, match="the folders' columns was lang and is unset"):
        Job(files, str(tmp_path / "out.jsonl"), Columns(["text"]), JobOptions(part_rows=10)).run(local)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """What datasets.Dataset.save_to_disk leaves of two shards, and a cache of its own."""
    folder = tmp_path / "saved"
    folder.mkdir()
    for name in ("data-0.arrow", "data-1.arrow", "cache-7.arrow"):
        table = pa.table({"text": [name]})
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table)
    files = [{"filename": "data-0.arrow"}, {"filename": "data-1.arrow"}]
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_fingerprint": "0"}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_a_saved_dataset_is_read_by_its_state_wherever_it_lies(saved: Path) -> None:
    for place in (saved, saved.parent, f"{saved.parent}/*"):
        assert [row["text"] for row in rows_of(open_source(place))] == ["data-0.arrow", "data-1.arrow"]


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("", "state.json is damaged"),
        ("[]", "state.json is damaged"),
        ("{}", "state.json is damaged"),
        ("[" * 100_000, "state.json is damaged"),
        ("\xff", "state.json is damaged"),
        ('{"_data_files": null}', "state.json is damaged"),
        ('{"_data_files": 7}', "state.json is damaged"),
        ('{"_data_files": ["data-0.arrow"]}', "state.json is damaged"),
        ('{"_data_files": [{"name": "x"}]}', "state.json is damaged"),
        ('{"_data_files": [{"filename": ["a", "b"]}]}', r"state.json names \['a', 'b'\], no file in the dataset"),
        ('{"_data_files": [{"filename": "../x.arrow"}]}', "state.json names '../x.arrow', no file in the dataset"),
        ('{"_data_files": [{"filename": "/etc/x.arrow"}]}', "no file in the dataset"),
        ('{"_data_files": [{"filename": ".."}]}', "no file in the dataset"),
        ('{"_data_files": [{"filename": ""}]}', "is absent, a part of the dataset"),
        ('{"_data_files": [{"filename": "a\\u0000.arrow"}]}', "is absent, a part of the dataset"),
        ('{"_data_files": [{"filename": "\\ud800.arrow"}]}', "is absent, a part of the dataset"),
        ('{"_data_files": [{"filename": "data-2.arrow"}]}', "data-2.arrow is absent, a part of the dataset"),
        ('{"_data_files": []}', "is a dataset without rows"),
        ('{"_data_files": [{"filename": "data-0.arrow"}], "_indices_data_files": 1}', "selects rows by an index"),
    ],
)
def test_a_damaged_saved_dataset_is_told(state: str, told: str, saved: Path) -> None:
    (saved / "state.json").write_text(state, encoding="latin-1")
    with pytest.raises(InputError, match=told):
        find_files([str(saved)])


@pytest.mark.parametrize("said", ["", "{", '{"splits": 7}', '{"splits": "train"}', '{"splits": ["a"]}'])
def test_splits_are_never_read_as_one_table_whatever_their_list_says(said: str, saved: Path) -> None:
    shutil.copytree(saved, saved.parent / "both" / "train")
    shutil.copytree(saved, saved.parent / "both" / "test")
    (saved.parent / "both" / "test" / "state.json").unlink()
    (saved.parent / "both" / "dataset_dict.json").write_text(said)
    with pytest.raises(InputError, match="of several splits: name one, of 'test', 'train'"):
        find_files([str(saved.parent / "both")])


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".csv.gz", ".arrow"])
@pytest.mark.parametrize("change", ["cut", "grow", "replace", "touch", "remove"])
def test_a_file_that_changes_while_it_is_read_is_told(suffix: str, change: str, tmp_path: Path) -> None:
    texts = [f"text {row} " + "pad " * 50 for row in range(400)]
    path = tmp_path / f"in{suffix}"
    if suffix == ".arrow":
        table = pa.table({"text": texts})
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, 10)
    elif suffix == ".csv.gz":
        path.write_bytes(gzip.compress(put(tmp_path / "in.csv", texts).read_bytes()))
    else:
        put(path, texts)
    source = open_source(path)
    parts = source.parts(10, BIG, {})
    next(parts)
    if change == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif change == "grow":
        with path.open("ab") as file:
            file.write(b"\n")
    elif change == "replace":
        shutil.copy2(path, tmp_path / "new")
        (tmp_path / "new").replace(path)
    elif change == "touch":
        os.utime(path, ns=(0, 1))
    else:
        path.unlink()
    with pytest.raises(
        InputError, match=r"in\..* (was written or replaced|is gone) while it was read|cannot be read as"
    ):
        list(parts)


def test_other_rows_than_were_counted_are_told_where_the_file_says_it_is_the_same(tmp_path: Path) -> None:
    path = put_rows(tmp_path / "in.jsonl", 40)
    source = open_source(path)
    before = path.stat()
    content = path.read_bytes().replace(b"\n", b" ", 1)  # two lines become one, of the same size
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for reading in (lambda: list(source.parts(10, BIG, {})), lambda: list(source.tables[0])):
        with pytest.raises(InputError, match="has 39 rows, and had 40 when it was opened"):
            reading()


def test_a_job_whose_input_is_cut_leaves_no_table(local: Executor, tmp_path: Path) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 400), tmp_path / "out.jsonl"

    def cut(progress: Any) -> None:
        if progress.parts == 2:
            os.truncate(source, source.stat().st_size // 2)

    with pytest.raises(InputError, match="was written or replaced while it was read"):
        Job([str(source)], str(target), Columns(["text"]), JobOptions(part_rows=10)).run(local, cut)
    assert not target.exists()


def test_examples_whose_table_changes_while_it_is_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "label": [0, 1]}), path)
    original = pq.ParquetFile.iter_batches

    def touched(self: Any, **options: Any) -> Any:
        yield from original(self, **options)
        os.utime(path, ns=(0, 1))

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", touched)
    with pytest.raises(InputError, match="was written or replaced while it was read"):
        read_examples(path, ["text"], "label")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_job_on_a_url_goes_on_only_where_the_file_is_the_same(suffix: str, local: Executor, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    content = put(tmp_path / f"in{suffix}", [f"text {row}" for row in range(25)]).read_bytes()

    def run() -> int:
        job = Job([f"memory://job/in{suffix}"], f"{tmp_path}/out/", Columns(["text"]), JobOptions(part_rows=10))
        return job.run(local).rows

    memory.pipe_file(f"/job/in{suffix}", content)
    assert (run(), run()) == (25, 0)
    memory.pipe_file(f"/job/in{suffix}", content)
    with pytest.raises(InputError, match=rf"the input memory:///job/in{suffix} has other content"):
        run()
