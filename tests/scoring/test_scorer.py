"""The scorer: texts in, one result a row out, in input order, whatever the window and the budget."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pabee_fast as pf
from pabee_fast.runtime.budget import TOKEN_BUDGETS
from pabee_fast.scoring.tokens import NO_TOKEN
from tests import zoo
from tests.conftest import tiny_model
from tests.tolerances import assert_close

WORDS = ["a", "bad", "film", "good", "is", "long", "the", "this", "was", "very", "not", "it", ".", ",", "!"]
TEXTS = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 2 + (7 * i) % 23)) for i in range(60)]


def model_for(tokenizer: Any, **options: Any) -> Any:
    return tiny_model("bert", vocab_size=len(tokenizer), id2label={0: "bad", 1: "so-so", 2: "good"}, **options)


@pytest.fixture(scope="module")
def scorer(tiny_tokenizer: Any) -> pf.Scorer:
    return pf.Scorer(model_for(tiny_tokenizer), tiny_tokenizer, policy=pf.Patience(1))


def same(got: pf.RowResult, want: pf.RowResult) -> bool:
    return (
        (got.prediction, got.exit_layer, got.error) == (want.prediction, want.exit_layer, want.error)
        and got.scores == pytest.approx(want.scores, rel=1e-4)
    )  # fmt: skip


def test_results_equal_those_of_each_text_alone(scorer: pf.Scorer) -> None:
    results = list(scorer.score(TEXTS))
    alone = [next(scorer.score([text])) for text in TEXTS]
    assert all(map(same, results, alone))
    assert len({result.exit_layer for result in results}) > 1
    for result in results:
        assert result.scores is not None
        assert sum(result.scores) == pytest.approx(1, abs=1e-6)
        assert result.score == max(result.scores)
        assert result.prediction == ["bad", "so-so", "good"][result.scores.index(result.score)]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(window=st.integers(1, 70), budget=st.integers(48, 400), order=st.permutations(range(len(TEXTS))))
def test_results_do_not_depend_on_window_budget_or_order(
    scorer: pf.Scorer, tiny_tokenizer: Any, window: int, budget: int, order: list[int]
) -> None:
    want = list(scorer.score(TEXTS))
    other = pf.Scorer(scorer.model, tiny_tokenizer, policy=scorer.policy, window=window, token_budget=budget)
    got = list(other.score(TEXTS[i] for i in order))
    assert all(same(result, want[i]) for i, result in zip(order, got, strict=True))
    assert other.tally.rows == len(TEXTS)
    assert other.tally.exits == scorer.tally.exits


def test_rows_that_cannot_be_scored_are_kept_with_their_reason(scorer: pf.Scorer) -> None:
    half = "caf\u00e9 \ud83d"  # of an emoji, as JSON that was cut holds it
    rows: list[Any] = ["good film", None, 5, ("good", None), ("a", "b", "c"), "", ("good film", "bad")]
    rows += [half, ("good", half)]
    results = list(scorer.score(rows))
    errors = [result.error for result in results]
    assert errors[0] is errors[5] is errors[6] is None
    assert errors[1] == "the text is null"
    assert "int" in str(errors[2])
    assert errors[3] == "the text is null, not a string"
    assert "pair" in str(errors[4])
    assert errors[7] == errors[8] == "the text holds half of a surrogate pair, which is no character"
    assert [result.prediction is None for result in results] == [False, *[True] * 4, False, False, True, True]
    assert (scorer.tally.rows, scorer.tally.errors) == (9, 6)
    assert same(results[0], next(scorer.score(["good film"])))


class Frame:
    """As much of a pandas DataFrame as a loop over it meets."""

    columns = ("text", "label")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("good film", "rows is one text"),
        ({"text": ["good film"]}, "rows is a dict, which holds columns: give one of them, of texts"),
        (Frame(), "rows is a Frame, which holds columns"),
        (None, "rows is a NoneType: give a list of texts"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(scorer: pf.Scorer, rows: Any, says: str) -> None:
    with pytest.raises(pf.InputError, match=says):
        list(scorer.score(rows))


def test_a_text_without_any_token_has_an_error_and_stops_nothing(bare_tokenizer: Any) -> None:
    scorer = pf.Scorer(model_for(bare_tokenizer), bare_tokenizer, policy=pf.FixedDepth(2), max_length=12)
    results = list(scorer.score(["good film", "", None, "bad"]))
    assert [result.error for result in results] == [None, NO_TOKEN, "the text is null", None]
    assert [result.exit_layer for result in results] == [2, None, None, 2]
    assert (scorer.tally.errors, scorer.tally.failed) == (2, 0)
    scorer.policy = pf.FullDepth()
    assert [result.error for result in scorer.score([""])] == [NO_TOKEN]


def test_long_texts_are_cut_and_counted(scorer: pf.Scorer, tiny_tokenizer: Any) -> None:
    short = pf.Scorer(scorer.model, tiny_tokenizer, policy=scorer.policy, max_length=8)
    results = list(short.score(["good " * 100, "good " * 6, "good " * 7]))
    assert short.tally.truncated == 2
    assert same(results[0], results[1])


def test_a_default_token_budget_cuts_no_text(
    scorer: pf.Scorer, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = list(scorer.score(TEXTS))
    monkeypatch.setitem(TOKEN_BUDGETS, "cpu", 10)  # texts have up to 24 tokens
    other = pf.Scorer(scorer.model, tiny_tokenizer, policy=scorer.policy)
    assert other.max_length == scorer.max_length
    assert all(same(result, expected) for result, expected in zip(other.score(TEXTS), want, strict=True))


def test_logits_that_are_not_finite_mark_the_row_and_the_others_go_on(tiny_tokenizer: Any) -> None:
    model = model_for(tiny_tokenizer)
    good = tiny_tokenizer.convert_tokens_to_ids("good")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[good] = float("nan")
    scorer = pf.Scorer(model, tiny_tokenizer, policy=pf.Patience(1))
    results = list(scorer.score(["bad film", "good film", "a film"]))
    assert [result.error is None for result in results] == [True, False, True]
    assert results[1].error == "logits are not finite at layer 6"
    assert results[1].prediction is None
    assert same(results[0], next(scorer.score(["bad film"])))


def test_regression_gives_values_and_multi_label_sets(tiny_tokenizer: Any) -> None:
    vocab = len(tiny_tokenizer)
    value = pf.Scorer(tiny_model("bert", vocab_size=vocab, num_labels=1), tiny_tokenizer)
    result = next(value.score(["good film"]))
    assert isinstance(result.prediction, float)
    assert result.score is result.scores is None

    model = tiny_model("bert", vocab_size=vocab, problem_type="multi_label_classification")
    for text in ("good film", "bad", "a very long film"):
        ids = tiny_tokenizer(text, return_tensors="pt")
        members = (pf.restore(model)(ids["input_ids"]).logits[0] > 0).nonzero().flatten().tolist()
        result = next(pf.Scorer(model, tiny_tokenizer).score([text]))
        assert result.prediction == "|".join(f"LABEL_{i}" for i in members)


def test_given_exits_are_for_one_call_and_no_scorer(tiny_tokenizer: Any) -> None:
    with pytest.raises(pf.InputError, match="of the rows of one call"):
        pf.Scorer(model_for(tiny_tokenizer), tiny_tokenizer, policy=pf.Scheduled((1, 2)))


def test_the_models_own_policy_is_the_default(tiny_tokenizer: Any) -> None:
    model = pf.accelerate(model_for(tiny_tokenizer), pf.FixedDepth(2))
    assert {result.exit_layer for result in pf.Scorer(model, tiny_tokenizer).score(TEXTS)} == {2}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_length": 49}, "allow 48"),
        ({"max_length": 3}, "max_length=3"),
        ({"token_budget": 0}, "token_budget=0"),
        ({"token_budget": 20, "max_length": 30}, "allow 20"),
        ({"window": 0}, "window=0"),
        ({"policy": pf.FixedDepth(7)}, "1 to 6"),
    ],
)
def test_options_out_of_range_are_refused(tiny_tokenizer: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(pf.InputError, match=says):
        pf.Scorer(model_for(tiny_tokenizer), tiny_tokenizer, **options)


def test_a_model_in_training_mode_is_refused(tiny_tokenizer: Any) -> None:
    with pytest.raises(pf.InputError, match=r"model\.eval\(\)"):
        pf.Scorer(model_for(tiny_tokenizer).train(), tiny_tokenizer)
    scorer = pf.Scorer(model_for(tiny_tokenizer), tiny_tokenizer)
    scorer.model.train()
    with pytest.raises(pf.InputError, match=r"model\.eval\(\)"):
        list(scorer.score(TEXTS))


def test_two_calls_of_one_scorer_may_take_turns(tiny_tokenizer: Any) -> None:
    scorer = pf.Scorer(model_for(tiny_tokenizer), tiny_tokenizer, policy=pf.Patience(1), window=4)
    exits = [result.exit_layer for result in scorer.score(TEXTS[:10])]
    assert len(set(exits)) > 1
    first = scorer.score(TEXTS[:10])
    begun = [next(first).exit_layer]
    assert [result.exit_layer for result in scorer.score(TEXTS[:10])] == exits
    assert scorer.tally.rows == 10
    assert [*begun, *(result.exit_layer for result in first)] == exits


@pytest.mark.parametrize("pad", [None, 4])
def test_rows_of_a_decoder_end_where_the_tokenizer_ends_them_whether_or_not_it_has_a_padding_token(
    pad: int | None, tiny_tokenizer: Any
) -> None:
    model = zoo.stock_model("gpt2", pad_token_id=None)
    scorer = pf.Scorer(model, tiny_tokenizer, policy=pf.FullDepth())
    model.config.pad_token_id = pad
    together = [result.scores for result in scorer.score(TEXTS)]
    alone = [result.scores for text in TEXTS for result in scorer.score([text])]
    assert_close(torch.tensor(together), torch.tensor(alone))
