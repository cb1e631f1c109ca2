"""The scorer that users meet: loaded by name, with the policy that is stored with its model."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pabee_fast.calibration.guarantee import Guarantee, guarantee_of
from pabee_fast.calibration.stored import choose_policy
from pabee_fast.errors import InputError
from pabee_fast.policies import FullDepth, Policy, parse_policy
from pabee_fast.scoring import scorer as scoring
from pabee_fast.scoring.answers import Answers
from pabee_fast.scoring.conditions import Conditions
from pabee_fast.scoring.load import WINDOWS, Setting, load_parts

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

KINDS = {1: "single texts", 2: "pairs of texts"}
"""Of rows, by how many texts each has."""


class Scorer(scoring.Scorer):
    __doc__ = scoring.Scorer.__doc__

    guarantee: Guarantee | None
    is_void = False
    """Whether a policy is stored with the model, and unused since its guarantee does not hold here."""

    loaded_under: Conditions | None = None
    """Its conditions as it was loaded, where a stored policy was held against them."""

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        policy: Policy | str | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        texts: int | None = None,
        max_length: int | None = None,
        token_budget: int | None = None,
        window: int | None = None,
        tokenizers: int = 0,
        stride: int | None = None,
    ) -> "Scorer":
        """Load a model and its tokenizer, and use the policy that `pabee-fast tune` stored with them.

        As `pabee-fast score` does: where the stored guarantee does not hold here, no row leaves early, and a warning
        says so. `policy_reason` says why the policy is the one it is, and `guarantee` what is promised of it.

        Args:
            path_or_id: a model directory or hub id; policies that can exit need heads in it.
            policy: when a row has settled, or its spelling ("patience:6"); None: the one stored with the model, and
                `Patience(6)` where none is.
            device: "auto", "cpu", "cuda" or "cuda:1"; or torch's.
            dtype: "auto", "float32", "bfloat16" or "float16"; or torch's.
            texts: how many a row has, 2 of pairs: a stored guarantee is void for rows of another kind. None: of the
                kind that it holds for; `score` then refuses others.
            max_length: as for `Scorer`, and so are token_budget, tokenizers and stride.
            window: rows that are tokenized and sorted by length together; None: by device.

        Raises:
            CheckpointError: weights, heads or a guarantee that are absent or broken.
            InputError: no such directory, no classifier, tokenizer or safetensors in it, a policy that does not fit, or
                a number that is out of range.
        """
        scorer = open_scorer(
            str(path_or_id),
            policy,
            Setting.choose(str(device), str(dtype).removeprefix("torch.")),
            texts=texts,
            max_length=max_length,
            token_budget=token_budget,
            window=window,
            tokenizers=tokenizers,
            stride=stride,
            kind=cls,
        )
        if scorer.is_void:
            warn_of_void(str(path_or_id), scorer.policy_reason)
        return scorer

    def plan(self, columns: Sequence["pa.Array"], answers: Answers) -> Iterator[scoring.Planned]:
        """As for the base class.

        Raises:
            InputError: the policy's guarantee holds for rows of another kind.
        """
        promised = self.guarantee and self.guarantee.conditions.texts
        if promised and promised != len(columns) and len(answers.scorable):
            raise InputError(
                f"the guarantee stored with the model is of {KINDS[promised]}, and these are {KINDS[len(columns)]}: "
                f"name a policy, or load with texts={len(columns)}, whose rows run to full depth"
            )
        return super().plan(columns, answers)


def open_scorer(
    model: str,
    policy: Policy | str | None,
    setting: Setting,
    *,
    texts: int | None = None,
    max_length: int | None = None,
    token_budget: int | None = None,
    window: int | None = None,
    tokenizers: int = 0,
    stride: int | None = None,
    kind: type[Scorer] = Scorer,
) -> Scorer:
    """As `Scorer.from_pretrained`, for whoever tells themselves what was chosen."""
    named = parse_policy(policy) if isinstance(policy, str) else policy
    scorer = kind(
        *load_parts(model, setting),
        policy=named or FullDepth(),
        max_length=max_length,
        token_budget=token_budget,
        window=WINDOWS.get(setting.device.type, 1_024) if window is None else window,
        tokenizers=tokenizers,
        stride=stride,
    )
    if named is None:
        if guarantee_of(scorer.model) is not None:
            scorer.loaded_under = scorer.conditions()
        scorer.is_void = choose_policy(scorer, texts, scorer.loaded_under)
    return scorer


def warn_of_void(model: str, reason: str) -> None:
    """Warn that rows run to full depth, since what is stored with the model does not hold here."""
    logger.warning("%s: rows run to full depth, %s", model, reason)
