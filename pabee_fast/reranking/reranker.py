"""Queries and documents in, the best documents of each query out."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pabee_fast.arguments import require_one_of, require_whole
from pabee_fast.calibration.guarantee import Guarantee
from pabee_fast.calibration.scorer import warn_of_void
from pabee_fast.errors import InputError
from pabee_fast.modeling.early_exit import classifier_in
from pabee_fast.policies import FullDepth, Policy, parse_policy
from pabee_fast.reranking.candidates import pairs_of
from pabee_fast.reranking.scorer import ListScorer, open_list_scorer
from pabee_fast.scoring.answers import Answers
from pabee_fast.scoring.load import Setting
from pabee_fast.scoring.scorer import readable
from pabee_fast.scoring.tally import Tally

logger = logging.getLogger(__name__)

Ranked = list[dict[str, Any]]
"""Of one query, the best first: `corpus_id`, the document's place; `score`; and `text` where it is asked for."""


class Reranker:
    """Ranks documents for queries by a cross-encoder, and drops those on the way that can hardly be among the best.

    Args:
        model: a sentence-transformers CrossEncoder, or a `*ForSequenceClassification` model of a supported family, in
            evaluation mode. One output is the score.
        tokenizer: the model's fast tokenizer; None: the CrossEncoder's own.
        top_k: how many documents of a query are wanted; None: all, which all run to full depth.
        policy: a `Shortlist`, or one that looks at each pair alone, or its spelling; None: the Shortlist that
            `pabee-fast tune --top-k` stored with the model for this `top_k`, else full depth.
        label: of a model with several labels, the one whose probability is the score, by name or number.
        max_length, token_budget, tokenizers: as for `Scorer`.
        window: pairs that are tokenized and sorted together, in whole lists.

    Raises:
        InputError: a policy that does not fit, or a number out of range.
        UnsupportedError: no supported family, or a model that gives sets of labels.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        top_k: int | None = 10,
        policy: Policy | str | None = None,
        label: str | int | None = None,
        max_length: int | None = None,
        token_budget: int | None = None,
        window: int = 8_192,
        tokenizers: int = 0,
    ) -> None:
        check_top_k(top_k)
        inside: PreTrainedModel = classifier_in(model)
        if inside is not model:
            if getattr(model, "default_prompt_name", None) is not None:
                raise InputError(
                    f"the CrossEncoder puts the prompt {model.default_prompt_name!r} before texts: put it there, "
                    "and set its default_prompt_name to None"
                )
            inside.eval()  # as its own predict does
            tokenizer = model.tokenizer if tokenizer is None else tokenizer
            max_length = model.max_seq_length if max_length is None else max_length
        if tokenizer is None:
            raise InputError("tokenizer is None: give the model's, or a CrossEncoder, which has its own")
        self._scorer = ListScorer(
            inside,
            tokenizer,
            policy=FullDepth(),
            max_length=max_length,
            token_budget=token_budget,
            window=window,
            tokenizers=tokenizers,
        )
        if inside is not model and len(self._scorer.labels) == 1:
            self._scorer.activation = model.activation_fn
        self._begin(top_k, label, policy)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        policy: Policy | str | None = None,
        *,
        top_k: int | None = 10,
        label: str | int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        **options: Any,
    ) -> "Reranker":
        """Load a cross-encoder's directory, as sentence-transformers or transformers saved it.

        Args:
            path_or_id: a model directory or hub id; policies that can exit need heads in it.
            policy, top_k, label: as for the class.
            device, dtype, **options: as for `Scorer.from_pretrained`.

        Raises:
            CheckpointError: weights, heads or a guarantee that are absent or broken.
            InputError: as for the class; or no such directory, no classifier, tokenizer or safetensors in it.
        """
        check_top_k(top_k)
        setting, found = Setting.choose(str(device), str(dtype).removeprefix("torch.")), cls.__new__(cls)
        found._scorer = open_list_scorer(str(path_or_id), policy, setting, top_k=top_k, label=label, **options)
        if found._scorer.is_void:
            warn_of_void(str(path_or_id), found._scorer.policy_reason)
        return found

    def _begin(self, top_k: int | None, label: str | int | None, policy: Policy | str | None) -> None:
        self._scorer.rank_by(top_k, label, parse_policy(policy) if isinstance(policy, str) else policy)
        if self._scorer.is_void:
            warn_of_void(type(self._scorer.model).__name__, self._scorer.policy_reason)

    @property
    def top_k(self) -> int | None:
        """How many documents of a query are wanted; None: all."""
        return self._scorer.top_k

    @property
    def policy(self) -> Policy:
        """When documents leave; `policy_reason` says why it is this one, and `guarantee` what is promised of it."""
        return self._scorer.policy

    @property
    def policy_reason(self) -> str:
        """Why the policy is the one it is."""
        return self._scorer.policy_reason

    @property
    def guarantee(self) -> Guarantee | None:
        """What is promised of the policy; None: nothing."""
        return self._scorer.guarantee

    @property
    def tally(self) -> Tally:
        """What the call begun last has done: pairs, their exit layers, errors."""
        return self._scorer.tally

    def rank(self, query: str, documents: Sequence[str | None], **options: Any) -> Ranked:
        """Return the best documents of one query; `options` as `rerank` takes them."""
        if isinstance(query, Sequence) and not isinstance(query, str):
            raise InputError(f"query is a list of {len(query)}: rerank takes several queries")
        if isinstance(documents, str) or any(isinstance(text, list | tuple) for text in documents):
            raise InputError("documents is one text, or holds lists: give a list of texts")
        return self.rerank([query], [documents], **options)[0]

    def rerank(
        self,
        queries: Sequence[str],
        documents: Sequence[Sequence[str | None]] | Sequence[str | None],
        *,
        return_documents: bool = False,
        on_error: Literal["raise", "none"] = "raise",
    ) -> list[Ranked]:
        """Return the best documents of each query, as `CrossEncoder.rank` does; of equal scores the first leads.

        What a query gets does not depend on the others, nor on batches, up to the tolerance of the precision.

        Args:
            queries: texts.
            documents: for each query its candidates; or candidates that all queries share.
            return_documents: whether each result has the document's `text`.
            on_error: what a pair does that cannot be scored (a null document, say): "raise" an error, or "none": it
                has no rank, and a warning says how many there were.

        Returns:
            For each query, in their order, at most `top_k` dicts.

        Raises:
            InputError: a pair that cannot be scored, with on_error="raise"; or arguments that do not fit together.
        """
        require_one_of("on_error", on_error, ("raise", "none"))
        scorer = self._scorer
        pairs, lists = pairs_of(queries, documents)
        scorer.tally = Tally()
        if not pairs:
            return [[] for _ in queries]
        columns, refused = readable(pairs)
        answers = Answers.none_yet(len(pairs), refused, scorer.engine.classes)
        if on_error == "raise":
            _raise_first(answers.errors, lists)
        for planned in scorer.plan(columns, answers, lists):
            answers.put(planned.places, scorer.run(planned.batch, scorer.policy))
        answers.mark_not_finite()
        if on_error == "raise":
            _raise_first(answers.errors, lists)
        elif answers.errors:
            first = min(answers.errors)
            told = f"{_place(first, lists)}: {answers.errors[first]}"
            logger.warning(
                "%d of %d pairs cannot be scored and have no rank (%s)", len(answers.errors), len(pairs), told
            )
        scorer.tell_of_cut(answers.truncated, len(pairs))
        scorer.tally.add(answers)
        ranks, scores = scorer.ranks(answers, lists), scorer.shown_scores(answers)
        firsts = np.searchsorted(lists, np.arange(len(queries)))
        found: list[Ranked] = [[] for _ in queries]
        chosen = np.flatnonzero(ranks)
        for row in chosen[np.lexsort((ranks[chosen], lists[chosen]))].tolist():
            of_query = int(lists[row])
            result = {"corpus_id": row - int(firsts[of_query]), "score": float(scores[row])}
            found[of_query].append(result | ({"text": pairs[row][1]} if return_documents else {}))
        return found

    def close(self) -> None:
        """End the processes that tokenize, if there are any."""
        self._scorer.close()


def rerank(
    model: Any,
    queries: str | Sequence[str],
    documents: Sequence[Sequence[str | None]] | Sequence[str | None],
    top_k: int | None = 10,
    *,
    policy: Policy | str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    label: str | int | None = None,
    return_documents: bool = False,
    on_error: Literal["raise", "none"] = "raise",
    **options: Any,
) -> Any:
    """Return the best documents of each query, as `CrossEncoder.rank` does, many queries at once.

    For several calls make one `Reranker`, which loads or binds the model once.

    Args:
        model: a model directory or hub id; a CrossEncoder; or a classifier with its `tokenizer`.
        queries: texts; or one text, whose results are returned alone.
        documents: for each query its candidates; or candidates that all queries share.
        top_k: how many of a query; None: all.
        policy, label: as for `Reranker`.
        return_documents, on_error: as for `Reranker.rerank`.
        **options: as for `Reranker`; of a directory as for `Reranker.from_pretrained`.

    Returns:
        For each query, in their order, a list of at most `top_k` dicts, the best first: `corpus_id`, the document's
        place among its query's; `score`, as the CrossEncoder gives it; and `text` where it is asked for.

    Raises:
        CheckpointError, InputError, UnsupportedError: as for `Reranker` and `Reranker.rerank`.
    """
    named: dict[str, Any] = {"top_k": top_k, "policy": policy, "label": label, **options}
    if isinstance(model, str | Path):
        if tokenizer is not None:
            raise InputError("tokenizer: a directory has its own; give a model beside it")
        reranker = Reranker.from_pretrained(model, **named)
    else:
        reranker = Reranker(model, tokenizer, **named)
    how: dict[str, Any] = {"return_documents": return_documents, "on_error": on_error}
    try:
        if isinstance(queries, str):
            return reranker.rank(queries, documents, **how)  # type: ignore[arg-type]
        return reranker.rerank(queries, documents, **how)
    finally:
        reranker.close()


def check_top_k(top_k: int | None) -> None:
    """Raise InputError unless so many of a list can be wanted; None: all."""
    if top_k is not None:
        require_whole("top_k", top_k, at_least=1, fix="None for all")


def _place(row: int, lists: np.ndarray) -> str:
    return f"query {lists[row]}, document {row - int(np.searchsorted(lists, lists[row]))}"


def _raise_first(errors: dict[int, str], lists: np.ndarray) -> None:
    if errors:
        row = min(errors)
        raise InputError(f'{_place(row, lists)}: {errors[row]}; leave it out, or give on_error="none"')
