"""A teacher's logits over the training texts."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pabee_fast.errors import InputError
from pabee_fast.policies import FullDepth
from pabee_fast.scoring.labels import Labels, labels_of_config
from pabee_fast.scoring.scorer import Scorer, on_their_way


def full_depth_logits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[tuple[str, ...]],
    *,
    max_length: int,
    stride: int | None = None,
) -> Tensor:
    """Return the model's logits at full depth, [rows, classes] float32 on the host, in input order.

    Args:
        model: a classifier of a supported family, with heads or without.
        texts: one string a row, or two for a pair.
        max_length: where a row's tokens are cut.
        stride: as for `Scorer`.
    """
    scorer = Scorer(model.eval(), tokenizer, policy=FullDepth(), max_length=max_length, stride=stride)
    logits = torch.empty(len(texts), scorer.engine.classes)
    for first in range(0, len(texts), scorer.window):
        encoded = scorer.encode(texts[first : first + scorer.window], first)
        assert encoded.batch is not None
        found = on_their_way(scorer.engine.run(encoded.batch, FullDepth()))().together(encoded.stretches)
        logits[first : first + scorer.window] = found.logits
    return logits


def in_order_of(labels: Labels, other: PreTrainedModel, name: str = "the teacher") -> list[int]:
    """Return another model's output for each of `labels`, by name where both have the same names, else by number.

    Args:
        labels: the model's.
        other: a teacher, or what the model is compared with.
        name: of the other, in messages.

    Raises:
        InputError: the other answers another question.
    """
    own = labels_of_config(other.config)
    if (own.problem_type, own.outputs) != (labels.problem_type, labels.outputs):
        raise InputError(
            f"{name} is a {own.problem_type} of {own.outputs} output(s), the model a {labels.problem_type} of "
            f"{labels.outputs}: give one of the same labels"
        )
    if own.names == labels.names:
        return list(range(labels.outputs))
    if len(set(own.names)) < len(own.names) or len(set(labels.names)) < len(labels.names):
        raise InputError(
            f"the labels of {name} are {', '.join(own.names)}, the model's {', '.join(labels.names)}: labels of "
            "one name cannot be told apart; give each its own in config.json"
        )
    if set(own.names) == set(labels.names):
        return [own.ids[name] for name in labels.names] or [0]
    numbered = {f"LABEL_{i}" for i in range(labels.outputs)}
    if numbered not in (set(own.names), set(labels.names)):
        raise InputError(f"the labels of {name} are {', '.join(own.names)}, the model's {', '.join(labels.names)}")
    return list(range(labels.outputs))
