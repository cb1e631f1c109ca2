"""A policy and what is promised of it: kept in the model's config, and void when what it holds for changes."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel

from pabee_fast.calibration.audit import interval
from pabee_fast.calibration.risks import Risk
from pabee_fast.calibration.settings import config_of
from pabee_fast.errors import CheckpointError, InputError
from pabee_fast.models.heads import CONFIG_ENTRY, MAX_LENGTH
from pabee_fast.policies import FullDepth, Policy, parse_policy
from pabee_fast.scoring.conditions import Conditions
from pabee_fast.tables.durable import durable_file

KEY = "guarantee"
"""Of the config entry."""


@dataclass(frozen=True)
class Guarantee:
    """With probability at least 1 - delta over the calibration rows, the policy's risk is at most epsilon.

    It speaks of rows that are exchangeable with those rows, which neither training nor `fit` has seen.
    """

    policy: Policy
    risk: Risk
    epsilon: float
    delta: float
    rows: int  # that tested it
    errors: int  # of these
    ordering_rows: int  # that only chose what to test
    cost: float  # tokens x layers, as a share of full depth's, over all these rows
    conditions: Conditions

    key: ClassVar[str] = KEY
    """Of the config entry, under which it is stored."""

    def statement(self) -> str:
        """Return the promise and what it holds for, in one sentence that does not name the policy."""
        where = (
            f"holds for rows like those it was calibrated on, in {self.conditions.dtype}, "
            f"{self.conditions.long_texts}, with this model and tokenizer"
        )
        if isinstance(self.policy, FullDepth):
            return f"no policy that leaves earlier could be promised that {self._bound()}; {where}"
        return (
            f"{self._bound()} ({self.errors} of the {self.rows:,} rows that tested it, "
            f"{self.ordering_rows:,} others chose it); {where}"
        )

    def _bound(self) -> str:
        digits = max(4, 1 - math.floor(math.log10(self.delta)))  # enough, so that it is never said to be certain
        return f"{self.risk} is at most {self.epsilon:.4g} with probability at least {1 - self.delta:.{digits}g}"

    def why_void(self, now: Conditions) -> list[str]:
        """Return why it does not hold under the conditions of `now`, in words; empty where it does."""
        return self.conditions.differences(now)

    @property
    def is_of_disagreement(self) -> bool:
        """Whether it speaks of what an audit sees: answers that are not those of full depth."""
        return self.risk.name != "accuracy-loss"

    def is_contradicted(self, disagreed: int, audited: int) -> bool:
        """Return whether so many disagreements among audited rows are more than the guarantee and chance explain."""
        return self.is_of_disagreement and interval(disagreed, audited)[0] > self.epsilon

    def entry(self) -> dict[str, Any]:
        """Return what the config holds; JSON values only."""
        own = asdict(self)
        return own | {"policy": str(self.policy), "risk": self.risk.name, "tolerance": self.risk.tolerance}

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> "Guarantee":
        """Read what `entry` wrote.

        Raises:
            CheckpointError: it is something else.
        """
        try:
            given = dict(entry)
            given["risk"] = Risk(given["risk"], given.pop("tolerance"))
            return cls(
                **given | {"policy": parse_policy(given["policy"]), "conditions": Conditions(**given["conditions"])}
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"the config's guarantee cannot be read ({error}): run `pabee-fast tune` again"
            ) from error


def guarantee_of(model: PreTrainedModel) -> Guarantee | None:
    """Return the policy that `pabee-fast tune` stored with a model, and its promise; None where it stored none.

    `pf.accelerate(model, guarantee.policy)` uses it. Whether the promise holds for how the model is run now, this does
    not say: `guarantee.why_void(Conditions.of(model, tokenizer, max_length, texts))` does.

    Raises:
        CheckpointError: the config's entry is no guarantee.
    """
    entry = getattr(model.config, CONFIG_ENTRY, {}).get(KEY)
    return None if entry is None else Guarantee.from_entry(entry)


def check_directory(path: str | Path) -> dict[str, Any]:
    """Raise InputError unless a guarantee can be stored with this model: a directory of a model with heads.

    Returns:
        What its config.json says.
    """
    config = config_of(path)
    try:
        content: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{config} is no JSON ({error}): was it cut? fetch the model anew") from error
    if CONFIG_ENTRY not in content:
        raise InputError(f"{path} has no heads, so no policy is to be chosen: run `pabee-fast fit` or `train` first")
    return content


def store_guarantee(path: str | Path, guarantee: Guarantee) -> None:
    """Put it into a model directory's config.json, with the length that rows are cut at, and leaves all else as it is.

    Raises:
        InputError: no directory of a model with heads.
    """
    content = check_directory(path)
    content[CONFIG_ENTRY] |= {guarantee.key: guarantee.entry(), MAX_LENGTH: guarantee.conditions.max_length}
    with durable_file(Path(path) / "config.json", "guarantee") as file:
        file.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
