"""Replay: what any policy would have answered, out of a trace and without the model.

The rules are the reference's own (`kernels.reference.observe` and `count`); here is only who asks them when. What a
rule looks at depends on which layers are tested and on nothing else of a policy, so it is worked out once for many.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pabee_fast.calibration.trace import Trace
from pabee_fast.policies import Policy, require_policy
from pabee_fast.runtime import ops
from pabee_fast.scoring.stretches import mean_of, most_of, sum_of


@dataclass(frozen=True)
class Replay:
    """What a policy does with the rows of a trace."""

    logits: Tensor  # [rows, classes] float32, at each row's exit layer
    exit_layers: Tensor  # [rows] int64, 1-based
    lengths: Tensor  # [rows] int64, tokens
    layers: int
    spent: Tensor  # [rows] int64, tokens x layers

    @property
    def mean_exit_layer(self) -> float:
        """Over rows."""
        return float(self.exit_layers.double().mean())

    @property
    def layer_ratio(self) -> float:
        """The most that these exits can save: tokens times layers of full depth, over those of these exits."""
        return float(self.lengths.sum() * self.layers / self.spent.sum())


class Replayer:
    """Replays policies over one trace; it remembers what rules looked at, for the next policy of the same kind.

    Args:
        trace: of which model and rows.
        remembered: how many (rule, tested layers) pairs are kept, each [tested layers, rows] float32.
    """

    def __init__(self, trace: Trace, *, remembered: int = 8) -> None:
        self.trace, self.remembered = trace, remembered
        self._runs = trace.runs
        self._remembered: OrderedDict[tuple[str, tuple[int, ...]], list[Tensor]] = OrderedDict()

    @torch.no_grad()
    def replay(self, policy: Policy) -> Replay:
        """Return every row's exit layer and logits there, as the runtime would give them.

        Raises:
            InputError: the policy does not fit the trace's model.
        """
        require_policy(policy)
        trace, layers, policy = self.trace, self.trace.layers, policy.from_layer(self.trace.first_layer)
        policy.check(layers, trace.kind, len(trace))
        runs, counts = self._runs, trace.stretches
        exit_layers = torch.full((len(runs),), policy.depth(layers), dtype=torch.int64)
        given, tested = policy.exit_at(), self._tested(policy)
        with one_thread():
            if given is not None:
                exits = torch.tensor(given) if counts is None else torch.tensor(given).repeat_interleave(counts)
                # A given exit is taken at the first tested layer that is not before it.
                for layer in reversed(tested):
                    exit_layers[exits <= layer] = layer
            elif tested:
                self._leave_by_rule(policy, tested, exit_layers)
            logits, spent = runs.logits[exit_layers - 1, torch.arange(len(runs))], runs.lengths * exit_layers
            if counts is not None:
                logits, spent = mean_of(logits, counts), sum_of(spent, counts)
                exit_layers = most_of(exit_layers, counts)
        return Replay(logits, exit_layers, trace.lengths, layers, spent)

    @torch.no_grad()
    def measures(self, policy: Policy) -> list[Tensor]:
        """Return what the policy's rule looks at in each tested layer but the last, [runs] float32 each; see
        `kernels.reference.observe`. Empty where no row can leave early."""
        tested = self._tested(policy.from_layer(self.trace.first_layer))
        if not tested:
            return []
        with one_thread():
            return self._measures(policy.rule(tested[0], self.trace.classes).name, tested)

    def _tested(self, policy: Policy) -> tuple[int, ...]:
        layers = self.trace.layers
        return tuple(layer for layer in range(1, policy.depth(layers)) if policy.tests(layer, layers))

    def _leave_by_rule(self, policy: Policy, tested: tuple[int, ...], exit_layers: Tensor) -> None:
        """Write the exit layer of every row that leaves before the last layer."""
        kind, classes = self.trace.kind, self.trace.classes
        rules = [policy.rule(layer, classes) for layer in tested]
        streak = torch.full(exit_layers.shape, -1, dtype=torch.int32)
        waiting = torch.ones(exit_layers.shape, dtype=torch.bool)
        for layer, rule, measure in zip(tested, rules, self._measures(rules[0].name, tested), strict=True):
            streak = ops.count(streak, measure, kind=kind, rule=rule.name, threshold=rule.threshold)
            leaves = (streak >= rule.patience) & waiting
            exit_layers.masked_fill_(leaves, layer)
            waiting &= ~leaves

    def _measures(self, rule: str, tested: tuple[int, ...]) -> list[Tensor]:
        key = (rule, tested)
        if key not in self._remembered:
            kind, classes, rows = self.trace.kind, self.trace.classes, len(self._runs)
            memory = torch.zeros((rows, ops.memory_words(kind, rule, classes)), dtype=torch.int32)
            measures = []
            for layer in tested:
                measure, memory = ops.observe(self._runs.logits[layer - 1], memory, kind=kind, rule=rule)
                measures.append(measure)
            self._remembered[key] = measures
            while len(self._remembered) > self.remembered:
                self._remembered.popitem(last=False)
        self._remembered.move_to_end(key)
        return self._remembered[key]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch in one thread meanwhile: replay is many short steps, which on a machine with other work would spend most
    of their time waiting for a second thread (seen: 45 s for 1 s of work)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def replay(trace: Trace, policy: Policy) -> Replay:
    """Return what `policy` would have done with the rows of `trace`; for many policies, use one `Replayer`.

    Raises:
        InputError: the policy does not fit the trace's model.
    """
    return Replayer(trace).replay(policy)
