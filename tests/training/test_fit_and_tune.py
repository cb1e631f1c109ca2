"""`pabee-fast fit --tune`: from a classifier and a file of texts to a tuned model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import pabee_fast as pf
from pabee_fast.calibration.learned_rows import LEARNED, LearnedRows
from pabee_fast.training.fit_table import apart

pytestmark = pytest.mark.slow

Command = Callable[..., int]
Tables = Callable[..., Path]
Classifier = Callable[..., Path]

BOUNDS = ["--epsilon", "0.3", "--delta", "0.1", "--device", "cpu", "--dtype", "float32"]


def texts(rows: int = 200) -> list[str]:
    """Texts that all differ, as long as they are fewer than 256."""
    words = ["good", "fine", "bad", "dull"]
    return [" ".join(words[i // 4**digit % 4] for digit in range(4)) for i in range(rows)]


@pytest.fixture
def start(classifier: Classifier) -> Path:
    """A classifier whose answers vary."""
    path = classifier()
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        logits = model(**tokenizer(texts(), return_tensors="pt")).logits
        model.classifier.bias -= logits.median(dim=0).values
    model.save_pretrained(path)
    return path


def test_one_command_leads_to_a_model_that_score_uses_with_its_promise(
    pabee_fast: Command, table: Tables, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, out = table("texts.csv", [{"text": text} for text in texts()]), tmp_path / "out"
    assert pabee_fast("fit", rows, "--model", start, "--output", out, "--tune", *BOUNDS) == 0
    shown = " ".join(capsys.readouterr().out.split())
    model = pf.from_pretrained(out)
    guarantee, fit = pf.guarantee_of(model), model.config.pabee_fast["fit"]
    assert guarantee is not None and (guarantee.epsilon, guarantee.delta) == (0.3, 0.1)
    calibrating = guarantee.rows + guarantee.ordering_rows
    assert fit["rows"] + calibrating == 200
    assert f"of 200 rows {fit['rows']} fitted the heads and {calibrating} calibrate" in shown and "seed 0" in shown
    assert shown.index("held-out") < shown.index(f"chosen: {guarantee.policy}")
    assert (out / "tuning" / "frontier.json").is_file()
    scored = ["--output", tmp_path / "scored.csv", "--device", "cpu", "--dtype", "float32"]
    assert pabee_fast("score", rows, "--model", out, *scored) == 0
    assert "stored with the model; " in capsys.readouterr().out


def test_no_row_that_heads_learned_from_calibrates(
    pabee_fast: Command, table: Tables, start: Path, tmp_path: Path
) -> None:
    rows, out = table("texts.csv", [{"text": text} for text in texts() * 2]), tmp_path / "out"
    assert pabee_fast("fit", rows, "--model", start, "--output", out, "--tune", *BOUNDS, "--seed", 3) == 0
    figures = json.loads((out / "tuning" / "frontier.json").read_text())
    assert figures["looked_up"]["learned"] == 0 and figures["looked_up"]["rows"] > 50
    learned = LearnedRows.of(pf.from_pretrained(out).config)
    assert learned is not None
    assert (learned.flags(texts()) == LEARNED).tolist() == (~apart(texts(), 0.5, 3)).tolist()


def test_the_rows_apart_are_the_share_asked_for_whatever_their_order_and_others_by_another_seed() -> None:
    rows = [f"text {i}" for i in range(4_000)]
    flags = apart(rows, 0.3, seed=1)
    assert 0.27 < flags.mean() < 0.33
    assert apart(rows[::-1], 0.3, seed=1).tolist() == flags[::-1].tolist()
    assert apart([text.upper() for text in rows], 0.3, seed=1).tolist() == flags.tolist(), "copies but for their case"
    both = (flags & apart(rows, 0.3, seed=2)).mean()
    assert 0.06 < both < 0.12


def test_labels_stay_with_their_rows(pabee_fast: Command, table: Tables, start: Path, tmp_path: Path) -> None:
    rows = [{"text": text, "label": i % 2 if is_apart else ""}
            for i, (text, is_apart) in enumerate(zip(texts(), apart(texts(), 0.5, 0), strict=True))]  # fmt: skip
    rows[int(apart(texts(), 0.5, 0).argmin())]["label"] = 0
    rows[int((apart(texts(), 0.5, 0)[::-1]).argmin()) * -1 - 1]["label"] = 1
    out = tmp_path / "out"
    words = ["--model", start, "--output", out, "--label-column", "label", "--tune", *BOUNDS]
    assert pabee_fast("fit", table("texts.csv", rows), *words) == 0
    assert pf.from_pretrained(out).config.pabee_fast["fit"]["labelled"] == 2


def test_a_regression_is_tuned_by_its_tolerance(
    pabee_fast: Command, table: Tables, classifier: Classifier, tmp_path: Path
) -> None:
    rows, out = table("texts.csv", [{"text": text} for text in texts()]), tmp_path / "out"
    words = ["--model", classifier(num_labels=1), "--output", out, "--tune", *BOUNDS, "--tolerance", "0.5"]
    assert pabee_fast("fit", rows, *words) == 0
    guarantee = pf.guarantee_of(pf.from_pretrained(out))
    assert guarantee is not None and guarantee.risk.tolerance == 0.5


def test_what_cannot_be_tuned_is_refused_before_the_model_runs(
    pabee_fast: Command,
    table: Tables,
    start: Path,
    classifier: Classifier,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, known = table("texts.csv", [{"text": text} for text in texts()]), tmp_path / "known"
    assert pabee_fast("fit", rows, "--model", start, "--output", known) == 0
    config = json.loads((known / "config.json").read_text())
    learned = config["pabee_fast"]["learned_rows"]
    learned["backbone"] = learned.pop("exit_heads")
    (known / "config.json").write_text(json.dumps(config))
    monkeypatch.delattr("pabee_fast.runtime.engine.Engine.every_feature")

    def refused(*words: Any, model: Path = start) -> str:
        capsys.readouterr()
        assert pabee_fast("fit", rows, "--model", model, "--output", tmp_path / "out", *words) == 2
        assert not (tmp_path / "out").exists()
        return " ".join(capsys.readouterr().err.split())

    assert "epsilon=0.3: it is about choosing a policy; give --tune too" in refused("--epsilon", 0.3)
    assert "calibration_share=0.0" in refused("--tune", "--calibration-share", 0)
    few = refused("--tune")
    assert "tune: of 200 rows" in few and "calibrate (calibration share 0.5)" in few and "needs 299" in few
    assert "has learned from" in refused("--tune", *BOUNDS, model=known)
    assert "risk 'distance'" in refused("--tune", *BOUNDS, "--tolerance", 1)
    assert "needs one (--tolerance)" in refused("--tune", *BOUNDS, model=classifier("value", num_labels=1))
