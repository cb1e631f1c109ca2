"""Numbers that a table's own schema names, as Hugging Face's datasets write it, are taken by those names."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pabee_fast.errors import InputError
from pabee_fast.scoring.examples import labels_where_given, open_tables, read_examples
from pabee_fast.scoring.labels import MULTI, REGRESSION, SINGLE, Column, Labels, labels_of_column

MODEL = Labels(SINGLE, ("contradiction", "neutral", "entailment"))
TABLE = ("entailment", "neutral", "contradiction")


def put_named(path: Path, labels: Sequence[Any], feature: Any) -> Path:
    """A parquet file whose schema says of the column `label` what datasets would."""
    table = pa.table({"text": ["good"] * len(labels), "label": labels})
    said = {"info": {"features": {"text": {"dtype": "string", "_type": "Value"}, "label": feature}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(said)}), path)
    return path


def class_label(names: Sequence[str]) -> dict[str, Any]:
    return {"names": list(names), "_type": "ClassLabel"}


def column_of(path: Path) -> Column:
    return read_examples(path, ["text"], "label").column


def test_numbers_are_taken_by_the_tables_names_whatever_their_order_in_the_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    column = column_of(put_named(tmp_path / "in.parquet", [0, 1, 2, 0], class_label(TABLE)))
    assert MODEL.encode(column) == [2, 1, 0, 2]
    assert "column 'label': its numbers are taken by the names that the table gives them (entailment," in caplog.text
    caplog.clear()
    same = column_of(put_named(tmp_path / "in.parquet", [0, 1], class_label(MODEL.names)))
    assert MODEL.encode(same) == [0, 1] and not caplog.messages
    sets = put_named(tmp_path / "sets.parquet", [[0, 1], [2], []], {"feature": class_label(TABLE), "_type": "List"})
    assert Labels(MULTI, MODEL.names).encode(column_of(sets)) == [[0, 1, 1], [1, 0, 0], [0, 0, 0]]


def test_what_datasets_itself_writes_is_understood(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kinds = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(TABLE))}
    whole = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 2]}, features=datasets.Features(kinds))
    whole.to_parquet(tmp_path / "in.parquet")
    whole.save_to_disk(tmp_path / "saved")
    for place in (tmp_path / "in.parquet", tmp_path / "saved"):
        assert MODEL.encode(column_of(place)) == [2, 0]


@pytest.mark.parametrize("names", [("LABEL_0", "LABEL_1", "LABEL_2"), ("0", "1", "2")])
def test_numbers_stay_where_the_models_labels_have_no_names(names: tuple[str, ...], tmp_path: Path) -> None:
    column = column_of(put_named(tmp_path / "in.parquet", [0, 1, 2], class_label(TABLE)))
    assert Labels(SINGLE, names).encode(column) == [0, 1, 2]
    assert Labels(REGRESSION).encode(column) == [0.0, 1.0, 2.0]


def test_numbers_stay_where_the_table_calls_them_by_themselves(tmp_path: Path) -> None:
    column = column_of(put_named(tmp_path / "in.parquet", [0, 1, 2], class_label("012")))
    assert column.names == () and MODEL.encode(column) == [0, 1, 2]


@pytest.mark.parametrize(
    "feature", [None, 7, {}, {"names": "ab"}, {"names": [1, 2]}, {"feature": None}, {"_type": "Value"}]
)
def test_a_schema_that_names_nothing_changes_nothing(feature: Any, tmp_path: Path) -> None:
    column = column_of(put_named(tmp_path / "in.parquet", [0, 1], feature))
    assert column.names == () and MODEL.encode(column) == [0, 1]


def test_a_name_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    column = column_of(put_named(tmp_path / "in.parquet", [1, 0], class_label(["POSITIVE", "neutral"])))
    with pytest.raises(InputError, match=r"column 'label', row 2: label 0 is called 'POSITIVE' by the table, and the"):
        MODEL.encode(column)


@pytest.mark.parametrize("beyond", [3, -1])
def test_a_number_beyond_the_names_is_refused(beyond: int, tmp_path: Path) -> None:
    column = column_of(put_named(tmp_path / "in.parquet", [1, beyond], class_label(TABLE)))
    for labels in (MODEL, labels_of_column(column)):
        with pytest.raises(InputError, match=rf"row 2: label {beyond} has no name among the table's own"):
            labels.encode(column)


@pytest.mark.parametrize("other", [class_label(MODEL.names), {"dtype": "int64", "_type": "Value"}])
def test_files_of_one_input_that_name_their_numbers_differently_are_refused(other: Any, tmp_path: Path) -> None:
    put_named(tmp_path / "a.parquet", [0, 1], class_label(TABLE))
    put_named(tmp_path / "b.parquet", [0, 1], other)
    with pytest.raises(
        InputError, match=r"a.parquet names its numbers entailment, .*b.parquet .* must name them alike"
    ):
        read_examples(tmp_path, ["text"], "label")
    assert read_examples(tmp_path, ["text"], None).texts


def test_a_row_without_a_class_has_no_label_where_labels_are_optional(tmp_path: Path) -> None:
    path = put_named(tmp_path / "in.parquet", [0, -1, 2], class_label(TABLE))
    column = labels_where_given(path, open_tables(path, ["text"]), "label")
    assert MODEL.encode(column) == [2, None, 0]


def test_a_new_model_takes_the_tables_names_in_their_order(tmp_path: Path) -> None:
    column = column_of(put_named(tmp_path / "in.parquet", [2, 0], class_label(TABLE)))
    labels = labels_of_column(column)
    assert labels == Labels(SINGLE, TABLE) and labels.encode(column) == [2, 0]
    assert labels_of_column(column, REGRESSION) == Labels(REGRESSION)
    for feature in ({"feature": class_label(TABLE), "_type": "List"}, [class_label(TABLE)]):
        sets = column_of(put_named(tmp_path / "in.parquet", [[0, 1], [1, 0]], feature))
        assert labels_of_column(sets) == Labels(MULTI, TABLE)  # so these are ids, and no 0 or 1 for every label
        assert labels_of_column(sets).encode(sets) == [[1, 1, 0], [1, 1, 0]]


def test_training_evaluates_a_table_of_another_order_by_its_names(
    pabee_fast: Callable[..., int],
    encoder: Path,
    table: Callable[..., Path],
    reviews: list[dict[str, Any]],
    learn: list[str],
    tmp_path: Path,
) -> None:
    named = [row | {"label": ["bad", "good"][row["label"]]} for row in reviews]
    train, dev = table("train.csv", named), tmp_path / "dev.parquet"
    put_named(dev, [1 - row["label"] for row in reviews], class_label(["good", "bad"]))
    swapped = pq.read_table(dev)
    texts = pa.array([row["text"] for row in reviews])
    pq.write_table(swapped.set_column(0, "text", texts), dev)
    assert pabee_fast("train", train, "--eval", dev, "--model", encoder, "--output", tmp_path / "out", *learn) == 0
    last = json.loads((tmp_path / "out" / "training.json").read_text())["epochs"][-1]
    assert last["accuracy"][-1] > 0.9
