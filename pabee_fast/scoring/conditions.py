"""What a trace was made under, and what a promise holds for: weights, tokenizer, precision, and where rows are cut."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pabee_fast.errors import InputError
from pabee_fast.models.heads import CONFIG_ENTRY, LEARNED_ROWS, MAX_LENGTH, answer_kind, exit_heads_of

_NOT_OF_THE_HEADS = ("format", "shapes", "sha256", "guarantee", "list_guarantee", LEARNED_ROWS, MAX_LENGTH)
"""Keys of the config entry that describe how heads are stored, were made or judged, and not what they answer."""

_NOT_OF_THE_ANSWERS = (
    *("_name_or_path", "architectures", "transformers_version"),
    *("dtype", "torch_dtype"),  # the weights have it
    "problem_type",  # the kind of answer says it
    *("id2label", "label2id"),  # what answers are called
    *("keys_to_ignore_at_inference", "output_attentions", "output_hidden_states", "return_dict", "use_cache"),
)
"""Keys of a config that say nothing of the logits, or that are hashed elsewhere."""


@dataclass(frozen=True)
class Conditions:
    """Two runs under equal conditions give a row the same logits, up to the tolerance of their precision."""

    model: str
    """Fingerprint of weights and heads, as loaded."""
    tokenizer: str
    """Fingerprint of vocabulary and rules."""
    dtype: str
    """Of the layers, float32 say."""
    max_length: int
    """The most tokens of a row."""
    texts: int | None = None
    """Of a row: 1, or 2 of pairs; None: not known, or not the same of all rows."""
    stride: int | None = None
    """Tokens by which stretches of a long text overlap; None: it is cut."""

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        texts: int | None = None,
        stride: int | None = None,
    ) -> "Conditions":
        """Those of a model as it is; reads all its weights once."""
        dtype = str(exit_heads_of(model)[-1].linear.weight.dtype).removeprefix("torch.")
        return cls(model_fingerprint(model), tokenizer_fingerprint(tokenizer), dtype, max_length, texts, stride)

    @property
    def long_texts(self) -> str:
        """In words: what becomes of texts that are longer than `max_length`."""
        if self.stride is None:
            return f"cut at {self.max_length} tokens"
        return f"read in stretches of {self.max_length} tokens that overlap by {self.stride}"

    def differences(self, now: "Conditions") -> list[str]:
        """In words, each with its fix: why what was found under these conditions does not hold under those of `now`."""
        found = []
        if self.dtype != now.dtype:
            # Rounded weights have another fingerprint, so that nothing can be said of the model.
            found.append(f"it was made in {self.dtype} and this runs in {now.dtype} (give dtype {self.dtype})")
        elif self.model != now.model:
            found.append("the model's weights, heads or config are others")
        if self.tokenizer != now.tokenizer:
            found.append("the tokenizer is another")
        if self.max_length != now.max_length:
            found.append(
                f"it was made with rows cut at {self.max_length} tokens and this cuts at {now.max_length} "
                f"(give max length {self.max_length}, and a tokenizer and token budget that allow it)"
            )
        if self.stride != now.stride:
            fix = "leave stride out" if self.stride is None else f"give stride {self.stride}"
            found.append(f"it was made with long texts {self.long_texts}, and here they are {now.long_texts} ({fix})")
        if self.texts and now.texts and self.texts != now.texts:
            kinds = {1: "single texts", 2: "pairs of texts"}
            found.append(
                f"it was made with {kinds[self.texts]} and these are {kinds[now.texts]} "
                "(name both columns of pairs, --text-pair-column, or none)"
            )
        return found


def model_fingerprint(model: PreTrainedModel) -> str:
    """Return a hash over all weights by name and over all that the config says, but for names and how heads are stored.

    The whole config, since what a family's layers read of it lies in no list: windows, rotary bases, epsilons.
    """
    digest, config = hashlib.sha256(), model.config.to_dict()
    for name, weight in sorted(model.state_dict().items()):
        for part in _plain(weight):
            if isinstance(part, torch.Tensor):
                digest.update(f"{name} {part.dtype} {list(part.shape)}".encode())
                digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            else:
                digest.update(f"{name} {part}".encode())
    config[CONFIG_ENTRY] = {k: v for k, v in config.get(CONFIG_ENTRY, {}).items() if k not in _NOT_OF_THE_HEADS}
    # New versions of transformers add keys, and None is what a config without them means.
    config = {k: v for k, v in config.items() if k not in _NOT_OF_THE_ANSWERS and v is not None}
    digest.update(json.dumps([answer_kind(model), config], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _plain(weight: Any) -> Iterator[Any]:
    """Yield the tensors and numbers that an entry of a state dict is made of: of one in int8 its codes and scales."""
    if isinstance(weight, tuple | list):
        for part in weight:
            yield from _plain(part)
    elif isinstance(weight, torch.Tensor) and hasattr(weight, "__tensor_flatten__"):  # torchao's
        for name in weight.__tensor_flatten__()[0]:
            yield from _plain(getattr(weight, name))
    elif isinstance(weight, torch.Tensor) and weight.is_quantized:
        yield weight.int_repr()
        if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
            yield from (weight.q_per_channel_scales(), weight.q_per_channel_zero_points())
        else:
            yield from (weight.q_scale(), weight.q_zero_point())
    else:
        yield weight


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash over all that turns a text into ids.

    Raises:
        InputError: a slow tokenizer.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} is not a fast tokenizer: load it with AutoTokenizer, use_fast=True"
        )
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    for of_the_last_call in ("truncation", "padding"):
        rules.pop(of_the_last_call, None)
    inputs = [sorted(tokenizer.model_input_names), tokenizer.truncation_side, tokenizer.split_special_tokens]
    return hashlib.sha256(json.dumps([rules, inputs], sort_keys=True).encode()).hexdigest()
