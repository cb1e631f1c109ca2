"""The layer loop: a packed batch in, every row's answer and exit layer out.

It knows layers, waves and the exit step; it knows nothing of tokenisation, tables, or any policy by name.
"""

import functools
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pabee_fast.arguments import require_whole
from pabee_fast.errors import InputError
from pabee_fast.models.family import check_weights
from pabee_fast.models.heads import exit_heads_of, has_heads, heads_of, require_evaluation
from pabee_fast.policies import FullDepth, Policy, Rule, require_policy
from pabee_fast.runtime import ops
from pabee_fast.runtime.budget import default_budget, least_tokens
from pabee_fast.runtime.graphs import DEVICES, UP_TO, Asked, Graphs, Recording, Size
from pabee_fast.runtime.lists import Given
from pabee_fast.runtime.pack import PackedBatch
from pabee_fast.runtime.schedule import GATHER_COST, Costs, WaveQueue
from pabee_fast.runtime.state import Results, Wave
from pabee_fast.runtime.steps import Steps
from pabee_fast.transfer import ReadBack

logger = logging.getLogger(__name__)

UNDER_WAY = {"cuda": 2, "cpu": 1}
"""Waves under way at once: while the counts of one travel to the host, a second one keeps a GPU busy. A CPU computes in
the thread that asks, and has nothing to wait for."""


OnSettled = Callable[[int, int], None]
"""Told how many rows have left, and after which layer."""


def ignore(rows: int, layer: int) -> None:
    """Tell nobody of rows that have left."""


class _Question(NamedTuple):
    """A wave whose counts of survivors are to travel to the host."""

    wave: Wave
    layer: int
    plan: ops.Plan

    def ask(self) -> "tuple[_Question, ReadBack]":
        """Let them travel: rows, tokens, the longest row's; and of a wave in pieces, where its rows would end."""
        plan = self.plan
        return self, ReadBack(torch.cat([plan.counts, plan.cu_seqlens]) if self.wave.pieces else plan.counts)


