"""What the tests of jobs share: a tiny model on disk, texts whose rows leave at several layers, and a run in a line."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pabee_fast as pf
from pabee_fast.jobs.executor import Executor
from pabee_fast.jobs.executors import LocalExecutor
from pabee_fast.jobs.job import Columns, Job, JobOptions, Progress
from pabee_fast.jobs.recipe import Recipe
from tests.conftest import tiny_model

WORDS = ["a", "bad", "film", "good", "is", "long", "the", "this", "was", "very", "not", "it", ".", ",", "!"]


def text_of(row: int) -> str:
    """A text of 1 to 23 words."""
    return " ".join(WORDS[(row * k) % len(WORDS)] for k in range(1, 2 + (7 * row) % 23))


def put_rows(path: Path, rows: int, first: int = 0, **changes: Any) -> Path:
    """A JSON Lines file of rows `id` and `text`; `changes` name rows by "row" and a number: row3=None."""
    with path.open("w", encoding="utf-8") as file:
        for row in range(first, first + rows):
            file.write(json.dumps({"id": row, "text": changes.get(f"row{row}", text_of(row))}) + "\n")
    return path


@pytest.fixture(scope="session")
def small_model(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A six-layer model with heads, and its tokenizer, as a directory."""
    folder = tmp_path_factory.mktemp("small-model")
    labels = {0: "bad", 1: "so-so", 2: "good"}
    tiny_model("bert", vocab_size=len(tiny_tokenizer), id2label=labels).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def recipe(small_model: Path) -> Recipe:
    """Of a worker on one thread of the CPU."""
    return Recipe(str(small_model), pf.Patience(1), device="cpu", dtype="float32", threads=1)


@pytest.fixture
def local(recipe: Recipe) -> Iterator[Executor]:
    """A worker in this process."""
    with LocalExecutor(*recipe.worker()) as executor:
        yield executor


RunJob = Callable[..., Progress]


@pytest.fixture
def run_job(local: Executor) -> RunJob:
    """Runs a job on the local worker, or another: `run_job(source, target, part_rows=10)`."""

    def run(source: Path, target: Any, *, executor: Executor | None = None, **options: Any) -> Progress:
        columns = Columns(["text"], options.pop("prefix", ""))
        return Job([str(source)], str(target), columns, JobOptions(**options)).run(executor or local)

    return run
