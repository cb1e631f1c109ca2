"""What `pabee-fast train` refuses: one line on stderr, exit status 2, and what to do instead."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

Command = Callable[..., int]
Tables = Callable[..., Path]
Rows = list[dict[str, Any]]


@pytest.fixture
def refused(
    pabee_fast: Command, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs the command, which must fail without writing anything, and returns its message."""

    def run(table: Path | str, *options: Any, model: Path | None = None) -> str:
        words = [
            "train",
            table,
            "--model",
            model or encoder,
            "--output",
            tmp_path / "out",
            "--max-length",
            16,
            *options,
        ]
        capsys.readouterr()
        assert pabee_fast(*words) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert not (tmp_path / "out" / "config.json").exists()
        return lines[0]

    return run


def test_missing_columns_are_named_with_those_there_are(
    refused: Callable[..., str], table: Tables, reviews: Rows
) -> None:
    train = table("train.csv", reviews)
    for option, name in (("--text-column", "body"), ("--text-pair-column", "body"), ("--label-column", "stars")):
        message = refused(train, option, name)
        assert name in message
        assert "text" in message and "label" in message


def test_a_column_of_one_class_is_refused(refused: Callable[..., str], table: Tables, reviews: Rows) -> None:
    assert "1 class" in refused(table("train.csv", reviews[::2]))


def test_class_ids_with_gaps_are_refused(refused: Callable[..., str], table: Tables) -> None:
    rows = [{"text": "a film", "label": stars} for stars in (1, 3, 5)]
    assert "1, 3, 5" in refused(table("train.csv", rows))


def test_labels_of_several_kinds_are_refused(refused: Callable[..., str], table: Tables) -> None:
    rows = [{"text": "a", "label": ["good"]}, {"text": "b", "label": []}, {"text": "c", "label": None}]
    assert "row 3: no label" in refused(table("train.jsonl", rows))


def test_a_label_written_as_a_number_and_as_a_string_is_refused(
    refused: Callable[..., str], table: Tables, reviews: Rows, tmp_path: Path
) -> None:
    (parts := tmp_path / "parts").mkdir()
    for name, kind in (("a", int), ("b", str)):
        rows = [row | {"label": kind(row["label"])} for row in reviews]
        table(f"{name}.jsonl", rows).rename(parts / f"{name}.jsonl")
    for place in (parts, table("mixed.jsonl", [*reviews, {"text": "a film", "label": "1"}])):
        assert "holds values of several types" in refused(place)


def test_a_row_without_label_is_named(refused: Callable[..., str], table: Tables, reviews: Rows) -> None:
    for name, nothing in (("train.jsonl", None), ("train.csv", "")):
        rows = [*reviews[:4], {"text": "it", "label": nothing}, *reviews[4:]]
        assert "row 5: no label" in refused(table(name, rows))


def test_a_label_that_is_not_a_number_value_is_named(refused: Callable[..., str], table: Tables) -> None:
    rows = [{"text": "a", "label": 0.5}, {"text": "b", "label": float("nan")}]
    assert "row 2: no label" in refused(table("train.parquet", rows))


