"""What `tune` refuses, and when: before the model runs, wherever that can be known."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.calibration.tuning import OPTIONS, error_of, run, texts, write
from tests.conftest import tiny_stock


def test_labels_that_no_risk_looks_at_are_refused(model: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "in.jsonl", texts(200), [0] * 200)
    assert "--risk accuracy-loss" in error_of(run("tune", table, "--model", model, "--label-column", "label", *OPTIONS))


def test_a_place_that_cannot_be_written_is_named_before_anything_runs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pabee_fast.calibration.tune.load_scorer", lambda *_, **__: pytest.fail("loaded"))
    table = write(tmp_path / "in.jsonl", texts(200))
    (tmp_path / "file").touch()
    command = ["tune", table, "--model", model, *OPTIONS]
    assert "file is a file" in error_of(run(*command, "--output", tmp_path / "file" / "tuning"))
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != model)
    assert f"no permission to write to {model}" in error_of(run(*command))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--epsilon", "0.01"], "needs 230 even if none of them is wrong, 306 in all"),
        (["--epsilon", "1.5"], "epsilon=1.5"),
        (["--order-share", "0"], "order share=0.0"),
        (["--risk", "accuracy-loss"], "--label-column"),
        (["--risk", "wrongness"], "disagreement, accuracy-loss, distance"),
        (["--plot", "pdf"], "svg or png"),
        (["--order", "other.jsonl", "--order-share", "0.5"], "order share 0.5: the rows of other.jsonl choose"),
        (["--order", "TABLE"], "let --order-share split"),
        (["--trace", "x.safetensors"], "either a table"),
        (["--risk", "accuracy-loss", "--label-column", "label"], "no label column 'label'"),
        (["--text-column", "review"], "'review'"),
        (["--tolerance", "3"], "tolerance=3.0: it belongs to the risk 'distance'"),
        (["--risk", "distance", "--tolerance", "3"], "on a model that answers with labels"),
        (["--seed", "99999999999999999999"], "seed=99999999999999999999: give a whole number from 0"),
    ],
)
def test_bad_input_names_the_fix_runs_and_stores_nothing(
    options: list[str], says: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("pabee_fast.runtime.engine.Engine.every_head")
    before = sorted(path.name for path in model.iterdir())
    table = write(tmp_path / "in.jsonl", texts(60))
    options = [str(table) if word == "TABLE" else word for word in options]
    assert says in error_of(run("tune", table, "--model", model, *OPTIONS, *options))
    assert sorted(path.name for path in model.iterdir()) == before


def test_a_model_that_cannot_keep_a_guarantee_is_refused_before_any_work(tiny_tokenizer: Any, tmp_path: Path) -> None:
    table = write(tmp_path / "in.jsonl", texts(60))
    assert "no model directory" in error_of(run("tune", table, "--model", "somebody/model"))
    tiny_stock("bert").save_pretrained(tmp_path / "stock")
    assert "has no heads" in error_of(run("tune", table, "--model", tmp_path / "stock"))


def test_too_few_rows_are_refused_before_the_model_runs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("pabee_fast.runtime.engine.Engine.every_head")
    table = write(tmp_path / "in.jsonl", texts(250))
    refused = error_of(run("tune", table, "--model", model, "--epsilon", 0.01, "--delta", 0.1))
    assert "188 rows are left to test with" in refused and "306 in all" in refused


def test_labels_that_are_all_the_same_are_refused_before_the_model_runs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("pabee_fast.runtime.engine.Engine.every_head")
    table = write(tmp_path / "in.jsonl", texts(60), [1] * 60)
    words = ("--risk", "accuracy-loss", "--label-column", "label")
    assert "the labels of all rows are the same" in error_of(run("tune", table, "--model", model, *OPTIONS, *words))


def test_a_config_that_was_cut_is_named(model: Path, tmp_path: Path) -> None:
    (model / "config.json").write_text('{"pabee_fast": {')
    table = write(tmp_path / "in.jsonl", texts(60))
    assert "config.json is no JSON" in error_of(run("tune", table, "--model", model, *OPTIONS))


def test_rows_that_the_model_knows_are_refused_before_it_runs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, fitted = write(tmp_path / "in.jsonl", texts(100)), tmp_path / "fitted"
    assert run("fit", table, "--model", model, "--output", fitted, "--device", "cpu").exit_code == 0
    monkeypatch.delattr("pabee_fast.runtime.engine.Engine.every_head")
    assert "has learned from" in error_of(run("tune", table, "--model", fitted, *OPTIONS))


def test_rows_that_fit_has_learned_from_are_refused_unless_they_are_allowed(model: Path, tmp_path: Path) -> None:
    learned, unseen = tmp_path / "learned", tmp_path / "unseen"
    for folder, seed in ((learned, 1), (unseen, 2)):
        folder.mkdir()
        for part in range(2):
            write(folder / f"{part}.jsonl", texts(100, seed + 10 * part))
    fitted = tmp_path / "fitted"
    assert run("fit", learned, "--model", model, "--output", fitted, "--device", "cpu").exit_code == 0
    assert "has learned from" in error_of(run("tune", learned / "*.jsonl", "--model", fitted, *OPTIONS))
    for table, options, words in (
        (unseen, (), r"fit or train has learned from \d+ of 1\d\d rows that could be looked up"),
        (learned, ("--allow-learned",), r"fit or train has learned from (1\d\d) of \1 rows"),
    ):
        result = run("tune", table, "--model", fitted, *OPTIONS, *options)
        assert result.exit_code == 0, result.output
        assert re.search(words, " ".join(result.output.split())), result.output
    looked_up = json.loads((fitted / "tuning" / "frontier.json").read_text())["looked_up"]
    assert looked_up["rows"] == looked_up["learned"] > 100
