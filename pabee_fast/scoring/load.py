"""A scorer from a model directory, and in words what it runs on."""

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from pabee_fast.errors import InputError
from pabee_fast.modeling.directory import read_config
from pabee_fast.modeling.load import load_classifier
from pabee_fast.models.heads import classifies
from pabee_fast.policies import Policy
from pabee_fast.runtime import ops
from pabee_fast.runtime.device import choose_device, choose_dtype
from pabee_fast.runtime.variants import choose_layers
from pabee_fast.scoring.scorer import Scorer
from pabee_fast.scoring.tokens import load_tokenizer

WINDOWS = {"cuda": 16_384, "cpu": 1_024}
"""Rows that are tokenized and sorted together: many waves, so that few are not full. On an H200 twice as many gain
1.5 % at most, half as many cost 5 to 11 % of an early exit's time (bench/results/nvidia-h200/profiles.md)."""


@dataclass(frozen=True)
class Setting:
    """Device and precision, the reason for them, and what runs there."""

    device: torch.device
    dtype: torch.dtype
    dtype_reason: str

    @classmethod
    def choose(cls, device: str = "auto", dtype: str = "auto") -> "Setting":
        """By name, or by what the machine has; raises InputError for a name that is not known or not there."""
        place = choose_device(device)
        return cls(place, *choose_dtype(dtype, place))

    @property
    def device_name(self) -> str:
        """The GPU's name, or how many CPU threads."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"cpu ({torch.get_num_threads()} threads)"

    @property
    def dtype_name(self) -> str:
        """float32, say."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def kernels(self) -> str:
        """What runs exit step and compaction."""
        return ops.kernels_in_use(self.device)

    def attention(self, head_dim: int = 64, *, is_grouped: bool = False) -> str:
        """Return what runs attention for heads of this size."""
        return ops.attention_in_use(self.device, self.dtype, head_dim, is_grouped=is_grouped)

    @property
    def layers(self) -> str:
        """How layers run that are post-norm blocks, as BERT's."""
        variant, why = choose_layers(self.device, self.dtype)
        return f"{variant} where they are post-norm blocks ({why})"


def load_model(model: str, setting: Setting) -> PreTrainedModel:
    """Return the classifier of a model directory or hub id, of texts or images, in evaluation mode; with its heads if
    it has any.

    Raises:
        CheckpointError: weights or heads that are absent or broken.
        InputError: no such directory, no classifier or no safetensors in it.
    """
    return _load_model(model, read_config(model)[0], setting)


def _load_model(model: str, config: PretrainedConfig, setting: Setting) -> PreTrainedModel:
    if config.architectures and classifies(config) is None:
        raise InputError(
            f"model {model!r} is no fine-tuned classifier ({', '.join(config.architectures)}): its answers would be "
            "chance; train one with `pabee-fast train`"
        )
    return load_classifier(model, config, device=setting.device, dtype=setting.dtype, use_safetensors=True)


def load_scorer(
    model: str,
    policy: Policy,
    setting: Setting,
    *,
    max_length: int | None = None,
    token_budget: int | None = None,
    window: int | None = None,
    tokenizers: int = 0,
    stride: int | None = None,
) -> Scorer:
    """Load a scorer from a model directory or hub id. A model without heads serves policies that need none.

    Raises:
        CheckpointError: heads that are absent or broken.
        InputError: no such directory, no tokenizer or no safetensors in it, or a policy that does not fit.
    """
    return Scorer(
        *load_parts(model, setting),
        policy=policy,
        max_length=max_length,
        token_budget=token_budget,
        window=WINDOWS.get(setting.device.type, 1_024) if window is None else window,
        tokenizers=tokenizers,
        stride=stride,
    )


def load_parts(model: str, setting: Setting) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the classifier of texts of a model directory or hub id, and its tokenizer.

    Raises:
        CheckpointError: weights or heads that are absent or broken.
        InputError: no such directory, no classifier of texts, tokenizer or safetensors in it.
    """
    config, _ = read_config(model)
    if classifies(config) == "images":
        raise InputError(f"model {model!r} classifies images, and rows are texts: use pf.accelerate(model, policy)")
    tokenizer = load_tokenizer(model)
    return _load_model(model, config, setting), tokenizer
