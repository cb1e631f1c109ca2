"""Internal classifiers on a Hugging Face model: attach and save; `models.load` reads them back.

A model with heads is an instance of a subclass of its own class that keeps the class's name, so that pickle, deepcopy,
`isinstance`, pipelines and `save_pretrained` see the model they know. The last head is the model's own classifier;
the others live in `model.exit_heads` and in the same safetensors files. The config entry `pabee_fast` holds their kind,
their shapes and a hash of their values; whatever else stands in it is kept.
"""

import functools
import hashlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pabee_fast.errors import InputError, UnsupportedError
from pabee_fast.models import family_of, is_built_in
from pabee_fast.models.around import check_around, is_original
from pabee_fast.models.family import Head
from pabee_fast.models.head_kinds import WITHOUT_HEADS, HeadSpec
from pabee_fast.policies import AnswerKind, Policy

CONFIG_ENTRY = "pabee_fast"
FIT = "fit"
"""The key of the entry under which `fit` says what it did."""
LEARNED_ROWS = "learned_rows"
"""The key of the entry under which `training.learned_rows` keeps which rows BACKBONE and HEADS have learned from."""
BACKBONE = "backbone"
HEADS = "exit_heads"
FORMATS = (1, 2)
"""Entries that this version reads; it writes the last. Format 1 knew the published heads alone."""

Model = TypeVar("Model", bound=PreTrainedModel)


class EarlyExitModel(PreTrainedModel if TYPE_CHECKING else object):  # type: ignore[misc]
    """What `attach_heads` and `accelerate` mix into a model's class; the stock class stands next in the order."""

    accepts_loss_kwargs = False  # The loss is a mean: Trainer must divide it by the accumulation steps itself.
    exit_policy: Policy | None = None
    token_budget: int | None = None
    lowered_budget: int | None = None  # what an out-of-memory error has left of it

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        if hasattr(config, CONFIG_ENTRY):
            setattr(self, HEADS, spec_of(self).new_heads(self))

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As the model's own, with the config entry brought up to date with the heads that are written."""
        check_heads(self)
        if has_heads(self):
            state = kwargs.get("state_dict") or self.state_dict()
            heads = {name: t for name, t in state.items() if name.startswith(f"{HEADS}.")}
            entry = getattr(self.config, CONFIG_ENTRY) | _config_entry(spec_of(self), heads)
            setattr(self.config, CONFIG_ENTRY, entry)
        settings = self.config.__dict__
        ignored = settings.pop(key := "keys_to_ignore_at_inference", None)  # accelerate's, not the model's
        try:
            return super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            if ignored is not None:
                settings[key] = ignored

    def __reduce_ex__(self, protocol: Any) -> Any:
        from pabee_fast.runtime.layers import separate_weights

        separate_weights(self)  # pickle would write the whole storage with each weight that is a part of it
        return _empty_instance, (stock_class(type(self)),), self.__dict__


def early_exit_class(stock: Any) -> Any:
    """The subclass of a stock model class that can leave early; the same one at every call."""
    return stock if issubclass(stock, EarlyExitModel) else _early_exit_class(stock)


@functools.cache
def _early_exit_class(stock: Any) -> Any:
    from pabee_fast.runtime.forward import forward

    @functools.wraps(stock.forward)  # keeps the signature, by which Trainer chooses the columns it passes
    def early_exit_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, functools.partial(stock.forward, self), *args, **kwargs)

    body = {"forward": early_exit_forward, "__module__": stock.__module__, "__qualname__": stock.__qualname__}
    return type(stock.__name__, (EarlyExitModel, stock), body)


def stock_class(cls: Any) -> Any:
    """The Hugging Face class below an early-exit class."""
    return cls.__mro__[2] if issubclass(cls, EarlyExitModel) else cls


