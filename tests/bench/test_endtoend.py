"""The end-to-end benchmark: it checks answers before it times, and its last line is one JSON document."""

import json
import sys

import numpy as np
import pytest

from bench import cases, endtoend


def test_the_last_line_is_one_json_document_that_says_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--model bert-tiny --rows 12 --rounds 1 --stock-batches 4 8 --device cpu --dtype float32"
    monkeypatch.setattr(sys, "argv", ["endtoend", *options.split()])
    endtoend.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"hardware", "dtype", "rows", "tokens_per_row", "baseline", "exit_efficiency", "no_exit_cost"} <= set(
        figures
    )
    assert list(figures["rows_per_second"]) == [
        "stock, batch 4", "stock, batch 8", "full depth", "early exit", "nobody leaves",
    ]  # fmt: skip
    assert figures["full_depth_difference"] <= 1e-5


def test_a_wrong_answer_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(endtoend.TOLERANCE, endtoend.torch.float32, 0.0)
    monkeypatch.setattr(endtoend.timing, "interleaved", lambda *args: pytest.fail("timed although answers differ"))
    options = "--model bert-tiny --rows 8 --rounds 1 --stock-batches 4 --device cpu --dtype float32"
    monkeypatch.setattr(sys, "argv", ["endtoend", *options.split()])
    with pytest.raises(SystemExit, match="differs from stock"):
        endtoend.main()


def test_the_case_is_fixed_and_its_exits_are_independent_of_length() -> None:
    rows, again = cases.sst2_like(256, 12), cases.sst2_like(256, 12)
    assert rows == again
    assert sum(cases.SST2_DEV_LENGTHS.values()) == 872
    shares = np.bincount(rows.exit_layers, minlength=13)[4:] / 256
    assert shares == pytest.approx(list(cases.EXITS.values()), abs=1 / 256)
    assert abs(np.corrcoef(rows.lengths, rows.exit_layers)[0, 1]) < 0.2
