"""What a layer costs on a GPU, device and host apart: measured once, so that schedules can be compared without a GPU.

All figures are of one run on an NVIDIA H200 (driver 580.159, torch 2.11, Triton 3.6, transformers 5.17, bfloat16), with
one kind of layer: post-norm blocks with erf GELU. Times are microseconds.
"""

from dataclasses import dataclass, replace

import numpy as np

PRODUCTS = {
    (768, 2304): {2_048: 22.9, 8_192: 60.1, 32_768: 207.1, 131_072: 742.9},  # with its bias
    (768, 768): {2_048: 19.8, 8_192: 23.5, 32_768: 71.4, 131_072: 245.3},
    (768, 3072): {2_048: 19.9, 8_192: 71.4, 32_768: 247.6, 131_072: 944.8},
    (3072, 768): {2_048: 19.3, 8_192: 57.0, 32_768: 206.6, 131_072: 843.2},
    (1024, 3072): {8_192: 76.9, 131_072: 1284.3},
    (1024, 1024): {8_192: 30.0, 131_072: 436.0},  # by operations, at the rate of 768 x 768: not measured
    (1024, 4096): {8_192: 101.7, 131_072: 1736.0},
    (4096, 1024): {8_192: 97.2, 131_072: 1594.5},
}
"""(in, out) of a product -> tokens -> measured; up to 2,048 tokens the host, not the device, was measured."""

IN_A_RUN = 0.91
"""Products of a whole run take so much of what each takes alone (measured: 191 of 210 ms at full depth)."""

LEAST = 5.0
"""Of a small product on the device: an estimate, between the smallest launch and what 2,048 tokens take."""

BYTES_PER_US = 4.4e6
"""At which the passes over hidden states run: bias and GELU, residual and norm (measured)."""

LOOP = 2.0
"""A call within the loop takes the host so many times what it takes alone, over and over. The one number that was not
measured: it is chosen so that the measured runs come out."""

ATTENTION_BYTES = 4 * 2
"""A number of q, k, v and the result, in half precision: what attention moves at the least, for a hidden unit."""


@dataclass(frozen=True)
class Model:
    """Sizes of a post-norm encoder."""

    hidden: int
    inner: int
    layers: int


MODELS = {"bert-base": Model(768, 3072, 12), "bert-large": Model(1024, 4096, 24)}


@dataclass(frozen=True)
class Costs:
    """Microseconds of each thing that a run does.

    attention      of a token and a hidden unit, on the device
    exit_step      a call on the device beside 0.005 a row: pool, product, tanh and the step itself
    fused_step     the same where the pooler runs in the step (up to `fused_rows` rows); None: it never does
    plan           a call on the device
    latency        from the end of a kernel to the host's going on
    host_layer     of a layer's launches
    host_step      of an exit step's, with plan and copy of the counts
    host_gather    of a compaction
    host_embed     of a wave's beginning
    host_run       of a run's, before its first wave: binding the layers
    """

    attention: float = 12.06e-3 / 768
    exit_step: float = 20.0
    fused_step: float | None = 70.0
    fused_rows: int = 2_048
    plan: float = 5.0
    latency: float = 20.0
    host_layer: float = LOOP * 305.0  # linear 16, attention 73, two of linear and norm 76 each, linear and GELU 65
    host_step: float = LOOP * 295.0  # with which a layer and its step come to the 600 measured
    host_gather: float = LOOP * 200.0  # hidden states 66, and the small tensors beside them
    host_embed: float = LOOP * 600.0
    host_run: float = 13_000.0

    def layer(self, model: Model, tokens: int) -> float:
        """Device time of one layer."""
        hidden, inner = model.hidden, model.inner
        products = sum(
            _product(shape, tokens)
            for shape in ((hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden))
        )
        passes = 2 * 2 * (inner + 3 * hidden) * tokens / BYTES_PER_US  # GELU in place; twice residual and norm
        return IN_A_RUN * products + passes + self.attention * hidden * tokens

    def embed(self, model: Model, tokens: int) -> float:
        """Device time of the embeddings: four passes."""
        return 6.3e-3 / 768 * model.hidden * tokens

    def step(self, rows: int) -> float:
        """Device time of an exit step."""
        return self.fused_step if self.fused_step and rows <= self.fused_rows else self.exit_step + 0.003 * rows

    def gather(self, model: Model, tokens: int) -> float:
        """Device time of moving the survivors."""
        return LEAST + 2 * 2 * model.hidden * tokens / BYTES_PER_US


FIRST_RUN = Costs()
"""As the engine was when these were measured."""

PREPARED = replace(
    FIRST_RUN, fused_step=None, host_layer=LOOP * 165, host_step=LOOP * 130, host_gather=LOOP * 120, host_run=500.0
)  # fmt: skip
"""As the host is since launches are prepared and layers stay bound: an estimate, by what calls took on that machine and
what `bench.host` leaves of them. A layer: four products at 16, attention 45, residual and norm twice 19, GELU 17; a
step: pool 25, product 16, tanh 10, the step 24, plan 36, copy of the counts 21."""

SHORT_ROWS = 1.5 * ATTENTION_BYTES / 4.3e6
"""Attention of a token and a hidden unit at one and a half times what its bytes take: the goal for short rows."""

LEAN = replace(
    FIRST_RUN, attention=SHORT_ROWS, fused_step=None,
    host_layer=LOOP * 80, host_step=LOOP * 80, host_gather=LOOP * 60, host_embed=LOOP * 150, host_run=500.0,
)  # fmt: skip
"""The goals: attention for short rows, no fused pooler, a Triton call at 15 microseconds of host."""


def _product(shape: tuple[int, int], tokens: int) -> float:
    """By tokens, between measured points on straight lines; below them in proportion, but no less than LEAST."""
    points = {at: cost for at, cost in PRODUCTS[shape].items() if at >= 8_192}
    smallest = min(points)
    if tokens <= smallest:
        return max(LEAST, points[smallest] * tokens / smallest)
    largest = max(points)
    if tokens >= largest:
        return points[largest] * tokens / largest
    return float(np.interp(tokens, list(points), list(points.values())))
