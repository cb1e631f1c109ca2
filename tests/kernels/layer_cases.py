"""Cases that hold add_norm and bias_act against double precision; the interpreter and a GPU run the same ones.

Sizes are chosen: 0 tokens (nothing to launch), 1 token, primes (no block size divides them), widths of 1 (all padding),
257 (a prime: never aligned), 768 (BERT-base), 1024 (a power of two), and above 1024 (several warps to a token, several
programs to a width).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from tests.tolerances import TOLERANCES, assert_close


@dataclass(frozen=True)
class NormCase:
    """One call of add_norm on random tokens."""

    tokens: int
    hidden_size: int
    with_bias: bool = True
    eps: float = 1e-12
    mean: float = 0.0

    def __str__(self) -> str:
        return f"{self.tokens}x{self.hidden_size}-{self.with_bias}-{self.eps}-{self.mean:g}"


NORM_CASES = [
    *(NormCase(tokens, 768) for tokens in (0, 1, 5, 67)),
    *(NormCase(3, hidden_size) for hidden_size in (1, 31, 48, 257, 1024, 1536, 4096)),
    NormCase(4, 768, with_bias=False),
    # An epsilon that decides, and a mean that a variance by squares would lose in float32.
    NormCase(4, 48, eps=0.5),
    NormCase(4, 768, mean=300.0),
]


@dataclass(frozen=True)
class ActivationCase:
    """One call of bias_act on random tokens."""

    tokens: int
    width: int
    activation: str
    with_bias: bool = True

    def __str__(self) -> str:
        return f"{self.activation}-{self.tokens}x{self.width}-{self.with_bias}"


ACTIVATION_CASES = [
    *(ActivationCase(5, 3072, activation) for activation in ("gelu", "gelu_tanh", "relu")),
    *(ActivationCase(tokens, 768, "gelu") for tokens in (0, 1, 67)),
    *(ActivationCase(7, width, "gelu") for width in (1, 48, 257, 1024, 1536)),
    ActivationCase(5, 768, "gelu_tanh", with_bias=False),
]


def exact_add_norm(
    product: Tensor, bias: Tensor | None, residual: Tensor, gain: Tensor, shift: Tensor, eps: float
) -> Tensor:
    """The formula in double precision."""
    total = product.double() + residual.double() + (0.0 if bias is None else bias.double())
    mean = total.mean(1, keepdim=True)
    variance = ((total - mean) ** 2).mean(1, keepdim=True)
    return (total - mean) / (variance + eps).sqrt() * gain.double() + shift.double()


def exact_activation(x: Tensor, activation: str) -> Tensor:
    """The formula in double precision."""
    if activation == "relu":
        return x * (x > 0)
    if activation == "gelu":
        return 0.5 * x * (1 + torch.special.erf(x / 2**0.5))
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def check_add_norm(add_norm: Callable[..., Tensor], case: NormCase, dtype: torch.dtype, device: str) -> None:
    """Hold one call against double precision; the result takes the product's place."""
    generator = torch.Generator().manual_seed(case.tokens + case.hidden_size)
    draw = [torch.randn(case.tokens, case.hidden_size, generator=generator) for _ in range(2)]
    draw += [torch.randn(case.hidden_size, generator=generator) for _ in range(3)]
    product, residual, gain, shift, bias = (tensor.to(dtype) for tensor in draw)
    product = product + case.mean
    given = bias if case.with_bias else None
    expected = exact_add_norm(product, given, residual, gain, shift, case.eps)
    inputs = [None if t is None else t.to(device) for t in (product, given, residual, gain, shift)]
    kept = [None if t is None else t.clone() for t in inputs]
    out = add_norm(*inputs, eps=case.eps)
    assert out is inputs[0]
    assert out.dtype == dtype
    for after, before in zip(inputs[1:], kept[1:], strict=True):
        assert after is None or torch.equal(after, before), "an input was changed"
    # Digits that the sum itself loses in float32 are no fault of the norm.
    lost = torch.finfo(torch.float32).eps * abs(case.mean)
    atol = TOLERANCES[dtype] * expected.abs().max().item() + 4 * lost if case.tokens else 0.0
    torch.testing.assert_close(out.cpu().double(), expected, rtol=0.0, atol=atol)


def check_bias_act(bias_act: Callable[..., Tensor], case: ActivationCase, dtype: torch.dtype, device: str) -> None:
    """Hold one call against double precision; the result takes the product's place."""
    generator = torch.Generator().manual_seed(case.tokens + case.width)
    product = 3 * torch.randn(case.tokens, case.width, generator=generator).to(dtype)
    bias = torch.randn(case.width, generator=generator).to(dtype) if case.with_bias else None
    if product.numel() > 3:
        product.view(-1)[:3] = torch.tensor([float("nan"), 0.0, -30.0])
    total = product.double() + (0.0 if bias is None else bias.double())
    expected = exact_activation(total, case.activation)
    given = product.to(device)
    out = bias_act(given, None if bias is None else bias.to(device), activation=case.activation)
    assert out is given
    assert out.dtype == dtype
    assert_close(out.cpu().double(), expected, dtype)


