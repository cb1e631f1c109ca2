"""What the benchmarks run on: lengths, exit layers and models, all fixed and seeded.

The lengths are those of sst2's dev set in wordpiece tokens, special ones included: a histogram, no text. The exits are
drawn independently of the lengths, so that early exit gains nothing from short rows leaving first.
"""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

SST2_DEV_LENGTHS = {
    4: 2, 5: 1, 6: 2, 7: 7, 8: 12, 9: 12, 10: 22, 11: 17, 12: 28, 13: 20, 14: 28, 15: 23, 16: 23, 17: 23, 18: 34,
    19: 29, 20: 38, 21: 29, 22: 31, 23: 25, 24: 30, 25: 37, 26: 31, 27: 33, 28: 27, 29: 26, 30: 27, 31: 23, 32: 24,
    33: 16, 34: 21, 35: 21, 36: 15, 37: 13, 38: 12, 39: 17, 40: 17, 41: 18, 42: 8, 43: 4, 44: 14, 45: 3, 46: 3, 47: 5,
    48: 4, 49: 5, 50: 2, 51: 1, 52: 2, 53: 4, 54: 2, 55: 1,
}  # fmt: skip
"""Tokens of a row -> rows, of the 872 rows (bert-base-uncased's vocabulary; mean 25.2)."""

EXITS = {4: 0.20, 5: 0.16, 6: 0.13, 7: 0.11, 8: 0.09, 9: 0.07, 10: 0.06, 11: 0.05, 12: 0.13}
"""Exit layer -> share of rows, for 12 layers; the mean is 60 % of the layers."""

SKEWED = {2: 0.25, 3: 0.25, 4: 0.20, 5: 0.12, 6: 0.08, 8: 0.05, 12: 0.05}
"""Likewise, where most leave early and few stay: the mean is 34 % of the layers, and one row in twenty is given all."""

SHARES = {"usual": EXITS, "skewed": SKEWED}

MODELS = {
    "bert-base": {},
    "bert-large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "bert-tiny": {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512},
}
"""Arguments that differ from BERT-base's."""


@dataclass(frozen=True)
class Rows:
    """Rows of random tokens: input_ids as lists, and the exit layer given to each."""

    input_ids: list[list[int]]
    exit_layers: tuple[int, ...]

    @property
    def lengths(self) -> np.ndarray:
        """[rows] tokens of each row."""
        return np.array([len(row) for row in self.input_ids])


def model(name: str, seed: int = 0) -> BertForSequenceClassification:
    """Return a stock two-class model with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(**MODELS[name], num_labels=2)).eval()


def sst2_lengths(rows: int, seed: int = 0) -> np.ndarray:
    """Return [rows] tokens of each row, drawn from sst2 dev's."""
    return _draw_lengths(np.random.default_rng(seed), rows)


def _draw_lengths(rng: np.random.Generator, rows: int) -> np.ndarray:
    counts = np.array(list(SST2_DEV_LENGTHS.values()))
    return rng.choice(np.array(list(SST2_DEV_LENGTHS)), size=rows, p=counts / counts.sum())


def sst2_like(rows: int, layers: int, seed: int = 0) -> Rows:
    """Return rows with sst2 dev's lengths and the shares of EXITS, both seeded; layers other than 12 scale the
    exits."""
    rng = np.random.default_rng(seed)
    lengths = _draw_lengths(rng, rows)
    exits = _draw_exits(rng, EXITS, rows, layers)
    return Rows(_draw_tokens(rng, lengths), exits)


def of_length(rows: int, tokens: int, layers: int, seed: int = 0) -> Rows:
    """Return rows of `tokens` tokens each, with the shares of EXITS."""
    rng = np.random.default_rng(seed)
    exits = _draw_exits(rng, EXITS, rows, layers)
    return Rows(_draw_tokens(rng, np.full(rows, tokens)), exits)


def exits_of(shares: str, rows: int, layers: int, seed: int = 1) -> tuple[int, ...]:
    """Exit layers by one of SHARES, in random order."""
    return _draw_exits(np.random.default_rng(seed), SHARES[shares], rows, layers)


def _draw_exits(rng: np.random.Generator, shares: dict[int, float], rows: int, layers: int) -> tuple[int, ...]:
    edges = np.round(np.cumsum(list(shares.values())) * rows).astype(int)
    exits = np.repeat(np.array(list(shares)), np.diff(edges, prepend=0))
    return tuple(np.ceil(rng.permutation(exits) * layers / 12).astype(int).tolist())


def _draw_tokens(rng: np.random.Generator, lengths: np.ndarray) -> list[list[int]]:
    # 1000 and up: ordinary words of BERT's vocabulary, so that no row holds padding or special tokens.
    return [rng.integers(1000, 30_000, n).tolist() for n in lengths]
