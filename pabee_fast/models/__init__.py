"""The table of model families. A new one is a small file and a line here."""

from typing import Any

from pabee_fast.errors import UnsupportedError
from pabee_fast.models.albert import Albert
from pabee_fast.models.bert import Bert
from pabee_fast.models.family import Family
from pabee_fast.models.roberta import Roberta

FAMILIES: dict[str, Family] = {family.model_type: family for family in (Bert(), Albert(), Roberta())}


def family_of(model: Any) -> Family:
    """The family of a `*ForSequenceClassification` model.

    Raises:
        UnsupportedError: no such family, another kind of head, or a variant of it that cannot be packed.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    family = FAMILIES.get(model_type)
    if family is None:
        raise UnsupportedError(f"model type {model_type!r}: the supported families are {', '.join(FAMILIES)}")
    if not hasattr(model, "classifier") or "SequenceClassification" not in type(model).__name__:
        raise UnsupportedError(
            f"{type(model).__name__} does not classify sequences: load it with AutoModelForSequenceClassification"
        )
    family.check(model)
    return family
