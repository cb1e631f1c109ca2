"""The table of model families. A new one is a small file and a line here; a user's own comes by `register_family`."""

from typing import Any

from transformers import PreTrainedModel

from pabee_fast.errors import InputError, UnsupportedError
from pabee_fast.models.albert import Albert
from pabee_fast.models.bert import Bert
from pabee_fast.models.deberta import Deberta, DebertaV2
from pabee_fast.models.decoders import Gemma, Gpt2, Llama, Mistral, Qwen2, Qwen3
from pabee_fast.models.distilbert import DistilBert
from pabee_fast.models.electra import Electra
from pabee_fast.models.eurobert import EuroBert
from pabee_fast.models.family import Family, check_kind
from pabee_fast.models.modernbert import ModernBert
from pabee_fast.models.mpnet import MPNet
from pabee_fast.models.nomic_bert import NomicBert
from pabee_fast.models.roberta import Camembert, Roberta, XlmRoberta
from pabee_fast.models.vit import Deit, Vit

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Bert(), Albert(), Roberta(), XlmRoberta(), Camembert(), Electra(), DistilBert(), ModernBert(), NomicBert(),
        EuroBert(), Deberta(), DebertaV2(), MPNet(), Gpt2(), Llama(), Mistral(), Qwen2(), Qwen3(), Gemma(), Vit(),
        Deit(),
    )
}  # fmt: skip

EXAMPLE = "examples/custom_family.py"


def register_family(family: Family, *, replace: bool = False) -> Family:
    """Teach pabee_fast a family of your own, for this process.

    Args:
        family: an instance of a subclass of `Family` with a `model_type`, as `examples/custom_family.py` shows.
        replace: whether it may take the place of a family of the same `model_type`.

    Returns:
        The same object.

    Raises:
        InputError: no such instance, no `model_type`, or one that is taken.
    """
    if not isinstance(family, Family):
        raise InputError(f"family={family!r}: give an instance of a subclass of pf.Family, as {EXAMPLE} does")
    if not family.model_type:
        raise InputError(f"{type(family).__name__}.model_type is empty: set it to its models' config.model_type")
    if family.model_type in FAMILIES and not replace:
        raise InputError(f"model_type={family.model_type!r} is in the table already: say replace=True to override it")
    FAMILIES[family.model_type] = family
    return family


def family_of(model: Any) -> Family:
    """Return the family of a classifier.

    Raises:
        UnsupportedError: a wrapped model, no such family, another kind of head, or a variant that cannot be packed.
    """
    for wrapped, by in (("module", "DataParallel or DDP"), ("_orig_mod", "torch.compile"), ("peft_config", "PEFT")):
        if not isinstance(model, PreTrainedModel) and wrapped in _names(model):
            raise UnsupportedError(
                f"{type(model).__name__}: the model is wrapped by {by}; "
                + ("merge it first: model.merge_and_unload()" if by == "PEFT" else "give the one inside")
            )
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    family = FAMILIES.get(model_type)
    if family is None:
        raise UnsupportedError(
            f"model type {model_type!r}: the supported families are {', '.join(FAMILIES)}; {EXAMPLE} shows how to add "
            "one of your own (pf.register_family)"
        )
    check_kind(model, family)
    family.check(model)
    return family


def is_built_in(family: Family) -> bool:
    """Return whether the family is one of ours, whose models are transformers' own."""
    return type(family).__module__.startswith(f"{__name__}.")


def _names(model: Any) -> set[str]:
    """Return what is the model's own, and not handed on from one inside: attributes, modules and properties."""
    return {*vars(model), *vars(model).get("_modules", {}), *dir(type(model))} if hasattr(model, "__dict__") else set()