def test_a_row_that_cannot_be_read_is_named(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("text,label\ngood,1\nbad,0,7\n")
    assert "row 2: line 3 has 3 fields" in refused(path)


def test_an_empty_table_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("text,label\n")
    assert "no rows" in refused(path)


def test_an_unset_variable_names_no_directory(refused: Callable[..., str], table: Tables, reviews: Rows) -> None:
    assert "an input is empty" in refused("")
    assert "an input is empty" in refused(table("train.csv", reviews), "--eval", "")


def test_a_label_is_named_by_its_file_and_its_row_there(
    refused: Callable[..., str], table: Tables, reviews: Rows, tmp_path: Path
) -> None:
    (parts := tmp_path / "parts").mkdir()
    for name, rows in (("a", reviews[:50]), ("b", [*reviews[50:56], {"text": "a film", "label": 7}])):
        table(f"{name}.jsonl", rows).rename(parts / f"{name}.jsonl")
    assert "0, 1, 7" in refused(parts)
    message = refused(table("train.jsonl", reviews), "--eval", parts)
    assert f"{parts / 'b.jsonl'}, column 'label', row 7: label 7 is out of range" in message


def test_an_output_that_has_files_is_kept(
    refused: Callable[..., str], table: Tables, reviews: Rows, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert "--overwrite" in refused(table("train.csv", reviews))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_an_output_that_is_a_file_is_kept(
    refused: Callable[..., str], table: Tables, reviews: Rows, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("mine")
    assert "is a file" in refused(table("train.csv", reviews), "--overwrite")


def test_labels_outside_the_models_are_refused(
    refused: Callable[..., str], table: Tables, reviews: Rows, classifier: Callable[..., Path]
) -> None:
    start = classifier(id2label={0: "neg", 1: "pos"}, label2id={"neg": 0, "pos": 1})
    rows = [*reviews, {"text": "it", "label": 2}]
    assert f"row {len(rows)}: label 2 is out of range" in refused(table("train.csv", rows), model=start)
    named = [{"text": row["text"], "label": "neutral"} for row in reviews]
    assert "row 1: label 'neutral' is none of the model's (neg, pos)" in refused(table("n.csv", named), model=start)
    floats = [{"text": row["text"], "label": row["label"] / 2} for row in reviews]
    assert "label 0.5 is not a whole number" in refused(table("f.csv", floats), model=start)


def test_labels_of_the_evaluation_table_are_checked_before_training(
    refused: Callable[..., str], table: Tables, reviews: Rows
) -> None:
    held_out = table("eval.csv", [{"text": "it", "label": 7}])
    assert "eval.csv" in refused(table("train.csv", reviews), "--eval", held_out)


def test_another_problem_than_a_classifiers_own_is_refused(
    refused: Callable[..., str], table: Tables, reviews: Rows, classifier: Callable[..., Path]
) -> None:
    train = table("train.csv", reviews)
    assert "classifier already" in refused(train, "--problem-type", "regression", model=classifier())
    assert "give one of single_label" in refused(train, "--problem-type", "ranking")


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--epochs", 0, "epochs=0"),
        ("--batch-size", 0, "batch_size=0"),
        ("--accumulate", 0, "accumulate=0"),
        ("--learning-rate", -1, "learning_rate=-1"),
        ("--learning-rate", "nan", "learning_rate=nan"),
        ("--temperature", 0, "temperature=0.0: it is about a teacher's answers"),
        ("--alpha", 0.3, "alpha=0.3: it is about a teacher's answers"),
        ("--warmup", 2, "warmup=2"),
        ("--weight-decay", -1, "weight_decay=-1"),
        ("--schedule", "steps", "schedule='steps'"),
        ("--objective", "joint", "objective='joint'"),
        ("--head", "mlp", "head='mlp'"),
        ("--pooling", "max", "pooling='max'"),
        ("--first-layer", 9, "first_layer=9"),
        ("--max-length", 99, "max_length=99"),
    ],
)
def test_settings_out_of_range_are_named(
    refused: Callable[..., str], table: Tables, reviews: Rows, option: str, value: Any, named: str
) -> None:
    assert named in refused(table("train.csv", reviews), option, value)


def test_heads_that_are_there_are_not_exchanged(
    refused: Callable[..., str], table: Tables, reviews: Rows, pabee_fast: Command, encoder: Path, tmp_path: Path,
    brief: list[str],
) -> None:  # fmt: skip
    train, first = table("train.csv", reviews), tmp_path / "first"
    assert pabee_fast("train", train, "--model", encoder, "--output", first, "--head", "linear", *brief) == 0
    assert "head='pabee'" in refused(train, "--head", "pabee", model=first)
    assert "has heads of first_layer 1 already" in refused(train, "--first-layer", 2, model=first)


def test_a_model_that_is_not_there_is_named(
    refused: Callable[..., str], table: Tables, reviews: Rows, tmp_path: Path
) -> None:
    train = table("train.csv", reviews)
    assert "nowhere cannot be loaded" in refused(train, model=tmp_path / "nowhere")
    assert "teacher" in refused(train, "--teacher", tmp_path / "nowhere")


def test_a_teacher_of_other_labels_is_refused(
    refused: Callable[..., str], table: Tables, reviews: Rows, classifier: Callable[..., Path]
) -> None:
    train = table("train.csv", reviews)
    assert "of 3 output(s)" in refused(train, "--teacher", classifier("three", num_labels=3))
    names = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}
    named = [{"text": row["text"], "label": "pos" if row["label"] else "neg"} for row in reviews]
    assert "cat, dog" in refused(table("named.csv", named), "--teacher", classifier("animals", **names))


def test_a_teacher_without_a_classifier_is_refused(
    refused: Callable[..., str], table: Tables, reviews: Rows, encoder: Path
) -> None:
    message = refused(table("train.csv", reviews), "--teacher", encoder)
    assert "teacher=" in message and "lacks classifier.bias, classifier.weight" in message


def test_a_classifier_or_an_encoder_that_lacks_weights_is_refused(
    refused: Callable[..., str], table: Tables, reviews: Rows, encoder: Path, classifier: Callable[..., Path]
) -> None:
    train = table("train.csv", reviews)
    for model, name in ((classifier(), "classifier.bias"), (encoder, "encoder.layer.1.output.dense.weight")):
        weights = load_file(model / "model.safetensors")
        del weights[name]
        save_file(weights, model / "model.safetensors", {"format": "pt"})
        assert f"{name}, and chance would stand in their place" in refused(train, model=model)


def test_a_tokenizer_with_tokens_beyond_the_embeddings_is_refused(
    refused: Callable[..., str], table: Tables, reviews: Rows, encoder: Path, tokenizer: Any
) -> None:
    tokenizer.add_tokens(["@user"])
    tokenizer.save_pretrained(encoder)
    assert "model.resize_token_embeddings(len(tokenizer))" in refused(table("train.csv", reviews))


def test_without_accelerate_the_extra_is_named(
    refused: Callable[..., str], table: Tables, reviews: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, find = table("train.csv", reviews), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "accelerate" else find(name))
    assert "pip install 'pabee-fast[train]'" in refused(train)


def test_an_output_whose_name_is_not_utf8_is_refused_before_anything_is_read(refused: Callable[..., str]) -> None:
    assert r"out\udcff: the name is not UTF-8" in refused("absent.csv", "--output", "out\udcff")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--label-names", "bad"], "label_names='bad': give two or more names that differ"),
        (["--label-names", "bad,bad"], "give two or more names that differ"),
        (["--label-names", "bad,"], "give two or more names that differ"),
        (["--label-names", "a,b", "--problem-type", "regression"], "regression has no labels"),
        (["--label-names", "good"], "give two or more"),
    ],
)
def test_label_names_that_name_no_labels_are_refused(
    options: list[str], told: str, refused: Callable[..., str], table: Tables, reviews: Rows
) -> None:
    assert told in refused(table("train.csv", reviews), *options)
