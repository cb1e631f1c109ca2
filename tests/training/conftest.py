"""Tiny models and tables, and the command run in this process."""

import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import (
    AlbertConfig,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    PreTrainedConfig,
    RobertaConfig,
)

from pabee_fast import cli

LAYERS = 3
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "fine", "bad", "dull", "film", "a", "very", "is", "it"]


@pytest.fixture
def tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, do_lower_case=True)


@pytest.fixture
def tiny_config() -> Callable[..., PreTrainedConfig]:
    """A config of the given family; dropout is off, so that losses can be computed by hand."""

    def make(family: str = "bert", **changes: Any) -> PreTrainedConfig:
        sizes = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
        shape = {"num_hidden_layers": LAYERS, "max_position_embeddings": 32, "initializer_range": 0.2}
        shared = {**sizes, **off, **shape, **changes}
        if family == "albert":
            return AlbertConfig(**shared, embedding_size=8, classifier_dropout_prob=0.0, pad_token_id=0)
        return {"bert": BertConfig, "roberta": RobertaConfig}[family](**shared, pad_token_id=0)

    return make


@pytest.fixture
def encoder(tmp_path: Path, tokenizer: BertTokenizer, tiny_config: Callable[..., Any]) -> Path:
    """A directory with a bare BERT encoder and its tokenizer."""
    torch.manual_seed(0)
    path = tmp_path / "encoder"
    BertModel(tiny_config()).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def classifier(tmp_path: Path, tokenizer: BertTokenizer, tiny_config: Callable[..., Any]) -> Callable[..., Path]:
    """A directory with a stock BERT classifier, without heads, and its tokenizer."""

    def make(name: str = "classifier", seed: int = 1, **changes: Any) -> Path:
        torch.manual_seed(seed)
        path = tmp_path / name
        BertForSequenceClassification(tiny_config(**changes)).save_pretrained(path)
        tokenizer.save_pretrained(path)
        return path

    return make


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows (dicts) as a table of the name's format."""

    def write(name: str, rows: Sequence[dict[str, Any]]) -> Path:
        path = tmp_path / name
        if path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        elif path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(list(rows)), path)
        else:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, rows[0].keys(), delimiter="\t" if path.suffix == ".tsv" else ",")
                writer.writeheader()
                writer.writerows(rows)
        return path

    return write


@pytest.fixture
def reviews() -> list[dict[str, Any]]:
    """Sixteen texts whose label one word gives away, six times over."""
    praise = [
        {"text": f"{a} {w} film", "label": 1} for w in ("good", "fine") for a in ("a", "very", "it is a", "is it")
    ]
    blame = [{"text": f"{a} {w} film", "label": 0} for w in ("bad", "dull") for a in ("a", "very", "it is a", "is it")]
    return [row for pair in zip(praise, blame, strict=True) for row in pair] * 6


@pytest.fixture
def pabee_fast(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command line in this process; returns its exit status."""

    def run(*words: Any) -> int:
        monkeypatch.setattr(sys, "argv", ["pabee-fast", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return run


@pytest.fixture
def learn() -> list[str]:
    """Options with which a tiny model learns the reviews in a second."""
    return ["--epochs", "6", "--batch-size", "8", "--learning-rate", "5e-3", "--max-length", "16"]


@pytest.fixture
def brief() -> list[str]:
    """Options for a few steps, where it does not matter what is learned."""
    return ["--epochs", "1", "--batch-size", "32", "--learning-rate", "5e-3", "--max-length", "16"]
