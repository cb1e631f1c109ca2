"""How rows become waves, and what a model does to one: layers and heads, bound to the weights as they are now."""

import contextlib
import functools
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from typing import cast

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from pabee_fast.errors import InputError
from pabee_fast.kernels.checks import Pooler
from pabee_fast.layout import Layout
from pabee_fast.models import family_of
from pabee_fast.models.head import Head
from pabee_fast.models.heads import answer_kind, exit_heads_of, inner_heads
from pabee_fast.policies import Among, Policy, Rule
from pabee_fast.runtime import ops
from pabee_fast.runtime.bound import HeadStep
from pabee_fast.runtime.choice import ATTENTIONS
from pabee_fast.runtime.layers import Layers
from pabee_fast.runtime.lists import Given
from pabee_fast.runtime.pack import PackedBatch, cumulative
from pabee_fast.runtime.schedule import Order, plan_lists, plan_waves
from pabee_fast.runtime.state import Results, Wave

logger = logging.getLogger(__name__)


class Steps:
    """The steps that an engine puts in order.

    Args:
        model: a `*ForSequenceClassification` model of a supported family.
        layers: how the layers run, see `Layers`.
        attention: what attends where it can, one of `choice.ATTENTIONS`; None: by what was measured.

    Raises:
        InputError: no such variant or attention.
        UnsupportedError: no supported family.
    """

    token_budget: int
    """The most tokens of a wave; out-of-memory errors lower it."""
    longest_row: int
    """The most tokens of a row."""

    def __init__(self, model: PreTrainedModel, layers: str | None, attention: str | None) -> None:
        if attention not in (None, *ATTENTIONS):
            raise InputError(
                f"attention={attention!r}: give one of {', '.join(ATTENTIONS)}, or None for the fastest known"
            )
        self.attention = attention
        self.model, self.family = model, family_of(model)
        self.layers = Layers(model, self.family, layers)
        self.heads: list[Head] = []
        self._head_steps: list[HeadStep] = []
        self._look()

    def _look(self) -> None:
        """Note what the model is now, beside its layers and heads."""
        self.kind = answer_kind(self.model)
        self.classes: int = self.model.config.num_labels
        own = self.family.classifier(self.model).weight
        self.device, self.dtype = own.device, own.dtype
        self.first_head = len(self.layers) - inner_heads(self.model)  # the first layer that has one

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Layers and heads bound to the model as it is now: it is its owner's between runs."""
        with self.layers.turn() as is_new:
            if is_new or not self.heads:
                self.heads = []
                heads = exit_heads_of(self.model)
                linears = [ops.ExitHead(head.linear.weight, head.linear.bias) for head in heads]
                for head, linear in zip(heads, linears, strict=True):
                    ops.check_head(linear, self.classes, _width(head, self.model.config.hidden_size))
                self._head_steps = [
                    HeadStep(linear, head.pooler, head.norm) for head, linear in zip(heads, linears, strict=True)
                ]
                self._planner = ops.repeated("plan", linears[0].weight)
                self.heads = heads
            yield

    @contextlib.contextmanager
    def _ready(self) -> Iterator[None]:
        """In addition, layers that can be called."""
        with self._turn(), self.layers.running():
            yield

    @property
    def _is_all_read(self) -> bool:
        """Whether layers and heads are read as tensors alone, so that no owner's module is called."""
        return self.layers.are_replayable and all(
            head.norm is None and (head.pooler is None or isinstance(head.pooler, Pooler)) for head in self.heads
        )

    def _here(self, batch: PackedBatch) -> PackedBatch:
        """Return the batch with its ids on a GPU, where rows are then picked for each wave: the host would take longer
        for it than the GPU for some layers. What is large, images and what was embedded, follows wave by wave."""
        return batch.to(self.device) if self.device.type == "cuda" and "input_ids" in batch.inputs else batch

    def _cut(
        self, lengths: np.ndarray, lists: np.ndarray | None = None, order: Order | None = None
    ) -> deque[np.ndarray]:
        """Cut rows into waves, each [rows] indices; none holds a part of a list. `order`: as `plan_waves` takes it."""
        if lists is not None:
            return deque(plan_lists(lengths, lists, self.token_budget, self.longest_row, order))
        return deque(plan_waves(lengths, self.token_budget, self.longest_row, order))

    def _smaller(
        self, waves: list[np.ndarray], lengths: np.ndarray, lists: np.ndarray | None = None
    ) -> deque[np.ndarray]:
        """Return the waves still to run, cut anew to half the budget: called while an out-of-memory error is
        handled."""
        tokens, longest = int(lengths[waves[0]].sum()), int(lengths[waves[0]].max())
        tokens = min(tokens, self.token_budget)  # a list of more was run in pieces
        if tokens <= longest:
            raise
        self.token_budget = max(longest, tokens // 2)
        logger.warning("out of memory at a wave of %d tokens: the budget is now %d", tokens, self.token_budget)
        rows = np.concatenate(waves)
        return deque(rows[wave] for wave in self._cut(lengths[rows], None if lists is None else lists[rows]))

    def _embed(self, batch: PackedBatch, rows: np.ndarray, policy: Policy) -> Wave:
        part, ends, row_ids = batch.picked(rows, self.device)
        layout = Layout(ends, int(part.lengths.max()), part.key_mask, part.positions, attention=self.attention)
        inputs = part.inputs if part.images is None else {"pixel_values": part.images}
        try:
            wave = self._begin(layout, inputs, row_ids, policy)
        except IndexError as error:  # of the CPU's look-up; to look beforehand would cost a wait on a GPU
            given = ", ".join(f"{name} {int(ids.min())} to {int(ids.max())}" for name, ids in inputs.items())
            raise InputError(
                f"an id has no row in the model's embedding tables ({given}): is the tokenizer another model's?"
            ) from error
        if wave.tokens > self.token_budget:
            wave.cut(cumulative(part.lengths), self.token_budget)
        return wave

    def _begin(self, layout: Layout, inputs: Mapping[str, Tensor], row_ids: Tensor, policy: Policy) -> Wave:
        hidden = self.family.embed(self.model, layout, **inputs)
        beside = self.family.beside(self.model, hidden, inputs["position_ids"]) if "position_ids" in inputs else {}
        words = ops.memory_words(self.kind, policy.rule(1, self.classes).name, self.classes)
        return Wave.start(hidden[0], layout, row_ids, words, beside)

    def _compare(self, wave: Wave, layer: int, among: Among, given: Given, results: Results) -> None:
        """Let all rows write what their head says, and those leave that are far below the best of their list."""
        state, keep = wave.state, wave.state.keep
        # Until it is known who stays none has left, or an error between would lose rows.
        wave.state = state._replace(keep=keep.clone())
        try:
            self._exit_step(wave, layer, layer, Rule("none"), None, results)
        finally:
            wave.state = state
        keep.copy_(given.staying(results.logits[state.row_ids], state, among))

    def _layer(self, layer: int, wave: Wave, pooling: str | None = None) -> Tensor:
        if wave.pieces:
            return wave.through(functools.partial(self.layers, layer, pooling=pooling))
        return self.layers(layer, wave.hidden, wave.layout, wave.beside, pooling)

    def _read_alone(self, layer: int) -> str | None:
        """Return which token of each row suffices behind a layer at which all rows leave, since its head reads no
        other: "first" or "last"; None where all are needed, or computed anyway."""
        head = self.heads[layer - self.first_head]
        return head.pooling if head.pooling != "mean" and head.norm is None and self.layers.pools(layer) else None

    def _exit_step(
        self,
        wave: Wave,
        layer: int,
        last: int,
        rule: Rule,
        exit_at: Tensor | None,
        results: Results,
        pooling: str | None = None,
    ) -> None:
        """Ask a layer's head, and let rows leave; with `pooling` as `_layer` had it."""
        number, layout = layer - self.first_head, wave.layout
        head = self.heads[number]
        mask = layout.key_mask if head.pooling == "mean" else None
        tokens = (layout.cu_seqlens, head.pooling, mask) if pooling is None else ()
        rows = ops.ExitRows(wave.hidden, wave.state, results.logits, results.exit_layers, *tokens)
        told = ops.ExitRule(self.kind, rule.name, layer, last, rule.patience, rule.threshold, exit_at)
        self._head_steps[number](rows, told)

    def _plan(self, wave: Wave) -> ops.Plan:
        """Return where the survivors would go."""
        state = wave.state
        return cast(
            ops.Plan,
            self._planner(
                keep=state.keep, cu_seqlens=wave.layout.cu_seqlens, row_ids=state.row_ids, streak=state.streak
            ),
        )


def _width(head: Head, hidden_size: int) -> int | None:
    """Return how many numbers of a row its linear reads; None where an owner's module says so, when it is called."""
    if isinstance(head.pooler, Pooler):
        return head.pooler.weight.shape[0]
    return hidden_size if head.pooler is None and head.norm is None else None
