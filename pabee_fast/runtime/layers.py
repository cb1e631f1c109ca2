"""How the layers of a model run on packed tokens: a visible choice, and the reason for it.

Variants: `stock`, transformers' own modules; `fused`, the post-norm block of `runtime/block.py`; `compiled`, that block
by torch.compile; `fused_tanh`, fused with GELU by tanh where the model's is by erf, since on CUDA the library computes
that one within its product. It changes answers and is never chosen here: the two differ by at most 4.7e-4, at -2.7; for
normal inputs by 8.5e-5 in the mean, where rounding to bfloat16 costs 5.6e-4. Twelve random layers of BERT-base end
2.2 % from their float32 logits with it, 2.0 % without, both in bfloat16 (16 rows, on a CPU).
"""

import contextlib
import functools
import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from pabee_fast.errors import InputError, UnsupportedError
from pabee_fast.models import family_of
from pabee_fast.models.block import Block
from pabee_fast.models.family import Family
from pabee_fast.runtime import ops
from pabee_fast.runtime.attention import packed_attention_in
from pabee_fast.runtime.block import Weights, compiled, fused
from pabee_fast.runtime.joined import separate
from pabee_fast.runtime.packed import Layout
from pabee_fast.runtime.stock import activation_of, in_many_passes, why_not_fused, why_not_stock

logger = logging.getLogger(__name__)

VARIANTS = ("stock", "fused", "compiled", "fused_tanh")

LAYERS: dict[tuple[str, torch.dtype], str] = {
    ("cpu", torch.float32): "fused",
    ("cpu", torch.bfloat16): "fused",
    ("cpu", torch.float16): "fused",
    ("cuda", torch.float32): "fused",
    ("cuda", torch.bfloat16): "fused",
    ("cuda", torch.float16): "fused",
}
"""Device and dtype -> the variant that runs there, for every family with post-norm blocks; elsewhere stock layers.

On a CPU, `fused` against stock on the same packed tokens: BERT-base 1.02x at 4,084 tokens and 1.08x at 997 in float32,
1.00x and 1.03x in bfloat16; RoBERTa-base 1.01x at 1,997 and ALBERT-base, whose GELU transformers computes in eight
passes, 1.24x at 997. `compiled` is at 1.04x, 1.05x, 1.01x, 1.01x, 1.04x and 1.19x, after 17 to 49 seconds of compiling;
`fused` binds its weights in 0.4 ms a layer and has nothing else to start. (`python -m bench.layers --processor-time`,
one core of an AMD EPYC without AMX that other programs used too, torch 2.13, medians of 7 and 9 rounds.)

On CUDA, counted, not measured. What a token of BERT-base moves outside products, in half precision: stock 27,648 bytes;
`fused` and `compiled` 21,504, and `fused` 9,216 where the library's product has the activation (gelu_new, relu), which
torch.compile does not use. It joins weights once, as fast as they are copied, and compiles two kernels.
"""

Run = Callable[[Tensor, Layout, Mapping[str, Tensor]], Tensor]
"""One layer: hidden [1, tokens, hidden_size], where the rows lie and what moves beside them, to the next states."""


class Layers:
    """The layers of a model, a shared one repeated, ready to run on packed tokens within `ready()`.

    A layer that is not transformers' own any more (adapters, hooks, quantised or replaced modules) keeps running as it
    is, and `describe` says why; in a family of which only a layer's parts are called, the layer itself must not change.

    Args:
        model: a model of `family`.
        family: its row of the table of families.
        variant: one of VARIANTS, for all layers or an error; None: by LAYERS.

    Raises:
        InputError: another variant.
    """

    def __init__(self, model: PreTrainedModel, family: Family, variant: str | None = None) -> None:
        if variant not in (None, *VARIANTS):
            raise InputError(f"layers={variant!r}: give one of {', '.join(VARIANTS)}, or None for the fastest known")
        self.model, self.family, self.variant = model, family, variant
        self.modules: Sequence[nn.Module] = family.layers(model)
        self._runs: list[Run] = []

    def __len__(self) -> int:
        return len(self.modules)

    def __call__(self, number: int, hidden: Tensor, layout: Layout, beside: Mapping[str, Tensor]) -> Tensor:
        """Layer `number`, counted from 1, of hidden [1, tokens, hidden_size]; within `ready()` only."""
        return self._runs[number - 1](hidden, layout, beside)

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Binds the layers to the weights as they are now; meanwhile the stock modules attend within packed rows, and
        other threads wait that would run the model too.

        Raises:
            UnsupportedError: the variant asked for cannot serve a layer, or not under autocast.
        """
        config = self.model.config
        with _turn(config):
            variant, _ = self._choose()
            runs: dict[nn.Module, Run] = {}
            for module in self.modules:
                if module not in runs:
                    runs[module] = self._bind(module, variant)
            self._runs = [runs[module] for module in self.modules]
            chunked = self.modules if getattr(config, "chunk_size_feed_forward", 0) else ()
            try:
                with packed_attention_in(config), _unchunked(chunked), _in_one_pass(self._slow_activations()):
                    yield
            finally:
                self._runs = []  # so that weights which move later are not held here

    def describe(self) -> str:
        """In words: which variant runs, and why; layers that it cannot serve by number, with the reason."""
        variant, why = self._choose()
        reasons: dict[str, list[int]] = {}
        for number, module in enumerate(self.modules if variant != "stock" else (), start=1):
            if isinstance(wrong := self._blocks(module), str):
                reasons.setdefault(wrong, []).append(number)
        apart = [f"stock in {_numbers(numbers)}, since {wrong}" for wrong, numbers in reasons.items()]
        passes = ["GELU by tanh in one pass"] if self._slow_activations() else []
        return "; ".join([f"{variant} ({why})", *apart, *passes])

    def _choose(self) -> tuple[str, str]:
        own = next(self.modules[0].parameters())
        if self.variant is None:
            if self._has_autocast:
                return "stock", "autocast is on"
            if not self._has_blocks:
                return "stock", f"{self.family.model_type} has no post-norm blocks"
            return choose_layers(own.device, own.dtype)
        if self._has_autocast and self.variant != "stock":
            raise UnsupportedError(f"layers={self.variant!r}: autocast is on; give 'stock', or None")
        return self.variant, "asked for"

    @property
    def _has_autocast(self) -> bool:
        return torch.is_autocast_enabled(next(self.modules[0].parameters()).device.type)

    @property
    def _has_blocks(self) -> bool:
        """Whether the family's layers are such blocks, and nothing else is done to run them."""
        family = type(self.family)
        return family.blocks is not Family.blocks and family.run_layer is Family.run_layer

    def _blocks(self, module: nn.Module) -> tuple[Block, ...] | str:
        """The blocks that a layer can be run as, or in words why it cannot."""
        if not self._has_blocks:
            return f"{self.family.model_type} has no post-norm blocks"
        package = type(self.model.config).__module__.rpartition(".")[0]
        if wrong := why_not_stock(module, package):
            return wrong
        try:
            blocks = self.family.blocks(module)
        except AttributeError as error:  # a version of transformers with other names
            return str(error)
        return why_not_fused(module, blocks) or blocks

    def _slow_activations(self) -> list[nn.Module]:
        """The modules, of a family without blocks, that take many passes over the widest array there is; none where
        stock layers were asked for, or autocast rounds between the passes: those stay as they are."""
        if self.variant is not None or self._has_blocks or self._has_autocast:
            return []
        parts = (part for module in dict.fromkeys(self.modules) for part in module.modules() if in_many_passes(part))
        return list(dict.fromkeys(parts))

    def _bind(self, module: nn.Module, variant: str) -> Run:
        stock = functools.partial(self.family.run_layer, self.model, module)
        if variant == "stock":
            return stock
        if isinstance(blocks := self._blocks(module), str):
            if self.variant is not None:
                raise UnsupportedError(f"layers={variant!r}: {blocks}; give 'stock', or None for what can be served")
            _say_stock(self.model, blocks)
            return stock
        weights = [Weights.of(each, str(activation_of(each.activation))) for each in blocks]
        if variant == "fused_tanh":
            weights = [replace(each, activation="gelu_tanh") if each.activation == "gelu" else each for each in weights]
        return functools.partial(_run_blocks, compiled if variant == "compiled" else fused, weights)


