"""Long texts that are read whole: the mean of their stretches' logits, their largest exit layer, order and counts."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

import pabee_fast as pf
from pabee_fast.scoring.stretches import mean_of, most_of, places_of, sum_of
from tests.conftest import tiny_model, tiny_stock
from tests.scoring.test_scorer import TEXTS, WORDS, model_for, same
from tests.tolerances import assert_close

LIMIT, STRIDE = 12, 4
LONG = [" ".join(WORDS[(i * k * k + k) % len(WORDS)] for k in range(1, 8 + 9 * i)) for i in range(6)]


@pytest.fixture
def made(tiny_tokenizer: Any) -> Callable[..., pf.Scorer]:
    """A scorer that reads stretches of LIMIT tokens."""
    model = model_for(tiny_tokenizer)

    def make(policy: pf.Policy | None = None, **options: Any) -> pf.Scorer:
        return pf.Scorer(
            model, tiny_tokenizer, policy=policy or pf.Patience(1), max_length=LIMIT, **{"stride": STRIDE} | options
        )

    return make


def by_hand(tokenizer: Any, text: str) -> list[str]:
    """The stretches of a text as texts: transformers' own windows, decoded."""
    windows = tokenizer(text, truncation=True, max_length=LIMIT, stride=STRIDE, return_overflowing_tokens=True)
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in windows["input_ids"]]


def test_a_text_has_the_mean_of_its_stretches_logits_and_their_largest_exit_layer(
    made: Callable[..., pf.Scorer], tiny_tokenizer: Any
) -> None:
    for policy in (pf.Patience(1), pf.FullDepth()):
        whole = made(policy)
        alone = pf.Scorer(whole.model, tiny_tokenizer, policy=policy)
        for text, found in zip(LONG, whole.score(LONG), strict=True):
            stretches = by_hand(tiny_tokenizer, text)
            batch = alone.batch(stretches)
            each = alone.run(batch, policy)
            assert found.exit_layer == int(each.exit_layers.max())
            assert_close(torch.tensor(found.scores), each.logits.mean(dim=0).softmax(dim=0))
    assert len(stretches) > 5


def test_texts_that_fit_are_answered_as_without_a_stride(made: Callable[..., pf.Scorer]) -> None:
    short = [text for text in TEXTS if len(text.split()) <= LIMIT - 2]
    assert len(short) > 20
    whole = made()
    assert all(map(same, whole.score(short), made(stride=None).score(short)))
    assert (whole.tally.long, whole.tally.stretches, whole.tally.truncated) == (0, 0, 0)


@pytest.mark.parametrize("options", [{"window": 3}, {"token_budget": 13}, {"tokenizers": 2}])
def test_order_and_counts_hold_whatever_the_window_the_budget_and_what_tokenizes(
    options: dict[str, Any], made: Callable[..., pf.Scorer]
) -> None:
    rows = [LONG[5], "good film", None, LONG[2], "", LONG[0], LONG[4]]
    other = made(**options)
    try:
        found = list(other.score(rows))
    finally:
        other.close()
    assert all(
        map(same, [one for one in found if one.error is None], (next(made().score([r])) for r in rows if r is not None))
    )
    assert [one.error for one in found] == [None, None, "the text is null", None, None, None, None]
    tally = other.tally
    assert (tally.rows, tally.errors, tally.truncated, tally.long) == (7, 1, 0, 3)
    assert tally.exits.total() == 6
    assert tally.stretches == sum(len(by_hand(other.tokenizer, text)) for text in (LONG[5], LONG[2], LONG[4]))


def test_tokenizers_that_cut_at_the_left_read_all_of_a_text_too(
    made: Callable[..., pf.Scorer], tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_tokenizer, "truncation_side", "left")
    batch = made().batch([LONG[5]])
    ids = {int(i) for i in batch.inputs["input_ids"]}
    assert set(tiny_tokenizer(LONG[5])["input_ids"]) == ids
    assert batch.lengths.max() == LIMIT


def test_a_stretch_that_fails_fails_its_text_alone(made: Callable[..., pf.Scorer], tiny_tokenizer: Any) -> None:
    whole = made()
    very = tiny_tokenizer.convert_tokens_to_ids("very")
    with torch.no_grad():
        whole.model.bert.embeddings.word_embeddings.weight[very] = float("nan")
    wrong = " ".join(["good"] * 30 + ["very"])
    found = list(whole.score(["good film " * 10, wrong, "bad"]))
    assert [one.error is None for one in found] == [True, False, True]
    assert "not finite" in str(found[1].error)


def test_values_and_label_sets_are_pooled_too(tiny_tokenizer: Any) -> None:
    value = pf.Scorer(
        tiny_model("bert", vocab_size=len(tiny_tokenizer), num_labels=1),
        tiny_tokenizer,
        max_length=LIMIT,
        stride=STRIDE,
    )
    [found] = value.predict([LONG[5]])
    each = value.predict(by_hand(tiny_tokenizer, LONG[5]))
    assert found == pytest.approx(sum(map(float, each)) / len(each), rel=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stride", "says"),
    [(10, "stride=10: of 12 tokens 10 are the text's own, .* give at most 9"), (-1, "stride=-1"), (2.5, "stride=2.5")],
)
def test_a_stride_that_does_not_advance_is_refused(stride: Any, says: str, made: Callable[..., pf.Scorer]) -> None:
    with pytest.raises(pf.InputError, match=says):
        made(stride=stride)


def test_pairs_are_refused_in_one_line(made: Callable[..., pf.Scorer]) -> None:
    says = f"stride={STRIDE}: single texts are read in stretches, and these are pairs; leave it out"
    with pytest.raises(pf.InputError, match=says):
        list(made().score([("good", "film")]))
    with pytest.raises(pf.InputError, match=says):
        made().batch([("good", "film")])


def test_processes_give_the_stretches_of_the_tokenizer_itself(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nanotoken", None)
    model = tiny_stock("bert", vocab_size=len(tiny_tokenizer)).eval()
    options: dict[str, Any] = {"max_length": LIMIT, "stride": 0}
    beside = pf.Scorer(model, tiny_tokenizer, tokenizers=2, **options)
    try:
        one, other = beside.encode(LONG), pf.Scorer(model, tiny_tokenizer, **options).encode(LONG)
    finally:
        beside.close()
    assert one.stretches is not None and other.stretches is not None
    assert one.stretches.tolist() == other.stretches.tolist()
    assert one.batch is not None and other.batch is not None
    assert torch.equal(one.batch.inputs["input_ids"], other.batch.inputs["input_ids"])


def test_what_is_said_of_stretches_is_said_of_their_texts() -> None:
    counts = torch.tensor([2, 1, 3])
    values = torch.arange(12.0).reshape(6, 2)
    assert mean_of(values, counts).tolist() == [[1, 2], [4, 5], [8, 9]]
    assert mean_of(values.expand(5, 6, 2), counts).shape == (5, 3, 2)
    assert most_of(torch.tensor([3, 1, 2, 0, 5, 4]), counts).tolist() == [3, 2, 5]
    assert sum_of(torch.tensor([3, 1, 2, 0, 5, 4]), counts).tolist() == [4, 2, 9]
    assert places_of(torch.tensor([2, 0]), counts).tolist() == [3, 4, 5, 0, 1]
    assert places_of(torch.tensor([True, False, True]), counts).tolist() == [0, 1, 3, 4, 5]
