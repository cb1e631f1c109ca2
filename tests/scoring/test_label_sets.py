"""Label sets that stand in a cell of text: as `score` writes them, or as JSON lists."""

import json
from pathlib import Path

import pytest
import torch

from pabee_fast.errors import InputError
from pabee_fast.scoring.answers import Answers, row_results
from pabee_fast.scoring.examples import labels_where_given, open_tables, read_examples
from pabee_fast.scoring.labels import MULTI, REGRESSION, SINGLE, Column, Labels, labels_of_column

SET = Labels(MULTI, ("a", "b", "c"))


def column(*values: str | None, is_text: bool = True) -> Column:
    return Column(values, "in.csv, column 'label'", is_text)


def put(path: Path, labels: list[str]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": "it", "label": label}) + "\n" for label in labels))
        return path
    between = "," if path.suffix == ".csv" else "\t"
    cells = ['"' + label.replace('"', '""') + '"' for label in labels]
    path.write_text("".join(f"{between.join(row)}\n" for row in [("text", "label"), *(("it", cell) for cell in cells)]))
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("labels", [["a|c", "", "b"], ['["a", "c"]', "[]", '["b"]'], ["[0,2]", "", "[1]"]])
def test_sets_in_cells_are_read_as_lists_are(suffix: str, labels: list[str], tmp_path: Path) -> None:
    path, wanted = put(tmp_path / f"in.{suffix}", labels), [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert SET.encode(read_examples(path, ["text"], "label").column) == wanted
    assert SET.encode(labels_where_given(path, open_tables(path, ["text"]), "label")) == wanted


def test_what_score_writes_of_a_set_is_read_back() -> None:
    logits = torch.tensor([[1.0, -1, 2], [-1, -1, -1], [1, 1, 1], [-1, 3, -1]])
    answers = Answers(logits, torch.ones(4, dtype=torch.int64), {})
    written = [str(row.prediction) for row in row_results(answers, SET.names, "label_set")]
    assert SET.encode(column(*written)) == (logits > 0).float().tolist()


def test_lists_of_a_0_or_1_for_every_label_may_be_cells() -> None:
    assert SET.encode(column("[0, 1, 0]", "[1, 1, 0]")) == [[0, 1, 0], [1, 1, 0]]
    assert labels_of_column(column("[0, 1, 0]", "[1, 1, 0]")).names == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_a_new_model_learns_sets_of_json_lists_unasked_and_of_joined_names_when_told() -> None:
    assert labels_of_column(column('["b", "a"]', "", '["c"]')) == SET
    assert labels_of_column(column("b|a", "", "c"), MULTI) == SET
    assert labels_of_column(column("b|a", "c"), SINGLE) == Labels(SINGLE, ("b|a", "c"))
    with pytest.raises(InputError, match=r"row 2: label 'b\|a' may be a set.*--problem-type multi_label"):
        labels_of_column(column("c", "b|a"))


def test_an_empty_cell_is_no_label_where_labels_are_no_sets() -> None:
    for labels in (Labels(SINGLE, ("a", "b")), Labels(REGRESSION)):
        with pytest.raises(InputError, match=r"row 2: no label \(''\)"):
            labels.encode(column("a" if labels.names else "1", ""))
        optional = Column(["0.0", "", "1"] if not labels.names else ["a", "", "b"], "in.csv", True, optional=True)
        assert labels.encode(optional) == [0, None, 1]


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("a|d", r"'a\|d' holds 'd', none of the model's \(a, b, c\); a set is names joined"),
        ("1", r"'1' holds '1', none of the model's.*JSON list of names or ids"),
        ("a|", r"'a\|' has a \"\|\" without a name on each side"),
        ("a|a", r"holds a label twice"),
        ("['a', 'b']", r"is no JSON list"),
        ("[" * 10_000 + "]", r"is no JSON list"),
        ('["d"]', r"'d' is none of the model's"),
        ("[3]", r"3 is out of range"),
        ("[null]", r"None is a NoneType"),
    ],
)
def test_a_cell_that_is_no_set_of_the_models_labels_is_refused_by_its_row(cell: str, told: str) -> None:
    with pytest.raises(InputError, match=r"row 2: label .*" + told):
        SET.encode(column("a", cell))


def test_a_name_that_holds_the_bar_is_matched_as_a_whole_first() -> None:
    labels = Labels(MULTI, ("x|y", "a", "[b]"))
    assert labels.encode(column("x|y", "a", '["x|y", "a"]', "[b]")) == [[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]]
    with pytest.raises(InputError, match=r"row 1: label 'a\|x\|y' holds 'x'.*own name holds .*JSON lists"):
        labels.encode(column("a|x|y"))
    with pytest.raises(InputError, match=r"row 1: label 'a\|b' is the name of a label and of a set"):
        Labels(MULTI, ("a", "b", "a|b")).encode(column("a|b"))
