"""The modules around layers and heads, whose parts the runtime reads without calling them: are they transformers' own?

Whatever is called runs as its owner made it. What is not called would be passed over without a word.
"""

from collections.abc import Iterable, Sequence

from torch import nn

from pabee_fast.errors import UnsupportedError
from pabee_fast.kernels.checks import Pooler
from pabee_fast.models.head import Head
from pabee_fast.models.original import why_not_original

# PEFT's; its attributes are those of the module that it would call.
_DELEGATES = frozenset({"ModulesToSaveWrapper"})

_WAY_OUT = (
    "take hooks off and merge adapters (merge_and_unload), or teach pabee_fast what this model does by "
    "pf.register_family"
)


def check_around(model: nn.Module, called: Iterable[nn.Module], heads: Sequence[Head]) -> None:
    """Raise UnsupportedError where a head's linear, or a module that holds `called` ones or heads, was changed.

    The model itself is its class's affair: hooks on it are run by whoever calls it.

    Args:
        called: the layers, or of layers that are not called themselves the parts that are.
    """
    for head in heads:
        if wrong := why_not_original(head.linear):
            raise UnsupportedError(f"a head of the model {wrong}: the exit step reads its weights; {_WAY_OUT}")
    taken = {*called, *(head.linear for head in heads)}
    for head in heads:
        parts = (head.pooler, getattr(head.pooler, "dense", None))
        taken.update(part for part in parts if isinstance(part, nn.Module))
    poolers = {id(head.pooler.weight) for head in heads if isinstance(head.pooler, Pooler)}
    for name, module in _holders(model, taken, poolers):
        if name and type(module).__name__ not in _DELEGATES and (wrong := why_not_original(module)):
            raise UnsupportedError(f"{name} {wrong}: early exit reads its parts and never calls it; {_WAY_OUT}")


def _holders(
    module: nn.Module, taken: set[nn.Module], poolers: set[int], name: str = ""
) -> list[tuple[str, nn.Module]]:
    """`module` and what is inside it, by name, as far as it holds something that the runtime takes out of it."""
    holds, found = False, []
    for key, child in module._modules.items():
        if child is None:
            continue
        if child in taken or id(child._parameters.get("weight")) in poolers:
            holds = True
        else:
            found += _holders(child, taken, poolers, f"{name}.{key}".lstrip("."))
    return [(name, module), *found] if holds or found else []
