"""The variants in which layers run, and which was measured to be the fastest where.

`stock`: transformers' own modules; `fused`: the post-norm block of `runtime/block.py`.
"""

import torch

from pabee_fast.runtime import ops

VARIANTS = ("stock", "fused")

LAYERS: dict[tuple[str, torch.dtype], str] = {
    ("cpu", torch.float32): "fused",
    ("cpu", torch.bfloat16): "fused",
    ("cpu", torch.float16): "fused",
    ("cuda", torch.float32): "fused",
    ("cuda", torch.bfloat16): "fused",
    ("cuda", torch.float16): "fused",
}
"""Device and dtype -> the variant that runs there, for every family with post-norm blocks; elsewhere stock layers.

On a CPU, `fused` against stock on the same packed tokens: BERT-base 1.02x at 4,084 tokens and 1.08x at 997 in float32,
1.00x and 1.03x in bfloat16; RoBERTa-base 1.01x at 1,997 and ALBERT-base, whose GELU transformers computes in eight
passes, 1.24x at 997. (`python -m bench.layers --processor-time`, one core of an AMD EPYC without AMX that other
programs used too, torch 2.13, medians of 7 and 9 rounds.)

On an NVIDIA H200, 32,768 rows of sst2's lengths through BERT-base in bfloat16: fused 376 ms, stock 429 (torch 2.11,
Triton 3.6). Not taken: the block by torch.compile, 393 there and 17 to 49 seconds of compiling on CPUs; and GELU by
tanh where the model's is by erf, which the library computes within its product: 359, but it changes answers, by at most
4.7e-4 an element.
"""


def choose_layers(device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """Return the variant that LAYERS holds for a device and dtype, and the reason in words."""
    variant = LAYERS.get((device.type, dtype))
    if variant is None:
        return "stock", f"nothing faster is known for {dtype} on {device.type}"
    if device.type == "cuda" and not ops.has_kernels(device):
        return "stock", "Triton cannot be imported"
    return variant, "measured"
