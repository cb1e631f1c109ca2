"""The loss over all heads, in the padded layout of the stock model. Differentiable; used by training alone."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, logsigmoid, mse_loss
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import SequenceClassifierOutput

from pabee_fast.arguments import require_between, require_positive
from pabee_fast.models import family_of
from pabee_fast.models.head_kinds import read_padded
from pabee_fast.models.heads import HEADS, answer_kind, check_heads, named_arguments, spec_of
from pabee_fast.policies import AnswerKind


@dataclass(frozen=True)
class Distillation:
    """Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531, section 2) of a teacher into every head.

    A head's loss becomes (1 - alpha) * L_j + alpha * T^2 * KL(softmax(teacher / T) || softmax(head / T)); T^2 keeps the
    size of the gradients. One output: the squared distance to the teacher's value in place of the second term. Label
    sets: the divergence's mean over the labels, each of them a choice between yes and no, as L_j is a mean over them.

    Args:
        alpha: the teacher's share, 0 to 1.
        temperature: T, above 0.

    Raises:
        InputError: one out of range.
    """

    alpha: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        require_between("alpha", self.alpha, 0, 1)
        require_positive("temperature", self.temperature)

    def loss(self, label_loss: Tensor, logits: Tensor, teacher_logits: Tensor, kind: AnswerKind) -> Tensor:
        """Return one head's loss from its loss by the labels, its logits and the teacher's, [rows, classes] both.

        A row whose teacher's logits are NaN has no teacher: its second term is 0, its first keeps the weight 1 - alpha.
        """
        teacher_logits = torch.where(teacher_logits.isnan(), logits.detach(), teacher_logits)
        return (1 - self.alpha) * label_loss + self.alpha * self._to_teacher(logits, teacher_logits, kind)

    def _to_teacher(self, logits: Tensor, teacher_logits: Tensor, kind: AnswerKind) -> Tensor:
        if kind == "value":
            return mse_loss(logits, teacher_logits)
        head, teacher = logits / self.temperature, teacher_logits / self.temperature
        if kind == "label":
            head, teacher = log_softmax(head, dim=-1), log_softmax(teacher, dim=-1)
        else:
            head, teacher = (torch.stack([logsigmoid(x), logsigmoid(-x)]) for x in (head, teacher))
        choices = len(logits) if kind == "label" else logits.numel()
        return self.temperature**2 * kl_div(head, teacher, reduction="sum", log_target=True) / choices


SELF_DISTILLATION = Distillation(alpha=0.3, temperature=3.0)
"""The last head as teacher of the others: the weight and temperature of "Be Your Own Teacher" (Zhang et al., ICCV 2019,
section 3.2, equation 6) as its code has them; its third term, between feature maps, is left out."""


def multi_exit_loss(
    model: PreTrainedModel,
    stock_forward: Callable[..., Any],
    *args: Any,
    teacher_logits: Tensor | None = None,
    distillation: Distillation = Distillation(),
    self_distillation: Distillation | None = None,
    **kwargs: Any,
) -> SequenceClassifierOutput | tuple[Tensor, ...]:
    """Return the stock forward with PABEE's joint loss in place of the last head's.

    Args:
        teacher_logits: [rows, classes] of another model, for all heads to learn by `distillation`; None: there is none.
        self_distillation: how every head but the last learns the last one's answers, which get no gradient from it, on
            top of that; None: not at all.
    """
    given = named_arguments(model, *args, **kwargs)
    labels, return_dict = given.pop("labels", None), given.pop("return_dict", None)
    out, all_logits = every_head(model, stock_forward, **given)
    if labels is not None:
        kind = answer_kind(model)
        losses = [ForSequenceClassificationLoss(labels, logits, model.config) for logits in all_logits]
        if teacher_logits is not None:
            losses = [
                distillation.loss(loss, logits, teacher_logits, kind)
                for loss, logits in zip(losses, all_logits, strict=True)
            ]
        if self_distillation is not None:
            *inner, last = all_logits
            losses[:-1] = [
                self_distillation.loss(loss, logits, last.detach(), kind)
                for loss, logits in zip(losses[:-1], inner, strict=True)
            ]
        out.loss = weighted_mean(losses, spec_of(model).first_layer)
    return out if (model.config.return_dict if return_dict is None else return_dict) else out.to_tuple()


def every_head(
    model: PreTrainedModel, stock_forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> tuple[SequenceClassifierOutput, list[Tensor]]:
    """Return the stock output and every head's logits, [rows, classes] each, the model's own classifier last; the first
    are those of layer `spec_of(model).first_layer`."""
    wanted = kwargs.pop("output_hidden_states", None) or model.config.output_hidden_states
    out = stock_forward(*args, **kwargs, output_hidden_states=True, return_dict=True)
    check_heads(model)
    spec, given, family = spec_of(model), named_arguments(model, *args, **kwargs), family_of(model)
    states = family.layer_outputs(model, out.hidden_states)[spec.first_layer - 1 :]
    norm = family.norm(model) or (lambda tokens: tokens)
    kept = functools.partial(family.kept, model, given.get("input_ids"))
    logits = [
        spec.logits(model, head, read_padded(norm(state), given.get("attention_mask"), spec.pooling, kept))
        for head, state in zip(getattr(model, HEADS), states[:-1], strict=True)
    ]
    if not wanted:
        out.hidden_states = None
    return out, [*logits, out.logits]


def weighted_mean(losses: Sequence[Tensor], first_layer: int = 1) -> Tensor:
    """sum_j j * L_j / sum_j j over the layers j with a head (PABEE, section 3.3, equation 5)."""
    layers = torch.arange(first_layer, first_layer + len(losses), dtype=losses[0].dtype, device=losses[0].device)
    return torch.stack(list(losses)) @ layers / layers.sum()
