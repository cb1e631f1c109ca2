"""Times of the kernels that a GPU's tables choose among: attention of short rows by what can serve it, and products
with GELU; `bench.tune` is the command.

Rows of one length are measured, a wave of so many tokens: a wave is cut from rows sorted by length, and the lengths
just above half a tile are the worst for `short`, which are then alone in it. `blocks` are other spans and warps of that
kernel than the runtime launches: a record that favours one is a reason to change `short_attention_constants`.
"""

import argparse
import contextlib
import functools
import itertools
import statistics
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from bench import cases, ceilings, graphs, timing
from bench.graphs import Call
from bench.micro.subject import TOLERANCE, same
from bench.text import Tell
from pabee_fast.kernels import reference
from pabee_fast.kernels.checks import MAX_SHORT_ROW
from pabee_fast.kernels.launch_attention import short_attention_constants
from pabee_fast.kernels.prepared import Constants
from pabee_fast.layout import Layout
from pabee_fast.runtime import choice, ops, varlen
from pabee_fast.runtime.bound import linear_act
from pabee_fast.runtime.choice import architecture
from pabee_fast.runtime.device import choose_device

LENGTHS = (8, 16, 24, 32, 33, 48, 64)
"""Tokens of every row. 33 is the first that is alone in a tile."""
HEADS = {64: 12, 32: 12}
"""Size of a head -> how many: BERT's and MiniLM's."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SPANS, WARPS = (1, 2, 4, 8), (2, 4, 8)
"""Tiles of a program of the kernel for short rows, and its warps."""
TOKENS = (8_192, 32_768, 131_072)
"""Of a product with GELU, from `HIDDEN_SIZES` to four times as many numbers: MiniLM's, BERT-base's and BERT-large's."""
HIDDEN_SIZES = (768, 384, 1024)


