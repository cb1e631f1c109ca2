"""Tables of candidates in, ranks out: lists stay whole, jobs go on, and every row is there."""

import csv
import json
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

import pabee_fast as pf
from pabee_fast.cli import app
from pabee_fast.jobs.executors import DeviceExecutor, LocalExecutor
from pabee_fast.jobs.job import Columns, Job, JobOptions, Progress
from pabee_fast.jobs.ranking import RankingRecipe
from pabee_fast.tables.lists import WholeLists
from pabee_fast.tables.open import open_table
from pabee_fast.tables.read import Place
from tests.conftest import tiny_model
from tests.reranking.texts import QUERIES, documents_of

TEXTS = documents_of(len(QUERIES), seed=2)
POLICY = "shortlist:3,margins=1.0/0.8/0.5/0.3/0.1"
PAIRS = [(query, text) for query, of_query in zip(QUERIES, TEXTS, strict=True) for text in of_query]


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reranker") / "model"
    tiny_model("bert", num_labels=1, seed=1).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def write(path: Path, pairs: Sequence[tuple[Any, Any]] = PAIRS) -> Path:
    rows = [{"id": row, "query": query, "document": document} for row, (query, document) in enumerate(pairs)]
    if path.suffix == ".parquet":
        schema = pa.schema([("id", pa.int64()), ("query", pa.string()), ("document", pa.string())])
        pq.write_table(pa.Table.from_pylist(rows, schema), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["id", "query", "document"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def expected_ranks(model: Path) -> list[int | None]:
    """By `pf.rerank`, row by row."""
    found = pf.rerank(model, QUERIES, TEXTS, top_k=3, policy=POLICY, device="cpu")
    ranks = [
        {one["corpus_id"]: rank for rank, one in enumerate(of_query, 1)}.get(place)
        for of_query, texts in zip(found, TEXTS, strict=True)
        for place in range(len(texts))
    ]
    assert sorted({rank for rank in ranks if rank is not None}) == [1, 2, 3]
    return ranks


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("part_rows", [1, 7, 4_096])
def test_a_tables_rows_get_score_rank_and_exit_layer(model: Path, tmp_path: Path, suffix: str, part_rows: int) -> None:
    table, output = write(tmp_path / f"pairs.{suffix}"), tmp_path / f"ranked.{suffix}"
    options = ("--top-k", 3, "--policy", POLICY, "--part-rows", part_rows, "--device", "cpu")
    result = run("rerank", table, "--model", model, "--output", output, *options)
    assert result.exit_code == 0, result.output
    rows = read(output)
    assert list(rows[0]) == ["id", "query", "document", "score", "rank", "exit_layer", "error"]
    assert [(row["query"], row["document"]) for row in rows] == PAIRS
    assert [int(row["rank"]) if row["rank"] else None for row in rows] == expected_ranks(model)
    assert all(float(row["score"]) >= 0 and 1 <= int(row["exit_layer"]) <= 6 and not row["error"] for row in rows)
    assert all(int(row["exit_layer"]) == 6 for row in rows if row["rank"])
    assert len({row["exit_layer"] for row in rows}) > 2
    assert "mean exit layer" in result.output and f"policy {POLICY}: asked for" in result.output


def test_rows_that_cannot_be_scored_have_an_error_and_no_rank(model: Path, tmp_path: Path) -> None:
    pairs = [("a film", "good"), ("a film", None), (None, "bad"), ("a film", "bad"), ("the", None), ("it", "is")]
    output = tmp_path / "ranked.jsonl"
    result = run("rerank", write(tmp_path / "pairs.jsonl", pairs), "--model", model, "--output", output)
    assert result.exit_code == 0, result.output
    rows = read(output)
    assert [bool(row["error"]) for row in rows] == [False, True, True, False, True, False]
    assert sorted(row["rank"] for row in rows if row["rank"]) == [1, 1, 2]
    assert {rows[0]["rank"], rows[3]["rank"]} == {1, 2}, "a row without a query parts no list"
    assert "column 'document' is null" in rows[1]["error"] and rows[1]["score"] is None
    assert "3 rows could not be scored" in result.output


def test_a_table_without_rows_gives_one(model: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "pairs.parquet", [])
    result = run("rerank", table, "--model", model, "--output", tmp_path / "ranked.parquet")
    assert result.exit_code == 0, result.output
    assert read(tmp_path / "ranked.parquet") == []


def recipe_for(model: Path) -> RankingRecipe:
    return RankingRecipe(str(model), POLICY, device="cpu", dtype="float32", threads=1, texts=2, top_k=3)


def job_for(source: Path, target: Path, part_rows: int = 5) -> Job:
    columns = Columns(["query", "document"], are_lists=True)
    return Job([str(source)], str(target), columns, JobOptions(part_rows=part_rows))


def test_a_job_that_was_stopped_goes_on_and_ends_the_same(model: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "pairs.csv")

    def stop(progress: Progress) -> None:
        if progress.parts == 2:
            raise KeyboardInterrupt

    recipe = recipe_for(model)
    with LocalExecutor(*recipe.worker()) as executor, pytest.raises(KeyboardInterrupt):
        job_for(table, tmp_path / "stopped.csv").run(executor, stop)
    with LocalExecutor(*recipe.worker()) as executor:
        again = job_for(table, tmp_path / "stopped.csv").run(executor)
        whole = job_for(table, tmp_path / "whole.csv").run(executor)
    assert 0 < again.resumed < len(PAIRS) and again.tally.rows == whole.tally.rows == len(PAIRS)
    assert (tmp_path / "stopped.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_job_for_another_number_of_best_is_not_gone_on_with(model: Path, tmp_path: Path) -> None:
    table, output = write(tmp_path / "pairs.csv"), tmp_path / "parts/"
    options = ("rerank", table, "--model", model, "--output", f"{output}/", "--device", "cpu")
    assert run(*options, "--top-k", 3).exit_code == 0
    result = run(*options, "--top-k", 4)
    assert "holds a job that differs: top_k was 3 and is 4" in str(result.exception)


@pytest.mark.slow
def test_workers_in_processes_of_their_own_rank_too(model: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "pairs.parquet")
    with DeviceExecutor([recipe_for(model)] * 2) as executor:
        job_for(table, tmp_path / "ranked.parquet").run(executor)
    assert [row["rank"] for row in read(tmp_path / "ranked.parquet")] == expected_ranks(model)


def test_rows_of_a_query_that_stand_apart_are_told_of(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [("a", "good"), ("it", "bad"), ("a", "film")]
    with LocalExecutor(*recipe_for(model).worker()) as executor, caplog.at_level(logging.WARNING):
        job_for(write(tmp_path / "sorted.jsonl", sorted(pairs)), tmp_path / "sorted.csv", 10).run(executor)
        assert not caplog.records
        job_for(write(tmp_path / "pairs.jsonl", pairs), tmp_path / "ranked.csv", 10).run(executor)
    assert "pairs.jsonl: rows of one query stand apart" in caplog.text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--top-k", -1], "top_k=-1"),
        (["--policy", "shortlist:3"], "margins is missing"),
        (["--policy", "shortlist:10,margins=1/1"], "has 2 margins, and the model 6 layers"),
        (["--policy", "shortlist:3,margins=1/1/1/1/1"], "keeps the best 3 of a list, and 10 are wanted"),
        (["--text-pair-column", ""], "name the column of the candidates"),
        (["--text-column", "title"], "no column 'title'"),
        (["--label", "good"], "one output"),
        (["--prefix", "x", "--output", "-"], "give files"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(words: list[Any], says: str, model: Path, tmp_path: Path) -> None:
    given = ["--output", tmp_path / "ranked.csv", "--device", "cpu"] if "--output" not in words else []
    result = run("rerank", write(tmp_path / "pairs.csv"), "--model", model, *given, *words)
    assert isinstance(result.exception, pf.PabeeFastError), result.output
    assert says in str(result.exception) and "\n" not in str(result.exception)


def test_a_result_column_that_is_taken_is_refused(model: Path, tmp_path: Path) -> None:
    table = tmp_path / "pairs.jsonl"
    table.write_text(json.dumps({"query": "a", "document": "b", "rank": 1}) + "\n")
    result = run("rerank", table, "--model", model, "--output", tmp_path / "ranked.csv")
    assert "rank" in str(result.exception) and "prefix" in str(result.exception)


def test_score_takes_no_shortlist(model: Path, tmp_path: Path) -> None:
    words = ("--text-column", "query", "--output", tmp_path / "out.csv", "--policy", POLICY, "--device", "cpu")
    result = run("score", write(tmp_path / "pairs.csv"), "--model", model, *words)
    assert "compares the candidates of a query: use it with pf.rerank" in str(result.exception)


@settings(max_examples=40)
@given(data=st.data())
def test_chunks_hold_whole_lists_and_reading_can_begin_at_any(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    queries = data.draw(st.lists(st.sampled_from(["a", "b", "c", "d\ne", None]), max_size=40))
    suffix = data.draw(st.sampled_from(["parquet", "csv", "jsonl"]))
    queries = ["" if query is None and suffix == "csv" else query for query in queries]
    path = write(tmp_path_factory.mktemp("lists") / f"pairs.{suffix}", [(query, "text") for query in queries])
    if not queries and suffix == "jsonl":
        return  # a file without a line has no columns
    rows, size = data.draw(st.integers(1, 12)), data.draw(st.sampled_from([40, 400, 10_000]))
    table = WholeLists(open_table(path, ["query", "document"], chunk_rows=rows, chunk_bytes=size))
    chunks = list(table)
    found = [chunk.columns[0].to_pylist() for chunk in chunks]
    assert [query for one in found for query in one] == queries
    assert [chunk.batch.num_rows for chunk in chunks] == [len(one) for one in found]
    known = [[query for query in one if query is not None] for one in found]
    for before, after in zip(found[:-1], known[1:], strict=True):
        told = [query for query in before if query is not None]
        assert not (told and after and told[-1] == after[0]), "a list was cut"
    places = [Place(), *(chunk.end for chunk in chunks)]
    for start, expected in zip(places, [*found, None], strict=True):
        again = next(table.chunks(start), None)
        assert (again and again.columns[0].to_pylist()) == expected


def test_a_list_longer_than_a_part_is_a_part_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.parquet", [("a", "x")] * 3 + [("b", "x")] * 50 + [("c", "x")] * 2)
    table = WholeLists(open_table(path, ["query", "document"], chunk_rows=4))
    assert [chunk.batch.num_rows for chunk in table] == [3, 50, 2]


def test_tune_stores_a_shortlist_that_rerank_uses(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    shutil.copytree(model, folder)
    queries = [f"{query} {word}" for query in QUERIES for word in ("a", "and", "bad", "film", "good", "is", "long")]
    documents = documents_of(len(queries), most=12, seed=5)
    pairs = [(query, text) for query, texts in zip(queries, documents, strict=True) for text in texts]
    table = write(tmp_path / "calibration.jsonl", pairs)
    words = ("--text-column", "query", "--text-pair-column", "document", "--top-k", 3, "--device", "cpu")
    result = run("tune", table, "--model", folder, *words, "--epsilon", 0.3, "--delta", 0.3, "--dtype", "float32")
    assert result.exit_code == 0, result.output
    assert "chosen: shortlist:3,margins=" in result.output and "at most 0.3 with probability" in result.output
    figures = json.loads((folder / "tuning" / "shortlists.json").read_text())
    assert figures["lists"] == len(queries) - 1 and figures["rows"] == len(pairs)
    stored = figures["guarantee"]["policy"]
    assert json.loads((folder / "config.json").read_text())["pabee_fast"]["list_guarantee"]["policy"] == stored

    source, output = write(tmp_path / "pairs.csv"), tmp_path / "ranked.csv"
    options = ("rerank", source, "--model", folder, "--output", output, "--device", "cpu")
    result = run(*options, "--top-k", 3)
    assert result.exit_code == 0 and f"policy {stored}: stored with the model" in result.output
    result = run(*options, "--top-k", 2, "--overwrite")
    assert result.exit_code == 0 and "policy full-depth: since what is stored with the model is void" in result.output


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_tune_bounds_what_is_lost_of_ndcg_where_relevance_is_given(model: Path, tmp_path: Path, suffix: str) -> None:
    folder, queries = tmp_path / "tuned", [f"{query} {word}" for query in QUERIES for word in ("a", "bad", "it", "is")]
    shutil.copytree(model, folder)
    documents = documents_of(len(queries), most=12, seed=6)
    pairs = [(query, text) for query, texts in zip(queries, documents, strict=True) for text in texts]
    table = write(tmp_path / f"calibration.{suffix}", pairs)  # whose numbers are taken for relevance
    words = ("--text-column", "query", "--text-pair-column", "document", "--label-column", "id", "--device", "cpu")
    bounds = ("--top-k", 3, "--risk", "ndcg", "--epsilon", 0.4, "--delta", 0.4)
    result = run("tune", table, "--model", folder, *words, *bounds)
    assert result.exit_code == 0, result.output
    stored = pf.list_guarantee_of(pf.from_pretrained(folder))
    assert stored is not None and stored.risk.name == "ndcg" and stored.loss <= 0.4
    assert "what is lost of a list's nDCG@3 at full depth" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--top-k", 3], "name the queries' column by --text-column"),
        (["--top-k", 0, "--text-pair-column", "document"], "top_k=0"),
        (["--top-k", 3, "--text-pair-column", "document", "--risk", "disagreement"], "risk='disagreement'"),
        (["--top-k", 3, "--text-pair-column", "document", "--risk", "ndcg"], "name their column by --label-column"),
        (["--top-k", 3, "--text-pair-column", "document", "--tolerance", 1], "leave it out"),
        (["--label", "x"], "give --top-k too"),
        (["--top-k", 3, "--text-pair-column", "document"], "lists are left to test with"),
        (
            ["--top-k", 3, "--text-pair-column", "document", "--risk", "ndcg", "--label-column", "document"],
            "relevance|numbers",
        ),
    ],
)
def test_tune_refuses_what_cannot_be_used_for_lists(words: list[Any], says: str, model: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "pairs.csv")
    loose = ["--epsilon", 0.7, "--delta", 0.7] if "document" in words[-1:] and "ndcg" in words else []
    result = run("tune", table, "--model", model, "--text-column", "query", "--device", "cpu", *words, *loose)
    assert isinstance(result.exception, pf.PabeeFastError), result.output
    assert re.search(says, str(result.exception)) and "\n" not in str(result.exception)
