"""What a post-norm layer does between its products, in plain torch: the ground truth of the kernels' tests."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from .checks import check_add_norm, check_bias_act

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_tanh": partial(gelu, approximate="tanh"),
    "relu": torch.relu,
}


@torch.no_grad()
def add_norm(
    product: Tensor, bias: Tensor | None, residual: Tensor, gain: Tensor, shift: Tensor, *, eps: float
) -> Tensor:
    """Overwrite `product` with the layer norm of product + bias + residual, in float32 throughout.

    Layer norm over the last dimension: (x - mean) / sqrt(variance + eps) * gain + shift, the variance divided by the
    hidden size (Ba, Kiros and Hinton, "Layer Normalization", section 3).

    Args:
        product: [tokens, hidden_size]: a sublayer's last product without its bias; float32, float16 or bfloat16.
        bias: [hidden_size], here and below in the dtype of `product`; or None.
        residual: [tokens, hidden_size]: what entered the sublayer; no part of it may lie in `product`.
        gain: [hidden_size].
        shift: [hidden_size].
        eps: added to the variance.

    Returns:
        `product`.

    Raises:
        ValueError: a shape, dtype, device or layout does not fit.
    """
    check_add_norm(product, bias, residual, gain, shift)
    total = product.float() + residual.float()
    if bias is not None:
        total += bias.float()
    return product.copy_(layer_norm(total, gain.shape, gain.float(), shift.float(), eps))


@torch.no_grad()
def bias_act(product: Tensor, bias: Tensor | None, *, activation: str) -> Tensor:
    """Overwrite `product` with the activation of product + bias, in float32 throughout.

    Args:
        product: [tokens, width]: a product without its bias; float32, float16 or bfloat16.
        bias: [width], dtype of `product`; or None.
        activation: "gelu", x Phi(x) by erf; "gelu_tanh", its approximation by tanh (Hendrycks and Gimpel, "Gaussian
            Error Linear Units", section 2), which transformers calls gelu_new; or "relu".

    Returns:
        `product`.

    Raises:
        ValueError: a shape, dtype, device, layout or option does not fit.
    """
    check_bias_act(product, bias, activation=activation)
    total = product.float() if bias is None else product.float() + bias.float()
    return product.copy_(_ACTIVATIONS[activation](total))
