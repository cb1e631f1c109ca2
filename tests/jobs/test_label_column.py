"""Answers held against a label column: how many are right, whatever the parts, the format and the kind of label."""

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import pabee_fast as pf
from pabee_fast.cli import app
from tests.conftest import tiny_model
from tests.jobs.conftest import text_of

FIXED: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1}
ROWS = 40


def put(path: Path, labels: Sequence[Any]) -> Path:
    rows = [{"text": text_of(row), "label": label} for row, label in enumerate(labels)]
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, ["text", "label"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers_of(model: Path) -> list[Any]:
    scorer = pf.Scorer.from_pretrained(model, "full-depth", device="cpu", dtype="float32")
    return scorer.predict([text_of(row) for row in range(ROWS)])


def score(table: Path, model: Path, output: Path, *options: str) -> Any:
    words = ["score", table, "--model", model, "--output", output, "--policy", "full-depth", "--device", "cpu"]
    return CliRunner().invoke(app, [*map(str, words), "--dtype", "float32", "--label-column", "label", *options])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("are_ids", [False, True])
def test_right_answers_are_counted_over_all_parts(
    suffix: str, are_ids: bool, small_model: Path, tmp_path: Path
) -> None:
    names = ["bad", "so-so", "good"]
    labels: list[Any] = answers_of(small_model)
    for row in range(10):  # wrong ones
        labels[row] = names[(names.index(labels[row]) + 1) % 3]
    labels = [names.index(label) for label in labels] if are_ids else labels
    labels[-1] = "" if suffix == ".csv" else None
    table = put(tmp_path / f"in{suffix}", labels)
    summary = pf.score_table(
        table, tmp_path / "out.csv", small_model, "full-depth", label_column="label", part_rows=7, **FIXED
    )
    assert (summary.labelled, summary.accuracy, summary.mean_squared_error) == (ROWS - 1, 29 / 39, None)


def test_the_summary_says_it_in_words_and_in_figures(small_model: Path, tmp_path: Path) -> None:
    table = put(tmp_path / "in.csv", [*answers_of(small_model)[:-1], ""])
    done = score(table, small_model, tmp_path / "out.csv")
    assert "accuracy 100.00%: 39 of 39 rows with an answer and a label" in done.output
    done = score(table, small_model, tmp_path / "other.csv", "--log-format", "json")
    end = json.loads(done.stderr.splitlines()[-1])
    assert (end["labelled"], end["accuracy"], end["mean_squared_error"]) == (39, 1.0, None)


def test_a_resumed_job_counts_the_labels_of_both_runs(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = put(tmp_path / "in.jsonl", answers_of(small_model))
    named: dict[str, Any] = {"label_column": "label", "part_rows": 10, **FIXED}

    def stop(progress: Any) -> None:
        if progress.parts == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pf.score_table(table, tmp_path / "out.csv", small_model, "full-depth", on_part=stop, **named)
    summary = pf.score_table(table, tmp_path / "out.csv", small_model, "full-depth", **named)
    assert (summary.resumed, summary.labelled, summary.accuracy) == (20, ROWS, 1.0)


def test_sets_are_right_as_a_whole_and_values_have_an_error(tiny_tokenizer: Any, tmp_path: Path) -> None:
    sets, values = tmp_path / "sets", tmp_path / "values"
    options: dict[str, Any] = {"vocab_size": len(tiny_tokenizer)}
    names = {0: "dull", 1: "loud", 2: "long"}
    tiny_model("bert", problem_type="multi_label_classification", id2label=names, **options).save_pretrained(sets)
    tiny_model("bert", num_labels=1, **options).save_pretrained(values)
    for folder in (sets, values):
        tiny_tokenizer.save_pretrained(folder)
    found = answers_of(sets)
    found[:2] = ["dull|loud", ""]  # an empty cell is the set without labels, as score writes it
    assert answers_of(sets)[:2] != found[:2] and found[2]
    table = put(tmp_path / "sets.csv", found)
    summary = pf.score_table(table, tmp_path / "out.csv", sets, "full-depth", label_column="label", **FIXED)
    assert (summary.labelled, summary.accuracy) == (ROWS, (ROWS - 2) / ROWS)
    table = put(tmp_path / "values.jsonl", [value + 0.5 for value in answers_of(values)])
    summary = pf.score_table(table, tmp_path / "out2.csv", values, "full-depth", label_column="label", **FIXED)
    assert summary.accuracy is None
    assert summary.mean_squared_error == pytest.approx(0.25, rel=1e-4)


def test_rows_without_an_answer_are_not_counted(small_model: Path, tmp_path: Path) -> None:
    table = tmp_path / "in.jsonl"
    table.write_text('{"text": "good film", "label": 1}\n{"text": null, "label": 1}\n{"text": "bad", "label": null}\n')
    summary = pf.score_table(table, tmp_path / "out.csv", small_model, "full-depth", label_column="label", **FIXED)
    assert (summary.rows, summary.labelled) == (3, 1)


def test_a_label_that_is_none_of_the_models_ends_the_job_which_goes_on_without_the_option(
    small_model: Path, tmp_path: Path
) -> None:
    labels = answers_of(small_model)
    labels[25] = "fine"
    table = put(tmp_path / "in.csv", labels)
    done = score(table, small_model, tmp_path / "out.csv", "--part-rows", "10")
    says = f"{table}, column 'label', row 26: label 'fine' is none of the model's (bad, so-so, good); correct it, or"
    assert str(done.exception).startswith(says)
    summary = pf.score_table(table, tmp_path / "out.csv", small_model, "full-depth", part_rows=10, **FIXED)
    assert summary.rows == ROWS  # the parts that were done are of the same job


def test_a_column_that_is_not_there_is_told_before_the_model_is_loaded(tmp_path: Path) -> None:
    table = put(tmp_path / "in.csv", ["a"])
    (tmp_path / "no-model").mkdir()
    with pytest.raises(pf.InputError, match="no label column 'sentiment'; its columns are text, label"):
        pf.score_table(table, tmp_path / "out.csv", tmp_path / "no-model", label_column="sentiment")
    with gzip.open(tmp_path / "in.csv.gz", "wt") as file:
        file.write("text,label\ngood,1\n")
    with pytest.raises(pf.InputError, match="or leave the option out"):
        pf.score_table(tmp_path / "in.csv.gz", tmp_path / "out.csv", tmp_path / "no-model", label_column="sentiment")


def test_standard_input_has_no_labels_to_hold_answers_against(small_model: Path) -> None:
    words = ["score", "-", "--model", str(small_model), "--output", "-", "--label-column", "label"]
    assert "--label-column: standard input" in str(CliRunner().invoke(app, words).exception)
