"""The middle of a feed-forward sublayer: bias and activation over what the library's product left."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .activation import activate
from .checks import check_on_device
from .checks_layer import check_bias_act
from .launch import Launch, bias_act_constants
from .prepared import UNKNOWN, repeat


@triton.jit(do_not_specialize=["tokens"])
def bias_act_kernel(
    product_ptr,
    bias_ptr,
    tokens,
    WIDTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Overwrite each token's product with the activation of product + bias.

    product_ptr: [tokens, WIDTH]
    bias_ptr: [WIDTH] or None
    """
    # A program owns BLOCK_WIDTH columns of BLOCK_TOKENS tokens, so that it reads its part of the bias once.
    token_idx = tl.program_id(0).to(tl.int64) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    width_offs = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    width_mask = width_offs < WIDTH
    # [tokens, width]
    token_offs = token_idx[:, None] * WIDTH + width_offs[None, :]
    token_mask = (token_idx < tokens)[:, None] & width_mask[None, :]
    x = tl.load(product_ptr + token_offs, mask=token_mask, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        x += tl.load(bias_ptr + width_offs, mask=width_mask, other=0.0).to(tl.float32)[None, :]
    tl.store(product_ptr + token_offs, activate(x, ACTIVATION).to(product_ptr.dtype.element_ty), mask=token_mask)


def bias_act(product: Tensor, bias: Tensor | None, *, activation: str) -> Tensor:
    """Do what `reference.bias_act` says, with its arguments, in one launch and without waiting for the device.

    The tensors are on a CUDA device, or anywhere under Triton's interpreter.

    Raises:
        ValueError: a shape, dtype, device, layout or option does not fit.
    """
    check_bias_act(product, bias, activation=activation)
    check_on_device("product", product, not isinstance(bias_act_kernel, triton.JITFunction))
    return BiasAct(bias=bias, activation=activation)(product=product)


class BiasAct:
    """`bias_act` of one layer's bias, again and again; its arguments were checked where they were made."""

    def __init__(self, *, bias: Tensor | None, activation: str) -> None:
        self._bias, self._activation = bias, activation
        self._repeated = UNKNOWN

    def __call__(self, *, product: Tensor) -> Tensor:
        (tokens, width), bias = product.shape, self._bias
        if not tokens:
            return product
        blocks = bias_act_constants(width, self._activation).values
        grid = (-(-tokens // blocks["BLOCK_TOKENS"]), -(-width // blocks["BLOCK_WIDTH"]))
        address = product.data_ptr()
        values = (address, 0 if bias is None else bias.data_ptr(), tokens)
        if not self._repeated.again(product, address, tokens, grid, values):
            self._repeated = repeat(bias_act_launch(product, bias, activation=self._activation), grid, values)
        return product


def bias_act_launch(product: Tensor, bias: Tensor | None, *, activation: str) -> Launch:
    """Return the launch that `bias_act` runs on checked arguments."""
    tokens, width = product.shape
    constants = bias_act_constants(width, activation)
    blocks = constants.values
    arguments: dict[str, Any] = dict(
        product_ptr=product,
        bias_ptr=bias,
        tokens=tokens,
    )
    grid = (-(-tokens // blocks["BLOCK_TOKENS"]), -(-width // blocks["BLOCK_WIDTH"]))
    return Launch(bias_act_kernel, grid, arguments, constants)
