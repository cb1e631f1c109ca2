"""The layer loop: a packed batch in, every row's answer and exit layer out.

It knows layers, waves and the exit step; it knows nothing of tokenisation, tables, or any policy by name.
"""

import logging
import sys
import warnings
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pabee_fast.arguments import require_whole
from pabee_fast.errors import InputError
from pabee_fast.models import family_of
from pabee_fast.models.family import check_weights
from pabee_fast.models.heads import answer_kind, exit_heads_of, has_heads, heads_of, inner_heads, require_evaluation
from pabee_fast.policies import FullDepth, Policy, Rule, require_policy
from pabee_fast.runtime import ops
from pabee_fast.runtime.choice import ATTENTIONS
from pabee_fast.runtime.layers import Layers
from pabee_fast.runtime.packed import Layout, PackedBatch, cumulative
from pabee_fast.runtime.schedule import GATHER_COST, pays, plan_waves
from pabee_fast.runtime.state import Results, Wave

logger = logging.getLogger(__name__)

TOKEN_BUDGETS = {"cuda": 131_072, "cpu": 2_000}
"""Tokens under way by default: enough to fill a large GPU. On a CPU products run no faster with more rows, but what
lies between them does where arrays stay below 32 MiB: glibc maps fresh pages for a larger one each time
(M_MMAP_THRESHOLD in mallopt(3)), which cost ViT 6 % at full depth. 2,000 tokens stay below in a large model's widest
array too, of 4,096 float32."""

LANES = {"cuda": 1, "cpu": 1}
"""Waves under way at once. A second one keeps a GPU busy while the host reads the first one's counts, and halves the
waves; it is worth that only where a record in bench/results shows it, and none does yet."""


