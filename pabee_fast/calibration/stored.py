"""Which policy a scorer runs where its user names none: the one stored with the model, or the default."""

from dataclasses import replace

from pabee_fast.calibration.guarantee import guarantee_of
from pabee_fast.models.heads import has_heads
from pabee_fast.policies import FullDepth, Patience
from pabee_fast.scoring.conditions import Conditions
from pabee_fast.scoring.scorer import Scorer

DEFAULT_POLICY = Patience(6)
"""Where a model brings none: the one of the published tables."""


def choose_policy(scorer: Scorer, texts: int | None = None, now: Conditions | None = None) -> bool:
    """Give a scorer the policy that `pabee-fast tune` stored with its model, and the reason why it has it.

    If the stored guarantee does not hold here, no row leaves early, since whoever asked for a promise has answers to
    lose. DEFAULT_POLICY where nothing is stored.

    Args:
        texts: how many a row has, 2 of pairs, since a guarantee holds for rows of its kind; None: not known.
        now: the scorer's conditions, where they are known; a hash of all weights is in them.

    Returns:
        Whether a stored guarantee is void here.

    Raises:
        CheckpointError: what is stored is no guarantee.
        InputError: the stored policy does not fit the model.
    """
    guarantee = guarantee_of(scorer.model)
    if guarantee is None:
        _choose_default(scorer)
        return False
    void = guarantee.why_void(replace(now or scorer.conditions(), texts=texts))
    if not void:
        scorer.choose(guarantee.policy, f"stored with the model; {guarantee.statement()}", guarantee)
        return False
    scorer.choose(
        FullDepth(),
        f"since what is stored with the model ({guarantee.policy}) is void here: {'; '.join(void)}; run "
        "`pabee-fast tune` again to have a guarantee, or name a policy by --policy (policy=)",
    )
    return True


def _choose_default(scorer: Scorer) -> None:
    """Choose DEFAULT_POLICY where it can let rows leave; else, without heads to ask for, full depth."""
    layers, none_stored = len(scorer.engine.layers), "since `pabee-fast tune` has stored none with the model"
    if not has_heads(scorer.model) or (scorer.engine.kind != "value" and layers > DEFAULT_POLICY.patience):
        scorer.choose(DEFAULT_POLICY, f"the default, {none_stored}")
        return
    why = "needs a threshold for values" if scorer.engine.kind == "value" else f"leaves nowhere in {layers} layers"
    reason = f"{none_stored}, and the default, {DEFAULT_POLICY}, {why}; name a policy by --policy (policy=)"
    scorer.choose(FullDepth(), reason)
