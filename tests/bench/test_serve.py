"""The server's benchmark runs, and measures nothing where answers differ."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import zoo
from tests.conftest import ROOT

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from bench import serve


@pytest.mark.slow
def test_every_server_is_measured_at_every_number_of_clients(tiny_tokenizer: Any, tmp_path: Path) -> None:
    zoo.model_with_heads("bert", vocab_size=len(tiny_tokenizer)).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    words = ["--model", str(tmp_path), "--policy", "patience:1", "--clients", "1", "3", "--seconds", "0.2"]
    words += ["--rounds", "1", "--most-texts", "20", "--threads", "1", "--device", "cpu"]
    done = subprocess.run([sys.executable, "-m", "bench.serve", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *_, header, first, _, _, _, _, _, last = done.stdout.splitlines()
    assert header.split() == ["clients", "server", "p50", "ms", "p99", "ms", "rows/s"] and "stock" in first
    figures = json.loads(last)
    assert [(one["clients"], one["variant"]) for one in figures["measured"]] == [
        (clients, variant) for clients in (1, 3) for variant in serve.VARIANTS
    ]
    assert all(0 < one["p50_ms"] <= one["p99_ms"] and one["rows_s"] > 0 for one in figures["measured"])
    assert 1 <= figures["mean_exit_layer"] <= 6 and 0 <= figures["agreement"] <= 1


class Answers:
    """A server that gives one answer."""

    def __init__(self, prediction: str, score: float) -> None:
        self.answer = {"prediction": prediction, "score": score, "exit_layer": 6}

    def ask(self, texts: list[str]) -> list[dict[str, Any]]:
        return [self.answer for _ in texts]


@pytest.mark.parametrize("full", [Answers("bad", 0.9), Answers("good", 0.8)])
def test_nothing_is_measured_where_full_depth_is_not_stock(full: Answers) -> None:
    servers: Any = {"stock": Answers("good", 0.9), "full depth": full, "early exit": Answers("good", 0.9)}
    with pytest.raises(SystemExit, match="where stock answers"):
        serve.check(servers, ["a"])
    assert serve.check(servers | {"full depth": servers["stock"]}, ["a"])["agreement"] == 1