def check_linear_gelu(
    linear_gelu: Callable[..., Tensor], size: tuple[int, int, int], dtype: torch.dtype, device: str
) -> None:
    """Hold one call of tokens, hidden size and width against double precision."""
    tokens, hidden_size, width = size
    generator = torch.Generator().manual_seed(tokens)
    shapes = ((tokens, hidden_size), (width, hidden_size), (width,))
    hidden, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    out = linear_gelu(hidden.to(device), weight.to(device), bias.to(device))
    assert (out.dtype, out.shape) == (dtype, (tokens, width))
    expected = exact_activation(linear(hidden.double(), weight.double(), bias.double()), "gelu")
    # Float32 would show the polynomial's own error.
    atol = max(TOLERANCES[dtype] * expected.abs().max().item(), 1e-4) if tokens else 0.0
    torch.testing.assert_close(out.cpu().double(), expected, rtol=0.0, atol=atol)


# 0 tokens, one, and sizes that no block divides, in several programs; BERT-base's.
LINEAR_GELU_SIZES = [(0, 16, 8), (1, 16, 8), (33, 48, 72), (300, 40, 264), (1200, 768, 3072)]


def linear_gelu_arguments(tokens: int = 4, hidden_size: int = 8, **changes: Any) -> dict[str, Any]:
    """Arguments of linear_gelu that pass its checks, but for `changes`."""
    tensors = {"hidden": torch.zeros(tokens, hidden_size), "weight": torch.zeros(8, hidden_size)}
    return {**tensors, "bias": torch.zeros(8)} | changes


@dataclass(frozen=True)
class EmbedCase:
    """One call of embed_norm on random tables."""

    tokens: int
    hidden_size: int
    has_types: bool = True
    ids: torch.dtype = torch.int64

    def __str__(self) -> str:
        return f"{self.tokens}x{self.hidden_size}-{self.has_types}-{self.ids}".replace("torch.", "")


EMBED_CASES = [
    *(EmbedCase(tokens, 768) for tokens in (0, 1, 5, 67)),
    *(EmbedCase(3, hidden_size) for hidden_size in (1, 31, 128, 257, 1024, 4096)),
    EmbedCase(5, 48, has_types=False),
    EmbedCase(5, 48, ids=torch.int32),
]


def check_embed_norm(embed_norm: Callable[..., Tensor], case: EmbedCase, dtype: torch.dtype, device: str) -> None:
    """Hold one call against double precision."""
    generator = torch.Generator().manual_seed(case.tokens + case.hidden_size)
    rows = (11, 5, 2)
    ids = [torch.randint(0, each, (case.tokens,), generator=generator, dtype=case.ids) for each in rows]
    tables = [torch.randn(each, case.hidden_size, generator=generator).to(dtype) for each in rows]
    gain, shift = (torch.randn(case.hidden_size, generator=generator).to(dtype) for _ in range(2))
    used = 3 if case.has_types else 2
    total = sum(table.double()[each] for table, each in zip(tables[:used], ids[:used], strict=True))
    assert isinstance(total, Tensor)
    expected = exact_add_norm(total, None, torch.zeros_like(total), gain, shift, 1e-12)
    given = [
        each.to(device) if number < used else None for each, number in zip([*ids, *tables], [0, 1, 2] * 2, strict=True)
    ]
    out = embed_norm(*given, gain.to(device), shift.to(device), eps=1e-12)
    assert (out.dtype, out.shape) == (dtype, (case.tokens, case.hidden_size))
    assert_close(out.cpu().double(), expected, dtype)


def embed_norm_arguments(tokens: int = 4, hidden_size: int = 8, **changes: Any) -> dict[str, Any]:
    """Arguments of embed_norm that pass its checks, but for `changes`."""
    ids = {f"{name}_ids": torch.zeros(tokens, dtype=torch.int64) for name in ("word", "position", "type")}
    tables = {name: torch.zeros(3, hidden_size) for name in ("words", "positions", "types")}
    return {
        **ids,
        **tables,
        "gain": torch.zeros(hidden_size),
        "shift": torch.zeros(hidden_size),
        "eps": 1e-12,
    } | changes


def add_norm_arguments(tokens: int = 4, hidden_size: int = 8, **changes: Any) -> dict[str, Any]:
    """Arguments of add_norm that pass its checks, but for `changes`."""
    vectors = {name: torch.zeros(hidden_size) for name in ("bias", "gain", "shift")}
    tensors = {name: torch.zeros(tokens, hidden_size) for name in ("product", "residual")}
    return {**tensors, **vectors, "eps": 1e-12} | changes


def bias_act_arguments(tokens: int = 4, width: int = 8, **changes: Any) -> dict[str, Any]:
    """Arguments of bias_act that pass its checks, but for `changes`."""
    return {"product": torch.zeros(tokens, width), "bias": torch.zeros(width), "activation": "gelu"} | changes
