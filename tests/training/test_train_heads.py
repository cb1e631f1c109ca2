"""Which heads `pabee-fast train` leaves: of what kind, fitted or not, and where rows are cut."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pabee_fast as pf
from pabee_fast.models.head_kinds import HeadSpec
from pabee_fast.models.heads import spec_of

pytestmark = pytest.mark.slow

Command = Callable[..., int]
Tables = Callable[..., Path]
Rows = list[dict[str, Any]]


@pytest.fixture
def trained(
    pabee_fast: Command, table: Tables, reviews: Rows, encoder: Path, tmp_path: Path, learn: list[str]
) -> Callable[..., Any]:
    """Trains on the reviews with further options; returns the model, and what is recorded of its training."""
    rows = table("train.csv", reviews)

    def run(*options: Any, name: str = "out") -> tuple[Any, dict[str, Any]]:
        words = ["train", rows, "--eval", rows, "--model", encoder, "--output", tmp_path / name, *learn, *options]
        assert pabee_fast(*words) == 0
        return pf.from_pretrained(tmp_path / name), json.loads((tmp_path / name / "training.json").read_text())

    return run


def test_by_default_heads_are_linear_over_the_mean_token_and_fitted_to_the_trained_model(
    trained: Callable[..., Any], reviews: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    model, record = trained()
    assert spec_of(model) == HeadSpec("linear", "mean", 1)
    assert [head["layer"] for head in model.config.pabee_fast["fit"]["heads"]] == [1, 2]
    assert model.config.pabee_fast["fit"]["rows"] == len(reviews)
    assert record["fitted"]["accuracy"] == [1.0, 1.0, 1.0]
    assert "train.csv with fitted heads" in capsys.readouterr().out


def test_fitting_leaves_full_depth_as_it_was_trained(trained: Callable[..., Any]) -> None:
    fitted, as_trained = trained()[0].state_dict(), trained("--no-fit-heads", name="other")[0].state_dict()
    changed = {name for name in fitted if not fitted[name].equal(as_trained[name])}
    assert changed == {f"exit_heads.{i}.{part}" for i in range(2) for part in ("weight", "bias")}


def test_the_published_heads_are_trained_as_published(trained: Callable[..., Any]) -> None:
    model, record = trained("--head", "pabee")
    assert spec_of(model) == HeadSpec("pabee", "first", 1)
    assert "fit" not in model.config.pabee_fast and record["fitted"] is None
    assert "fit" in trained("--head", "pabee", "--fit-heads", name="other")[0].config.pabee_fast


def test_heads_that_answer_all_rows_alike_are_told_of(
    trained: Callable[..., Any],
    pabee_fast: Command,
    table: Tables,
    reviews: Rows,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, _ = trained("--no-fit-heads")
    assert "of the rows or more alike" not in caplog.text
    model.exit_heads[0].weight.data.zero_()
    model.save_pretrained(tmp_path / "out")
    still = ["--epochs", "1", "--learning-rate", "1e-9", "--output", tmp_path / "still", "--no-fit-heads"]
    assert pabee_fast("train", table("train.csv", reviews), "--model", tmp_path / "out", *still) == 0
    assert "the head of layer 1 answers 95% of the rows or more alike" in caplog.text


def test_few_rows_fit_no_heads_and_it_is_said(
    pabee_fast: Command,
    table: Tables,
    reviews: Rows,
    encoder: Path,
    tmp_path: Path,
    brief: list[str],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = ["train", table("few.csv", reviews[:8]), "--model", encoder, "--output", tmp_path / "out", *brief]
    assert pabee_fast(*words, "--fit-heads") == 2
    assert "8 row(s) are too few to fit by" in capsys.readouterr().err
    assert pabee_fast(*words) == 0
    assert "8 row(s) are too few to fit heads by: they stay as they are trained" in caplog.text


def test_mixed_precision_is_undone_before_heads_are_fitted(trained: Callable[..., Any]) -> None:
    model, record = trained("--bf16")
    assert "fit" in model.config.pabee_fast and min(record["fitted"]["accuracy"]) > 0.9


def test_where_rows_were_cut_is_kept_and_is_the_default_of_further_training(
    trained: Callable[..., Any], pabee_fast: Command, table: Tables, reviews: Rows, tmp_path: Path
) -> None:
    model, _ = trained()
    assert model.config.pabee_fast["max_length"] == 16
    further = ["--model", tmp_path / "out", "--output", tmp_path / "further", "--epochs", "1"]
    assert pabee_fast("train", table("train.csv", reviews), *further) == 0
    record = json.loads((tmp_path / "further" / "training.json").read_text())
    assert record["settings"]["max_length"] == 16
    assert pf.from_pretrained(tmp_path / "further").config.pabee_fast["max_length"] == 16
