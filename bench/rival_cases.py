"""What `bench.rivals` runs on: a trained model and texts, or BERT-base with random weights and made-up rows."""

import functools
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import pabee_fast as pf
from bench import cases
from bench.endtoend import padded
from pabee_fast.runtime.pack import PackedBatch, pack

MOST_TOKENS = 128
"""Of a text; the rest is cut."""


@dataclass(frozen=True)
class Case:
    """A model, and the rows that everything runs."""

    name: str
    model: Any
    """Ours, with heads."""
    stock: Any
    rows: cases.Rows
    directory: Path | None = None
    tokenizer: Any = None
    texts: Sequence[str] = ()
    labels: Tensor | None = None
    calibrating: tuple[Sequence[str], Sequence[int]] | None = None

    @functools.cached_property
    def batch(self) -> PackedBatch:
        """The rows, packed."""
        return pack(self.model, **padded(self.rows.input_ids, torch.device("cpu")))


def random_case(rows: int) -> Case:
    """BERT-base with random weights, and rows whose exits are given."""
    stock = cases.model("bert-base")
    ours = pf.attach_heads(cases.model("bert-base")).eval()
    return Case("bert-base", ours, stock, cases.sst2_like(rows, stock.config.num_hidden_layers))


def trained_case(directory: Path, calibrate: Path, rows: Path) -> Case:
    """A model that was trained, and texts."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts, labels = read(rows)
    ids = tokenizer(texts, truncation=True, max_length=MOST_TOKENS)["input_ids"]
    stock = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    ours = pf.from_pretrained(directory, dtype=torch.float32).eval()
    return Case(
        name=directory.name,
        model=ours,
        stock=stock,
        rows=cases.Rows(ids, ()),
        directory=directory,
        tokenizer=tokenizer,
        texts=texts,
        labels=torch.tensor(labels),
        calibrating=read(calibrate),
    )


def read(path: Path) -> tuple[list[str], list[int]]:
    """Return texts and labels of JSON lines."""
    raw = path.read_bytes()
    rows = [json.loads(line) for line in (gzip.decompress(raw) if path.suffix == ".gz" else raw).splitlines()]
    return [row["text"] for row in rows], [row["label"] for row in rows]
