"""A Hugging Face model that can leave early: the class that its own becomes, and the verbs that make it so.

Such a model is an instance of a subclass of its own class that keeps the class's name, so that pickle, deepcopy,
`isinstance`, pipelines and `save_pretrained` see the model they know.
"""

import functools
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from pabee_fast.errors import InputError, UnsupportedError
from pabee_fast.modeling.forward import ENGINE, forward, keep_engine
from pabee_fast.modeling.stored_heads import add_stored_heads, lacks_its_heads
from pabee_fast.models.head_kinds import HeadSpec
from pabee_fast.models.heads import (
    BACKBONE,
    CONFIG_ENTRY,
    FORMATS,
    HEADS,
    LEARNED_ROWS,
    check_heads,
    has_heads,
    hash_of,
    spec_of,
    stock_class,
)
from pabee_fast.policies import Policy, require_policy
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.layers import separate_weights

Model = TypeVar("Model", bound=PreTrainedModel)
Given = TypeVar("Given")  # a PreTrainedModel, or a CrossEncoder

IGNORED_BY_TRAINER = "exit_layers"


class EarlyExitModel(PreTrainedModel if TYPE_CHECKING else object):  # type: ignore[misc]
    """What `attach_heads` and `accelerate` mix into a model's class; the stock class stands next in the order."""

    accepts_loss_kwargs = False  # The loss is a mean: Trainer must divide it by the accumulation steps itself.
    exit_policy: Policy | None = None
    token_budget: int | None = None

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
        separate_weights(self)  # pickle would write the whole storage with each weight that is a part of it
        state = {name: value for name, value in vars(self).items() if name != ENGINE}
        return _empty_instance, (stock_class(type(self)),), state

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.__dict__.pop(ENGINE, None)  # bound weights would be kept where they were (.to, .half)
        return super()._apply(*args, **kwargs)


def early_exit_class(stock: Any) -> Any:
    """Return the subclass of a stock model class that can leave early; the same one at every call."""
    return stock if issubclass(stock, EarlyExitModel) else _early_exit_class(stock)


@functools.cache
def _early_exit_class(stock: Any) -> Any:
    @functools.wraps(stock.forward)  # keeps the signature, by which Trainer chooses the columns it passes
    def early_exit_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, functools.partial(stock.forward, self), *args, **kwargs)

    named = {"__module__": stock.__module__, "__qualname__": stock.__qualname__}
    body = {"forward": early_exit_forward, "stock_class": stock, **named}
    return type(stock.__name__, (EarlyExitModel, stock), body)


def _empty_instance(stock: Any) -> Any:
    """Return where pickle and deepcopy start from: their `__setstate__` fills it, so its forward is bound to the
    copy."""
    cls = early_exit_class(stock)
    return cls.__new__(cls)


def attach_heads(model: Given, head: str = "pabee", *, pooling: str | None = None, first_layer: int = 1) -> Given:
    """Add untrained internal classifiers before the last layer, in place.

    In training mode the model's forward then returns the loss over all heads, sum_j j * L_j / sum_j j (PABEE,
    section 3.3); in evaluation mode it answers as before. `save_pretrained` writes a normal model directory.

    Args:
        model: a live `*ForSequenceClassification` model of a supported family, or a CrossEncoder with one inside.
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
    inside = classifier_in(model)
    spec = HeadSpec.of(inside, head, pooling, first_layer)
    if has_heads(inside):
        raise InputError("the model has heads already; load it without them to start anew")
    replace_heads(inside, spec)
    return model


def accelerate(model: Given, policy: Policy, *, token_budget: int | None = None) -> Given:
    """Swap the model's forward in place: in evaluation mode every row leaves at its own layer.

    Args:
        model: a `*ForSequenceClassification` model of a supported family, or a CrossEncoder with one inside. Policies
            that can exit need heads; where transformers loaded the model without those of its directory, they are read
            there. Its backbone may be torch's dynamic int8 (`quantize_dynamic`), whose answers depend a little on
            batch-mates.
        policy: when a row has settled.
        token_budget: the most tokens computed at once, and of a row; None: by device, and rows of any length.

    Returns:
        The same object; its outputs carry `exit_layers` [rows] int64. Threads that call it take turns.

    Raises:
        CheckpointError: the heads in the model's directory are absent or others.
        InputError: the policy does not fit the model, or needs heads that it lacks.
        UnsupportedError: no supported family, or a model that is wrapped.
    """
    require_policy(policy)
    inside = classifier_in(model)
    if policy.needs_heads and lacks_its_heads(inside):
        add_stored_heads(inside)
    engine = Engine(inside, token_budget=token_budget)
    policy = engine.check(policy)
    become_early_exit(inside)
    inside.exit_policy, inside.token_budget = policy, token_budget
    keep_engine(inside, engine)
    if IGNORED_BY_TRAINER not in (ignored := _ignored(inside.config)):  # or Trainer's predictions become a tuple
        inside.config.keys_to_ignore_at_inference = [*ignored, IGNORED_BY_TRAINER]
    return model


def restore(model: Given) -> Given:
    """Undo `accelerate`: the stock forward again (with heads attached: the loss over all heads in training).

    Returns:
        The same object. A model that was not accelerated is left as it is.
    """
    inside = classifier_in(model)
    if not isinstance(inside, EarlyExitModel):
        return model
    for name in ("exit_policy", "token_budget", ENGINE):
        inside.__dict__.pop(name, None)
    before = [key for key in _ignored(inside.config) if key != IGNORED_BY_TRAINER]
    inside.config.__dict__.pop("keys_to_ignore_at_inference", None)
    if before != _ignored(inside.config):
        inside.config.keys_to_ignore_at_inference = before
    separate_weights(inside)
    if not has_heads(inside):
        inside.__class__ = stock_class(type(inside))
    return model


def classifier_in(model: Any) -> Any:
    """Return the transformers model inside a CrossEncoder of sentence-transformers; any other model is its own."""
    inside = getattr(model, "transformers_model", None)
    return inside if isinstance(inside, PreTrainedModel) and not isinstance(model, PreTrainedModel) else model


def _ignored(config: PretrainedConfig) -> list[str]:
    """Return what Trainer leaves out of predictions; the default is the one it takes itself."""
    return list(getattr(config, "keys_to_ignore_at_inference", ["past_key_values"]))


def replace_heads(model: Model, spec: HeadSpec) -> Model:
    """Give a model untrained heads in place of those it may have, and its config a new entry."""
    become_early_exit(model)
    setattr(model, HEADS, spec.new_heads(model))
    heads = getattr(model, HEADS).state_dict(prefix=f"{HEADS}.")
    learned = (getattr(model.config, CONFIG_ENTRY, None) or {}).get(LEARNED_ROWS, {})
    setattr(model.config, CONFIG_ENTRY, entry := _config_entry(spec, heads))
    if BACKBONE in learned:  # what heads have learned from goes with them
        entry[LEARNED_ROWS] = {BACKBONE: learned[BACKBONE]}
    return model


def become_early_exit(model: Model) -> Model:
    """Give a model the class that can leave early, in place.

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
