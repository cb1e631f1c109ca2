"""How the layers of a model run on packed tokens: a visible choice (`variants`), and the reason for it."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from pabee_fast.errors import InputError, UnsupportedError
from pabee_fast.layout import Layout
from pabee_fast.models import family_of, is_built_in
from pabee_fast.models.block import Block
from pabee_fast.models.family import Family
from pabee_fast.runtime.attention import packed_attention_in
from pabee_fast.runtime.block import BoundBlock
from pabee_fast.runtime.embedding import fused_embedding
from pabee_fast.runtime.joined import separate
from pabee_fast.runtime.places import PlaceTables
from pabee_fast.runtime.stock import activation_of, in_many_passes, parts_of, why_not_fused, why_not_stock
from pabee_fast.runtime.turns import gelu_tanh, instead, turn_with, unchunked
from pabee_fast.runtime.unchanged import Snapshot
from pabee_fast.runtime.variants import VARIANTS, choose_layers
from pabee_fast.say import say_once

logger = logging.getLogger(__name__)

Run = Callable[..., Tensor]
"""One layer: hidden [tokens, hidden_size], where the rows lie and what moves beside them, to the next states."""


@dataclass(frozen=True)
class _Bound:
    """Layers bound to the weights of a moment, and what must be set differently while they run."""

    runs: list[Run]
    blocks: list[BoundBlock]
    configs: list[PretrainedConfig]
    rerouted: list[PretrainedConfig]
    """Of these, whose modules attend when a layer is called: none where all layers run as blocks of ours."""
    chunked: list[nn.Module]
    instead: dict[nn.Module, Callable[..., Any]]
    has_autocast: bool
    tables: PlaceTables | None
    are_replayable: bool
    snapshot: Snapshot


class Layers:
    """The layers of a model, a shared one repeated, ready to run on packed tokens within `ready()`.

    A layer that is not transformers' own any more (adapters, hooks, quantised or replaced modules) keeps running as it
    is, and `describe` says why; in a family of which only a layer's parts are called, the layer itself must not change.

    Args:
        model: a model of `family`.
        family: its row of the table of families.
        variant: one of VARIANTS, for all layers or an error; None: by `variants.LAYERS`.

    Raises:
        InputError: another variant.
    """

    def __init__(self, model: PreTrainedModel, family: Family, variant: str | None = None) -> None:
        if variant not in (None, *VARIANTS):
            raise InputError(f"layers={variant!r}: give one of {', '.join(VARIANTS)}, or None for the fastest known")
        self.model, self.family, self.variant = model, family, variant
        self.modules: Sequence[nn.Module] = family.layers(model)
        self.lets_nothing_go = False
        """Between runs: for whoever sees to it that these layers are given up when their weights move."""
        self.times_bound = 0
        self._bound: _Bound | None = None

    def __len__(self) -> int:
        return len(self.modules)

    def __call__(
        self,
        number: int,
        hidden: Tensor,
        layout: Layout,
        beside: Mapping[str, Tensor],
        pooling: str | None = None,
    ) -> Tensor:
        """Layer `number`, counted from 1, of hidden [tokens, hidden_size]; within `turn()` and `running()` only.

        Args:
            pooling: where `pools(number)`, the "first" or "last" token of each row, which alone is computed:
                [rows, hidden_size]. None: all tokens.
        """
        assert self._bound is not None
        run = self._bound.runs[number - 1]
        return run(hidden, layout, beside) if pooling is None else run(hidden, layout, beside, pooling)

    def pools(self, number: int) -> bool:
        """Return whether layer `number` can compute one token of each row alone; within `turn()` only."""
        assert self._bound is not None
        return _is_fused(self._bound.runs[number - 1])

    @contextlib.contextmanager
    def turn(self) -> Iterator[bool]:
        """Bind the layers to the weights as they are now, unless they are bound and nothing has changed; meanwhile
        other threads wait that would run the model too.

        Yields:
            Whether they were bound anew.

        Raises:
            UnsupportedError: the variant asked for cannot serve a layer, or not under autocast; or layers attend to
                other tokens than the model's config says.
        """
        configs = self._bound.configs if self._bound is not None else self._configs(self._parts())
        with turn_with(configs):
            bound = self._bound
            is_new = bound is None or bound.has_autocast != self._has_autocast or not bound.snapshot.holds()
            if bound is None or is_new:
                self._bound = None
                self._bound = bound = self._bind()
                self.times_bound += 1
            yield is_new

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Let layers be called, within `turn()`: the stock modules attend within packed rows meanwhile."""
        bound = self._bound
        assert bound is not None
        try:
            with packed_attention_in(*bound.rerouted), unchunked(bound.chunked), instead(bound.instead):
                yield
        finally:
            for block in bound.blocks if not self.lets_nothing_go else ():
                block.let_go()
            if bound.tables is not None:
                bound.tables.clear()

    def _parts(self) -> list[nn.Module]:
        """Return every module in the layers."""
        return list(chain.from_iterable(map(parts_of, dict.fromkeys(self.modules))))

    def _bind(self) -> _Bound:
        self.modules = self.family.layers(self.model)
        every = self._parts()
        self._check(every)
        configs = self._configs(every)
        variant, _ = self._choose()
        places = self.family.places(self.model)
        tables = None if places is None else PlaceTables(places)
        blocks: list[BoundBlock] = []
        runs = {module: self._bind_one(module, variant, tables, blocks) for module in dict.fromkeys(self.modules)}
        for module, run in runs.items():
            if (behind := self.family.behind(self.model, module)) is not None:
                runs[module] = functools.partial(_run_and_then, run, behind)
        for block in blocks:
            block.take()  # before anybody looks where weights lie
        return _Bound(
            [runs[module] for module in self.modules],
            blocks,
            configs,
            [] if all(map(_is_fused, runs.values())) else configs,
            every if any(getattr(config, "chunk_size_feed_forward", 0) for config in configs) else [],
            self._instead(every, variant),
            self._has_autocast,
            tables,
            self._are_replayable(runs.values(), tables),
            Snapshot(self.model),  # last: binding may move weights together
        )

    def _are_replayable(self, runs: Iterable[Run], tables: PlaceTables | None) -> bool:
        """Return whether launches alone are all that layers and embedding do, so that they may be recorded: no module
        of an owner's is called, and no table is made for a run."""
        inside = [*self.model.modules()][1:]
        return (
            tables is None
            and all(map(_is_fused, runs))
            and not any(part._forward_hooks or part._forward_pre_hooks for part in inside)
        )

    @property
    def are_replayable(self) -> bool:
        """Whether launches alone are all that these layers and their embedding do; within `turn()` only."""
        assert self._bound is not None
        return self._bound.are_replayable

    def _check(self, parts: Iterable[nn.Module]) -> None:
        """Raise UnsupportedError where layers would attend to other tokens than with transformers' masks, which follow
        the config."""
        for own, now in self.family.windows(self.model):
            if own != now:
                raise UnsupportedError(
                    f"a layer has sliding_window={own}, and the config has come to say {now}: set the config back "
                    "(sliding_window, layer_types), or save the model and load it again"
                )
        is_causal = self.family.is_causal
        for part in parts if is_built_in(self.family) else ():
            if (own := vars(part).get("is_causal", is_causal)) != is_causal:
                raise UnsupportedError(
                    f"a {type(part).__name__} has is_causal={own}, and family {self.family.model_type!r} is "
                    f"served with {is_causal}: set it back, or teach pabee_fast yours by pf.register_family"
                )

    def _configs(self, parts: Iterable[nn.Module]) -> list[PretrainedConfig]:
        """Return the model's config, and any other that a part of a layer holds: a copied module (deepcopy,
        quantize_dynamic) finds its attention by a copy of the config."""
        found = {id(self.model.config): self.model.config}
        for part in parts:
            config = vars(part).get("config")
            if config is not None and id(config) not in found and isinstance(config, PretrainedConfig):
                found[id(config)] = config
        return list(found.values())

    def describe(self) -> str:
        """In words: which variant runs, and why; layers that it cannot serve by number, with the reason."""
        variant, why = self._choose()
        reasons: dict[str, list[int]] = {}
        for number, module in enumerate(self.modules if variant != "stock" else (), start=1):
            if isinstance(wrong := self._blocks(module, parts_of(module)), str):
                reasons.setdefault(wrong, []).append(number)
        apart = [f"stock in {_numbers(numbers)}, since {wrong}" for wrong, numbers in reasons.items()]
        every = chain.from_iterable(map(parts_of, self.modules))
        passes = ["GELU by tanh in one pass"] if self._slow_activations(every) else []
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
    def _package(self) -> str:
        """Of the model's modelling code."""
        return type(self.model.config).__module__.rpartition(".")[0]

    @property
    def _has_blocks(self) -> bool:
        """Whether the family's layers are such blocks, and no class derived from the one that says so runs them in a
        way of its own."""
        says, runs = (
            next(cls for cls in type(self.family).__mro__ if name in vars(cls)) for name in ("blocks", "run_layer")
        )
        return says is not Family and issubclass(says, runs)

    def _blocks(self, module: nn.Module, parts: Sequence[nn.Module]) -> tuple[Block, ...] | str:
        """Return the blocks that a layer of these parts can be run as, or in words why it cannot."""
        if not self._has_blocks:
            return f"{self.family.model_type} has no post-norm blocks"
        if wrong := why_not_stock(parts, self._package):
            return wrong
        try:
            blocks = self.family.blocks(module)
        except AttributeError as error:  # a version of transformers with other names
            return str(error)
        return why_not_fused(parts, blocks) or blocks

    def _instead(self, parts: Iterable[nn.Module], variant: str) -> dict[nn.Module, Callable[..., Any]]:
        """Return what is called in place of modules in front of and in the layers."""
        found: dict[nn.Module, Callable[..., Any]] = dict.fromkeys(self._slow_activations(parts), gelu_tanh)
        if variant == "fused" and self._has_blocks:
            embeddings = self.family.backbone(self.model).embeddings
            if (embed := fused_embedding(embeddings, self._package)) is not None:
                found[embeddings] = embed
        return found

    def _slow_activations(self, parts: Iterable[nn.Module]) -> list[nn.Module]:
        """Return the modules, of a family without blocks, that take many passes over the widest array there is; none
        where stock layers were asked for, or autocast rounds between the passes: those stay as they are."""
        if self.variant is not None or self._has_blocks or self._has_autocast:
            return []
        return list(dict.fromkeys(part for part in parts if in_many_passes(part)))

    def _bind_one(self, module: nn.Module, variant: str, tables: PlaceTables | None, every: list[BoundBlock]) -> Run:
        """Return how a layer runs; its blocks are added to `every`."""
        stock = functools.partial(_run_stock, functools.partial(self.family.run_layer, self.model, module))
        if variant == "stock":
            return stock
        if isinstance(blocks := self._blocks(module, parts_of(module)), str):
            if self.variant is not None:
                raise UnsupportedError(f"layers={variant!r}: {blocks}; give 'stock', or None for what can be served")
            say_once(logger, self.model, f"layers run as transformers' own modules: {blocks}")
            return stock
        bound = [BoundBlock.of(each, str(activation_of(each.activation)), tables) for each in blocks]
        every += bound
        return functools.partial(_run_blocks, bound)


