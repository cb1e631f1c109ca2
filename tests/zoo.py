"""A small random model of every family and of the variants inside one, and rows for it."""

from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

import pabee_fast as pf
from tests.conftest import SIZES

GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "pad_token_id": 0}
IMAGES: dict[str, Any] = {"image_size": 12, "patch_size": 4}
WINDOW: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"] * 3}
LOCAL: dict[str, Any] = {**WINDOW, "local_attention": 6, "pad_token_id": 0}
RELATIVE: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "albert": ("albert", {"embedding_size": 16}),
    "roberta": ("roberta", {"pad_token_id": 1}),
    "xlm-roberta": ("xlm-roberta", {"pad_token_id": 1}),
    "camembert": ("camembert", {"pad_token_id": 1}),
    "electra": ("electra", {"embedding_size": 16}),
    "distilbert": ("distilbert", {}),
    "modernbert": ("modernbert", {**LOCAL, "classifier_pooling": "cls"}),
    "modernbert, mean": ("modernbert", {**LOCAL, "classifier_pooling": "mean"}),
    "nomic_bert": ("nomic_bert", {}),
    "eurobert": ("eurobert", {**GROUPED, "classifier_pooling": "bos"}),
    "eurobert, mean": ("eurobert", {**GROUPED, "classifier_pooling": "mean"}),
    "eurobert, late": ("eurobert", {**GROUPED, "classifier_pooling": "late"}),
    "deberta": ("deberta", {**RELATIVE, "max_relative_positions": 64}),
    "deberta-v2": (
        "deberta-v2",
        {**RELATIVE, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True, "type_vocab_size": 0},
    ),
    "deberta-v2, convolution": (
        "deberta-v2",
        {**RELATIVE, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3, "conv_act": "gelu"},
    ),
    "deberta-v2, absolute": ("deberta-v2", {"type_vocab_size": 2, "pooler_hidden_act": "silu"}),
    "mpnet": ("mpnet", {"pad_token_id": 1}),
    "gpt2": ("gpt2", {"pad_token_id": 0}),
    "llama": ("llama", GROUPED),
    "mistral": ("mistral", {**GROUPED, "sliding_window": 5}),
    "qwen2": ("qwen2", {**GROUPED, **WINDOW, "use_sliding_window": True, "sliding_window": 5}),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 8}),
    "gemma": ("gemma", {**GROUPED, "head_dim": 16}),
    "vit": ("vit", IMAGES),
    "deit": ("deit", {**IMAGES, "architectures": ["DeiTForImageClassification"]}),
}
"""Name -> model type and what its config says beside SIZES."""

LONGEST = SIZES["max_position_embeddings"] - 2
"""The longest row of all families: RoBERTa's numbering leaves two positions unused."""

MODEL_TYPES = {model_type for model_type, _ in VARIANTS.values()}


def is_vision(variant: str) -> bool:
    return VARIANTS[variant][0] in ("vit", "deit")


def stock_model(variant: str, *, num_labels: int = 2, seed: int = 0, **options: Any) -> PreTrainedModel:
    """A stock model with random weights whose biases are not zero and norms not one, in evaluation mode."""
    model_type, own = VARIANTS[variant]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**SIZES, **own, "num_labels": num_labels, **options})
    auto = AutoModelForImageClassification if is_vision(variant) else AutoModelForSequenceClassification
    model = auto.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
        elif "norm" in name.lower():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def model_with_heads(variant: str, **options: Any) -> PreTrainedModel:
    """The same with heads."""
    return pf.attach_heads(stock_model(variant, **options)).eval()


def rows(variant: str, lengths: list[int], *, seed: int = 0) -> dict[str, Tensor]:
    """Random rows of the given lengths, padded on the right; for a vision model as many images."""
    generator = torch.Generator().manual_seed(seed)
    if is_vision(variant):
        size = VARIANTS[variant][1]["image_size"]
        return {"pixel_values": torch.randn(len(lengths), 3, size, size, generator=generator)}
    pad = VARIANTS[variant][1].get("pad_token_id", 0)
    input_ids = torch.randint(5, SIZES["vocab_size"], (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"input_ids": torch.where(mask, input_ids, pad), "attention_mask": mask.long()}