class Engine:
    """Runs packed batches through a model, each row to its own exit layer.

    Args:
        model: a `*ForSequenceClassification` model of a supported family, in evaluation mode.
        token_budget: the most tokens of a wave, and of a row; None: by device, see TOKEN_BUDGETS, and a longer row is a
            wave of its own.
        gather_cost: cost of moving one token at a compaction, in layers; 0 compacts whenever a row has left.
        lanes: waves under way at once, which share the budget; None: by device, see LANES.
        layers: how the layers run, one of `layers.VARIANTS`; None: by device and dtype, see `layers.LAYERS`.
        attention: what attends where it can, one of `choice.ATTENTIONS`; None: by what was measured.

    Raises:
        InputError: a token budget or number of lanes below 1, or no such variant or attention.
        UnsupportedError: no supported family.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        token_budget: int | None = None,
        gather_cost: float = GATHER_COST,
        lanes: int | None = None,
        layers: str | None = None,
        attention: str | None = None,
    ) -> None:
        if attention not in (None, *ATTENTIONS):
            raise InputError(
                f"attention={attention!r}: give one of {', '.join(ATTENTIONS)}, or None for the fastest known"
            )
        self.model, self.family = model, family_of(model)
        self.layers = Layers(model, self.family, layers)
        self._look()
        self.token_budget = token_budget if token_budget is not None else TOKEN_BUDGETS.get(self.device.type, 4_096)
        require_whole("token_budget", self.token_budget, at_least=1)
        self.longest_row = token_budget if token_budget is not None else sys.maxsize
        self.attention = attention
        self.first_budget = self.token_budget  # out-of-memory errors lower the other
        self.gather_cost = gather_cost
        self.lanes = lanes if lanes is not None else LANES.get(self.device.type, 1)
        require_whole("lanes", self.lanes, at_least=1)

    def _look(self) -> None:
        """Notes what the model is now, beside its layers and heads."""
        self.kind = answer_kind(self.model)
        self.classes: int = self.model.config.num_labels
        own = self.family.classifier(self.model).weight
        self.device, self.dtype = own.device, own.dtype
        self.first_head = len(self.layers) - inner_heads(self.model)  # the first layer that has one

    def _bind_heads(self) -> None:
        """Every run does so, for a model is its owner's between runs."""
        require_evaluation(self.model)
        self._look()
        self.heads = exit_heads_of(self.model)

    def check(self, policy: Policy) -> Policy:
        """The policy as this model runs it: tests begin where its heads do. Meant for the moment a policy is chosen.

        Raises InputError where the policy does not fit the model or needs heads that it lacks, UnsupportedError where
        its weights are elsewhere or quantised, or what stands around its layers was changed; warns where it is of no
        use."""
        require_policy(policy)
        check_weights(self.model)
        exit_heads_of(self.model)
        if policy.needs_heads and not has_heads(self.model):
            heads_of(self.model)  # says how to add them
        policy = policy.from_layer(self.first_head)
        policy.check(len(self.layers), self.kind)
        if warning := policy.warning(len(self.layers)):
            warnings.warn(warning, stacklevel=3)
        return policy

    @torch.no_grad()
    def run(self, batch: PackedBatch, policy: Policy) -> Results:
        """Every row's logits at its exit layer, in the order of `batch`.

        Raises:
            InputError: the policy does not fit the model or the rows, a row is longer than the budget asked for, or the
                model is in training mode.
        """
        self._bind_heads()
        rows, policy = len(batch.lengths), policy.from_layer(self.first_head)
        policy.check(len(self.layers), self.kind, rows)
        results = Results.empty(rows, self.classes, self.device)
        given = policy.exit_at()
        exit_at = None if given is None else ops.to_device([np.array(given, dtype=np.int64)], self.device)[0]
        waves = deque(plan_waves(batch.lengths, self._wave_budget, self.longest_row))
        lanes: deque[tuple[np.ndarray, Iterator[None]]] = deque()
        with self.layers.ready():
            while waves or lanes:
                if waves and len(lanes) < self.lanes:
                    lanes.appendleft((waves[0], self._advance(batch, waves.popleft(), policy, exit_at, results)))
                members, lane = lanes.popleft()
                try:
                    next(lane)
                except StopIteration:
                    continue
                except torch.OutOfMemoryError:
                    waves = self._smaller([members, *waves], batch.lengths)
                else:
                    lanes.append((members, lane))
        return results

    @torch.no_grad()
    def every_head(self, batch: PackedBatch) -> Tensor:
        """What every head says of every row, [layers, rows, classes] float32, in the order of `batch`; NaN in layers
        without one."""
        self._bind_heads()
        rows, layers = len(batch.lengths), len(self.layers)
        logits = torch.full((layers, rows, self.classes), float("nan"), device=self.device)
        exits = torch.empty(rows, dtype=torch.int64, device=self.device)
        with self.layers.ready():
            for layer, wave in self._full_depth(batch):
                if layer >= self.first_head:
                    self._ask(wave, layer, Results(logits[layer - 1], exits))
        return logits

    @torch.no_grad()
    def every_feature(self, batch: PackedBatch, pooling: str, first_layer: int = 1) -> tuple[Tensor, Tensor]:
        """What heads read of every row, in the order of `batch`.

        Args:
            pooling: "first", "last" or "mean" of a row's tokens.

        Returns:
            [layers, rows, hidden_size], dtype of the layers, after those from `first_layer` to the last but one, and
            the logits at full depth, [rows, classes] float32.
        """
        self._bind_heads()
        rows, last = len(batch.lengths), len(self.layers)
        shape = (last - first_layer, rows, self.model.config.hidden_size)
        features = torch.full(shape, float("nan"), dtype=self.dtype, device=self.device)
        results = Results.empty(rows, self.classes, self.device)
        with self.layers.ready():
            for layer, wave in self._full_depth(batch):
                if layer == last:
                    self._ask(wave, layer, results)
                elif layer >= first_layer:
                    mask = wave.layout.key_mask if pooling == "mean" else None
                    pooled = ops.pool(
                        wave.hidden[0], wave.layout.cu_seqlens, pooling=pooling, key_mask=mask,
                        norm=self.family.norm(self.model),
                    )  # fmt: skip
                    features[layer - first_layer, wave.state.row_ids] = pooled
        return features, results.logits

    def _full_depth(self, batch: PackedBatch) -> Iterator[tuple[int, Wave]]:
        """Every wave after every layer, with the layer.

        Rows of a wave that ran out of memory come again, in smaller waves and from the first layer on.
        """
        waves = deque(plan_waves(batch.lengths, self._wave_budget, self.longest_row))
        while waves:
            members = waves.popleft()
            try:
                wave = self._embed(batch, members, FullDepth())
                for layer in range(1, len(self.layers) + 1):
                    wave.hidden = self._layer(layer, wave)
                    yield layer, wave
            except torch.OutOfMemoryError:
                waves = self._smaller([members, *waves], batch.lengths)

    def _ask(self, wave: Wave, layer: int, results: Results) -> None:
        """One head, of all rows; every layer is the last one once, so that all rows write what they have."""
        wave.state.keep.fill_(1)
        self._exit_step(wave, layer, layer, Rule("none"), None, results)

    @property
    def _wave_budget(self) -> int:
        return max(1, self.token_budget // self.lanes)

    def _smaller(self, waves: list[np.ndarray], lengths: np.ndarray) -> deque[np.ndarray]:
        """The waves still to run, cut anew to half the budget: called while an out-of-memory error is handled."""
        tokens, longest = int(lengths[waves[0]].sum()), int(lengths[waves[0]].max())
        if len(waves[0]) == 1:
            raise
        self.token_budget = max(longest, tokens // 2) * self.lanes
        logger.warning("out of memory at a wave of %d tokens: the budget is now %d", tokens, self.token_budget)
        rows = np.concatenate(waves)
        return deque(rows[wave] for wave in plan_waves(lengths[rows], self._wave_budget, self.longest_row))

    def _embed(self, batch: PackedBatch, rows: np.ndarray, policy: Policy) -> Wave:
        part = batch.select(rows, self.device)
        ends, row_ids = ops.to_device([cumulative(part.lengths), rows], self.device)
        layout = Layout(ends, int(part.lengths.max()), part.key_mask, part.positions, self.attention)
        inputs = part.inputs if part.images is None else {"pixel_values": part.images}
        hidden = self.family.embed(self.model, layout, **inputs)
        beside = self.family.beside(self.model, hidden, part.inputs["position_ids"]) if part.images is None else {}
        words = ops.memory_words(self.kind, policy.rule(1, self.classes).name, self.classes)
        return Wave.start(hidden, layout, row_ids, words, beside)

    def _advance(
        self, batch: PackedBatch, rows: np.ndarray, policy: Policy, exit_at: Tensor | None, results: Results
    ) -> Iterator[None]:
        """The layer loop of one wave; it yields where it must wait for the device, and another lane takes its turn."""
        wave, layers = self._embed(batch, rows, policy), len(self.layers)
        last, first_exit = policy.depth(layers), policy.first_exit(layers)
        for layer in range(1, last + 1):
            # 1. The layer, for the rows that are still in the batch.
            wave.hidden = self._layer(layer, wave)
            if not policy.tests(layer, layers):
                continue
            # 2. Head, answer, streak; rows that have settled write their results.
            self._exit_step(wave, layer, last, policy.rule(layer, self.classes), exit_at, results)
            if layer == last or layer < first_exit:
                continue
            # 3. Where the survivors would go, and the one read-back: how many they are.
            plan = wave.plan()
            counts = ops.ReadBack(plan.counts)
            yield
            survivors, tokens, longest = counts.wait()
            if survivors == 0:
                return
            # 4. Settled rows are dropped where the layers saved cost more than the move.
            if pays(wave.hidden.shape[1] - tokens, tokens, last - layer, self.gather_cost):
                wave = wave.compact(plan, survivors, tokens, longest)

    def _layer(self, layer: int, wave: Wave) -> Tensor:
        return self.layers(layer, wave.hidden, wave.layout, wave.beside)

    def _exit_step(
        self, wave: Wave, layer: int, last: int, rule: Rule, exit_at: Tensor | None, results: Results
    ) -> None:
        head = self.heads[layer - self.first_head]
        ops.exit_step(
            wave.hidden[0],
            head.linear.weight,
            head.linear.bias,
            wave.state,
            results.logits,
            results.exit_layers,
            cu_seqlens=wave.layout.cu_seqlens,
            pooling=head.pooling,
            key_mask=wave.layout.key_mask if head.pooling == "mean" else None,
            pooler=head.pooler,
            norm=head.norm,
            layer=layer,
            last=last,
            kind=self.kind,
            rule=rule.name,
            patience=rule.patience,
            threshold=rule.threshold,
            exit_at=exit_at,
        )
