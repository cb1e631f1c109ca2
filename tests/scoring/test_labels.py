"""What a label column says: ids, names and values, of typed tables and of those that hold only text."""

import copy
from typing import Any

import pytest
from transformers import BertConfig, BertForSequenceClassification

from pabee_fast.errors import InputError
from pabee_fast.scoring.labels import MULTI, REGRESSION, SINGLE, Column, Labels, labels_of_column, labels_of_config
from pabee_fast.scoring.teacher import in_order_of

TINY = BertConfig(
    vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=3
)
STARS = Labels(SINGLE, ("1", "2", "3", "4", "5"))
SET = Labels(MULTI, ("a", "b", "c"))


def column(*values: Any, is_text: bool = False) -> Column:
    return Column(values, "in.csv, column 'label'", is_text)


@pytest.mark.parametrize("is_text", [True, False])
def test_strings_that_are_all_names_are_names_whatever_they_look_like(is_text: bool) -> None:
    assert STARS.encode(column("1", "4", None, "2", is_text=is_text)) == [0, 3, None, 1]
    assert Labels(SINGLE, ("1", "0")).encode(column("1", "0", "1", is_text=is_text)) == [0, 1, 0]


def test_strings_of_a_text_column_are_ids_where_they_are_no_names() -> None:
    assert STARS.encode(column("0", "4", is_text=True)) == [0, 4]
    assert Labels(SINGLE, ("bad", "good")).encode(column("1", "0", is_text=True)) == [1, 0]
    assert Labels(REGRESSION).encode(column("1", "0.5", None, is_text=True)) == [1.0, 0.5, None]
    with pytest.raises(InputError, match="row 1: label '0' is none of the model's"):
        STARS.encode(column("0"))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_number_that_is_not_finite_is_no_label(value: str) -> None:
    with pytest.raises(InputError, match=r"row 2: no label"):
        Labels(REGRESSION).encode(column("1.5", value, is_text=True))
    with pytest.raises(InputError, match=r"row 2: no label"):
        labels_of_column(column(0.5, float(value)))


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([[0, 1, 0], [1, 1, 1], [0, 0, 0]], [[0, 1, 0], [1, 1, 1], [0, 0, 0]]),
        ([[0.0, 1.0, 0.0], None, [True, False, True]], [[0, 1, 0], None, [1, 0, 1]]),
        ([[0, 1], [2], []], [[1, 1, 0], [0, 0, 1], [0, 0, 0]]),
        ([["c", "a"], ["b"]], [[1, 0, 1], [0, 1, 0]]),
    ],
)
def test_label_sets_are_lists_of_ids_of_names_or_of_a_0_or_1_for_every_label(values: Any, wanted: Any) -> None:
    assert SET.encode(column(*values)) == wanted


def test_a_label_set_that_could_be_neither_is_refused() -> None:
    with pytest.raises(InputError, match=r"row 1: label \[0, 1, 0\] holds a label twice.*each of the 3 labels"):
        SET.encode(column([0, 1, 0], [0, 0]))


def test_lists_of_0_and_1_give_a_new_model_a_label_for_every_place() -> None:
    assert labels_of_column(column([0, 1, 0], [1, 0, 0])) == Labels(MULTI, ("LABEL_0", "LABEL_1", "LABEL_2"))
    assert labels_of_column(column([0], [1], [0])) == Labels(MULTI, ("LABEL_0", "LABEL_1"))
    assert labels_of_column(column([0, 2], [1])) == Labels(MULTI, ("LABEL_0", "LABEL_1", "LABEL_2"))


@pytest.mark.parametrize("values", [[{"a": 1}, {"a": 2}], [[{"a": 1}], [{"b": 1}]]])
def test_what_is_neither_number_nor_name_is_refused(values: Any) -> None:
    with pytest.raises(InputError, match="a dict"):
        labels_of_column(column(*values))
    with pytest.raises(InputError, match=r"row 1: label .* is a dict"):
        (SET if isinstance(values[0], list) else STARS).encode(column(*values))


@pytest.mark.parametrize("given", [[1, 4], [1.0, 4.0], [5, 4, 2]])
def test_numbers_that_are_names_of_some_labels_and_ids_of_others_are_refused(given: list[Any]) -> None:
    with pytest.raises(InputError, match=r"are names of the model's labels and ids of others.*as strings"):
        STARS.encode(column(*given))
    names = [str(int(number)) for number in given]
    for is_text in (True, False):
        assert STARS.encode(column(*names, is_text=is_text)) == [int(number) - 1 for number in given]
    assert STARS.encode(column(0, 4)) == [0, 4]  # no name is 0, so these are ids


