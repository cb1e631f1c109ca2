"""The kinds of internal classifiers: which tokens of a row each reads, and what stands between those and its linear."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pabee_fast.arguments import require_whole
from pabee_fast.errors import InputError, UnsupportedError
from pabee_fast.kernels.checks import Pooler
from pabee_fast.kernels.reference import ACTIVATIONS
from pabee_fast.models import family_of
from pabee_fast.models.head import Head, RowMap, pooler_of

KINDS = ("pabee", "own-pooler", "linear")
OWN_ACTIVATION = "tanh"

WITHOUT_HEADS = (
    "Take layers out of a model without heads (load it by transformers), set its config.num_hidden_layers to"
)


@dataclass(frozen=True)
class HeadSpec:
    """What heads a model has.

    Args:
        head: "pabee", a linear behind the model's own pooler, which all layers share; "own-pooler", a linear behind a
            dense layer and tanh of its own; "linear", a linear over the tokens it reads.
        pooling: which tokens of a row it reads: the "first", the "last", or the "mean" of all that its mask shows.
        first_layer: the first layer with a head.
    """

    head: str
    pooling: str
    first_layer: int = 1

    @classmethod
    def of(cls, model: PreTrainedModel, head: str, pooling: str | None, first_layer: int) -> "HeadSpec":
        """As asked for; pooling None is the one that the model's own classifier has.

        Raises:
            InputError: an unknown kind or pooling, a first layer that the model does not have, or layers that came or
                went behind its config's back.
        """
        family = family_of(model)
        spec = cls(head, family.pooling(model) if pooling is None else pooling, first_layer)
        for name, given, known in (("head", head, KINDS), ("pooling", spec.pooling, family.poolings)):
            if given not in known:
                raise InputError(f"{name}={given!r}: give {', '.join(map(repr, known[:-1]))} or {known[-1]!r}")
        require_whole("first_layer", first_layer, at_least=1)
        layers, held = model.config.num_hidden_layers, len(family.layers(model))
        if held != layers:
            raise InputError(
                f"config.num_hidden_layers={layers}, and the model holds {held}: a head would serve another layer than "
                f"its own. {WITHOUT_HEADS} {held}, and call pf.attach_heads(model)"
            )
        if first_layer > layers:
            raise InputError(f"first_layer={first_layer}: the model has {layers} layers; give 1 to {layers}")
        return spec

    @classmethod
    def from_entry(cls, model: PreTrainedModel, entry: Mapping[str, Any]) -> "HeadSpec":
        """Return what a config entry says; one of format 1 knows the published heads alone."""
        return cls.of(model, entry["head"], entry.get("pooling"), entry.get("first_layer", 1))

    def entry(self) -> dict[str, Any]:
        """Return what the config entry says of it."""
        return {"head": self.head, "pooling": self.pooling, "first_layer": self.first_layer}

    def new_heads(self, model: PreTrainedModel) -> nn.ModuleList:
        """Return untrained heads for the layers from `first_layer` to the last but one, as HEADS holds them."""
        heads = [self._new_head(model) for _ in range(self.first_layer, model.config.num_hidden_layers)]
        for head in heads:
            nn.init.normal_(head.weight, std=getattr(model.config, "initializer_range", 0.02))
            if head.bias is not None:
                nn.init.zeros_(head.bias)
        return nn.ModuleList(heads).train(model.training)

    def exit_head(self, own: Head, linear: nn.Linear) -> Head:
        """Return what the exit step asks, given one of the heads, and the model's own that is asked last."""
        pooler: Pooler | RowMap | None = None
        if self.head == "pabee":
            pooler = own.pooler
        elif isinstance(linear, PooledLinear):
            pooler = pooler_of(linear.pooler, OWN_ACTIVATION)
        return Head(linear, self.pooling, pooler, own.norm)

    def logits(self, model: PreTrainedModel, linear: nn.Linear, tokens: Tensor) -> Tensor:
        """Return one head's logits for training, with the model's dropout; differentiable.

        Args:
            linear: the head.
            tokens: [rows, hidden_size], as `read_padded` gives them.
        """
        family = family_of(model)
        if self.head == "pabee":
            return linear(family.pooled(model, tokens))
        if isinstance(linear, PooledLinear):
            tokens = ACTIVATIONS[OWN_ACTIVATION](linear.pooler(tokens))
        return linear(family.dropout(model)(tokens))

    def _new_head(self, model: PreTrainedModel) -> nn.Linear:
        family = family_of(model)
        last, hidden_size = family.classifier(model), model.config.hidden_size
        like: dict[str, Any] = {"device": last.weight.device, "dtype": last.weight.dtype}
        if self.head != "own-pooler":
            width = last.in_features if self.head == "pabee" else hidden_size
            # The model's own kind of head: Llama's relatives have no bias.
            has_bias = self.head != "pabee" or last.bias is not None
            return nn.Linear(width, last.out_features, bias=has_bias, **like)
        head, shared = PooledLinear(hidden_size, last.out_features, **like), family.pooler(model)
        is_like = isinstance(shared, Pooler) and shared.weight.shape == head.pooler.weight.shape
        if isinstance(shared, Pooler) and is_like and shared.bias is not None:
            with torch.no_grad():  # a trained pooler is a better start than a random one, as in DeeBERT's code
                head.pooler.weight.copy_(shared.weight)
                head.pooler.bias.copy_(shared.bias)
        return head


class PooledLinear(nn.Linear):
    """A head with a pooler of its own. It maps pooled features; whoever asks it applies the pooler first."""

    pooler: nn.Linear

    def __init__(self, hidden_size: int, outputs: int, **like: Any) -> None:
        super().__init__(hidden_size, outputs, **like)
        self.pooler = nn.Linear(hidden_size, hidden_size, **like)
        nn.init.normal_(self.pooler.weight, std=0.02)
        nn.init.zeros_(self.pooler.bias)


def read_padded(
    states: Tensor, mask: Tensor | None, pooling: str, kept: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Return what heads read of every row of a padded batch, as `kernels.reference.pool` reads a packed one;
    differentiable.

    Args:
        states: [rows, length, hidden_size], a layer's output.
        mask: [rows, length], 0 where hidden; None: all tokens count, padding too.
        pooling: "first", "last" or "mean".
        kept: which of the tokens are packed, given the visible ones, both [rows, length] bool; None: the visible ones.

    Returns:
        [rows, hidden_size].

    Raises:
        UnsupportedError: a mask of another rank where hidden tokens matter.
    """
    if pooling == "first":
        return states[:, 0]
    rows, length = states.shape[:2]
    mask = torch.ones(rows, length, device=states.device) if mask is None else mask
    if mask.shape != (rows, length):
        raise UnsupportedError(
            f"attention_mask is {list(mask.shape)}: heads over the {pooling} token(s) take [rows, length], here "
            f"{[rows, length]}"
        )
    visible = mask != 0
    packed = visible if kept is None else kept(visible)
    if pooling == "last":
        last = torch.where(packed, torch.arange(length, device=states.device), 0).amax(dim=1)
        return states[torch.arange(rows, device=states.device), last]
    weights = (visible & packed).float()[..., None]
    return ((states.float() * weights).sum(dim=1) / weights.sum(dim=1)).to(states.dtype)
