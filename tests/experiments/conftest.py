"""A tiny encoder and made-up tasks for the evaluation on tasks."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = ["a", "and", "film", "is", "long", "the", "this", "was", "what", "very", "it"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A BERT of six small layers with random weights, and its tokenizer."""
    place = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=128,
        initializer_range=0.1,
    )
    BertModel(config).save_pretrained(place)
    tiny_tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sst2, whose label is whether "good" or "bad" stands in the row, and cola without a labelled test."""
    place, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    sizes = {"sst2": {"train": 96, "dev": 40, "test": 40}, "cola": {"train": 96, "dev": 60}}
    sizes["stsb"] = sizes["sst2"]
    for task, splits in sizes.items():
        (place / task).mkdir()
        for split, rows in splits.items():
            lines = [_row(task, rng) for _ in range(rows)]
            with gzip.open(place / task / f"{split}.jsonl.gz", "wt") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
    return place


def _row(task: str, rng: np.random.Generator) -> dict[str, object]:
    label, words = int(rng.integers(2)), rng.choice(WORDS, size=rng.integers(2, 9)).tolist()
    words.insert(int(rng.integers(len(words))), ("bad", "good")[label])
    if task == "stsb":
        return {"text_a": " ".join(words), "text_b": "it was good", "label": 5.0 * label}
    return {"text": " ".join(words), "label": label}
