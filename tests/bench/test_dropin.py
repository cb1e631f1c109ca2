"""The benchmark of the drop-in forward: answers first, then times; its last line is one JSON document."""

import json
import sys

import pytest

from bench import dropin

OPTIONS = "--model bert-tiny --sizes 1 3 --rounds 1 --device cpu --dtype float32"


def run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["dropin", *OPTIONS.split()])
    dropin.main()


def test_the_last_line_is_one_json_document_with_every_batch_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(figures["by_rows"]) == ["1", "3"]
    for each in figures["by_rows"].values():
        assert set(each["milliseconds"]) == {"stock", "full depth", "early exit"}
        assert each["difference"] <= 1e-5


def test_a_wrong_answer_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dropin.TOLERANCE, dropin.torch.float32, -1.0)
    monkeypatch.setattr(dropin.timing, "interleaved", lambda *args: pytest.fail("timed although answers differ"))
    with pytest.raises(SystemExit, match="differ from stock"):
        run(monkeypatch)
