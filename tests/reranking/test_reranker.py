"""Queries and documents in, the best documents out: as CrossEncoder gives them, whatever is given."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

import pabee_fast as pf
from pabee_fast.reranking.candidates import pairs_of, ranks
from pabee_fast.reranking.replay import ListTrace
from pabee_fast.tables.lists import runs
from tests.conftest import tiny_model, tiny_stock
from tests.reranking.texts import QUERIES, documents_of, trace_of

TEXTS = documents_of(len(QUERIES))
SHORTLIST = pf.Shortlist(3, (1.0, 0.8, 0.5, 0.3, 0.1))


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("bert", num_labels=1, seed=1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("reranker") / "model"
    tiny_stock("bert", num_labels=1, seed=1).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def ids(ranked: list[list[dict[str, Any]]]) -> list[list[int]]:
    return [[one["corpus_id"] for one in of_query] for of_query in ranked]


def test_a_cross_encoders_directory_gives_what_its_rank_gives(saved: Path) -> None:
    cross_encoder = pytest.importorskip("sentence_transformers").CrossEncoder(str(saved), device="cpu")
    found = pf.rerank(saved, QUERIES, TEXTS, top_k=4, return_documents=True, device="cpu")
    for query, texts, ranked in zip(QUERIES, TEXTS, found, strict=True):
        expected = cross_encoder.rank(query, texts, top_k=4, return_documents=True) if texts else []
        assert [(one["corpus_id"], one["text"]) for one in ranked] == [
            (one["corpus_id"], one["text"]) for one in expected
        ]
        assert [one["score"] for one in ranked] == pytest.approx([one["score"] for one in expected], abs=1e-5)
        assert all(type(one["score"]) is float and type(one["corpus_id"]) is int for one in ranked)


def test_a_live_cross_encoder_is_taken_with_its_tokenizer_activation_and_length(saved: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    cross_encoder = sentence_transformers.CrossEncoder(
        str(saved), device="cpu", activation_fn=torch.nn.Identity(), max_length=9
    )
    ranked = pf.Reranker(cross_encoder, top_k=2).rank(QUERIES[1], TEXTS[1])
    expected = cross_encoder.rank(QUERIES[1], TEXTS[1], top_k=2)
    assert [one["corpus_id"] for one in ranked] == [one["corpus_id"] for one in expected]
    assert [one["score"] for one in ranked] == pytest.approx([one["score"] for one in expected], abs=1e-4)


@pytest.mark.parametrize("file", ["config_sentence_transformers.json", "config.json"])
def test_a_directorys_own_activation_is_used(saved: Path, tmp_path: Path, file: str) -> None:
    model = pf.rerank(saved, QUERIES[:2], TEXTS[:2], device="cpu")
    folder = tmp_path / "model"
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    name = {"activation_fn": "torch.nn.modules.linear.Identity"}
    config = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    config |= {"sentence_transformers": name} if file == "config.json" else name
    (folder / file).write_text(json.dumps(config))
    plain = pf.rerank(folder, QUERIES[:2], TEXTS[:2], device="cpu")
    squashed = [1 / (1 + np.exp(-one["score"])) for one in plain[1]]
    assert [one["score"] for one in model[1]] == pytest.approx(squashed, abs=1e-6)
    (folder / file).write_text(json.dumps(config).replace("linear.Identity", "activation.GELU"))
    with pytest.raises(pf.UnsupportedError, match="GELU, and known are Sigmoid"):
        pf.rerank(folder, QUERIES[:2], TEXTS[:2], device="cpu")


def test_a_shortlist_gives_full_depths_best_where_margins_are_wide(
    model: Any, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    full = pf.Reranker(model, tiny_tokenizer, top_k=3)
    traced = ListTrace(*trace_of(model, tiny_tokenizer, QUERIES, TEXTS))
    wide = traced.deficits(3)[:, traced.best(3)].amax(dim=1) + 1e-3  # none of the best is further below the bar
    short = pf.Reranker(model, tiny_tokenizer, top_k=3, policy=pf.Shortlist(3, tuple(wide.tolist())))
    assert ids(short.rerank(QUERIES, TEXTS)) == ids(full.rerank(QUERIES, TEXTS))
    assert short.tally.mean_exit_layer < full.tally.mean_exit_layer == 6
    assert str(full.policy) == "full-depth" and "has stored none" in full.policy_reason


@settings(max_examples=25)
@given(data=st.data())
def test_what_a_query_gets_does_not_depend_on_others_window_or_budget(
    data: st.DataObject, model: Any, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    together = pf.Reranker(model, tiny_tokenizer, top_k=3, policy=SHORTLIST).rerank(QUERIES, TEXTS)
    chosen = data.draw(st.permutations(range(len(QUERIES))))[: data.draw(st.integers(1, len(QUERIES)))]
    window, budget = data.draw(st.integers(1, 200)), data.draw(st.integers(48, 600))
    other = pf.Reranker(model, tiny_tokenizer, top_k=3, policy=SHORTLIST, window=window, token_budget=budget)
    apart = other.rerank([QUERIES[query] for query in chosen], [TEXTS[query] for query in chosen])
    assert ids(apart) == [ids(together)[query] for query in chosen]
    for query, ranked in zip(chosen, apart, strict=True):
        expected = [one["score"] for one in together[query]]
        assert [one["score"] for one in ranked] == pytest.approx(expected, abs=1e-5)


def test_policies_that_look_at_each_pair_alone_rank_by_what_it_left_with(
    model: Any, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    policy = pf.Patience(1, threshold=0.3)
    found = pf.rerank(model, QUERIES, TEXTS, top_k=None, policy=policy, tokenizer=tiny_tokenizer)
    scorer = pf.Scorer(model, tiny_tokenizer, policy=policy)
    for query, texts, ranked in zip(QUERIES, TEXTS, found, strict=True):
        values = [float(value) for value in scorer.predict([(query, text) for text in texts])]  # type: ignore[arg-type]
        assert [one["corpus_id"] for one in ranked] == sorted(range(len(texts)), key=lambda i: -values[i])


def test_more_wanted_than_there_are_one_candidate_and_none(model: Any, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    reranker = pf.Reranker(model, tiny_tokenizer, top_k=100, policy=pf.Shortlist(100, (0.0,) * 5))
    found = reranker.rerank(["a film", "a film", "the"], [["good", "bad", "good"], ["bad"], []])
    assert sorted(ids(found)[0]) == [0, 1, 2] and ids(found)[1:] == [[0], []]
    same = {one["corpus_id"]: one["score"] for one in found[0]}
    assert same[0] == same[2], "copies of a document have one score"
    assert ids(found)[0].index(0) < ids(found)[0].index(2), "of equal scores the first leads"
    assert reranker.rerank([], []) == [] and reranker.rerank(["a"], []) == [[]] and reranker.rank("a", []) == []


def test_one_query_is_answered_alone_and_documents_may_be_shared(
    model: Any, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    reranker = pf.Reranker(model, tiny_tokenizer, top_k=3)
    shared = reranker.rerank(QUERIES, TEXTS[1])
    assert len(shared) == len(QUERIES)
    alone = pf.rerank(model, QUERIES[2], TEXTS[1], top_k=3, tokenizer=tiny_tokenizer)
    assert [one["corpus_id"] for one in alone] == ids(shared)[2]


def test_a_pair_that_cannot_be_scored_is_an_error_or_has_no_rank(
    model: Any, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    reranker = pf.Reranker(model, tiny_tokenizer, top_k=None)
    documents: list[list[Any]] = [["good"], ["bad", None, "film", "\ud800"]]
    with pytest.raises(pf.InputError, match="query 1, document 1: the text is null"):
        reranker.rerank(["a", "the"], documents)
    with caplog.at_level(logging.WARNING):
        found = reranker.rerank(["a", "the"], documents, on_error="none")
    assert ids(found)[0] == [0] and sorted(ids(found)[1]) == [0, 2]
    assert "2 of 5 pairs cannot be scored and have no rank (query 1, document 1" in caplog.text
    only_errors = reranker.rerank(["a", None], [[None], ["good"]], on_error="none")  # type: ignore[list-item]
    assert only_errors == [[], []]


def test_a_score_that_is_not_finite_is_an_error(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("bert", num_labels=1)
    model.classifier.weight.data.fill_(float("nan"))
    reranker = pf.Reranker(model, tiny_tokenizer, policy=pf.Shortlist(1, (0.1,) * 5), top_k=1)
    with pytest.raises(pf.InputError, match=r"query 0, document .: logits are not finite at layer 6"):
        reranker.rank("a", ["good", "bad"])


def test_models_of_several_labels_rank_by_one_that_is_named(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("bert", num_labels=2, seed=2, id2label={0: "other", 1: "same"}, label2id={"other": 0, "same": 1})
    with pytest.raises(pf.InputError, match=r"2 labels \(other, same\): say by which .*label='same'"):
        pf.Reranker(model, tiny_tokenizer)
    with pytest.raises(pf.InputError, match="label='some': the model has 2 labels"):
        pf.Reranker(model, tiny_tokenizer, label="some")
    found = pf.rerank(model, QUERIES[1], TEXTS[1], top_k=None, label="same", tokenizer=tiny_tokenizer)
    results = pf.Scorer(model, tiny_tokenizer).score([(QUERIES[1], text) for text in TEXTS[1]])
    expected = [result.scores[1] for result in results if result.scores is not None]
    assert [one["corpus_id"] for one in found] == np.argsort(-np.array(expected), kind="stable").tolist()
    assert [one["score"] for one in found] == pytest.approx(sorted(expected, reverse=True), abs=1e-6)
    other = pf.rerank(model, QUERIES[1], TEXTS[1], top_k=None, label=0, tokenizer=tiny_tokenizer)
    assert ids([other])[0] == ids([found])[0][::-1]
    short = pf.Reranker(model, tiny_tokenizer, label="same", top_k=2, policy=pf.Shortlist(2, (3.0,) * 5))
    assert ids([short.rank(QUERIES[1], TEXTS[1])])[0] == ids([found])[0][:2]


def test_models_that_give_sets_of_labels_are_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("bert", num_labels=2, problem_type="multi_label_classification")
    with pytest.raises(pf.UnsupportedError, match="several labels at once"):
        pf.Reranker(model, tiny_tokenizer)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((["a"], [["b"], ["c"]]), "2 lists of documents for 1 queries"),
        ((["a", "b"], [["b"], "c"]), "holds both texts and lists"),
        ((["a"], "b"), "documents is one text"),
        (("a", "b"), "documents is one text"),
        (("a", [["b"]]), "or holds lists"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused_in_one_line(
    arguments: Any, says: str, model: Any, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(pf.InputError, match=says) as caught:
        pf.rerank(model, *arguments, tokenizer=tiny_tokenizer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"top_k": 0}, "top_k=0: give a whole number of at least 1; None for all"),
        ({"top_k": 4, "policy": SHORTLIST}, "keeps the best 3 of a list, and 4 are wanted"),
        ({"top_k": None, "policy": SHORTLIST}, "keeps the best 3 of a list, and all are wanted"),
        ({"policy": pf.Shortlist(10, (1.0,))}, "has 1 margins, and the model 6 layers: give 5"),
        ({"label": "good"}, "one output, which is the score; leave it out"),
        ({"policy": "shortlist:10,margins=1/x"}, "margins='1/x' is not a list such as"),
    ],
)
def test_options_that_cannot_be_used_are_refused_in_one_line(
    options: Any, says: str, model: Any, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(pf.InputError, match=says) as caught:
        pf.Reranker(model, tiny_tokenizer, **options)
    assert "\n" not in str(caught.value)


def test_heads_are_asked_for_where_a_policy_needs_them(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    stock = tiny_stock("bert", num_labels=1)
    with pytest.raises(pf.InputError, match="has no heads: fit some"):
        pf.Reranker(stock, tiny_tokenizer, top_k=3, policy=SHORTLIST)
    assert len(pf.Reranker(stock, tiny_tokenizer, top_k=3).rank("a", ["good", "bad"])) == 2


def test_neighbouring_rows_of_one_query_are_a_list() -> None:
    import pyarrow as pa

    assert runs(pa.array(["a", "a", None, "a", "b", "a", None], pa.large_string())).tolist() == [0, 0, 0, 0, 1, 2, 2]
    assert runs(pa.array([None, "a"], pa.large_string())).tolist() == [0, 1]
    assert runs(pa.array([], pa.large_string())).tolist() == []


def test_ranks_begin_anew_in_every_list_and_end_at_top_k() -> None:
    scores, lists = np.array([1.0, 3.0, 2.0, 3.0, np.nan, 5.0]), np.array([0, 0, 0, 0, 1, 1])
    is_ranked = np.isfinite(scores)
    assert ranks(scores, lists, is_ranked, None).tolist() == [4, 1, 3, 2, 0, 1]
    assert ranks(scores, lists, is_ranked, 2).tolist() == [0, 1, 0, 2, 0, 1]


def test_pairs_hold_every_document_of_every_query() -> None:
    rows, lists = pairs_of(["a", "b"], [["x", "y"], ["z"]])
    assert rows == [("a", "x"), ("a", "y"), ("b", "z")] and lists.tolist() == [0, 0, 1]
