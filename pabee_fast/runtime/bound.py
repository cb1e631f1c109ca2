"""What one place of a model asks of every wave: a block's products, a head's exit steps. Bound to tensors that were
checked, so that nothing is looked up or looked at again that stays as it is.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from pabee_fast.kernels import reference
from pabee_fast.kernels.checks import ExitHead, ExitRows, ExitRule, Pooler, check_tensor
from pabee_fast.kernels.launch import MAX_CLASSES, MAX_HIDDEN_SIZE
from pabee_fast.layout import Layout
from pabee_fast.runtime import choice, ops

logger = logging.getLogger(__name__)

_BIASED_HEAD = 64


class HeadStep:
    """The exit steps of one head; what stands between tokens and its linear runs before them.

    Args:
        head: the linear, see `check_head`.
        pooler: a Pooler, or any function from [rows, hidden_size] to [rows, width] that treats rows alike.
        norm: what every token goes through before it is read, see `pool`.
    """

    def __init__(
        self,
        head: ExitHead,
        pooler: Pooler | Callable[[Tensor], Tensor] | None = None,
        norm: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._pooler, self._norm = pooler, norm
        classes, self._width = head.weight.shape
        self._dtype = head.weight.dtype
        self._step, self._pool = ops.repeated("exit_step", head.weight, head=head), ops.repeated("pool", head.weight)
        if _is_kernel(self._step) and classes > MAX_CLASSES:
            _say_too_many_classes(classes)
            self._step = functools.partial(reference.exit_step, head=head)
        self._is_kernel = _is_kernel(self._step)

    def __call__(self, rows: ExitRows, rule: ExitRule) -> None:
        """See `kernels.reference.exit_step`."""
        if not rows.features.is_contiguous():  # a layer of transformers' own may leave them so
            rows = rows._replace(features=rows.features.contiguous())
        if self._norm is not None or self._pooler is not None or rows.features.dtype != self._dtype:
            rows = ExitRows(self._read(rows), rows.state, rows.logits, rows.exit_layers)
        if self._is_kernel:
            self._step(rows=rows, rule=rule)
        else:
            with torch.autocast(rows.features.device.type, enabled=False):  # it sums in float32 whatever its inputs are
                self._step(rows=rows, rule=rule)

    def _read(self, rows: ExitRows) -> Tensor:
        """Return what the linear reads of each row, [rows, width]."""
        features, ends, pooling, mask = rows.features, rows.cu_seqlens, rows.pooling, rows.key_mask
        if ends is not None and pooling is not None:
            if self._norm is None:
                features = self._pool(features=features, cu_seqlens=ends, pooling=pooling, key_mask=mask)
            else:
                features = ops.pool(features, ends, pooling=pooling, key_mask=mask, norm=self._norm)
        features = ops.through_pooler(self._pooler, features)
        if features.dtype != self._dtype:  # autocast, or a head kept in another precision: its product runs in its own
            features = features.to(self._dtype)
        if not isinstance(self._pooler, Pooler):  # which was checked with its head
            features = features.contiguous()
            check_tensor("what a head reads", features, {"rows": len(rows.state.keep), "width": self._width})
        return features


def linear_act(weight: Tensor, bias: Tensor | None, *, activation: str) -> Callable[[Tensor], Tensor]:
    """Return what makes of tokens [tokens, in] the activation of a linear layer, [tokens, out], in the memory of its
    product.

    Args:
        weight: [out, in].
        bias: [out], or None.
        activation: "gelu", "gelu_tanh" or "relu", see `kernels.reference.bias_act`.
    """
    # The library's own epilogue spares a pass over the result. Its gelu is the one by tanh on CUDA alone, and in
    # float32 too coarse: six layers end 1.5e-5 from stock ones (H200).
    has_epilogue = activation == "relu" or (activation == "gelu_tanh" and weight.dtype != torch.float32)
    if weight.is_cuda and bias is not None and has_epilogue:
        by_tanh = activation == "gelu_tanh"
        return lambda hidden: torch._addmm_activation(bias, hidden, weight.T, use_gelu=by_tanh)
    act = ops.repeated("bias_act", weight, bias=bias, activation=activation)
    if _is_kernel(act):

        def by_kernel(hidden: Tensor) -> Tensor:
            if activation == "gelu" and bias is not None and choice.takes_linear_gelu(hidden, weight):
                return cast(Tensor, ops._kernel("linear_gelu", hidden)(hidden, weight, bias))
            return cast(Tensor, act(product=linear(hidden, weight)))

        return by_kernel

    def as_stock(hidden: Tensor) -> Tensor:  # but in place
        product = linear(hidden, weight, bias)
        if activation == "relu":
            return torch.relu_(product)
        return cast(Tensor, torch.ops.aten.gelu_(product, approximate="tanh" if activation == "gelu_tanh" else "none"))

    return as_stock


def linear_add_norm(
    weight: Tensor, bias: Tensor | None, gain: Tensor, shift: Tensor, *, eps: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what makes of tokens [tokens, in] and their residual [tokens, out] the layer norm of a linear layer plus
    the residual, [tokens, out].

    Args:
        weight: [out, in].
        bias: [out], or None.
        gain, shift: [out]; see `kernels.reference.add_norm`.
        eps: added to the variance.
    """
    norm = ops.repeated("add_norm", weight, bias=bias, gain=gain, shift=shift, eps=eps)
    if _is_kernel(norm) and weight.shape[0] <= MAX_HIDDEN_SIZE:
        return lambda hidden, residual: norm(product=linear(hidden, weight), residual=residual)
    # As the stock layer computes it, to the bit; the sum takes the product's place.
    return lambda hidden, residual: layer_norm(
        linear(hidden, weight, bias).add_(residual), gain.shape, gain, shift, eps
    )