def named_arguments(model: PreTrainedModel, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """A call of the model's forward as a mapping from names to values."""
    given = dict(_signature(stock_class(type(model))).bind(model, *args, **kwargs).arguments)
    del given["self"]
    return given | given.pop("kwargs", {})


@functools.cache
def _signature(cls: type[PreTrainedModel]) -> inspect.Signature:
    return inspect.signature(cls.forward)


def _empty_instance(stock: Any) -> Any:
    """Where pickle and deepcopy start from: their `__setstate__` fills it, so its forward is bound to the copy."""
    cls = early_exit_class(stock)
    return cls.__new__(cls)


def has_heads(model: Any) -> bool:
    """Whether the model carries internal classifiers."""
    return getattr(model, HEADS, None) is not None


def inner_heads(model: Any) -> int:
    """How many heads stand before the model's own classifier."""
    return len(getattr(model, HEADS)) if has_heads(model) else 0


def spec_of(model: PreTrainedModel) -> HeadSpec:
    """What heads the config of a model with heads promises."""
    return HeadSpec.from_entry(model, getattr(model.config, CONFIG_ENTRY))


def check_heads(model: PreTrainedModel) -> None:
    """Raises InputError where a model's heads are not as many as its layers from the first one with a head on."""
    if not has_heads(model):
        return
    first, heads, layers = spec_of(model).first_layer, inner_heads(model) + 1, model.config.num_hidden_layers
    if first + heads - 1 != layers:
        raise InputError(
            f"the model has {layers} layers, and {heads} heads from layer {first} on. {WITHOUT_HEADS} what it holds, "
            "and call pf.attach_heads(model)"
        )


def heads_of(model: PreTrainedModel) -> list[nn.Linear]:
    """The heads of the layers from `spec_of(model).first_layer` on, the model's own classifier last.

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
    """What the exit step asks after each of the last layers, as `heads_of` orders them; of a model without heads, after
    the last layer alone.

    Raises:
        InputError: a head is missing or left over.
        UnsupportedError: what transformers' class does between layers and logits was changed, where that is not called.
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
    return heads


def require_evaluation(model: PreTrainedModel) -> None:
    """Raises InputError in training mode, in which dropout has a say in the answers."""
    if model.training:
        raise InputError("the model is in training mode: call model.eval() first")


def answer_kind(model: PreTrainedModel) -> AnswerKind:
    """What an answer of the model is: a label, one output's value, or a set of labels.

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


def attach_heads(model: Model, head: str = "pabee", *, pooling: str | None = None, first_layer: int = 1) -> Model:
    """Adds untrained internal classifiers before the last layer, in place.

    In training mode the model's forward then returns the loss over all heads, sum_j j * L_j / sum_j j (PABEE,
    section 3.3); in evaluation mode it answers as before. `save_pretrained` writes a normal model directory.

    Args:
        model: a live `*ForSequenceClassification` model of a supported family.
        head: "pabee", the published heads: one linear a layer behind the model's own pooler, shared by all layers;
            "own-pooler", each behind a dense layer and tanh of its own; "linear", each over the tokens themselves.
        pooling: which tokens of a row they read: "first", "last", or the "mean" of all; None: as the model's own
            classifier does. That one always stays as it is.
        first_layer: the first layer that gets a head.

    Returns:
        The same object.

    Raises:
        InputError: it has heads already, or another `head`, `pooling` or `first_layer`.
        UnsupportedError: no supported family.
    """
    spec = HeadSpec.of(model, head, pooling, first_layer)
    if has_heads(model):
        raise InputError("the model has heads already; load it without them to start anew")
    return replace_heads(model, spec)


def classifies(config: Any) -> Literal["texts", "images"] | None:
    """What the model of a config's directory classifies; None: it is a bare encoder, say."""
    names = " ".join(config.architectures or [])
    return "texts" if "SequenceClassification" in names else "images" if "ImageClassification" in names else None


def replace_heads(model: Model, spec: HeadSpec) -> Model:
    """Gives a model untrained heads in place of those it may have, and its config a new entry."""
    become_early_exit(model)
    setattr(model, HEADS, spec.new_heads(model))
    heads = getattr(model, HEADS).state_dict(prefix=f"{HEADS}.")
    learned = (getattr(model.config, CONFIG_ENTRY, None) or {}).get(LEARNED_ROWS, {})
    setattr(model.config, CONFIG_ENTRY, entry := _config_entry(spec, heads))
    if BACKBONE in learned:  # what heads have learned from goes with them
        entry[LEARNED_ROWS] = {BACKBONE: learned[BACKBONE]}
    return model


def become_early_exit(model: Model) -> Model:
    """Gives a model the class that can leave early, in place.

    Raises:
        UnsupportedError: an attribute hides the class's forward.
    """
    if isinstance(model, EarlyExitModel):
        return model
    own = vars(model).get("forward")
    if getattr(own, "__func__", None) is inspect.unwrap(type(model).forward):
        del model.forward  # the class's, without its decorators: so accelerate's unwrap_model puts it back
    elif own is not None:
        raise UnsupportedError(
            "the model's forward was replaced on the object itself, which would keep it from leaving early (Trainer "
            "does so for mixed precision): undo that first, by trainer.accelerator.unwrap_model(model, "
            "keep_fp32_wrapper=False) or del model.forward"
        )
    model.__class__ = early_exit_class(type(model))
    return model


def _config_entry(spec: HeadSpec, heads: Mapping[str, Tensor]) -> dict[str, Any]:
    shapes = {name: list(tensor.shape) for name, tensor in sorted(heads.items())}
    return {"format": FORMATS[-1], **spec.entry(), "shapes": shapes, "sha256": hash_of(heads)}


def hash_of(heads: Mapping[str, Tensor]) -> str:
    """Over names and values; float32 holds every half-precision value, so widening on load changes nothing."""
    digest = hashlib.sha256()
    for name, tensor in sorted(heads.items()):
        digest.update(name.encode() + tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
