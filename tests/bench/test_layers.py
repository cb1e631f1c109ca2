"""The benchmark of layers: it holds answers against stock before it times, and its last line is one JSON document."""

import json
import sys

import pytest

from bench import layers


def run(monkeypatch: pytest.MonkeyPatch, options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["layers", *options.split()])
    layers.main()


OPTIONS = "--tokens 60 --rounds 1 --layers 1 --device cpu --dtype float32"


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_the_last_line_is_one_json_document_that_says_what_was_measured(
    family: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, f"{OPTIONS} --family {family} --processor-time")
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"hardware", "dtype", "tokens", "rows", "baseline", "clock", "activation"} <= set(figures)
    timed = ["stock", "fused", "three products", "one product"]
    assert list(figures["seconds_per_layer"]) == timed
    assert figures["tokens"] <= 60
    assert figures["difference"]["fused"] <= 1e-5


def test_a_wrong_answer_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(layers.TOLERANCE, layers.torch.float32, -1.0)
    monkeypatch.setattr(layers.timing, "interleaved", lambda *args: pytest.fail("timed although answers differ"))
    with pytest.raises(SystemExit, match="differs from stock"):
        run(monkeypatch, OPTIONS)
