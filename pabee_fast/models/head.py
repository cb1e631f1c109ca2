"""One head, as the exit step asks it: which tokens it reads, what stands between those and its linear."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import linear

from pabee_fast.kernels.checks import Pooler
from pabee_fast.kernels.reference import ACTIVATIONS
from pabee_fast.models.original import why_not_original

RowMap = Callable[[Tensor], Tensor]
"""A function from [n, size] to [n, other size] that treats every line alike; most often a module."""

POOLINGS = ("first", "last", "mean")


class Head(NamedTuple):
    """What the exit step asks after one layer: a linear over what it reads of a row."""

    linear: nn.Linear
    pooling: str
    """Which tokens of a row it reads: "first", "last" or "mean"."""
    pooler: Pooler | RowMap | None
    """What stands between those and the linear."""
    norm: RowMap | None = None
    """What every token goes through before it is read: the norm that the model has behind its last layer."""


def is_quantised(linear: nn.Linear) -> bool:
    """Return whether torchao holds the weight of torch's own linear layer in a precision of its own."""
    return type(linear.weight).__module__.startswith("torchao.")


@dataclass(frozen=True)
class CalledPooler:
    """A dense layer and its activation, called."""

    dense: nn.Module
    activation: Callable[[Tensor], Tensor]

    def __call__(self, tokens: Tensor) -> Tensor:
        return self.activation(self.dense(tokens))


def pooler_of(dense: nn.Module, activation: str) -> Pooler | CalledPooler:
    """Return what a dense layer and an activation, by the kernels' name, are to the exit step: it reads the weights of
    torch's own linear layer, and whatever an owner has put in its place (an adapter), in its weight (torchao's int8) or
    on it (a hook) is called."""
    if type(dense) is nn.Linear and why_not_original(dense) is None and not is_quantised(dense):
        return Pooler(dense.weight, dense.bias, activation)
    return CalledPooler(dense, ACTIVATIONS[activation])


def through_pooler(pooler: Pooler | Callable[[Tensor], Tensor] | None, tokens: Tensor) -> Tensor:
    """Return what a head's linear reads, [rows, width], given the tokens that the head reads, [rows, hidden_size];
    differentiable."""
    if pooler is None:
        return tokens
    if isinstance(pooler, Pooler):
        if tokens.dtype != pooler.weight.dtype:  # heads may be kept in another precision than layers
            tokens = tokens.to(pooler.weight.dtype)
        return ACTIVATIONS[pooler.activation](linear(tokens, pooler.weight, pooler.bias))
    return pooler(tokens)
