"""Whether a model is still as it was, told in a fraction of a millisecond: asked before every run, for a model is its
owner's between runs.

The attributes of all modules are compared as dictionaries, which Python does by the identity of what they hold. What a
tensor holds is free; where it lies is not, since bound weights lie there too.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

_global: Any = torch.nn.modules.module
_OF_THE_MODEL = ("training", "_modules", "_parameters", "_forward_hooks", "_forward_pre_hooks", "forward")


class Snapshot:
    """What a model is made of at a moment: its modules, their attributes, hooks and configs, where parameters lie."""

    def __init__(self, model: nn.Module) -> None:
        self._model, inside = model, list(model.modules())[1:]
        self._of_model = _own(model)
        # Attributes of the model itself come and go with its policy, so that only those are asked for that run.
        self._modules = inside
        self._classes = [*map(type, inside)]
        configs = {id(config): config for module in (model, *inside) if (config := _config_of(module)) is not None}
        self._now = [*map(vars, inside), *map(vars, configs.values())]
        self._then = [dict(attributes) for attributes in self._now]
        # Of the dictionaries that attributes are, most are hooks that nobody set. Buffers are not read from outside.
        inner = [
            each
            for attributes in self._then
            for name, each in attributes.items()
            if type(each) in (dict, OrderedDict) and name != "_buffers"
        ]
        self._empty = [each for each in inner if not each]
        self._filled = [each for each in inner if each]
        self._content = [dict(each) for each in self._filled]
        self._parameters = [*model.parameters()]
        self._places = [*map(Tensor.data_ptr, self._parameters)]
        self._has_hooks = _has_global_hooks()

    def holds(self) -> bool:
        """Return whether the model is still so."""
        try:
            return (
                _own(self._model) == self._of_model
                and [*map(type, self._modules)] == self._classes
                and self._now == self._then
                and not any(self._empty)
                and self._filled == self._content
                and [*map(Tensor.data_ptr, self._parameters)] == self._places
                and _has_global_hooks() == self._has_hooks
            )
        except RuntimeError:  # one tensor stands where another was, and two tensors are equal element by element
            return False


def _own(model: nn.Module) -> dict[str, Any]:
    """Return what is asked for of the model itself, with its dictionaries as they are now."""
    attributes = vars(model)
    found = {name: attributes[name] for name in _OF_THE_MODEL if name in attributes}
    return {name: dict(value) if isinstance(value, dict) else value for name, value in found.items()}


def _config_of(module: nn.Module) -> PretrainedConfig | None:
    config = vars(module).get("config")
    return config if isinstance(config, PretrainedConfig) else None


def _has_global_hooks() -> bool:
    return bool(_global._global_forward_hooks or _global._global_forward_pre_hooks)
