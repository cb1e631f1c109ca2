"""Whether a layer is still transformers' own, so that what is computed from its tensors is what it would answer.

Asked before every run, for a model is its owner's between runs; hence plain dictionary look-ups, and names only where
something is wrong.
"""

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import nn

from pabee_fast.kernels.checks import FEATURE_DTYPES
from pabee_fast.models.block import Block
from pabee_fast.models.original import why_not_original

_module: ModuleType = torch.nn.modules.module
# By name: which of these classes there are differs between the versions of transformers that we support.
_ACTIVATIONS = {
    "GELUActivation": "gelu",
    "GELU": "gelu",
    "NewGELUActivation": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "AccurateGELUActivation": "gelu_tanh",
    "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "ReLU": "relu",
}
# Written out in torch's operators: eight passes over their input.
_MANY_PASSES = frozenset({"NewGELUActivation", "FastGELUActivation", "AccurateGELUActivation"})
_FUNCTIONS: dict[Any, str] = {nn.functional.gelu: "gelu", nn.functional.relu: "relu", torch.relu: "relu"}


def activation_of(activation: nn.Module | Callable[..., Any]) -> str | None:
    """Return the kernels' name of a layer's activation; None: they have none."""
    if not isinstance(activation, nn.Module):
        return _FUNCTIONS.get(activation)
    name = _ACTIVATIONS.get(type(activation).__name__)
    return "gelu_tanh" if name == "gelu" and vars(activation).get("approximate") == "tanh" else name


def in_many_passes(module: nn.Module) -> bool:
    """Return whether this is transformers' own GELU by tanh that is computed operator by operator."""
    return type(module).__name__ in _MANY_PASSES and _why_not_own(module, "transformers.activations") is None


def parts_of(layer: nn.Module) -> list[nn.Module]:
    """Return the layer and the modules in it, parents first. (`nn.Module.modules` takes twice as long.)"""
    found = [layer]
    for child in layer._modules.values():
        if child is not None:
            found += parts_of(child)
    return found


def why_not_stock(parts: Sequence[nn.Module], package: str) -> str | None:
    """In words, what keeps a layer, by its `parts_of`, from being what the modelling code of `package` made; None:
    nothing.

    Looked for are other classes (adapters, quantised linears, parametrisations, subclasses), replaced methods, hooks
    that act, and training mode. What a layer's tensors hold is free.
    """
    if _module._global_forward_hooks or _module._global_forward_pre_hooks:
        return "there are hooks on all modules"
    for module in parts:
        if wrong := _why_not_own(module, package):
            return f"{_name(module, parts[0])} {wrong}"
    return None


def why_not_fused(parts: Sequence[nn.Module], blocks: Sequence[Block]) -> str | None:
    """In words, what keeps a stock layer's tensors from being multiplied as post-norm blocks; None: nothing."""
    if not blocks:
        return "it is no post-norm block"
    used = {part for block in blocks for part in block if isinstance(part, nn.Module)}
    for module in parts:
        if not module._modules and module not in used and type(module) is not nn.Dropout:
            return f"{_name(module, parts[0])} is a {type(module).__name__}, of which the block knows nothing"
    kinds: set[tuple[torch.dtype, torch.device]] = set()
    for block in blocks:
        if wrong := _why_not_block(block, kinds):
            return wrong
    if len(kinds) > 1:
        return f"its parameters are of {' and '.join(f'{dtype} on {device}' for dtype, device in kinds)}"
    [(dtype, _)] = kinds
    return None if dtype in FEATURE_DTYPES else f"its parameters are {dtype}"


def _name(module: nn.Module, layer: nn.Module) -> str:
    return next(name for name, each in layer.named_modules() if each is module) or "the layer"


def _why_not_own(module: nn.Module, package: str) -> str | None:
    cls, state = type(module), vars(module)
    if not _is_of(cls.__module__, package):
        return f"is a {cls.__module__}.{cls.__qualname__}"
    if wrong := why_not_original(module):
        return wrong
    if state.get("_compiled_call_impl") is not None:
        return "was compiled by its owner"
    if module.training:
        return "is in training mode"
    return "is causal" if state.get("is_causal") else None


@functools.cache
def _is_of(defined_in: str, package: str) -> bool:
    return defined_in.startswith((f"{package}.", "torch.nn.modules.", "transformers.activations"))


def _fit(block: Block) -> bool:
    """Return whether the block's parameters have the shapes that kernels, which check nothing, take them to have."""
    hidden_size = block.query.weight.shape[1]
    dense = (block.query, block.key, block.value, block.output, block.up, block.down)
    vectors = [norm_part for norm in (block.attention_norm, block.norm) for norm_part in (norm.weight, norm.bias)]
    return (
        block.output.weight.shape[0] == block.down.weight.shape[0] == block.up.weight.shape[1] == hidden_size
        and all(part.bias is None or part.bias.shape == part.weight.shape[:1] for part in dense)
        and all(vector.shape == (hidden_size,) for vector in vectors)
    )


def _why_not_block(block: Block, kinds: set[tuple[torch.dtype, torch.device]]) -> str | None:
    """As `why_not_fused`, of one block; notes the kinds of its parameters."""
    projections = (block.query, block.key, block.value)
    of_places = tuple(part for part in (block.place_key, block.place_query) if part is not None)
    for part, cls in (
        *((part, nn.Linear) for part in (*projections, *of_places, block.output, block.up, block.down)),
        *((part, nn.LayerNorm) for part in (block.attention_norm, block.norm)),
    ):
        if type(part) is not cls:
            return f"a {type(part).__name__} stands where a {cls.__name__} is expected"
        weight, bias = part._parameters.get("weight"), part._parameters.get("bias")
        for tensor in (weight,) if bias is None and cls is nn.Linear else (weight, bias):
            if type(tensor) is not nn.Parameter or not tensor.is_contiguous():
                return f"a {cls.__name__} lacks a contiguous parameter of torch's own class"
            kinds.add((tensor.dtype, tensor.device))
    if len({id(part.weight) for part in projections}) < len(projections):
        return "query, key and value share a weight"
    first = block.query
    for part in projections:
        if (part.bias is None) != (first.bias is None) or part.weight.shape != first.weight.shape:
            return "query, key and value differ in shape"
    if any(part.weight.shape != first.weight.shape for part in of_places):
        return "query, key and value of places and tokens differ in shape"
    if not _fit(block):
        return "its parameters do not fit one another in shape"
    if activation_of(block.activation) is None:
        return f"activation {getattr(block.activation, '__name__', type(block.activation).__name__)} has no kernel"
    return None
