"""What an early-exit model's forward answers, at the Hugging Face edge."""

import functools
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import SequenceClassifierOutput

from pabee_fast.errors import InputError, UnsupportedError
from pabee_fast.modeling.loss import multi_exit_loss
from pabee_fast.models.heads import has_heads, named_arguments, stock_class
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.graphs import Graphs
from pabee_fast.runtime.pack import pack
from pabee_fast.say import say_once

logger = logging.getLogger(__name__)

ENGINE = "_engine"
"""The attribute of an accelerated model that holds its engine; no copy and no file has it."""

NO_GRAPH = (
    "rows leave early by their values, which no exported or traced graph can hold: call pf.restore(model) first, which "
    "leaves full depth"
)


@dataclass
class EarlyExitOutput(SequenceClassifierOutput):
    """transformers' output, plus `exit_layers` [rows] int64: the number of layers each row was given."""

    exit_layers: Tensor | None = None


def forward(model: PreTrainedModel, stock_forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what an early-exit model answers. Training: the loss over all heads. Evaluation: full depth, or early exit
    once a policy is set."""
    if model.training:
        if not has_heads(model):
            raise UnsupportedError(
                "the model is in training mode and accelerated without heads: call model.eval() to score, "
                "pf.restore(model) to train it as it is, or pf.attach_heads(model) to train exits"
            )
        return multi_exit_loss(model, stock_forward, *args, **kwargs)
    if model.exit_policy is None:
        return stock_forward(*args, **kwargs)
    # Dynamo, by which strict export looks, meets the reason below, and would hide this error behind one of its own.
    if torch.jit.is_tracing() or (torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()):
        raise UnsupportedError(NO_GRAPH)
    return _early_exit(model, **named_arguments(model, *args, **kwargs))


@torch.compiler.disable(reason=NO_GRAPH)  # a compiled model runs this as it is
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
    engine = engine_of(model)
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
    logits = results.logits.to(engine.dtype)
    loss = None if labels is None else ForSequenceClassificationLoss(labels, logits, model.config)
    out = EarlyExitOutput(loss=loss, logits=logits, exit_layers=results.exit_layers)
    return out if (model.config.return_dict if return_dict is None else return_dict) else out.to_tuple()


def engine_of(model: Any) -> Engine:
    """Return the engine of an accelerated model, the same one from call to call: it remembers how layers are bound, and
    which budget an out-of-memory error has left."""
    engine: Engine | None = vars(model).get(ENGINE)
    if engine is None:  # a copy, or one that was unpickled
        engine = Engine(model, token_budget=model.token_budget)
        keep_engine(model, engine)
    return engine


def keep_engine(model: Any, engine: Engine) -> None:
    """Let a model's calls use this engine, until the model is moved (`EarlyExitModel._apply`)."""
    engine.layers.lets_nothing_go = True
    engine.graphs = Graphs(engine.device)
    model.__dict__[ENGINE] = engine


@functools.cache
def _named_inputs(cls: type[PreTrainedModel]) -> frozenset[str]:
    return frozenset(inspect.signature(cls.forward).parameters)


def _refuse(model: PreTrainedModel, unsupported: dict[str, Any], labels: Tensor | None) -> None:
    """Raise for whatever early exit cannot honour; ignoring it would change the answer without a word."""
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
