"""What stands in front of and within post-norm layers, in plain torch: the ground truth of the kernels' tests."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

from .checks_layer import check_add_norm, check_bias_act, check_embed_norm, check_linear_gelu

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


@torch.no_grad()
def linear_gelu(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x Phi(x), GELU by erf, of a linear layer's x, in float32 throughout.

    Args:
        hidden: [tokens, hidden_size]; float32, float16 or bfloat16.
        weight: [width, hidden_size], here and below in the dtype of `hidden`.
        bias: [width].

    Returns:
        [tokens, width], dtype of `hidden`.

    Raises:
        ValueError: a shape, dtype, device or layout does not fit, or rows are not multiples of DESCRIPTOR_BYTES.
    """
    check_linear_gelu(hidden, weight, bias)
    return gelu(linear(hidden.float(), weight.float(), bias.float())).to(hidden.dtype)


@torch.no_grad()
def embed_norm(
    word_ids: Tensor,
    position_ids: Tensor,
    type_ids: Tensor | None,
    words: Tensor,
    positions: Tensor,
    types: Tensor | None,
    gain: Tensor,
    shift: Tensor,
    *,
    eps: float,
) -> Tensor:
    """Return the layer norm of each token's rows of the tables, added up, in float32 throughout.

    Args:
        word_ids: [tokens] int32 or int64, as the two others.
        position_ids: [tokens].
        type_ids: [tokens]; None, as `types`, where the model tells no parts of a text apart.
        words: [words, hidden_size]; float32, float16 or bfloat16.
        positions: [positions, hidden_size], here and below in the dtype of `words`.
        types: [types, hidden_size], or None.
        gain: [hidden_size].
        shift: [hidden_size].
        eps: added to the variance.

    Returns:
        [tokens, hidden_size], dtype of `words`.

    Raises:
        ValueError: a shape, dtype, device or layout does not fit.
        IndexError: an id that its table does not have.
    """
    check_embed_norm(word_ids, position_ids, type_ids, words, positions, types, gain, shift)
    total = words[word_ids].float()
    if type_ids is not None and types is not None:
        total += types[type_ids].float()
    total += positions[position_ids].float()
    return layer_norm(total, gain.shape, gain.float(), shift.float(), eps).to(words.dtype)
