"""The shipped model through the real command: every row equals an independent computation of that row alone."""

import functools
import gzip
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

import pabee_fast as pf
from pabee_fast.cli import app
from pabee_fast.modeling.loss import every_head
from tests.conftest import ROOT, SHARED
from tests.tolerances import TOLERANCES

pytestmark = pytest.mark.slow

MODEL = ROOT / "examples" / "sample-model"
PATIENCE = 3


@pytest.fixture(params=["the sample table", "sst2's dev set"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "the sample table":
        return ROOT / "examples" / "sample.csv"
    packed = SHARED / "data" / "sst2" / "dev.jsonl.gz"
    if not packed.is_file():
        pytest.skip("no evaluation data beside this checkout (../shared/data)")
    with gzip.open(packed, "rb") as source, (tmp_path / "dev.jsonl").open("wb") as target:
        shutil.copyfileobj(source, target)
    return tmp_path / "dev.jsonl"


def test_every_row_equals_its_own_batch_of_one(table: Path, tmp_path: Path) -> None:
    output = tmp_path / "scored.parquet"
    options = ["--policy", f"patience:{PATIENCE}", "--dtype", "float32", "--device", "cpu", "--output", str(output)]
    result = CliRunner().invoke(app, ["score", str(table), "--model", str(MODEL), *options])
    assert result.exit_code == 0, result.output
    scored = pq.read_table(output).to_pylist()
    model = pf.from_pretrained(MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    stock_forward = functools.partial(type(model).forward.__wrapped__, model)  # type: ignore[attr-defined]
    limit, exits = model.config.max_position_embeddings, []
    for row in scored:
        inputs = tokenizer(row["text"], truncation=True, max_length=limit, return_tensors="pt")
        with torch.no_grad():
            _, heads = every_head(model, stock_forward, **inputs)
        answers = [int(head.argmax()) for head in heads]
        layer = next(
            (i for i in range(PATIENCE + 1, len(heads) + 1) if len(set(answers[i - PATIENCE - 1 : i])) == 1), len(heads)
        )
        logits = heads[layer - 1][0]
        assert row["exit_layer"] == layer
        assert row["prediction"] == model.config.id2label[int(logits.argmax())]
        assert row["score"] == pytest.approx(float(logits.softmax(0).max()), rel=10 * TOLERANCES[torch.float32])
        exits.append(layer)
    assert len(set(exits)) > 2


def test_stock_transformers_loads_the_directory_and_gives_the_full_depth_answers() -> None:
    stock = AutoModelForSequenceClassification.from_pretrained(MODEL, dtype=torch.float32)
    ours = pf.from_pretrained(MODEL, policy=pf.FullDepth(), dtype=torch.float32)
    inputs = AutoTokenizer.from_pretrained(MODEL)("Warm, funny, and over too soon.", return_tensors="pt")
    with torch.no_grad():
        expected, got = stock(**inputs).logits, ours(**inputs).logits
    assert (got - expected).abs().max() / expected.abs().max() <= TOLERANCES[torch.float32]


def test_the_directory_is_small() -> None:
    assert sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file()) <= 4_000_000