def choose_layers(device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """The variant that LAYERS holds for a device and dtype, and the reason in words."""
    variant = LAYERS.get((device.type, dtype))
    if variant is None:
        return "stock", f"nothing faster is known for {dtype} on {device.type}"
    if device.type == "cuda" and not ops.has_kernels(device):
        return "stock", "Triton cannot be imported"
    return variant, "counted, not measured" if device.type == "cuda" else "measured"


def separate_weights(model: PreTrainedModel) -> None:
    """Gives weights that a run has joined memory of their own again; a model without such is left as it is."""
    with contextlib.suppress(AttributeError, UnsupportedError):  # the owner has changed it since
        family = family_of(model)
        for module in dict.fromkeys(family.layers(model)):
            for each in family.blocks(module):
                parts = (each.query, each.key, each.value)
                separate([part.weight for part in parts])
                separate([part.bias for part in parts if part.bias is not None])


def _run_blocks(
    run: Callable[[Weights, Tensor, Layout], Tensor],
    weights: Sequence[Weights],
    hidden: Tensor,
    layout: Layout,
    beside: Mapping[str, Tensor],
) -> Tensor:
    tokens = hidden[0]
    for each in weights:
        tokens = run(each, tokens, layout)
    return tokens[None]


@contextlib.contextmanager
def _unchunked(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Runs feed-forward layers in one piece: chunks change no result, and would have to divide every wave's tokens."""
    parts: Iterator[Any] = (part for module in dict.fromkeys(modules) for part in module.modules())
    before = {part: size for part in parts if (size := vars(part).get("chunk_size_feed_forward"))}
    for part in before:
        part.chunk_size_feed_forward = 0
    try:
        yield
    finally:
        for part, size in before.items():
            part.chunk_size_feed_forward = size


_gelu_tanh = functools.partial(nn.functional.gelu, approximate="tanh")


@contextlib.contextmanager
def _in_one_pass(activations: Sequence[nn.Module]) -> Iterator[None]:
    """Lets these modules call torch's GELU by tanh, which is the same function but for rounding."""
    for part in activations:
        part.forward = _gelu_tanh
    try:
        yield
    finally:
        for part in activations:
            del part.forward


_locks: dict[int, threading.RLock] = {}


def _turn(config: PretrainedConfig) -> threading.RLock:
    """What a thread holds while it runs a model of this config, whose attention is rerouted meanwhile."""
    lock = _locks.get(key := id(config))  # a config equals others of its content, and has no hash
    if lock is None:
        lock = _locks.setdefault(key, threading.RLock())
        weakref.finalize(config, _locks.pop, key, None)
    return lock


_said: weakref.WeakKeyDictionary[PreTrainedModel, set[str]] = weakref.WeakKeyDictionary()


def _say_stock(model: PreTrainedModel, why: str) -> None:
    said = _said.setdefault(model, set())
    if why not in said:
        said.add(why)
        logger.warning("layers run as transformers' own modules: %s", why)


def _numbers(numbers: list[int]) -> str:
    """layer 3, or layers 1, 2 and 5."""
    *first, last = map(str, numbers)
    return f"layers {', '.join(first)} and {last}" if first else f"layer {last}"
