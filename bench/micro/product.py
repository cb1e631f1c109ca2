"""A product with bias and GELU in its epilogue, which the runtime does not use yet: a record decides.

The library has no erf in an epilogue, and with `tl.erf` a Triton product loses a third of its rate: on an H200, for
131,072 x 768 -> 3072 in bfloat16, 921 us became 1,428, where the library's product and a pass take 1,341. Here erf is a
clipped odd polynomial: fused multiply-adds alone, no division, no special function.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import gelu, linear

from bench.micro.subject import TOLERANCE, Case, Subject, are_interpreted, same, size_of
from pabee_fast.kernels.checks import check_on_device, check_tensor
from pabee_fast.kernels.launch import Launch
from pabee_fast.kernels.prepared import Constants
from pabee_fast.runtime import ops


@triton.jit
def gelu_by_polynomial(x):  # type: ignore[no-untyped-def]
    """Return x Phi(x), float32, at most 5.2e-5 from exact, and 5e-7 of x where that is more.

    Phi(x) is 1/2 plus an odd polynomial of degree 17 in x clipped to 4.5 on each side, by Horner in its square.
    """
    t = tl.minimum(tl.maximum(x, -4.5), 4.5)
    s = t * t
    p = 2.99996256e-11 * s - 3.2838719e-09
    p = p * s + 1.58024189e-07
    p = p * s - 4.43165348e-06
    p = p * s + 8.12093431e-05
    p = p * s - 0.00103625074
    p = p * s + 0.00958064366
    p = p * s - 0.0659772517
    p = p * s + 0.398708563
    return x * (p * t + 0.5)


@triton.jit(do_not_specialize=["tokens"])
def product_gelu_kernel(  # type: ignore[no-untyped-def]
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    tokens,
    WIDTH: tl.constexpr,
    HIDDEN_SIZE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Write the GELU of hidden weight^T + bias.

    hidden_ptr: [tokens, HIDDEN_SIZE]
    weight_ptr: [WIDTH, HIDDEN_SIZE]
    bias_ptr: [WIDTH]
    out_ptr: [tokens, WIDTH]
    """
    # A program owns BLOCK_TOKENS x BLOCK_WIDTH results; GROUP blocks of tokens share their columns of weight in L2.
    columns = tl.cdiv(WIDTH, BLOCK_WIDTH)
    first = tl.program_id(0) // (GROUP * columns) * GROUP
    lines = tl.minimum(tl.cdiv(tokens, BLOCK_TOKENS) - first, GROUP)
    within = tl.program_id(0) % (GROUP * columns)
    token_idx = (first + within % lines).to(tl.int64) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    width_idx = within // lines * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    hidden_idx = tl.arange(0, BLOCK_HIDDEN)
    # Past the end the last line is read again, so that only the store is masked.
    token_mask, width_mask = token_idx < tokens, width_idx < WIDTH
    token_at, width_at = tl.minimum(token_idx, tokens - 1), tl.minimum(width_idx, WIDTH - 1)
    total = tl.zeros([BLOCK_TOKENS, BLOCK_WIDTH], dtype=tl.float32)
    for offset in range(0, HIDDEN_SIZE, BLOCK_HIDDEN):
        offs = offset + hidden_idx
        mask = offs < HIDDEN_SIZE
        # [tokens, hidden], [hidden, width]
        x = tl.load(hidden_ptr + token_at[:, None] * HIDDEN_SIZE + offs[None, :], mask=mask[None, :], other=0.0)
        w = tl.load(weight_ptr + width_at[None, :] * HIDDEN_SIZE + offs[:, None], mask=mask[:, None], other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
    total += tl.load(bias_ptr + width_at).to(tl.float32)[None, :]
    tl.store(
        out_ptr + token_idx[:, None] * WIDTH + width_idx[None, :],
        gelu_by_polynomial(total).to(out_ptr.dtype.element_ty),
        mask=token_mask[:, None] & width_mask[None, :],
    )


def product_gelu(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the GELU of a linear layer in one launch.

    Args:
        hidden: [tokens, hidden_size].
        weight: [width, hidden_size], dtype of `hidden`, as `bias`, [width].

    Raises:
        ValueError: a shape, dtype, device or layout does not fit.
    """
    (tokens, hidden_size), width = hidden.shape, weight.shape[0]
    check_tensor("hidden", hidden, {"tokens": tokens, "hidden_size": hidden_size})
    check_tensor("weight", weight, {"width": width, "hidden_size": hidden_size}, hidden.dtype, hidden.device)
    check_tensor("bias", bias, {"width": width}, hidden.dtype, hidden.device)
    check_on_device("hidden", hidden, are_interpreted())
    out = hidden.new_empty((tokens, width))
    if out.numel():
        product_gelu_launch(hidden, weight, bias, out).run()
    return out


def product_gelu_launch(hidden: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> Launch:
    """Return the launch that `product_gelu` runs to fill `out`."""
    tokens, width = out.shape
    constants = product_gelu_constants(width, hidden.shape[1], hidden.dtype)
    blocks = constants.values
    arguments: dict[str, Any] = dict(
        hidden_ptr=hidden,
        weight_ptr=weight,
        bias_ptr=bias,
        out_ptr=out,
        tokens=tokens,
    )
    grid = (-(-tokens // blocks["BLOCK_TOKENS"]) * -(-width // blocks["BLOCK_WIDTH"]),)
    return Launch(product_gelu_kernel, grid, arguments, constants)


@functools.cache
def product_gelu_constants(width: int, hidden_size: int, dtype: torch.dtype) -> Constants:
    """Return what it is compiled for; float32, whose operands stay in registers, is for comparisons."""
    tokens, columns, hidden, warps = (32, 32, 32, 4) if dtype == torch.float32 else (128, 256, 64, 8)
    values = {
        "WIDTH": width, "HIDDEN_SIZE": hidden_size, "BLOCK_TOKENS": tokens, "BLOCK_WIDTH": columns,
        "BLOCK_HIDDEN": hidden, "GROUP": 8,
    }  # fmt: skip
    return Constants(values, {"num_warps": warps, "num_stages": 3, "enable_fp_fusion": True})


def build(tokens: int, hidden: int, width: int, device: torch.device, dtype: torch.dtype) -> Subject:
    """Return the runtime's product and pass, the product with its epilogue, and torch's."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = ((tokens, hidden), (width, hidden), (width,))
    x, weight, bias = (torch.randn(s, generator=generator, device=device) for s in shapes)
    x, weight, bias = x.to(dtype), (weight * hidden**-0.5).to(dtype), bias.to(dtype)
    calls = {"runtime": lambda: ops.linear_act(x, weight, bias, activation="gelu")}
    if device.type == "cuda" or are_interpreted():
        calls["kernel"] = lambda: product_gelu(x, weight, bias)
    calls["reference"] = lambda: gelu(linear(x, weight, bias))
    calls["product alone"] = lambda: linear(x, weight, bias)

    def agree() -> None:
        found = {name: (call(),) for name, call in calls.items() if name != "product alone"}
        same(found, tolerance=max(TOLERANCE[dtype], 1e-4))  # the polynomial's own error among float32's

    moved = size_of(x, weight, bias) + tokens * width * x.element_size()
    return Subject(calls, moved, 2 * tokens * hidden * width, agree=agree)


def _case(tokens: int, hidden: int, width: int) -> Case:
    return Case(
        "product_gelu",
        f"{tokens}x{hidden}x{width}",
        tokens,
        lambda device, dtype: build(tokens, hidden, width, device, dtype),
        is_small=tokens == 64,
    )


# What the smallest set holds, and BERT-base's layer with two sizes of waves.
CASES = [_case(64, 64, 256), *(_case(tokens, 768, 3072) for tokens in (32768, 131072))]