def test_names_that_are_digits_in_the_order_of_strings_are_not_read_as_ids_where_one_agrees() -> None:
    digits = Labels(SINGLE, tuple(sorted(map(str, range(11)))))  # 0, 1, 10, 2, ...
    with pytest.raises(InputError, match="names of the model's labels and ids of others"):
        digits.encode(column(0, 1, 2, 10))
    assert digits.encode(column("0", "1", "10", "2")) == [0, 1, 2, 3]


def test_names_of_a_config_are_strings_one_for_every_label() -> None:
    config = BertConfig(id2label={0: 1, 1: 2, 2: None}, label2id={})
    assert labels_of_config(config).names == ("1", "2", "None")
    with pytest.raises(InputError, match=r"names 0, 1, 5, and no label 2: number its 3 labels from 0"):
        labels_of_config(BertConfig(id2label={0: "a", 1: "b", 5: "c"}, label2id={}))


def test_labels_of_one_name_are_told_by_their_ids_alone() -> None:
    twice = Labels(SINGLE, ("a", "b", "a"))
    assert twice.encode(column(2, 1, 0)) == [2, 1, 0] and twice.encode(column("b")) == [1]
    with pytest.raises(InputError, match="row 2: several of the model's labels are called 'a'; give ids"):
        twice.encode(column("b", "a"))
    own, other = BertForSequenceClassification(TINY), BertForSequenceClassification(TINY)
    own.config.id2label = other.config.id2label = {0: "a", 1: "b", 2: "a"}
    assert in_order_of(labels_of_config(own.config), other) == [0, 1, 2]
    other.config = copy.deepcopy(other.config)
    other.config.id2label = {0: "b", 1: "a", 2: "a"}
    with pytest.raises(InputError, match="labels of one name cannot be told apart"):
        in_order_of(labels_of_config(own.config), other)


def test_numbers_that_are_both_the_name_and_the_id_of_a_label_are_taken() -> None:
    assert Labels(SINGLE, ("0", "1")).encode(column(1, 0)) == [1, 0]


def test_whole_numbers_written_with_a_point_are_no_regression_without_a_word() -> None:
    with pytest.raises(InputError, match=r"0.0, 1.0, and nothing between: .*problem-type single_label.* or regression"):
        labels_of_column(column(0.0, 1.0, 1.0))
    assert labels_of_column(column(0.0, 1.0, 1.0), REGRESSION) == Labels(REGRESSION)
    assert labels_of_column(column(0.0, 1.0, 1.0), SINGLE).names == ("LABEL_0", "LABEL_1")
    assert labels_of_column(column(0.0, 0.5, 1.0)) == Labels(REGRESSION)
    assert labels_of_column(column(*map(float, range(30)))) == Labels(REGRESSION)


def test_labels_say_what_they_are() -> None:
    assert str(Labels(REGRESSION)) == "a number (regression)"
    assert str(Labels(SINGLE, ("bad", "good"))) == "2 classes: bad, good"
    assert str(Labels(MULTI, tuple("abcdefghij"))).endswith("a set: a, b, c, d, e, f, g, h, ...")


def test_names_that_are_given_order_names_and_call_numbers() -> None:
    names = ("good", "bad", "other")
    for values, problem_type, wanted in (
        (["bad", "good"], SINGLE, [1, 0]),
        ([0, 2], SINGLE, [0, 2]),
        ([["other"], ["bad", "good"]], MULTI, [[0, 0, 1], [1, 1, 0]]),
        ([[2], [0, 1]], MULTI, [[0, 0, 1], [1, 1, 0]]),
        ([[0, 0, 1], [1, 1, 0]], MULTI, [[0, 0, 1], [1, 1, 0]]),
    ):
        labels = labels_of_column(column(*values), None, names)
        assert labels == Labels(problem_type, names)
        assert labels.encode(column(*values)) == wanted
    assert labels_of_column(column("2", "0", is_text=True), None, names).encode(column("2", is_text=True)) == [2]
    assert labels_of_column(column("bad|good", "", is_text=True), MULTI, names) == Labels(MULTI, names)
    assert labels_of_column(column("a|b", "c"), None, ("a|b", "c")) == Labels(SINGLE, ("a|b", "c"))
    with pytest.raises(InputError, match="row 2: label 'bed' is none of the model's"):
        labels_of_column(column("bad", "bed"), None, names).encode(column("bad", "bed"))
    with pytest.raises(InputError, match=r"label names are given .*regression has no labels"):
        labels_of_column(column(0.5, 0.1), REGRESSION, names)
