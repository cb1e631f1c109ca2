"""What is promised of a shortlist: how much of full depth's best candidates it may miss, with what probability."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from transformers import PreTrainedModel

from pabee_fast.calibration.guarantee import Guarantee
from pabee_fast.calibration.settings import LIST_RISKS
from pabee_fast.errors import CheckpointError, InputError
from pabee_fast.models.heads import CONFIG_ENTRY
from pabee_fast.policies import FullDepth, Shortlist, parse_policy
from pabee_fast.scoring.conditions import Conditions

ListRiskName = Literal["overlap", "ndcg"]


@dataclass(frozen=True)
class ListRisk:
    """A loss between 0 and 1 for each list.

    Args:
        name: "overlap": the share of full depth's `top_k` best that is not found. "ndcg": by how much the nDCG of the
            `top_k` best is below full depth's; needs relevance.
        top_k: how many of a list are wanted.

    Raises:
        InputError: another name.
    """

    name: ListRiskName
    top_k: int

    tolerance: ClassVar[None] = None
    """Of values alone, see `Risk`."""

    def __post_init__(self) -> None:
        if self.name not in LIST_RISKS:
            raise InputError(f"risk={self.name!r}: of lists (top_k) it is one of {', '.join(LIST_RISKS)}")

    def __str__(self) -> str:
        return {
            "overlap": f"the share of full depth's best {self.top_k} of a list that is missing, in the mean of lists,",
            "ndcg": f"what is lost of a list's nDCG@{self.top_k} at full depth, in the mean of lists,",
        }[self.name]


@dataclass(frozen=True)
class ListGuarantee(Guarantee):
    """With probability at least 1 - delta over the calibration lists, the mean loss of a list is at most epsilon.

    It speaks of lists that are exchangeable with those: queries and candidates from the same sources, as many of them,
    which neither training nor `fit` has seen. Its `rows` and `ordering_rows` are lists, and `errors` those of `rows`
    that lost anything.
    """

    risk: ListRisk  # type: ignore[assignment]
    loss: float = 0.0
    """In the mean of the lists that tested it."""
    label: int = 0
    """The output that candidates are compared by."""

    key: ClassVar[str] = "list_guarantee"

    def statement(self) -> str:
        where = (
            f"holds for lists like those it was calibrated on, in {self.conditions.dtype}, cut at "
            f"{self.conditions.max_length} tokens, with this model and tokenizer"
        )
        if isinstance(self.policy, FullDepth):
            return f"no policy that drops candidates could be promised that {self._bound()}; {where}"
        return (
            f"{self._bound()} ({self.loss:.3%} over the {self.rows:,} lists that tested it, {self.ordering_rows:,} "
            f"others chose it); {where}"
        )

    def why_void_for(self, now: Conditions, top_k: int | None, label: int) -> list[str]:
        """Return why it does not hold for the best `top_k` by the output `label` under the conditions of `now`, in
        words; empty where it does."""
        found = self.why_void(now)
        if top_k != self.risk.top_k:
            found.append(f"it was made for the best {self.risk.top_k}, and {top_k or 'all'} are wanted")
        if label != self.label:
            found.append("it was made for another label")
        return found

    @property
    def is_of_disagreement(self) -> bool:
        return False

    def entry(self) -> dict[str, Any]:
        own = asdict(self)
        return own | {"policy": str(self.policy), "risk": self.risk.name, "top_k": self.risk.top_k}

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> "ListGuarantee":
        try:
            given = dict(entry)
            given["risk"] = ListRisk(given["risk"], given.pop("top_k"))
            given["policy"], given["conditions"] = parse_policy(given["policy"]), Conditions(**given["conditions"])
            found = cls(**given)
        except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
            raise CheckpointError(
                f"the config's {cls.key} cannot be read ({error}): run `pabee-fast tune --top-k` again"
            ) from error
        if not isinstance(found.policy, Shortlist | FullDepth):
            raise CheckpointError(f"the config's {cls.key} is of {found.policy}: run `pabee-fast tune --top-k` again")
        return found


def list_guarantee_of(model: PreTrainedModel) -> ListGuarantee | None:
    """Return the shortlist that `pabee-fast tune --top-k` stored with a model, and its promise; None where it stored
    none.

    Raises:
        CheckpointError: the config's entry is no such guarantee.
    """
    entry = getattr(model.config, CONFIG_ENTRY, {}).get(ListGuarantee.key)
    return None if entry is None else ListGuarantee.from_entry(entry)
