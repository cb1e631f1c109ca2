"""The benchmark of others' ways: right answers first, whatever is left out by name, and the table that is kept."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import cases, job_cases, rival_table, rival_ways, rivals
from bench.endtoend import padded
from bench.rival_ways import LeftOut

SMALL = {**job_cases.TINY, "num_hidden_layers": 3}
ROWS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9", "w2 w9"]


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["rivals", "--rounds", "1", "--batches", "2", "4", "--probe", "4", *options])
    rivals.main()
    figures: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return figures


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock, a way whose answers are wrong, one that cannot be had, and one that breaks."""

    def absent() -> rivals.Over:
        raise LeftOut("its package is not installed")

    def broken() -> rivals.Over:
        raise RuntimeError("no such operator\nand much more")

    def others(case: Any, work: Path) -> Any:
        stock = rival_ways.stock(case.stock)
        return {
            "stock transformers": (lambda: rivals.on_padded(case, stock), True),
            "wrong": (lambda: rivals.on_padded(case, lambda batch: stock(batch) + 1), True),
            "in int8": (lambda: rivals.on_padded(case, lambda batch: stock(batch) + 1), False),
            "absent": (absent, True),
            "broken": (broken, True),
        }

    monkeypatch.setattr(rivals, "others", others)
    monkeypatch.setitem(cases.MODELS, "bert-base", SMALL)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrong_answers_and_what_cannot_be_had_are_left_out_with_a_line(
    few: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = run(monkeypatch, capsys, "--made-up-rows", "8")
    assert figures["left_out"].keys() == {"wrong", "absent", "broken"}
    assert figures["left_out"]["wrong"] == "its logits differ from stock's by 1.0e+00"
    assert figures["left_out"]["broken"] == "RuntimeError: no such operator"
    assert figures["ways"]["in int8"]["largest_difference"] == pytest.approx(1, abs=1e-5)
    assert figures["ways"]["in int8"]["equal_labels"] == 1
    assert {"pabee_fast, full depth", "pabee_fast, early exit, given exits, int8"} <= figures["ways"].keys()
    assert all(way["rows_per_second"] > 0 for way in figures["ways"].values())
    table = rival_table.table(figures)
    assert "- absent: its package is not installed" in table
    assert "random weights, 8 rows" in table


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return job_cases.make_model(tmp_path / "model", **SMALL)


def table_of(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text, "label": row % 2}) + "\n" for row, text in enumerate(texts)))
    return str(path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trained_model_is_judged_by_labels_and_its_policies_are_chosen_on_other_rows(
    few: None, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"w{number} w{number + 1} w{number + 2}" for number in range(80)]
    options = ["--calibrate", table_of(tmp_path / "others.jsonl", texts), "--rows"]
    figures = run(
        monkeypatch, capsys, "--model", str(directory), *options, table_of(tmp_path / "rows.jsonl", ROWS),
        "--epsilon", "0.2",
    )  # fmt: skip
    early = figures["ways"]["pabee_fast, early exit, 20%"]
    assert early["layer_ratio"] >= 1 and early["policy"]
    assert {"accuracy", "equal_labels", "against_stock"} <= early.keys()
    assert figures["ways"]["pabee_fast, full depth, from texts"]["largest_difference"] < 1e-5


def test_rows_laid_end_to_end_get_stock_s_logits() -> None:
    model = cases.model("bert-tiny")
    batch = padded([[5, 6, 7], [8], [9, 10, 11], [12, 13]], torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(rival_ways.unpadded(model)(batch), model(**batch).logits, atol=1e-6, rtol=0)


def test_texts_in_any_order_get_their_own_logits(directory: Path) -> None:
    piped = rival_ways.in_pipeline(directory, torch.device("cpu"), torch.float32)
    alone = torch.cat([piped([text], 1) for text in ROWS])
    assert alone.unique(dim=0).shape == alone.shape
    torch.testing.assert_close(rival_ways.by_length(piped)(ROWS, 3), alone, atol=1e-6, rtol=0)


def test_the_readme_shows_the_tables_of_the_figures_that_are_kept() -> None:
    readme = (rival_table.HERE / "README.md").read_text()
    for path in (rival_table.HERE / "figures").glob("rivals-*.json"):
        figures = json.loads(path.read_text())
        begin, end = rival_table.marks(figures["model"])
        assert readme.partition(begin)[2].partition(end)[0].strip() == rival_table.table(figures)
