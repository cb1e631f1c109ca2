"""The benchmark of the drop-in forward: answers first, then times; its last line is one JSON document."""

import json
import sys

import pytest

from bench import dropin

OPTIONS = "--model bert-tiny --sizes 1 3 --rounds 1 --device cpu --dtype float32"


def run(monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    monkeypatch.setattr(sys, "argv", ["dropin", *OPTIONS.split(), *more])
    dropin.main()


def test_the_last_line_is_one_json_document_with_every_batch_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(figures["cpu"]["by_rows"]) == ["1", "3"]
    for each in figures["cpu"]["by_rows"].values():
        assert set(each["milliseconds"]) == {"stock", "full depth", "early exit"}
        assert each["difference"] <= 1e-5


def test_a_run_that_is_cut_short_leaves_the_batch_sizes_it_had(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--so-far")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [list(line["cpu"]["by_rows"]) for line in lines] == [["1"], ["1", "3"], ["1", "3"]]
    assert [line.get("partial") for line in lines] == [True, True, None]


def test_a_wrong_answer_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dropin.TOLERANCE, dropin.torch.float32, -1.0)
    monkeypatch.setattr(dropin.timing, "interleaved", lambda *args: pytest.fail("timed although answers differ"))
    with pytest.raises(SystemExit, match="differ from stock"):
        run(monkeypatch)