class JoinedAttention:
    """`attention` of one block whose queries, keys and values are one product, of weights that were checked.

    Args:
        like: a tensor of the dtype and on the device of the block's.
        heads, head_dim: of queries, keys and values each.
        scaling: of the products of queries and keys.
    """

    def __init__(self, like: Tensor, heads: int, head_dim: int, scaling: float) -> None:
        self._heads, self._head_dim, self._scaling = heads, head_dim, scaling
        # The kernel for short rows adds the biases as it reads: of this width the library's product takes a sixth
        # longer with its own (131,072 tokens of BERT-base in bfloat16 on an H200: 743 us, and 643 without). Not in
        # float32, which is for comparisons, and not of large heads, whose tiles leave no registers for it.
        self._adds_biases = like.dtype != torch.float32 and head_dim <= _BIASED_HEAD
        self._short: Callable[..., Tensor] | None = None
        if ops.has_kernels(like.device):
            self._short = ops.repeated("short_attention", like, heads=heads, head_dim=head_dim, scaling=scaling)

    def __call__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, biases: Sequence[Tensor], layout: Layout
    ) -> Tensor:
        """Return attention of each token, [tokens, heads * head_dim].

        Args:
            hidden: [tokens, hidden_size].
            weight: [3 * heads * head_dim, hidden_size].
            bias: [3 * heads * head_dim], or None.
            biases: `bias` in parts, of queries, keys and values, each [heads, head_dim]; () where it is None.
            layout: where the rows lie, and which of their tokens nobody attends to.
        """
        longest, asked = layout.max_seqlen, layout.attention
        given: dict[str, Any] = {}
        is_short = choice.takes_short(hidden.device, hidden.dtype, self._head_dim, longest, asked)
        if is_short and biases and self._adds_biases:
            bias, given = None, {"query_bias": biases[0], "value_bias": biases[2]}
        product = linear(hidden, weight, bias)
        if is_short and self._short is not None:
            return self._short(product=product, cu_seqlens=layout.cu_seqlens, key_mask=layout.key_mask, **given)
        query, key, value = product.view(-1, 3, self._heads, self._head_dim).unbind(1)
        return ops.attention(query, key, value, layout, scaling=self._scaling, is_ours=True, **given).flatten(1)


@functools.cache
def _say_too_many_classes(classes: int) -> None:
    logger.warning("the exit step runs as plain torch: %d classes, and the kernel holds %d", classes, MAX_CLASSES)


def _is_kernel(call: Callable[..., Any]) -> bool:
    """Return whether what `ops.repeated` gave is anything but a reference."""
    return getattr(call, "func", None) not in vars(reference).values()
