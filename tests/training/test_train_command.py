"""`pabee-fast train`, from tables to a model directory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import pabee_fast as pf
from pabee_fast.models.head_kinds import HeadSpec
from pabee_fast.models.heads import has_heads, spec_of
from pabee_fast.training.directory import TUNING

Command = Callable[..., int]
Tables = Callable[..., Path]
Rows = list[dict[str, Any]]


def last_epoch(output: Path) -> dict[str, Any]:
    return json.loads((output / "training.json").read_text())["epochs"][-1]


def test_every_table_format_trains_the_same_model(
    pabee_fast: Command, table: Tables, reviews: Rows, encoder: Path, tmp_path: Path, brief: list[str]
) -> None:
    weights = []
    for name in ("csv", "tsv", "jsonl", "parquet"):
        train, out = table(f"train.{name}", reviews), tmp_path / name
        assert pabee_fast("train", train, "--model", encoder, "--output", out, *brief) == 0
        weights.append(load_file(out / "model.safetensors"))
    for other in weights[1:]:
        assert other.keys() == weights[0].keys()
        assert all(torch.equal(other[key], weights[0][key]) for key in other)


def test_training_is_reported_per_layer_and_learns(
    pabee_fast: Command,
    table: Tables,
    reviews: Rows,
    encoder: Path,
    tmp_path: Path,
    learn: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    train, out = table("train.csv", reviews), tmp_path / "out"
    assert pabee_fast("train", train, "--eval", train, "--model", encoder, "--output", out, *learn) == 0
    assert last_epoch(out)["epoch"] == 6
    assert last_epoch(out)["accuracy"] == [1.0, 1.0, 1.0]
    shown = capsys.readouterr().out
    assert "train.csv after epoch 6 of 6" in shown
    assert "1.0000" in shown
    record = json.loads((out / "training.json").read_text())
    assert record["settings"]["learning_rate"] == 0.005
    assert [epoch["epoch"] for epoch in record["epochs"]] == [1, 2, 3, 4, 5, 6]


def test_seed_decides_the_weights(
    pabee_fast: Command, table: Tables, reviews: Rows, encoder: Path, tmp_path: Path, learn: list[str]
) -> None:
    train = table("train.csv", reviews)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert pabee_fast("train", train, "--model", encoder, "--output", tmp_path / name, "--seed", seed, *learn) == 0
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["exit_heads.0.weight"], c["exit_heads.0.weight"])


def test_saved_directory_is_a_stock_model_with_the_full_depth_answer(
    pabee_fast: Command, table: Tables, reviews: Rows, encoder: Path, tmp_path: Path, learn: list[str]
) -> None:
    out = tmp_path / "out"
    assert pabee_fast("train", table("train.csv", reviews), "--model", encoder, "--output", out, *learn) == 0
    stock = AutoModelForSequenceClassification.from_pretrained(out).eval()
    assert not has_heads(stock)
    ours = pf.from_pretrained(out, policy=pf.FullDepth())
    batch = AutoTokenizer.from_pretrained(out)([row["text"] for row in reviews], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(ours(**batch).logits, stock(**batch).logits, rtol=1e-5, atol=1e-6)


def test_pairs_are_told_apart_by_their_second_text(
    pabee_fast: Command, table: Tables, encoder: Path, tmp_path: Path, learn: list[str]
) -> None:
    rows = [
        {"a": "a film", "b": word, "same": word in ("good", "fine")} for word in ("good", "bad", "fine", "dull") * 4
    ]
    train, out = table("train.parquet", rows), tmp_path / "out"
    columns = ["--text-column", "a", "--text-pair-column", "b", "--label-column", "same"]
    assert pabee_fast("train", train, "--eval", train, "--model", encoder, "--output", out, *columns, *learn) == 0
    assert last_epoch(out)["accuracy"][-1] == 1.0


def test_names_become_the_models_labels_in_sorted_order(
    pabee_fast: Command, table: Tables, reviews: Rows, encoder: Path, tmp_path: Path, learn: list[str]
) -> None:
    named = [{"text": row["text"], "label": "pos" if row["label"] else "neg"} for row in reviews]
    out = tmp_path / "out"
    assert pabee_fast("train", table("train.jsonl", named), "--model", encoder, "--output", out, *learn) == 0
    assert pf.from_pretrained(out).config.id2label == {0: "neg", 1: "pos"}


def test_label_names_call_the_numbers_and_a_classifier_keeps_its_own(
    pabee_fast: Command,
    table: Tables,
    reviews: Rows,
    encoder: Path,
    tmp_path: Path,
    learn: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    train, out, names = table("train.csv", reviews), tmp_path / "out", ["--label-names", "neg,pos"]
    assert pabee_fast("train", train, "--model", encoder, "--output", out, *names, *learn) == 0
    assert pf.from_pretrained(out).config.id2label == {0: "neg", 1: "pos"}
    again = ["train", train, "--model", out, "--output", tmp_path / "again", "--label-names", "pos,neg", *learn]
    assert pabee_fast(*again) == 2
    assert "is a classifier already, of 2 classes: neg, pos" in capsys.readouterr().err


def test_numbers_with_fractions_train_a_regression(
    pabee_fast: Command, table: Tables, reviews: Rows, encoder: Path, tmp_path: Path, learn: list[str]
) -> None:
    scored = [{"text": row["text"], "label": row["label"] - 0.5} for row in reviews]
    train, out = table("train.csv", scored), tmp_path / "out"
    assert pabee_fast("train", train, "--eval", train, "--model", encoder, "--output", out, *learn) == 0
    assert pf.from_pretrained(out).config.num_labels == 1
    assert min(last_epoch(out)["Pearson"]) > 0.9
    assert len(last_epoch(out)["mean squared error"]) == 3


@pytest.mark.parametrize("name", ["train.jsonl", "train.csv"])
def test_lists_of_names_train_label_sets_and_in_csv_cells_as_score_writes_them(
    name: str, pabee_fast: Command, table: Tables, encoder: Path, tmp_path: Path, learn: list[str]
) -> None:
    sets = {"good film": ["film", "praise"], "very bad": ["blame"], "film": ["film"], "is it": []}
    told = {text: "|".join(labels) if name.endswith("csv") else labels for text, labels in sets.items()}
    train = table(name, [{"text": text, "label": labels} for text, labels in told.items()] * 24)
    out, kind = tmp_path / "out", ["--problem-type", "multi_label_classification"]
    assert pabee_fast("train", train, "--eval", train, "--model", encoder, "--output", out, *kind, *learn) == 0
    config = pf.from_pretrained(out).config
    assert config.problem_type == "multi_label_classification"
    assert config.id2label == {0: "blame", 1: "film", 2: "praise"}
    assert last_epoch(out)["accuracy"][-1] == 1.0


def test_a_model_with_heads_is_trained_further(
    pabee_fast: Command, table: Tables, reviews: Rows, encoder: Path, tmp_path: Path, learn: list[str]
) -> None:
    train, first, second = table("train.csv", reviews), tmp_path / "first", tmp_path / "second"
    assert pabee_fast("train", train, "--eval", train, "--model", encoder, "--output", first, *learn) == 0
    slow = ["--epochs", "1", "--learning-rate", "1e-9", "--max-length", "16"]
    assert pabee_fast("train", train, "--eval", train, "--model", first, "--output", second, *slow) == 0
    assert last_epoch(second)["accuracy"] == last_epoch(first)["accuracy"] == [1.0, 1.0, 1.0]


def test_a_classifier_keeps_its_label_order(
    pabee_fast: Command,
    table: Tables,
    reviews: Rows,
    classifier: Callable[..., Path],
    tmp_path: Path,
    learn: list[str],
) -> None:
    start = classifier(id2label={0: "pos", 1: "neg"}, label2id={"pos": 0, "neg": 1})
    named = [{"text": row["text"], "label": "pos" if row["label"] else "neg"} for row in reviews]
    train, out = table("train.csv", named), tmp_path / "out"
    assert pabee_fast("train", train, "--eval", train, "--model", start, "--output", out, *learn) == 0
    assert pf.from_pretrained(out).config.id2label == {0: "pos", 1: "neg"}
    assert last_epoch(out)["accuracy"][-1] == 1.0


def test_teacher_alone_can_teach_the_reverse_of_the_labels(
    pabee_fast: Command, table: Tables, reviews: Rows, encoder: Path, tmp_path: Path, learn: list[str]
) -> None:
    """With alpha 1 the labels do not count: a student of a teacher of the opposite opinion is wrong everywhere."""
    reverse = [{"text": row["text"], "label": 1 - row["label"]} for row in reviews]
    teacher, out, train = tmp_path / "teacher", tmp_path / "out", table("train.csv", reviews)
    assert pabee_fast("train", table("other.csv", reverse), "--model", encoder, "--output", teacher, *learn) == 0
    taught = ["--teacher", teacher, "--alpha", "1", "--temperature", "1"]
    assert pabee_fast("train", train, "--eval", train, "--model", encoder, "--output", out, *taught, *learn) == 0
    assert last_epoch(out)["accuracy"][-1] == 0.0


def test_a_teacher_is_read_by_its_label_names(
    pabee_fast: Command,
    table: Tables,
    reviews: Rows,
    encoder: Path,
    classifier: Callable[..., Path],
    tmp_path: Path,
    learn: list[str],
) -> None:
    named = [{"text": row["text"], "label": "pos" if row["label"] else "neg"} for row in reviews]
    teacher, out, train = tmp_path / "teacher", tmp_path / "out", table("train.csv", named)
    reversed_order = classifier(id2label={0: "pos", 1: "neg"}, label2id={"pos": 0, "neg": 1})
    assert pabee_fast("train", train, "--model", reversed_order, "--output", teacher, *learn) == 0
    taught = ["--teacher", teacher, "--alpha", "1", "--temperature", "1"]
    assert pabee_fast("train", train, "--eval", train, "--model", encoder, "--output", out, *taught, *learn) == 0
    assert pf.from_pretrained(out).config.id2label == {0: "neg", 1: "pos"}
    assert last_epoch(out)["accuracy"][-1] == 1.0


def test_rows_are_cut_at_most_where_a_familys_positions_end(
    pabee_fast: Command,
    table: Tables,
    tiny_config: Callable[..., Any],
    tokenizer: Any,
    tmp_path: Path,
    brief: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """RoBERTa's first place is its padding's number and one more: of 32 positions 31 are left."""
    model, train = tmp_path / "roberta", table("train.csv", [{"text": "good " * 60, "label": i % 2} for i in range(8)])
    AutoModelForSequenceClassification.from_config(tiny_config("roberta")).save_pretrained(model)
    tokenizer.save_pretrained(model)
    options = [train, "--model", model, *brief]
    assert pabee_fast("train", *options, "--output", tmp_path / "one", "--max-length", "32") == 2
    assert "the model takes 31 tokens" in " ".join(capsys.readouterr().err.split())
    assert pabee_fast("train", *options, "--output", tmp_path / "other", "--max-length", "31") == 0


def test_a_teacher_whose_answers_are_not_finite_is_refused(
    pabee_fast: Command,
    table: Tables,
    reviews: Rows,
    encoder: Path,
    classifier: Callable[..., Path],
    tmp_path: Path,
    brief: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier())
    with torch.no_grad():
        model.bert.pooler.dense.bias.fill_(20.0)  # so that every pooled value is 1, and their weighted sum overflows
        model.classifier.weight[0] = torch.finfo(torch.float32).max
    broken, train = tmp_path / "broken", table("train.csv", reviews)
    model.save_pretrained(broken)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(broken)
    options = ["--model", encoder, "--output", tmp_path / "out", "--teacher", broken, *brief]
    assert pabee_fast("train", train, *options) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"{len(reviews)} row(s) are not finite" in said and "train.csv" in said and "row 1" in said
    assert not (tmp_path / "out").exists()


def test_overwriting_leaves_no_shard_and_no_frontier_of_the_model_before(
    pabee_fast: Command, table: Tables, reviews: Rows, encoder: Path, tmp_path: Path, learn: list[str]
) -> None:
    train, out = table("train.csv", reviews), tmp_path / "out"
    out.mkdir()
    for name in ("model.safetensors.index.json", "model-00001-of-00002.safetensors", "notes.txt"):
        (out / name).write_text("{}")
    (out / TUNING).mkdir()
    (out / TUNING / "frontier.json").write_text("{}")
    assert pabee_fast("train", train, "--model", encoder, "--output", out, "--overwrite", *learn) == 0
    assert {file.name for file in out.iterdir() if file.name.startswith("model")} == {"model.safetensors"}
    assert (out / "notes.txt").exists() and not (out / TUNING).exists()
    assert not list(tmp_path.glob(".out.*"))


@pytest.mark.parametrize("objective", ["pabee", "self-distillation"])
def test_heads_of_another_kind_are_trained_from_a_layer_on(
    pabee_fast: Command, table: Tables, reviews: Rows, encoder: Path, tmp_path: Path, learn: list[str], objective: str
) -> None:
    train, out = table("train.csv", reviews), tmp_path / "out"
    heads = ["--head", "own-pooler", "--pooling", "mean", "--first-layer", "2", "--objective", objective]
    assert pabee_fast("train", train, "--eval", train, "--model", encoder, "--output", out, *heads, *learn) == 0
    without, *accuracies = last_epoch(out)["accuracy"]
    assert without is None
    assert len(accuracies) == 2
    assert min(accuracies) > 0.8
    assert spec_of(pf.from_pretrained(out)) == HeadSpec("own-pooler", "mean", 2)


def test_objectives_lead_to_other_models(
    pabee_fast: Command, table: Tables, reviews: Rows, encoder: Path, tmp_path: Path, brief: list[str]
) -> None:
    train, weights = table("train.csv", reviews), []
    for objective in ("pabee", "self-distillation"):
        out = tmp_path / objective
        assert pabee_fast("train", train, "--model", encoder, "--output", out, "--objective", objective, *brief) == 0
        weights.append(load_file(out / "model.safetensors")["exit_heads.0.weight"])
    assert not torch.equal(*weights)


def test_training_further_drops_what_was_fitted(
    pabee_fast: Command, table: Tables, reviews: Rows, encoder: Path, tmp_path: Path, brief: list[str]
) -> None:
    train, first, second = table("train.csv", reviews), tmp_path / "first", tmp_path / "second"
    assert pabee_fast("train", train, "--model", encoder, "--output", first, *brief) == 0
    config = json.loads((first / "config.json").read_text())
    config["pabee_fast"] |= {"fit": {"rows": 3}, "of another": "tool"}
    (first / "config.json").write_text(json.dumps(config))
    assert pabee_fast("train", train, "--model", first, "--output", second, *brief) == 0
    entry = json.loads((second / "config.json").read_text())["pabee_fast"]
    assert entry["of another"] == "tool"
    assert entry["fit"]["rows"] == len(reviews)
    assert pabee_fast("train", train, "--model", first, "--output", tmp_path / "third", "--no-fit-heads", *brief) == 0
    assert "fit" not in json.loads((tmp_path / "third" / "config.json").read_text())["pabee_fast"]


def test_labels_and_names_are_shown_as_they_are_and_steer_no_terminal(
    pabee_fast: Command,
    table: Tables,
    reviews: Rows,
    encoder: Path,
    tmp_path: Path,
    brief: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    train = table("[bold]a.jsonl", [row | {"label": ["[/x]bad", "good\x1b[31m"][row["label"]]} for row in reviews])
    out = tmp_path / "out\x1b[31m"
    assert pabee_fast("train", train, "--eval", train, "--model", encoder, "--output", out, *brief) == 0
    shown = capsys.readouterr().out
    assert r"2 classes: [/x]bad, good\x1b[31m" in shown and "[bold]a.jsonl after epoch 1" in shown
    assert shown.splitlines()[-1].endswith(r"out\x1b[31m") and "\x1b" not in shown
