"""The first half of a feed-forward sublayer in one launch: a product, with bias and GELU in its epilogue.

The library has no erf in an epilogue, and with `tl.erf` a product loses a third of its rate. Here erf is a clipped odd
polynomial: fused multiply-adds alone, no division, no special function. Two programs share a multiprocessor, so that
one multiplies while the other is at its epilogue.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .checks import check_on_device
from .checks_layer import check_linear_gelu
from .launch import Launch, linear_gelu_constants


@triton.jit
def gelu_by_polynomial(x):
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


@triton.jit
def store_gelu(product, bias_ptr, out_desc, token_offset, width_offset, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """Store the GELU of some columns of a product plus their bias; product: [tokens, BLOCK_WIDTH] float32."""
    width_idx = width_offset + tl.arange(0, BLOCK_WIDTH)
    bias = tl.load(bias_ptr + width_idx, mask=width_idx < WIDTH, other=0.0).to(tl.float32)
    out_desc.store([token_offset, width_offset], gelu_by_polynomial(product + bias[None, :]).to(out_desc.dtype))


@triton.jit(do_not_specialize=["tokens"])
def linear_gelu_kernel(
    hidden_desc,
    weight_desc,
    out_desc,
    bias_ptr,
    tokens,
    WIDTH: tl.constexpr,
    HIDDEN_SIZE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Write the GELU of hidden weight^T + bias.

    hidden_desc: of [tokens, HIDDEN_SIZE], in blocks of [BLOCK_TOKENS, BLOCK_HIDDEN]
    weight_desc: of [WIDTH, HIDDEN_SIZE], in blocks of [BLOCK_WIDTH, BLOCK_HIDDEN]
    out_desc: of [tokens, WIDTH], in blocks of [BLOCK_TOKENS, BLOCK_WIDTH / 2]
    bias_ptr: [WIDTH]
    """
    # A program owns BLOCK_TOKENS x BLOCK_WIDTH results; GROUP blocks of tokens share their columns of weight in L2.
    columns = tl.cdiv(WIDTH, BLOCK_WIDTH)
    first = tl.program_id(0) // (GROUP * columns) * GROUP
    lines = tl.minimum(tl.cdiv(tokens, BLOCK_TOKENS) - first, GROUP)
    within = tl.program_id(0) % (GROUP * columns)
    token_offset = (first + within % lines) * BLOCK_TOKENS
    width_offset = within // lines * BLOCK_WIDTH
    # [tokens, width]; past its ends a descriptor reads zeros and writes nothing
    total = tl.zeros([BLOCK_TOKENS, BLOCK_WIDTH], dtype=tl.float32)
    for offset in range(0, HIDDEN_SIZE, BLOCK_HIDDEN):
        x = hidden_desc.load([token_offset, offset])
        w = weight_desc.load([width_offset, offset])
        total = tl.dot(x, w.T, total, input_precision="ieee")
    # In two halves, so that the results, on their way through shared memory, leave room there for a second program.
    HALF: tl.constexpr = BLOCK_WIDTH // 2
    left, right = tl.split(tl.permute(tl.reshape(total, [BLOCK_TOKENS, 2, HALF]), [0, 2, 1]))
    store_gelu(left, bias_ptr, out_desc, token_offset, width_offset, WIDTH, HALF)
    store_gelu(right, bias_ptr, out_desc, token_offset, width_offset + HALF, WIDTH, HALF)


def linear_gelu(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Do what `reference.linear_gelu` says, with its arguments, in one launch and without waiting for the device.

    The tensors are on a CUDA device, or anywhere under Triton's interpreter. Before it is rounded, GELU is at most
    5.2e-5 from exact: far below half precision's own rounding.

    Raises:
        ValueError: a shape, dtype, device or layout does not fit.
    """
    check_linear_gelu(hidden, weight, bias)
    check_on_device("hidden", hidden, not isinstance(linear_gelu_kernel, triton.JITFunction))
    return linear_gelu_unchecked(hidden, weight, bias)


def linear_gelu_unchecked(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Do what `linear_gelu` does, for arguments that were checked where they were made."""
    out = hidden.new_empty((hidden.shape[0], weight.shape[0]))
    if out.numel():
        linear_gelu_launch(hidden, weight, bias, out).run()
    return out


def linear_gelu_launch(hidden: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> Launch:
    """Return the launch that `linear_gelu` runs on checked arguments to fill `out`, not empty."""
    tokens, width = out.shape
    constants = linear_gelu_constants(width, hidden.shape[1], hidden.dtype)
    block_tokens, block_width, block_hidden = (
        constants.values[f"BLOCK_{name}"] for name in ("TOKENS", "WIDTH", "HIDDEN")
    )
    arguments = dict(
        hidden_desc=TensorDescriptor.from_tensor(hidden, [block_tokens, block_hidden]),
        weight_desc=TensorDescriptor.from_tensor(weight, [block_width, block_hidden]),
        out_desc=TensorDescriptor.from_tensor(out, [block_tokens, block_width // 2]),
        bias_ptr=bias,
        tokens=tokens,
    )
    grid = (-(-tokens // block_tokens) * -(-width // block_width),)
    return Launch(linear_gelu_kernel, grid, arguments, constants)