class Engine(Steps):
    """Runs packed batches through a model, each row to its own exit layer.

    Args:
        model: a `*ForSequenceClassification` model of a supported family, in evaluation mode.
        token_budget: the most tokens of a wave, and of a row; None: by device, see `budget`, and a longer row is a
            wave of its own.
        gather_cost: cost of moving one token at a compaction, in layers; 0 compacts whenever a row has left. None: as
            estimated, and waves too small to gain by it are let be.
        under_way: waves whose counts travel to the host at once; None: by device, see UNDER_WAY.
        layers: how the layers run, one of `variants.VARIANTS`; None: by device and dtype, see `variants.LAYERS`.
        attention: what attends where it can, one of `choice.ATTENTIONS`; None: by what was measured.

    Raises:
        InputError: a token budget or number of waves below 1, or no such variant or attention.
        UnsupportedError: no supported family.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        token_budget: int | None = None,
        gather_cost: float | None = None,
        under_way: int | None = None,
        layers: str | None = None,
        attention: str | None = None,
    ) -> None:
        super().__init__(model, layers, attention)
        if token_budget is None:
            self.token_budget = default_budget(self.device, self.layers.modules, model.config.hidden_size, self.dtype)
        else:
            self.token_budget = token_budget
        require_whole("token_budget", self.token_budget, at_least=1)
        self.longest_row = token_budget if token_budget is not None else sys.maxsize
        self.first_budget = self.token_budget  # out-of-memory errors lower the other
        if gather_cost is None:
            self.costs = Costs(GATHER_COST, least_tokens(self.device, self.layers.modules))
        else:
            self.costs = Costs(gather_cost)
        self.under_way = under_way if under_way is not None else UNDER_WAY.get(self.device.type, 1)
        require_whole("under_way", self.under_way, at_least=1)
        self.graphs: Graphs | None = None
        """For whoever calls with small batches again and again; None: every kernel is launched by the host."""

    def check(self, policy: Policy, *, has_lists: bool = False) -> Policy:
        """Return the policy as this model runs it: tests begin where its heads do. Meant for the moment a policy is
        chosen.

        Args:
            has_lists: whether rows are candidates, so that they can be compared.

        Raises InputError where the policy does not fit the model or needs heads that it lacks, UnsupportedError where
        its weights are elsewhere or quantised, or what stands around its layers was changed; warns where it is of no
        use."""
        require_policy(policy)
        if policy.is_listwise and not has_lists:
            raise InputError(f"{policy} compares the candidates of a query: use it with pf.rerank, or pf.Reranker")
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
    def run(self, batch: PackedBatch, policy: Policy, on_settled: OnSettled = ignore) -> Results:
        """Return every row's logits at its exit layer, in the order of `batch`.

        Args:
            on_settled: told as rows leave; what it raises ends the run.

        Raises:
            InputError: the policy does not fit the model or the rows, a row is longer than the budget asked for, the
                model is in training mode, or an id is beyond its embedding table (on the CPU, where that can be seen).
        """
        require_evaluation(self.model)
        self._look()
        batch, rows, policy = self._here(batch), len(batch.lengths), policy.from_layer(self.first_head)
        policy.check(len(self.layers), self.kind, rows)
        if (answers := self._replayed(batch, policy, on_settled)) is not None:
            return answers
        results = Results.empty(rows, self.classes, self.device)
        given = Given.of(batch, policy, self.device)
        lists = batch.lists if policy.is_listwise else None
        fresh = self._cut(batch.lengths, lists, batch.longest_first)
        queue: WaveQueue[Wave, tuple[_Question, ReadBack]] = WaveQueue(fresh, self.token_budget, self.under_way)
        last = policy.depth(len(self.layers))
        with self._ready():
            while queue:
                # 1. Counts that must be waited for: settled rows are dropped where the layers saved cost more than the
                #    move, and the survivors wait for others of their depth.
                if (asked := queue.due()) is not None:
                    (wave, layer, plan), counts = asked
                    survivors, tokens, longest, *ends = counts.wait()
                    on_settled(wave.alive - survivors, layer)
                    wave.alive = survivors
                    if survivors and self.costs.pays(wave.tokens, tokens, last - layer):
                        wave = wave.compact(plan, survivors, tokens, longest)
                        if ends:
                            wave.cut(ends[: survivors + 1], self.token_budget)
                    if survivors:
                        queue.put(layer, wave.tokens, wave)
                    continue
                # 2. What is next: waves of one depth, joined, or rows that begin; up to where the next rows can leave.
                layer, picked = queue.pop()
                try:
                    question = self._advance(self._wave_of(batch, picked, policy), layer, policy, given, results)
                except torch.OutOfMemoryError:
                    queue.fresh = self._smaller([_unsettled(picked), *queue.fresh], batch.lengths, lists)
                    queue.token_budget = self.token_budget
                    continue
                if question is not None:
                    queue.ask(question.ask())
                else:
                    on_settled(_alive(picked), last)
        return results

    def _replayed(self, batch: PackedBatch, policy: Policy, on_settled: OnSettled) -> Results | None:
        """Return what a small batch answers by way of `graphs`; None where that does not serve it."""
        if self.graphs is None or self.device.type not in DEVICES or not len(batch.lengths):
            return None
        size = Size.of(batch.lengths)
        if (
            size.tokens > min(UP_TO * self.costs.least_tokens, self.token_budget)
            or policy.is_listwise
            or "input_ids" not in batch.inputs
            or batch.key_mask is not None
            or batch.positions is not None
        ):
            return None
        layers = len(self.layers)
        with self._turn():
            if not self._is_all_read:
                return None
            self.graphs.keep_for(self.layers.times_bound)
            rules = [
                (layer, policy.rule(layer, self.classes))
                for layer in range(1, layers + 1)
                if policy.tests(layer, layers)
            ]
            inputs = [(name, values.dtype) for name, values in batch.inputs.items()]
            key = (size, *inputs, policy.first_exit(layers), policy.depth(layers), *rules)
            recording = self.graphs.recording(
                key, lambda: Recording(size, batch, Results.empty(size.rows, self.classes, self.device), self.attention)
            )
            sections = functools.partial(self._sections, policy)
            try:
                return self.graphs.run(recording, batch, policy.exit_at(), sections, on_settled)
            except torch.OutOfMemoryError:
                self.graphs.clear()
                logger.warning("out of memory at a batch of %d tokens: it is run in waves", size.tokens)
                return None

    def _sections(self, policy: Policy, recording: Recording) -> Iterator[Asked]:
        """Launch the run of a small batch; see `graphs.Sections`."""
        results, layer = recording.results, 0
        with self.layers.running():
            results.logits.fill_(float("nan"))
            results.exit_layers.zero_()
            wave = self._begin(recording.layout, recording.inputs, recording.row_ids, policy)
            wave.state.keep.copy_(recording.keep)
            wave.is_never_compacted = True
            given = Given(None if policy.exit_at() is None else recording.exit_at, None, 0)
            while (question := self._advance(wave, layer, policy, given, results)) is not None:
                layer = question.layer
                yield Asked(layer, question.plan.counts)
            yield Asked(policy.depth(len(self.layers)), None)

    @torch.no_grad()
    def every_head(self, batch: PackedBatch) -> Tensor:
        """Return what every head says of every row, [layers, rows, classes] float32, in the order of `batch`; NaN in
        layers without one."""
        require_evaluation(self.model)
        self._look()
        rows, layers = len(batch.lengths), len(self.layers)
        logits = torch.full((layers, rows, self.classes), float("nan"), device=self.device)
        exits = torch.empty(rows, dtype=torch.int64, device=self.device)
        with self._ready():
            for layer, wave in self._full_depth(batch):
                if layer >= self.first_head:
                    self._ask(wave, layer, Results(logits[layer - 1], exits))
        return logits

    @torch.no_grad()
    def every_feature(self, batch: PackedBatch, pooling: str, first_layer: int = 1) -> tuple[Tensor, Tensor]:
        """Return what heads read of every row, in the order of `batch`.

        Args:
            pooling: "first", "last" or "mean" of a row's tokens.

        Returns:
            [layers, rows, hidden_size], dtype of the layers, after those from `first_layer` to the last but one, and
            the logits at full depth, [rows, classes] float32.
        """
        require_evaluation(self.model)
        self._look()
        rows, last = len(batch.lengths), len(self.layers)
        shape = (last - first_layer, rows, self.model.config.hidden_size)
        features = torch.full(shape, float("nan"), dtype=self.dtype, device=self.device)
        results = Results.empty(rows, self.classes, self.device)
        with self._ready():
            for layer, wave in self._full_depth(batch):
                if layer == last:
                    self._ask(wave, layer, results)
                elif layer >= first_layer:
                    mask = wave.layout.key_mask if pooling == "mean" else None
                    pooled = ops.pool(
                        wave.hidden, wave.layout.cu_seqlens, pooling=pooling, key_mask=mask,
                        norm=self.family.norm(self.model),
                    )  # fmt: skip
                    features[layer - first_layer, wave.state.row_ids] = pooled
        return features, results.logits

    def _full_depth(self, batch: PackedBatch) -> Iterator[tuple[int, Wave]]:
        """Yield every wave after every layer, with the layer.

        Rows of a wave that ran out of memory come again, in smaller waves and from the first layer on.
        """
        batch, waves = self._here(batch), self._cut(batch.lengths, order=batch.longest_first)
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

    def _wave_of(self, batch: PackedBatch, picked: np.ndarray | Sequence[Wave], policy: Policy) -> Wave:
        return self._embed(batch, picked, policy) if isinstance(picked, np.ndarray) else Wave.join(picked)

    def _advance(self, wave: Wave, layer: int, policy: Policy, given: Given, results: Results) -> _Question | None:
        """Run a wave with `layer` layers behind it up to the next one at which a row can leave, and ask how many of its
        rows survive; return None where it has come to its end."""
        layers = len(self.layers)
        last, first_exit = policy.depth(layers), policy.first_exit(layers)
        while layer < last:
            layer += 1
            pooling = self._read_alone(layer) if layer == last else None
            wave.hidden = self._layer(layer, wave, pooling)
            if not policy.tests(layer, layers):
                continue
            # Head, answer, streak; rows that have settled write their results.
            if (among := policy.among(layer)) is not None and layer < last:
                self._compare(wave, layer, among, given, results)
            else:
                rule = policy.rule(layer, self.classes)
                self._exit_step(wave, layer, last, rule, given.exit_at, results, pooling)
            if not first_exit <= layer < last:
                continue
            wave.unasked += 1
            if self.costs.asks(0 if wave.is_never_compacted else wave.tokens, wave.unasked):
                wave.unasked = 0
                return _Question(wave, layer, self._plan(wave))
        return None


def _alive(picked: np.ndarray | Sequence[Wave]) -> int:
    """Return how many rows have not left yet, as far as the host knows."""
    return len(picked) if isinstance(picked, np.ndarray) else sum(wave.alive for wave in picked)


def _unsettled(picked: np.ndarray | Sequence[Wave]) -> np.ndarray:
    """Return the rows that have not left yet, of rows that were to begin or of waves."""
    return picked if isinstance(picked, np.ndarray) else np.concatenate([wave.unsettled() for wave in picked])
