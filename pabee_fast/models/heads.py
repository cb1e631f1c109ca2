"""What heads a model has, and what the exit step asks of each, read off the model and its config.

The last head is the model's own classifier; the others live in `model.exit_heads` and in the same safetensors files.
The config entry `pabee_fast` holds their kind, their shapes and a hash of their values; what else stands there is kept.
"""

import functools
import hashlib
import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pabee_fast.errors import CheckpointError, InputError, UnsupportedError
from pabee_fast.models import family_of, is_built_in
from pabee_fast.models.around import check_around
from pabee_fast.models.head import Head, is_quantised
from pabee_fast.models.head_kinds import WITHOUT_HEADS, HeadSpec
from pabee_fast.models.original import is_original
from pabee_fast.policies import AnswerKind

CONFIG_ENTRY = "pabee_fast"
FIT = "fit"
"""The key of the entry under which `fit` says what it did."""
MAX_LENGTH = "max_length"
"""The key of the entry under which `train`, `fit` and `tune` say at how many tokens they cut rows."""
LEARNED_ROWS = "learned_rows"
"""The key of the entry under which `training.learned_rows` keeps which rows BACKBONE and HEADS have learned from."""
BACKBONE = "backbone"
HEADS = "exit_heads"
FORMATS = (1, 2)
"""Entries that this version reads; it writes the last. Format 1 knew the published heads alone."""


def stock_class(cls: Any) -> Any:
    """Return the Hugging Face class below an early-exit class; another class is its own."""
    return getattr(cls, "stock_class", cls)


def named_arguments(model: PreTrainedModel, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return a call of the model's forward as a mapping from names to values."""
    given = dict(_signature(stock_class(type(model))).bind(model, *args, **kwargs).arguments)
    del given["self"]
    return given | given.pop("kwargs", {})


@functools.cache
def _signature(cls: type[PreTrainedModel]) -> inspect.Signature:
    return inspect.signature(cls.forward)


def has_heads(model: Any) -> bool:
    """Return whether the model carries internal classifiers."""
    return getattr(model, HEADS, None) is not None


def inner_heads(model: Any) -> int:
    """Return how many heads stand before the model's own classifier."""
    return len(getattr(model, HEADS)) if has_heads(model) else 0


def spec_of(model: PreTrainedModel) -> HeadSpec:
    """Return what heads the config of a model with heads promises."""
    return HeadSpec.from_entry(model, getattr(model.config, CONFIG_ENTRY))


def stored_max_length(config: Any) -> int | None:
    """Return where heads, or the guarantee that was found last, were made with rows cut; None where the config does not
    say.

    Raises:
        CheckpointError: what it says is no number of tokens.
    """
    length = (getattr(config, CONFIG_ENTRY, None) or {}).get(MAX_LENGTH)
    if length is not None and (type(length) is not int or length < 1):
        raise CheckpointError(
            f"the config's {CONFIG_ENTRY}.{MAX_LENGTH} is {length!r}, and no number of tokens: correct config.json"
        )
    return length


def check_heads(model: PreTrainedModel) -> None:
    """Raise InputError where a model's heads are not as many as its layers from the first one with a head on."""
    if not has_heads(model):
        return
    first, heads, layers = spec_of(model).first_layer, inner_heads(model) + 1, model.config.num_hidden_layers
    if first + heads - 1 != layers:
        raise InputError(
            f"the model has {layers} layers, and {heads} heads from layer {first} on. {WITHOUT_HEADS} what it holds, "
            "and call pf.attach_heads(model)"
        )


def heads_of(model: PreTrainedModel) -> list[nn.Linear]:
    """Return the heads of the layers from `spec_of(model).first_layer` on, the model's own classifier last.

    Raises:
        InputError: the model has no heads.
    """
    if not has_heads(model):
        raise InputError(
            f"{type(model).__name__} has no heads: fit some with `pabee-fast fit`, train some with `pabee-fast train` "
            "or pf.attach_heads(model) and transformers' Trainer, or use FullDepth() (--policy full-depth)"
        )
    return [*getattr(model, HEADS), family_of(model).classifier(model)]


def exit_heads_of(model: PreTrainedModel) -> list[Head]:
    """Return what the exit step asks after each of the last layers, as `heads_of` orders them; of a model without
    heads, after the last layer alone.

    Raises:
        InputError: a head is missing or left over.
        UnsupportedError: what transformers' class does between layers and logits was changed, where that is not called;
            or a head is quantised.
    """
    check_heads(model)
    family = family_of(model)
    layers = dict.fromkeys(family.layers(model)) if is_built_in(family) else ()
    try:
        called = [part for layer in layers for part in family.called(layer)]
        own = Head(family.classifier(model), family.pooling(model), family.pooler(model), family.norm(model))
    except AttributeError as error:
        raise UnsupportedError(
            f"{type(model).__name__} is not built as {family.model_type} is ({error}): was a part of it "
            "replaced? give it back, or teach pabee_fast yours by pf.register_family"
        ) from None
    spec = spec_of(model) if has_heads(model) else None
    heads = [own] if spec is None else [*(spec.exit_head(own, linear) for linear in getattr(model, HEADS)), own]
    if is_built_in(family):
        if not is_original(stock_class(type(model)).forward):
            raise UnsupportedError(
                f"{type(model).__name__} has a forward of its own, which early exit would not run: give a model of the "
                "class that it comes from, or teach pabee_fast yours by pf.register_family"
            )
        check_around(model, called, heads)
    for head in heads:
        if is_quantised(head.linear):
            raise UnsupportedError(
                f"the weight of a head is torchao's {type(head.linear.weight).__name__}, which the exit step cannot "
                f"read: quantise the backbone alone (quantize_(model.{model.base_model_prefix}, ...))"
            )
    return heads


def require_evaluation(model: PreTrainedModel) -> None:
    """Raise InputError in training mode, in which dropout has a say in the answers."""
    if model.training:
        raise InputError("the model is in training mode: call model.eval() first")


def answer_kind(model: PreTrainedModel) -> AnswerKind:
    """Return what an answer of the model is: a label, one output's value, or a set of labels.

    Raises:
        UnsupportedError: a regression with several outputs, which has no answer that could settle.
    """
    config = model.config
    if config.num_labels == 1:
        return "value"
    if config.problem_type == "multi_label_classification":
        return "label_set"
    if config.problem_type == "regression":
        raise UnsupportedError(f"a regression with {config.num_labels} outputs: early exit serves one output")
    return "label"


def classifies(config: Any) -> Literal["texts", "images"] | None:
    """Return what the model of a config's directory classifies; None: it is a bare encoder, say."""
    names = " ".join(config.architectures or [])
    return "texts" if "SequenceClassification" in names else "images" if "ImageClassification" in names else None


def hash_of(heads: Mapping[str, Tensor]) -> str:
    """Over names and values; float32 holds every half-precision value, so widening on load changes nothing."""
    digest = hashlib.sha256()
    for name, tensor in sorted(heads.items()):
        digest.update(name.encode() + tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
