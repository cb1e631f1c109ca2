"""The scorer of candidates: its windows hold whole lists, so that policies may compare the rows of one."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pabee_fast.calibration.scorer import Scorer, open_scorer
from pabee_fast.errors import InputError
from pabee_fast.modeling.directory import find_file
from pabee_fast.policies import FullDepth, Policy, Shortlist, parse_policy
from pabee_fast.reranking.candidates import activation_named, label_index, ranks
from pabee_fast.reranking.guarantee import list_guarantee_of
from pabee_fast.runtime.lists import scores_of
from pabee_fast.scoring.answers import Answers
from pabee_fast.scoring.load import Setting
from pabee_fast.scoring.scorer import Planned
from pabee_fast.tables.lists import runs


class ListScorer(Scorer):
    """Scores pairs of a query and a candidate; `rank_by` says by what they are ranked.

    Args:
        model, tokenizer, **options: as for `Scorer`.
    """

    has_lists = True
    top_k: int | None = None
    """How many of a list are wanted; None: all."""
    label = 0
    """The output by which candidates are ranked."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options: Any) -> None:
        super().__init__(model, tokenizer, **options)
        config = model.config
        told = getattr(config, "sentence_transformers", None) or {}
        name = told.get("activation_fn") or getattr(config, "sbert_ce_default_activation_function", None)
        self.activation = activation_named(name if len(self.labels) == 1 else None)

    def rank_by(self, top_k: int | None, label: str | int | None, policy: Policy | None) -> None:
        """Say what is wanted of lists, and when candidates leave.

        Args:
            top_k: how many of a list; None: all.
            label: the label whose log-odds are the score, by name or number; None: the one output is.
            policy: a Shortlist, or one that looks at each row alone; None: the Shortlist that `pabee-fast tune --top-k`
                stored with the model for as many, where its guarantee holds here, and full depth elsewhere.

        Raises:
            CheckpointError: what is stored is no such guarantee.
            InputError: no such label, or a policy that does not fit.
            UnsupportedError: a model that gives sets of labels.
        """
        self.top_k, self.label = top_k, label_index(self.labels, self.engine.kind, label)
        if policy is None:
            self._choose_stored()
            return
        if isinstance(policy, Shortlist):
            policy = replace(policy, label=self.label)
            if top_k is None or policy.top_k < top_k:
                raise InputError(
                    f"the policy keeps the best {policy.top_k} of a list, and {top_k or 'all'} are wanted (top_k)"
                )
        self.choose(policy, "asked for")

    def _choose_stored(self) -> None:
        guarantee = list_guarantee_of(self.model)
        if guarantee is None:
            self.choose(FullDepth(), "since `pabee-fast tune --top-k` has stored none with the model")
            return
        self.loaded_under = self.conditions()
        now = replace(self.loaded_under, texts=2)
        if void := guarantee.why_void_for(now, self.top_k, self.label):
            self.is_void = self.top_k is not None  # whoever wants all candidates asks for full depth
            self.choose(
                FullDepth(),
                f"since what is stored with the model is void here: {'; '.join(void)}; run `pabee-fast tune --top-k` "
                "again to have a guarantee, or name a policy by --policy (policy=)",
            )
            return
        self.choose(guarantee.policy, f"stored with the model; {guarantee.statement()}", guarantee)

    def plan(self, columns: Sequence[pa.Array], answers: Answers, lists: np.ndarray | None = None) -> Iterator[Planned]:
        """Tokenize the rows that have no error, in windows of whole lists.

        Args:
            columns: the rows' queries and candidates.
            answers: as for the base class.
            lists: [rows] which list each row belongs to, neighbours together; None: neighbouring rows of one query are
                a list.
        """
        list_of, good = runs(columns[0]) if lists is None else lists, answers.scorable
        first = 0
        while first < len(good):
            # Up to the end of the list in which the window ends.
            last = min(first + self.window, len(good)) - 1
            end = int(np.searchsorted(list_of[good], list_of[good[last]], side="right"))
            for planned in self.planned(good[first:end], columns, answers):
                _, own = np.unique(list_of[planned.places], return_inverse=True)
                yield planned._replace(batch=replace(planned.batch, lists=own))
            first = end

    def scores(self, answers: Answers) -> np.ndarray:
        """Return what rows are ranked by, [rows] float32; NaN for a row without an answer."""
        return scores_of(answers.logits, self.label).numpy()

    def shown_scores(self, answers: Answers) -> np.ndarray:
        """Return rows' scores as a CrossEncoder gives them, [rows] float32: through its activation; of several labels,
        the probability of the one they are ranked by."""
        return self.activation(scores_of(answers.logits, self.label)).numpy()

    def ranks(self, answers: Answers, lists: np.ndarray) -> np.ndarray:
        """Return each row's rank in its list, [rows] int32 from 1; 0 beyond `top_k`, and where it has none."""
        scores, exits = self.scores(answers), answers.exit_layers.numpy()
        is_ranked = np.isfinite(scores) & (exits > 0)
        if self.policy.is_listwise:  # scores of those that left before are of other heads
            is_ranked &= exits == len(self.engine.layers)
        return ranks(scores, lists, is_ranked, self.top_k)


def open_list_scorer(
    model: str,
    policy: Policy | str | None,
    setting: Setting,
    *,
    top_k: int | None,
    label: str | int | None,
    **options: Any,
) -> ListScorer:
    """Load a scorer of candidates from a model directory or hub id; `options` as `open_scorer` takes them."""
    scorer = open_scorer(model, FullDepth(), setting, kind=ListScorer, **options)
    assert isinstance(scorer, ListScorer)
    if len(scorer.labels) == 1 and (file := find_file(model, "config_sentence_transformers.json", {})):
        with open(file, encoding="utf-8") as text:
            if name := json.load(text).get("activation_fn"):
                scorer.activation = activation_named(name)
    scorer.rank_by(top_k, label, parse_policy(policy) if isinstance(policy, str) else policy)
    return scorer
