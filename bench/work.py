"""What runs compute, counted in tokens times layers: what exits can save of it bounds what they can gain."""

import numpy as np

from pabee_fast.runtime.engine import Engine


def most(engine: Engine, lengths: np.ndarray, exits: np.ndarray) -> float:
    """Return how many times as much full depth computes as rows of these lengths with these exits, [rows] each.

    A row's last layer counts in part, at full depth and with exits: see `spared`.
    """
    layers = len(engine.layers)
    return computed(engine, lengths, np.full_like(exits, layers)) / computed(engine, lengths, exits)


def computed(engine: Engine, lengths: np.ndarray, exits: np.ndarray) -> float:
    """Return the tokens times layers of rows of these lengths with these exits, [rows] each."""
    at_end = exits == len(engine.layers)
    return float((lengths * exits).sum() - spared(engine) * ((lengths - 1) * at_end).sum())


def spared(engine: Engine) -> float:
    """Return the share of a layer's products that the model's last layer makes for the one token of a row that its head
    reads, and not for the others; 0 where it makes all."""
    with engine._turn():
        if engine._read_alone(len(engine.layers)) is None:
            return 0.0
    blocks = engine.family.blocks(engine.layers.modules[-1])
    every = sum(part.weight.numel() for block in blocks for part in (*block[:4], block.up, block.down))
    last = blocks[-1]
    return sum(part.weight.numel() for part in (last.output, last.up, last.down)) / every
