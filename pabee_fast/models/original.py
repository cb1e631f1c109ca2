"""Is a module still what transformers or torch made it?"""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

# transformers leaves these behind at the first stock forward that returns hidden states; they act only within one.
_IDLE_HOOKS = "transformers.utils.output_capturing"


def why_not_original(module: nn.Module) -> str | None:
    """In words, what makes a call of `module` something else than a method of transformers or torch; None: nothing."""
    cls = type(module)
    if "forward" in vars(module) or not is_original(cls.forward):
        return f"has another forward than {cls.__name__}'s own"
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        if hooks and any(getattr(hook, "__module__", None) != _IDLE_HOOKS for hook in hooks.values()):
            return "has hooks"
    return None


@functools.lru_cache(maxsize=1024)
def is_original(forward: Callable[..., Any]) -> bool:
    """Return whether a forward is from the code of transformers or torch."""
    # Decorators copy a function's name and module, but not where its code looks up names.
    where: str = getattr(forward, "__globals__", {}).get("__name__", "")
    return where.startswith(("transformers.", "torch.nn."))
