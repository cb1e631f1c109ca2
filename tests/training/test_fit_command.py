"""`pabee-fast fit`, from a table and a classifier to a model directory with heads."""

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
from pabee_fast.models.heads import spec_of
from tests.tolerances import assert_close

Command = Callable[..., int]
Tables = Callable[..., Path]
Classifier = Callable[..., Path]
Rows = list[dict[str, Any]]


def entry(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["pabee_fast"]


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_a_classifier_gets_exits_and_keeps_its_weights(
    pabee_fast: Command,
    table: Tables,
    reviews: Rows,
    classifier: Classifier,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stored: str,
) -> None:
    start, out = classifier(), tmp_path / "new" / "out"
    AutoModelForSequenceClassification.from_pretrained(start, dtype=getattr(torch, stored)).save_pretrained(start)
    heads = ["--head", "own-pooler", "--pooling", "first", "--first-layer", 2, "--dtype", "float32"]
    assert pabee_fast("fit", table("texts.csv", reviews), "--model", start, "--output", out, *heads) == 0
    before, after = load_file(start / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {tensor.dtype for tensor in after.values()} == {getattr(torch, stored)}
    assert list(out.parent.iterdir()) == [out]
    shown = capsys.readouterr().out
    assert "held-out 10 of 96 rows" in shown
    assert "rows/s" in shown

    ours = pf.from_pretrained(out, dtype=torch.float32)
    assert spec_of(ours) == HeadSpec("own-pooler", "first", 2)
    assert entry(out)["fit"]["rows"] == 96
    batch = AutoTokenizer.from_pretrained(out)([row["text"] for row in reviews], padding=True, return_tensors="pt")
    stock = AutoModelForSequenceClassification.from_pretrained(start, dtype=torch.float32)
    assert_close(ours(**batch).logits, stock(**batch).logits)
    assert pf.accelerate(ours, pf.FixedDepth(2))(**batch).logits.shape == (96, 2)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_texts_in_a_directory_or_under_a_glob_count_as_one_table(
    pabee_fast: Command, table: Tables, reviews: Rows, classifier: Classifier, tmp_path: Path, suffix: str
) -> None:
    start, parts = classifier(), tmp_path / "parts"
    parts.mkdir()
    for name, rows in (("a", reviews[:40]), ("b", reviews[40:])):
        table(f"{name}.{suffix}", rows).rename(parts / f"{name}.{suffix}")
    fitted = []
    for i, place in enumerate((table(f"whole.{suffix}", reviews), parts, parts / "*")):
        out = tmp_path / f"out{i}"
        assert pabee_fast("fit", place, "--model", start, "--output", out, "--label-column", "label") == 0
        fitted.append(entry(out))
    assert fitted[0] == fitted[1] == fitted[2]
    assert fitted[0]["fit"]["labelled"] == len(reviews)


@pytest.mark.parametrize("name", ["texts.csv", "texts.jsonl", "texts.parquet"])
def test_labels_count_where_rows_have_one_and_broken_rows_are_left_out(
    pabee_fast: Command,
    table: Tables,
    reviews: Rows,
    classifier: Classifier,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    nothing: list[str | None] = ["", "nan"] if name.endswith("csv") else [None, None]
    rows = [{**row, "label": row["label"] if i < 40 else nothing[i % 2]} for i, row in enumerate(reviews)]
    broken = 0 if name.endswith("csv") else 2
    rows += [{"text": None, "label": 1}] * broken
    out = tmp_path / "out"
    options = ["--label-column", "label", "--first-layer", 2]
    assert pabee_fast("fit", table(name, rows), "--model", classifier(), "--output", out, *options) == 0
    assert (entry(out)["fit"]["rows"], entry(out)["fit"]["labelled"]) == (96, 40)
    shown = capsys.readouterr().out
    assert "40 rows had a label" in shown
    assert ("2 rows without a text" in shown) == bool(broken)


def test_heads_keep_their_precision_whatever_the_texts_ran_in(
    pabee_fast: Command, table: Tables, reviews: Rows, classifier: Classifier, tmp_path: Path
) -> None:
    start, out = classifier(), tmp_path / "out"
    words = ["--model", start, "--output", out, "--dtype", "bfloat16"]
    assert pabee_fast("fit", table("texts.csv", reviews), *words) == 0
    ours = pf.from_pretrained(out)
    weights = [head.weight for head in ours.exit_heads]
    assert all(weight.dtype == torch.float32 for weight in weights)
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in weights)


def test_names_pairs_and_regressions_are_fitted(
    pabee_fast: Command, table: Tables, reviews: Rows, classifier: Classifier, tmp_path: Path
) -> None:
    named = [{"a": row["text"], "b": "film", "label": "pos" if row["label"] else "neg"} for row in reviews]
    start = classifier(id2label={0: "neg", 1: "pos"}, label2id={"neg": 0, "pos": 1})
    out, columns = tmp_path / "out", ["--text-column", "a", "--text-pair-column", "b", "--label-column", "label"]
    assert pabee_fast("fit", table("n.jsonl", named), "--model", start, "--output", out, *columns) == 0
    assert entry(out)["fit"]["labelled"] == 96

    value, out = classifier("value", num_labels=1), tmp_path / "value-out"
    scored = [{"text": row["text"], "label": row["label"] / 3} for row in reviews]
    words = ["fit", table("v.csv", scored), "--model", value, "--output", out, "--label-column", "label"]
    assert pabee_fast(*words) == 0
    assert entry(out)["fit"]["heads"][0].keys() == {"layer", "scale", "shift", "difference"}


def test_heads_of_a_directory_are_replaced_and_its_guarantee_goes(
    pabee_fast: Command, table: Tables, reviews: Rows, classifier: Classifier, tmp_path: Path
) -> None:
    rows, first, second = table("texts.csv", reviews), tmp_path / "first", tmp_path / "second"
    assert pabee_fast("fit", rows, "--model", classifier(), "--output", first, "--head", "pabee") == 0
    config = json.loads((first / "config.json").read_text())
    config["pabee_fast"]["guarantee"] = {"risk": 0.01}
    (first / "config.json").write_text(json.dumps(config))
    assert pabee_fast("fit", rows, "--model", first, "--output", second, "--head", "linear") == 0
    assert (entry(second)["head"], entry(second)["pooling"]) == ("linear", "mean")
    assert "guarantee" not in entry(second)


def test_what_cannot_be_fitted_is_refused_in_one_line(
    pabee_fast: Command,
    table: Tables,
    reviews: Rows,
    classifier: Classifier,
    encoder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start, rows, taken = classifier(), table("texts.csv", reviews), tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")

    def refused(*words: Any, model: Path = start, output: Path = tmp_path / "out") -> str:
        capsys.readouterr()
        assert pabee_fast("fit", *words, "--model", model, "--output", output) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert not (tmp_path / "out").exists()
        return line

    assert "is no fine-tuned classifier (BertModel)" in refused(rows, model=encoder)
    assert "cannot be loaded" in refused(rows, model=tmp_path / "nowhere")
    assert "--overwrite" in refused(rows, output=taken)
    assert f"seed={2**64}: give a whole number" in refused(rows, "--seed", 2**64)
    assert "no column 'body'" in refused(rows, "--text-column", "body")
    assert "no label column 'stars'" in refused(rows, "--label-column", "stars")
    one_class = table("one.csv", [row for row in reviews if row["label"]])
    assert "all 1: heads need two classes" in refused(one_class, "--label-column", "label")
    outside = table("outside.csv", [*reviews, {"text": "it", "label": 7}])
    assert "row 97: label 7 is out of range" in refused(outside, "--label-column", "label")
    assert "0 row(s) to fit by" in refused(table("empty.jsonl", [{"text": None}]))
    assert "1 row(s) to fit by" in refused(table("single.csv", reviews[:1]))
