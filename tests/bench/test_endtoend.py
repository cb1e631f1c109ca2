"""The end-to-end benchmark: it checks answers before it times, and its last line is one JSON document."""

import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bench import cases, endtoend, shares


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
        "full depth", "early exit", "nobody leaves", "stock, batch 4", "stock, batch 8",
    ]  # fmt: skip
    assert figures["full_depth_difference"] <= 1e-5


def test_a_wrong_answer_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(endtoend.TOLERANCE, endtoend.torch.float32, 0.0)
    monkeypatch.setattr(endtoend.timing, "turns", lambda *args, **options: pytest.fail("timed although answers differ"))
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


def measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    options = "--model bert-tiny --rows 12 --rounds 1 --stock-batches 4 --device cpu --dtype float32"
    monkeypatch.setattr(sys, "argv", ["endtoend", *options.split(), *more])
    endtoend.main()
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_other_exits_waves_under_way_layers_and_waves_are_measured_beside_the_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--lengths 16 --exits skewed --under-way 2 --layers stock --waves 64"
    found = measured(monkeypatch, capsys, *options.split())
    assert found["tokens_per_row"] == {"mean": 16, "min": 16, "max": 16}
    assert found["mean_exit_layers"]["skewed"] < found["mean_exit_layers"]["usual"]
    assert found["other_exits"]["skewed"]["exit_efficiency"] > 0
    assert found["other_ways"].keys() == {"2 under way", "stock layers", "waves of 64"}
    # 12 layers of 8 H^2 + 4 H I + 4 L H operations a token, at what a product reaches; of the last layer's products all
    # but 6 H^2 for one token of each row's 16.
    operations = 12 * 12 * 16 * (8 * 128**2 + 4 * 128 * 512 + 4 * 16 * 128) - 12 * 15 * (2 * 128**2 + 4 * 128 * 512)
    seconds = found["seconds"]["full depth"][0]
    assert found["utilisation"] == pytest.approx(operations / seconds / found["ceilings"]["matrix_rate"])
    parts = found["time_shares"]
    assert 0 < parts["exit_step"] < parts["together"] < 1
    assert parts["together"] == pytest.approx(parts["exit_step"] + parts["plan"] + parts["gather"])


def test_a_run_that_is_cut_short_leaves_what_it_had(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--exits skewed --under-way 2 --so-far --model bert-tiny --rows 12 --rounds 1 --stock-batches 4 8"
    monkeypatch.setattr(sys, "argv", ["endtoend", *options.split(), "--device", "cpu", "--dtype", "float32"])
    endtoend.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert ["partial" in line for line in lines] == [True] * (len(lines) - 1) + [False]
    told = {
        name: next(i for i, line in enumerate(lines) if name in line)
        for name in ("rows_per_second", "exit_efficiency", "no_exit_cost", "full_depth_vs_stock", "time_shares")
    }
    assert list(told.values()) == sorted(told.values())
    assert told["rows_per_second"] == 0 and lines[0]["utilisation"] > 0  # full depth alone
    assert lines[told["exit_efficiency"]]["other_exits"] == {}
    assert "skewed" in lines[told["no_exit_cost"]]["other_exits"]
    assert lines[-2]["other_ways"].keys() == {"2 under way"}


def test_another_way_whose_answers_are_wrong_is_named_and_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = endtoend.Setup.run

    def run(self: endtoend.Setup, engine: Any, policy: Any) -> Any:
        results = real(self, engine, policy)
        return replace(results, logits=results.logits * (1 + (engine is self.others["2 under way"])))

    monkeypatch.setattr(endtoend.Setup, "run", run)
    found = measured(monkeypatch, capsys, "--under-way", "1", "2")
    assert found["other_ways"].keys() == {"1 under way"}
    assert "full depth, 2 under way differs from stock" in found["wrong_ways"]["2 under way"]


def test_the_seam_is_as_it_was_after_its_shares_were_taken() -> None:
    before = [getattr(*part) for part in shares.PARTS.values()]
    with pytest.raises(RuntimeError, match="in the middle"):
        shares.time_shares(lambda: (_ for _ in ()).throw(RuntimeError("in the middle")), torch.device("cpu"))
    assert [getattr(*part) for part in shares.PARTS.values()] == before


def test_one_row_in_twenty_of_the_skewed_exits_is_given_all_layers() -> None:
    for layers in (12, 24):
        exits = cases.exits_of("skewed", 2000, layers)
        assert np.mean(np.array(exits) == layers) == pytest.approx(0.05, abs=0.001)
        assert np.mean(exits) / layers == pytest.approx(0.344, abs=0.02)
    assert sum(cases.SKEWED.values()) == pytest.approx(1)
