"""The forward of an early-exit model at the Hugging Face edge, and the two verbs that swap it in and out."""

import functools
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import SequenceClassifierOutput

from pabee_fast.errors import InputError, UnsupportedError
from pabee_fast.models.heads import EarlyExitModel, Model, become_early_exit, has_heads, named_arguments, stock_class
from pabee_fast.policies import Policy, require_policy
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.layers import separate_weights
from pabee_fast.runtime.packed import pack
from pabee_fast.runtime.say import say_once
from pabee_fast.training.objective import multi_exit_loss

logger = logging.getLogger(__name__)

IGNORED_BY_TRAINER = "exit_layers"


@dataclass
class EarlyExitOutput(SequenceClassifierOutput):
    """transformers' output, plus `exit_layers` [rows] int64: the number of layers each row was given."""

    exit_layers: Tensor | None = None


def accelerate(model: Model, policy: Policy, *, token_budget: int | None = None) -> Model:
    """Swaps the model's forward in place: in evaluation mode every row leaves at its own layer.

    Args:
        model: a `*ForSequenceClassification` model of a supported family; policies that can exit need heads. Its
            backbone may be torch's dynamic int8 (`quantize_dynamic`), whose answers depend a little on batch-mates.
        policy: when a row has settled.
        token_budget: the most tokens computed at once, and of a row; None: by device, and rows of any length.

    Returns:
        The same object; its outputs carry `exit_layers` [rows] int64. Threads that call it take turns.

    Raises:
        InputError: the policy does not fit the model, or needs heads that it lacks.
        UnsupportedError: no supported family, or a model that is wrapped.
    """
    require_policy(policy)
    policy = Engine(model, token_budget=token_budget).check(policy)
    become_early_exit(model)
    model.exit_policy, model.token_budget, model.lowered_budget = policy, token_budget, None
    if IGNORED_BY_TRAINER not in (ignored := _ignored(model.config)):  # or Trainer's predictions become a tuple
        model.config.keys_to_ignore_at_inference = [*ignored, IGNORED_BY_TRAINER]
    return model


def restore(model: Model) -> Model:
    """Undoes `accelerate`: the stock forward again (with heads attached: the loss over all heads in training).

    Returns:
        The same object. A model that was not accelerated is left as it is.
    """
    if not isinstance(model, EarlyExitModel):
        return model
    model.__dict__.pop("exit_policy", None)
    model.__dict__.pop("token_budget", None)
    model.__dict__.pop("lowered_budget", None)
    before = [key for key in _ignored(model.config) if key != IGNORED_BY_TRAINER]
    model.config.__dict__.pop("keys_to_ignore_at_inference", None)
    if before != _ignored(model.config):
        model.config.keys_to_ignore_at_inference = before
    separate_weights(model)
    if not has_heads(model):
        model.__class__ = stock_class(type(model))
    return model


def _ignored(config: PretrainedConfig) -> list[str]:
    """What Trainer leaves out of predictions; the default is the one it takes itself."""
    return list(getattr(config, "keys_to_ignore_at_inference", ["past_key_values"]))


def forward(model: PreTrainedModel, stock_forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What an early-exit model answers. Training: the loss over all heads. Evaluation: full depth, or early exit once
    a policy is set."""
    if model.training:
        if not has_heads(model):
            raise UnsupportedError(
                "the model is in training mode and accelerated without heads: call model.eval() to score, "
                "pf.restore(model) to train it as it is, or pf.attach_heads(model) to train exits"
            )
        return multi_exit_loss(model, stock_forward, *args, **kwargs)
    if model.exit_policy is None:
        return stock_forward(*args, **kwargs)
    return _early_exit(model, **named_arguments(model, *args, **kwargs))


@torch.compiler.disable  # rows leave by their values, which no graph can know: a compiled model runs this as it is
def _early_exit(
    model: PreTrainedModel,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    pixel_values: Tensor | None = None,
    labels: Tensor | None = None,
    return_dict: bool | None = None,
    **unsupported: Any,
) -> EarlyExitOutput | tuple[Tensor, ...]:
    _refuse(model, unsupported, labels)
    if token_type_ids is not None and "token_type_ids" not in _named_inputs(stock_class(type(model))):
        # Some tokenizers give them to every model, and a stock forward passes over what it does not name.
        say_once(logger, model, f"token_type_ids are passed over: {type(model).__name__} takes none")
        token_type_ids = None
    engine = Engine(model, token_budget=model.token_budget)
    engine.token_budget = min(engine.token_budget, model.lowered_budget or engine.token_budget)
    batch = pack(
        model,
        unsupported.get("use_cache"),
        attention_mask=attention_mask,
        input_ids=input_ids,
        inputs_embeds=inputs_embeds,
        token_type_ids=token_type_ids,
        position_ids=position_ids,
        pixel_values=pixel_values,
    )
    results = engine.run(batch, model.exit_policy)
    if engine.token_budget < engine.first_budget:
        model.lowered_budget = engine.token_budget  # the next call need not run out of memory again
    logits = results.logits.to(engine.dtype)
    loss = None if labels is None else ForSequenceClassificationLoss(labels, logits, model.config)
    out = EarlyExitOutput(loss=loss, logits=logits, exit_layers=results.exit_layers)
    return out if (model.config.return_dict if return_dict is None else return_dict) else out.to_tuple()


@functools.cache
def _named_inputs(cls: type[PreTrainedModel]) -> frozenset[str]:
    return frozenset(inspect.signature(cls.forward).parameters)


def _refuse(model: PreTrainedModel, unsupported: dict[str, Any], labels: Tensor | None) -> None:
    """Raises for whatever early exit cannot honour; ignoring it would change the answer without a word."""
    if getattr(model, "_is_replica", False):
        raise UnsupportedError(
            "nn.DataParallel: its replicas share one config, by which early exit routes their attention. Show one GPU "
            "to each process (CUDA_VISIBLE_DEVICES), or score by pabee-fast score --devices all"
        )
    config = model.config
    is_open = config.num_labels > 1 and config.problem_type is None
    if labels is not None and is_open and labels.dtype != torch.long:
        raise InputError(
            f"labels are {labels.dtype} and config.problem_type is None: their loss would fail, or make the model one "
            "of label sets after its policy was chosen; set model.config.problem_type = 'multi_label_classification' "
            "before pf.accelerate, or give class numbers as torch.long"
        )
    for name in ("output_attentions", "output_hidden_states"):
        if unsupported.pop(name, None) or getattr(model.config, name, False):
            raise UnsupportedError(
                f"{name}: rows leave at different layers, so there is no such output; call pf.restore(model) first"
            )
    # False where nothing is asked for: pipelines say so of the cache, and vision models of interpolation.
    asked = [
        name for name, given in unsupported.items() if given is not None and (given is not False or name == "is_causal")
    ]
    if asked:
        raise UnsupportedError(
            f"{', '.join(asked)}: early exit packs rows itself and cannot honour this; leave it out, or call "
            "pf.restore(model) first"
        )
