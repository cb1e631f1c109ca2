"""What a layer costs on a GPU, device and host apart: measured once, so that schedules can be compared without a GPU.

All figures are of an NVIDIA H200 (driver 580.159, torch 2.11, Triton 3.6, transformers 5.17, bfloat16), with one kind
of layer: post-norm blocks with erf GELU. `FIRST_RUN` is one run on it, `TODAY` what the record of bb0b2a1 says of
single kernels and a profile of a5bc798 of whole runs. Times are microseconds.
"""

from dataclasses import dataclass

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

WITHOUT_BIAS = {
    (768, 2304): {8_192: 58.0, 32_768: 206.0, 131_072: 643.0},
    (1024, 3072): {8_192: 74.2, 131_072: 1111.5},  # in proportion to the one above: not measured
}
"""The joined projection, whose biases attention adds (measured)."""

WITH_GELU = {
    (768, 3072): {8_192: 78.4, 32_768: 279.2, 131_072: 1172.4},
    (1024, 4096): {8_192: 121.7, 32_768: 451.6, 131_072: 1936.1},
}
"""The product that ends with its bias and GELU (measured)."""

NORM_BYTES_PER_US = 4.9e6
"""At which residual and norm run: two passes read, one written (measured)."""

LARGE_WAVES = 0.045
"""By how much more than alone the kernels of a run take at 131,072 tokens, and in proportion below. Chosen, so that the
simulated work of three runs is what was measured, within 3 %."""


@dataclass(frozen=True)
class Fused(Costs):
    """Costs of layers and embedding in as few kernels as they are now."""

    def layer(self, model: Model, tokens: int) -> float:
        """Device time of one layer."""
        hidden, inner = model.hidden, model.inner
        products = (
            _product((hidden, 3 * hidden), tokens, WITHOUT_BIAS)
            + _product((hidden, hidden), tokens)
            + _product((hidden, inner), tokens, WITH_GELU)
            + _product((inner, hidden), tokens)
        )
        norms = 2 * (3 * 2 * hidden * tokens / NORM_BYTES_PER_US)
        whole = products + norms + self.attention * hidden * tokens
        return (1 + LARGE_WAVES * min(1.0, tokens / 131_072)) * whole

    def embed(self, model: Model, tokens: int) -> float:
        """Device time of the embeddings: one pass (measured: a fifth of four)."""
        return super().embed(model, tokens) / 5


TODAY = Fused(
    attention=253.5 / 131_072 / 768,
    fused_step=None,
    latency=40.0,
    host_layer=LOOP * 56,
    host_step=LOOP * 51,
    host_gather=LOOP * 150,
    host_embed=LOOP * 300,
    host_run=1_170.0,
)
"""As kernels and host are since. Of the host, calls alone take 56 for a layer, 37 for a step, 14 for plan and copy of
the counts (`bench.host`, without the driver); what a compaction takes and the latency are chosen, so that a question
with nothing to run meanwhile leaves the device idle for 0.3 ms (measured: 0.2 to 0.3). The start of a run with its
first embedding was measured as 2.3 ms; what was spared since, 0.21 ms here, is taken two and a half times, as that
computer is slower: an estimate."""


def _product(
    shape: tuple[int, int], tokens: int, measured: dict[tuple[int, int], dict[int, float]] = PRODUCTS
) -> float:
    """By tokens, between measured points on straight lines; below them in proportion, but no less than LEAST."""
    points = {at: cost for at, cost in measured[shape].items() if at >= 8_192}
    smallest = min(points)
    if tokens <= smallest:
        return max(LEAST, points[smallest] * tokens / smallest)
    largest = max(points)
    if tokens >= largest:
        return points[largest] * tokens / largest
    return float(np.interp(tokens, list(points), list(points.values())))