def separate_weights(model: PreTrainedModel) -> None:
    """Give weights that a run has joined memory of their own again; a model without such is left as it is."""
    with contextlib.suppress(AttributeError, UnsupportedError):  # the owner has changed it since
        family = family_of(model)
        for module in dict.fromkeys(family.layers(model)):
            for each in family.blocks(module):
                parts = (each.query, each.key, each.value)
                separate([part.weight for part in parts])
                separate([part.bias for part in parts if part.bias is not None])


def _run_and_then(
    run: Run,
    behind: Callable[[Tensor, Tensor, Layout], Tensor],
    hidden: Tensor,
    layout: Layout,
    beside: Mapping[str, Tensor],
) -> Tensor:
    return behind(hidden[None], run(hidden, layout, beside)[None], layout)[0]


def _run_stock(run: Run, hidden: Tensor, layout: Layout, beside: Mapping[str, Tensor]) -> Tensor:
    """One layer as its family runs it: transformers' modules know batches, of which this is one row."""
    return run(hidden[None], layout, beside)[0]


def _run_blocks(
    blocks: Sequence[BoundBlock],
    hidden: Tensor,
    layout: Layout,
    beside: Mapping[str, Tensor],
    pooling: str | None = None,
) -> Tensor:
    for block in blocks[:-1]:
        hidden = block(hidden, layout)
    return blocks[-1](hidden, layout, pooling)


def _is_fused(run: Run) -> bool:
    """Return whether a layer runs as blocks of ours and nothing else."""
    return getattr(run, "func", None) is _run_blocks


def _numbers(numbers: list[int]) -> str:
    """layer 3, or layers 1, 2 and 5."""
    *first, last = map(str, numbers)
    return f"layers {', '.join(first)} and {last}" if first else f"layer {last}"
