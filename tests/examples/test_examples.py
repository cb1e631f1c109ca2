"""Every script of examples/ runs, on a tiny model, and prints what it says it prints."""

import ast
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoImageProcessor, PreTrainedTokenizerFast, ViTImageProcessor

import pabee_fast as pf
from pabee_fast import models
from tests import zoo
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"


@pytest.fixture
def run_example(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs `main` of a script and returns what it printed; a family that it registers is forgotten afterwards."""
    monkeypatch.setattr(models, "FAMILIES", dict(models.FAMILIES))

    def run(name: str, *args: str) -> str:
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.main(*args)
        return capsys.readouterr().out

    return run


@pytest.fixture
def text_model(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., str]:
    """A directory with a tiny model with heads and its tokenizer."""

    def make(variant: str, **options: Any) -> str:
        zoo.model_with_heads(variant, vocab_size=len(tiny_tokenizer), **options).save_pretrained(tmp_path)
        tiny_tokenizer.save_pretrained(tmp_path)
        return str(tmp_path)

    return make


def test_the_pipeline_is_swapped(run_example: Callable[..., str], text_model: Callable[..., str]) -> None:
    assert re.search(r"\d+ of 64 answers .* \{'label': ", run_example("pipeline_swap", text_model("bert")))


def test_a_cross_encoder_reranks(run_example: Callable[..., str], text_model: Callable[..., str]) -> None:
    out = run_example("rerank", text_model("bert", num_labels=1))
    assert re.search(r"80 pairs: rank correlation with full depth -?\d\.\d+", out)
    assert len(out.splitlines()) == 5


def test_a_decoder_classifies(run_example: Callable[..., str], text_model: Callable[..., str]) -> None:
    out = run_example("decoder", text_model("llama")).splitlines()
    assert "mean exit layer 6.00 of 6" in out[0]
    assert len(out) == 3


def test_images_are_classified(run_example: Callable[..., str], tmp_path: Path) -> None:
    zoo.model_with_heads("vit").save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 12, "width": 12}).save_pretrained(tmp_path)
    assert AutoImageProcessor.from_pretrained(tmp_path) is not None
    assert re.search(r"mean exit layer \d\.\d\d of 6", run_example("images", str(tmp_path)))


def test_a_custom_family_is_taught_trained_and_leaves_early(run_example: Callable[..., str]) -> None:
    out = run_example("custom_family")
    figures = dict(re.findall(r"(differs by|full depth|leaving early|exit layer) ([\d.e-]+)", out))
    assert float(figures["differs by"]) <= 1e-5
    assert float(figures["full depth"]) > 0.85
    assert float(figures["leaving early"]) > float(figures["full depth"]) - 0.05
    assert float(figures["exit layer"]) < 5


@pytest.mark.parametrize("name", ["decoder", "images", "rerank"])
def test_a_script_that_is_not_told_its_model_says_how_it_is_run(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 2
    assert re.search("missing argument .*directory", capsys.readouterr().err.lower())


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda script: script.stem)
def test_scripts_use_public_names_only(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.Import):
            ours = [(alias.name, alias.asname) for alias in node.names if alias.name.startswith("pabee_fast")]
            assert ours in ([], [("pabee_fast", "pf")])
        elif isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("pabee_fast"), f"line {node.lineno}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pf":
            assert node.attr in pf.__all__, f"line {node.lineno}: pf.{node.attr}"


@pytest.mark.skipif(find_spec("pyspark") is None or shutil.which("java") is None, reason="needs pyspark and Java")
def test_a_spark_data_frame_is_scored(text_model: Callable[..., str], tmp_path: Path) -> None:
    texts = ["good film", None, "a very long film"]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    words = [EXAMPLES / "spark.py", text_model("bert"), tmp_path / "in.parquet"]
    # In a process of its own, since a session leaves a JVM and its signal handlers behind.
    ours = {"PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    environment = {**os.environ, **ours, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *map(str, words)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [text for _, _, text in rows] == ["good film", "None", "a very long film"]
    assert rows[1][:2] == ["None", "0"]  # no answer, after no layer
    assert rows[0][0].startswith("LABEL_") and int(rows[0][1]) <= 6