def measure(args: argparse.Namespace, tell: Tell) -> dict[str, Any]:
    """Times every case, the most wanted first, and returns the figures."""
    device = choose_device(args.device)
    limits = ceilings.measure(device, torch.bfloat16)
    found: dict[str, Any] = {
        "hardware": timing.hardware(device),
        "architecture": architecture(device),
        "tokens": args.tokens,
        "rounds": args.rounds,
        "sst2": {},
        "by_length": {},
        "by_tokens": {},
        "blocks": {},
    }
    generator = torch.Generator(device).manual_seed(0)

    def case(lengths: np.ndarray, dtype: str, head_dim: int) -> "Case":
        return Case(lengths, HEADS[head_dim], head_dim, DTYPES[dtype], device, generator)

    # 1. What the goal is about: a wave of sst2's lengths.
    mean = sum(length * rows for length, rows in cases.SST2_DEV_LENGTHS.items()) / 872
    lengths = -np.sort(-cases.sst2_lengths(max(1, int(args.tokens / mean))))
    wave = case(lengths, "bfloat16", 64)
    found["sst2"] = wave.times(args.rounds) | {"least": 1e6 * limits.least_seconds(wave.moved)}
    tell(found)
    # 2. Products, and lengths, which the runtime's tables are made from.
    for dtype, hidden_size in itertools.product(DTYPES, HIDDEN_SIZES):
        table = found["by_tokens"].setdefault(f"{dtype}, hidden size {hidden_size}", {})
        for tokens in args.product_tokens:
            table[tokens] = product_times(tokens, hidden_size, DTYPES[dtype], device, args.rounds)
            tell(found)
    for dtype, head_dim in itertools.product(DTYPES, HEADS):
        table = found["by_length"].setdefault(f"{dtype}, heads of {head_dim}", {})
        for length in args.lengths:
            rows = np.full(max(1, args.tokens // length), length)
            table[length] = case(rows, dtype, head_dim).times(args.rounds)
            tell(found)
        if found["blocks"] == {}:  # 3. Blocks, of what most models have
            found["blocks"] = {
                name: case(rows, "bfloat16", 64).block_times(args.rounds)
                for name, rows in {"sst2": lengths, "32 tokens": np.full(args.tokens // 32, 32)}.items()
            }
            tell(found)
    return found


class Case:
    """One packed wave, and what can attend within its rows."""

    def __init__(
        self,
        lengths: np.ndarray,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator,
    ) -> None:
        self.device, self.dtype = device, dtype
        joined = torch.randn(int(lengths.sum()), 3, heads, head_dim, generator=generator, device=device).to(dtype)
        self._query, self._key, self._value = joined.unbind(1)
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        self._cu_seqlens, self._longest = torch.from_numpy(ends).to(device), int(lengths.max())
        self.moved = joined.numel() * joined.element_size() * 4 // 3

    def call(self, attention: str) -> Tensor:
        """By one of `choice.ATTENTIONS`."""
        layout = Layout(self._cu_seqlens, self._longest, attention=attention)
        return ops.attention(self._query, self._key, self._value, layout)

    def times(self, rounds: int) -> dict[str, float]:
        """Median microseconds of each attention that serves these rows.

        Raises:
            SystemExit: their answers differ.
        """
        names = ["kernel", *["short"] * (self._longest <= MAX_SHORT_ROW)]
        if varlen.why_not(self.device, self.dtype, self._query.shape[-1], False) is None:
            names.insert(0, "library")
        return self._sample({name: functools.partial(self.call, name) for name in names}, rounds)

    def block_times(self, rounds: int) -> dict[str, float]:
        """Likewise of the kernel for short rows, by span and warps; nothing where it does not run."""
        if self.device.type != "cuda":
            return {}
        calls: dict[str, Call] = {"as launched": functools.partial(self.call, "short")}
        for span, warps in itertools.product(SPANS, WARPS):
            calls[f"{span} tiles, {warps} warps"] = functools.partial(self._with_blocks, span, warps)
        return self._sample(calls, rounds)

    def _with_blocks(self, span: int, warps: int) -> Tensor:
        with blocks(span, warps):
            return self.call("short")

    def _sample(self, calls: Mapping[str, Call], rounds: int) -> dict[str, float]:
        expected = reference.attention(self._query, self._key, self._value, self._cu_seqlens)
        return sampled(calls, expected, self.device, rounds)


def product_times(
    tokens: int, hidden_size: int, dtype: torch.dtype, device: torch.device, rounds: int
) -> dict[str, float]:
    """Return median microseconds of a product with GELU, by the library's and a pass, and by ours in one launch.

    Raises:
        SystemExit: their answers differ.
    """
    generator, width = torch.Generator(device).manual_seed(0), 4 * hidden_size
    shapes = ((tokens, hidden_size), (width, hidden_size), (width,))
    hidden, weight, bias = (torch.randn(shape, generator=generator, device=device) for shape in shapes)
    hidden, weight, bias = hidden.to(dtype), (weight * hidden_size**-0.5).to(dtype), bias.to(dtype)

    act = linear_act(weight, bias, activation="gelu")

    def call(least: int | None) -> Tensor:
        with mock.patch.object(choice, "_least_tokens", lambda *asked: least):
            return act(hidden)

    calls: dict[str, Call] = {
        "product and pass": functools.partial(call, None), "one launch": functools.partial(call, 0)
    }  # fmt: skip
    return sampled(calls, reference.linear_gelu(hidden, weight, bias), device, rounds)


def sampled(calls: Mapping[str, Call], expected: Tensor, device: torch.device, rounds: int) -> dict[str, float]:
    """Return median microseconds of each call, once all answers are as expected.

    Raises:
        SystemExit: they are not.
    """
    answers = {name: (call(),) for name, call in calls.items()} | {"reference": (expected,)}
    try:
        same(answers, tolerance=TOLERANCE[expected.dtype])
    except AssertionError as error:
        raise SystemExit(str(error)) from None
    del answers
    seconds = graphs.sample(calls, device, rounds=rounds)
    return {name: 1e6 * statistics.median(times) for name, times in seconds.items()}


@contextlib.contextmanager
def blocks(span: int, warps: int) -> Iterator[None]:
    """Launch the kernel for short rows with spans of so many tiles, and so many warps."""
    from pabee_fast.kernels import short_attention

    with mock.patch.object(short_attention, "short_attention_constants", functools.partial(_constants, span, warps)):
        yield


@functools.cache  # a kind of launch is known by the object
def _constants(span: int, warps: int, *kind: Any) -> Constants:
    usual = short_attention_constants(*kind)
    values = {**usual.values, "SPAN": span * usual.values["BLOCK_TOKENS"]}
    return Constants(values, {**usual.options, "num_warps": warps})
