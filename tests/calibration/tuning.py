"""Made-up rows, and the command line that tunes by them."""

import json
import random
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

import pabee_fast as pf
from pabee_fast.cli import app

WORDS = "a and bad film good is long the this was what very not it".split()  # noqa: SIM905 - words, not code
OPTIONS = ["--epsilon", "0.3", "--delta", "0.1", "--dtype", "float32", "--device", "cpu"]


def texts(rows: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(rows)]


def write(path: Path, rows: list[str], labels: list[Any] | None = None) -> Path:
    table: list[dict[str, Any]] = [{"text": text} for text in rows]
    if labels is not None:
        table = [row | {"label": label} for row, label in zip(table, labels, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    return path


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def error_of(result: Result) -> str:
    assert isinstance(result.exception, pf.PabeeFastError), result.output
    return str(result.exception)
