"""What a post-norm layer does between its products, residual and norm, bias and activation; the product that ends with
its activation; and the embedding in front of all layers."""

import functools
import itertools

import torch
from torch import Tensor
from torch.nn.functional import embedding, gelu, layer_norm, linear

from bench.graphs import Call
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


def build_product(tokens: int, hidden: int, width: int, device: torch.device, dtype: torch.dtype) -> Subject:
    """Return the kernel and the reference beside the library's product with a pass of ours, and alone."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = ((tokens, hidden), (width, hidden), (width,))
    x, weight, bias = (torch.randn(shape, generator=generator, device=device) for shape in shapes)
    x, weight, bias = x.to(dtype), (weight * hidden**-0.5).to(dtype), bias.to(dtype)
    two = serving("bias_act", device)
    calls: dict[str, Call] = {
        name: functools.partial(f, x, weight, bias) for name, f in serving("linear_gelu", device).items()
    }
    calls["product and pass"] = lambda: two.get("kernel", two["reference"])(linear(x, weight), bias, activation="gelu")
    calls["torch"] = lambda: gelu(linear(x, weight, bias))
    calls["product alone"] = lambda: linear(x, weight)

    def agree() -> None:
        found = {name: (call(),) for name, call in calls.items() if name != "product alone"}
        same(found, tolerance=max(TOLERANCE[dtype], 1e-4))  # the polynomial's own error among float32's

    moved = size_of(x, weight, bias) + tokens * width * x.element_size()
    return Subject(calls, moved, 2 * tokens * hidden * width, agree=agree)


def build_embedding(tokens: int, hidden: int, device: torch.device, dtype: torch.dtype) -> Subject:
    """Return the kernel and the reference beside stock modules' six passes; words as often as each other."""
    generator = torch.Generator(device).manual_seed(0)
    sizes = (30522, 512, 2)
    ids = [torch.randint(0, size, (tokens,), generator=generator, device=device) for size in sizes]
    tables = [torch.randn(size, hidden, generator=generator, device=device).to(dtype) for size in sizes]
    gain, shift = (torch.randn(hidden, generator=generator, device=device).to(dtype) for _ in range(2))

    def stock() -> Tensor:
        words, positions, types = (embedding(each, table) for each, table in zip(ids, tables, strict=True))
        return layer_norm(words + types + positions, gain.shape, gain, shift, EPS)

    functions = serving("embed_norm", device)
    calls: dict[str, Call] = {
        name: functools.partial(f, *ids, *tables, gain, shift, eps=EPS) for name, f in functions.items()
    }
    calls["torch"] = stock

    def agree() -> None:
        same({name: (call(),) for name, call in calls.items()}, tolerance=TOLERANCE[dtype])

    lines = tokens + sum(len(each.unique()) for each in ids)  # written, and read once
    moved = size_of(*ids, gain, shift) + lines * hidden * gain.element_size()
    return Subject(calls, moved, agree=agree)


def _embedding_case(tokens: int, hidden: int) -> Case:
    return Case(
        "embed_norm",
        f"{tokens}x{hidden}",
        tokens,
        lambda device, dtype: build_embedding(tokens, hidden, device, dtype),
        is_small=tokens == 64,
    )


def _product_case(tokens: int, hidden: int, width: int) -> Case:
    return Case(
        "linear_gelu",
        f"{tokens}x{hidden}x{width}",
        tokens,
        lambda device, dtype: build_product(tokens, hidden, width, device, dtype),
        is_small=tokens == 64,
    )


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
    _product_case(64, 64, 256),
    _embedding_case(64, 768),
    *(_norm_case(*size) for size in itertools.product((4096, 65536), (768, 1024))),
    *(_activation_case(*size) for size in itertools.product((4096, 65536), (3072, 4096))),
    _embedding_case(131072, 768),
    *(_product_case(tokens, hidden, 4 * hidden) for tokens, hidden in ((32768, 768), (131072, 768), (65536, 1024))),
]
