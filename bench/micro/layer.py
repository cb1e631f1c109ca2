"""What a post-norm layer does between its products: residual and norm, bias and activation."""

import functools
import itertools

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from bench.micro.subject import TOLERANCE, Case, Subject, same, serving, size_of

EPS = 1e-12


def norm_in_plain_torch(
    product: Tensor, bias: Tensor, residual: Tensor, gain: Tensor, shift: Tensor, *, eps: float
) -> Tensor:
    """As a stock layer writes it."""
    return layer_norm(product + bias + residual, gain.shape, gain, shift, eps)


def build_norm(tokens: int, hidden: int, device: torch.device, dtype: torch.dtype) -> Subject:
    """Return the kernel and the reference overwrite the product, whose numbers stay of one size under a norm."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = ((tokens, hidden), (hidden,), (tokens, hidden), (hidden,), (hidden,))
    tensors = [torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes]
    functions = serving("add_norm", device) | {"torch": norm_in_plain_torch}

    def agree() -> None:
        found = {name: (f(tensors[0].clone(), *tensors[1:], eps=EPS),) for name, f in functions.items()}
        same(found, tolerance=TOLERANCE[dtype])

    calls = {name: functools.partial(f, *tensors, eps=EPS) for name, f in functions.items()}
    return Subject(calls, size_of(*tensors, tensors[0]), agree=agree)


def activation_in_plain_torch(product: Tensor, bias: Tensor, *, activation: str) -> Tensor:
    """As a stock layer writes it."""
    return gelu(product + bias)


def build_activation(tokens: int, width: int, device: torch.device, dtype: torch.dtype) -> Subject:
    """Return the kernel and the reference overwrite the product."""
    generator = torch.Generator(device).manual_seed(0)
    product, bias = (torch.randn(s, generator=generator, device=device).to(dtype) for s in ((tokens, width), (width,)))
    functions = serving("bias_act", device) | {"torch": activation_in_plain_torch}

    def agree() -> None:
        found = {name: (f(product.clone(), bias, activation="gelu"),) for name, f in functions.items()}
        same(found, tolerance=TOLERANCE[dtype])

    calls = {name: functools.partial(f, product, bias, activation="gelu") for name, f in functions.items()}
    return Subject(calls, size_of(product, product, bias), agree=agree)


def _case(op: str, what: str, tokens: int, width: int) -> Case:
    build = build_norm if op == "add_norm" else build_activation
    return Case(
        op,
        f"{tokens}x{width}{what}",
        tokens,
        lambda device, dtype: build(tokens, width, device, dtype),
        is_small=tokens == 64,
    )


_norm_case = functools.partial(_case, "add_norm", "")
_activation_case = functools.partial(_case, "bias_act", ", gelu")


# What the smallest set holds, a wave's last survivors, and a full wave; the widths of BERT-base and BERT-large.
CASES = [
    _norm_case(64, 768),
    _activation_case(64, 3072),
    *(_norm_case(*size) for size in itertools.product((4096, 65536), (768, 1024))),
    *(_activation_case(*size) for size in itertools.product((4096, 65536), (3072, 4096))),
]
