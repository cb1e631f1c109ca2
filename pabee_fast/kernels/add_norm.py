"""The end of a post-norm sublayer: bias, residual and layer norm over what the library's product left."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .checks import check_on_device
from .checks_layer import check_add_norm
from .launch import Launch, add_norm_constants
from .norm import normalise
from .prepared import UNKNOWN, repeat


@triton.jit(do_not_specialize=["tokens"])
def add_norm_kernel(
    product_ptr,
    bias_ptr,
    residual_ptr,
    gain_ptr,
    shift_ptr,
    tokens,
    eps,
    HIDDEN_SIZE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    """Overwrite each token's product with the layer norm of product + bias + residual.

    product_ptr: [tokens, HIDDEN_SIZE]
    bias_ptr: [HIDDEN_SIZE] or None
    residual_ptr: [tokens, HIDDEN_SIZE]
    gain_ptr: [HIDDEN_SIZE]
    shift_ptr: [HIDDEN_SIZE]
    """
    # A program owns BLOCK_TOKENS tokens, a warp or several to each, so that every token is read once.
    token_idx = tl.program_id(0).to(tl.int64) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    hidden_offs = tl.arange(0, BLOCK_HIDDEN)
    hidden_mask = hidden_offs < HIDDEN_SIZE
    # [tokens, hidden]
    token_offs = token_idx[:, None] * HIDDEN_SIZE + hidden_offs[None, :]
    token_mask = (token_idx < tokens)[:, None] & hidden_mask[None, :]
    x = tl.load(product_ptr + token_offs, mask=token_mask, other=0.0).to(tl.float32)
    x += tl.load(residual_ptr + token_offs, mask=token_mask, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        x += tl.load(bias_ptr + hidden_offs, mask=hidden_mask, other=0.0).to(tl.float32)[None, :]
    out = normalise(x, gain_ptr, shift_ptr, hidden_offs, eps, HIDDEN_SIZE)
    tl.store(product_ptr + token_offs, out.to(product_ptr.dtype.element_ty), mask=token_mask)


def add_norm(
    product: Tensor, bias: Tensor | None, residual: Tensor, gain: Tensor, shift: Tensor, *, eps: float
) -> Tensor:
    """Do what `reference.add_norm` says, with its arguments, in one launch and without waiting for the device.

    The tensors are on a CUDA device, or anywhere under Triton's interpreter.

    Raises:
        ValueError: a shape, dtype, device or layout does not fit, or the tokens are wider than MAX_HIDDEN_SIZE.
    """
    check_add_norm(product, bias, residual, gain, shift)
    check_on_device("product", product, not isinstance(add_norm_kernel, triton.JITFunction))
    return AddNorm(bias=bias, gain=gain, shift=shift, eps=eps)(product=product, residual=residual)


class AddNorm:
    """`add_norm` of one layer's bias and norm, again and again; its arguments were checked where they were made."""

    def __init__(self, *, bias: Tensor | None, gain: Tensor, shift: Tensor, eps: float) -> None:
        self._bias, self._gain, self._shift, self._eps = bias, gain, shift, float(eps)
        self._block_tokens = add_norm_constants(gain.shape[0]).values["BLOCK_TOKENS"]
        self._repeated = UNKNOWN

    def __call__(self, *, product: Tensor, residual: Tensor) -> Tensor:
        tokens = product.shape[0]
        if not tokens:
            return product
        own, other, bias = product.data_ptr(), residual.data_ptr(), self._bias
        weights = 0 if bias is None else bias.data_ptr(), self._gain.data_ptr(), self._shift.data_ptr()
        grid, values = (-(-tokens // self._block_tokens), 1), (own, weights[0], other, *weights[1:], tokens, self._eps)
        if not self._repeated.again(product, own | other, tokens, grid, values):
            launch = add_norm_launch(product, bias, residual, self._gain, self._shift, eps=self._eps)
            self._repeated = repeat(launch, grid, values)
        return product


def add_norm_launch(
    product: Tensor, bias: Tensor | None, residual: Tensor, gain: Tensor, shift: Tensor, *, eps: float
) -> Launch:
    """Return the launch that `add_norm` runs on checked arguments."""
    tokens, hidden_size = product.shape
    constants = add_norm_constants(hidden_size)
    arguments: dict[str, Any] = dict(
        product_ptr=product,
        bias_ptr=bias,
        residual_ptr=residual,
        gain_ptr=gain,
        shift_ptr=shift,
        tokens=tokens,
        eps=float(eps),
    )
    return Launch(add_norm_kernel, (-(-tokens // constants.values["BLOCK_TOKENS"]),), arguments, constants)
