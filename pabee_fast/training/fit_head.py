"""One head, trained on stored features to answer as the whole model does.

Inputs are scaled to mean 0 and deviation 1 while a head is trained, and the scales folded into its weights after; so is
the temperature that puts its scores on the scale of the model's own. What is left of a fit is an ordinary head.
"""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear, log_softmax

from pabee_fast.kernels.reference import ACTIVATIONS
from pabee_fast.models.head_kinds import OWN_ACTIVATION, PooledLinear
from pabee_fast.policies import AnswerKind

FeatureParts = Callable[[], Iterable[tuple[slice, Tensor]]]
"""All rows' features, [rows, width] float32, a part at a time; called once for every pass."""

DECAYS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Weight decays that are tried, from the strongest; each starts where the one before ended."""

STEPS = 30
"""L-BFGS steps for each of them. More change no held-out loss by a thousandth (measured on mrpc's 3,668 rows)."""

BATCH, RATE = 64, 1e-3
"""Of a head with a pooler of its own: rows of a step, AdamW's learning rate."""

ROUND_STEPS, ROUNDS, IDLE_ROUNDS = 200, 30, 4
"""Of the same: a round is one pass or the passes that make so many steps; the most rounds, and those without gain."""

HOTTEST = 20.0
"""Temperatures and scales of values lie between its inverse and this: few held-out rows cannot make answers absurd, nor
turn them round."""


@dataclass(frozen=True)
class Targets:
    """What a head learns of every row."""

    kind: AnswerKind
    answers: Tensor  # [rows, classes] float32: the model's own probabilities or values
    learned: Tensor  # the same, mixed with the labels where there are some
    held_out: Tensor  # [rows] bool: not learned, but used to choose and to scale

    @classmethod
    def of(
        cls, kind: AnswerKind, logits: Tensor, labels: Tensor | None, *, alpha: float, held_out: Tensor
    ) -> "Targets":
        """From the model's logits, [rows, classes].

        Cross-entropy is linear in its target, so that alpha times the distance to the answers plus 1 - alpha times the
        distance to the label is the distance to their mixture; the squared difference is so up to a constant.

        Args:
            labels: [rows, classes] float32: one-hot, 0 and 1 of a label set, or values; NaN where a row has none.
            alpha: the answers' share where there is a label.
        """
        answers = _probabilities(kind, logits)
        learned = answers
        if labels is not None:
            learned = torch.where(labels.isnan(), answers, alpha * answers + (1 - alpha) * labels)
        return cls(kind, answers, learned, held_out)

    def to(self, device: torch.device) -> "Targets":
        """Return the same on another device."""
        return Targets(self.kind, *(t.to(device) for t in (self.answers, self.learned, self.held_out)))


def fit_linear(parts: FeatureParts, targets: Targets) -> nn.Linear:
    """Return the linear head that answers held-out rows best, by L-BFGS along a path of weight decays (a convex
    problem)."""
    mean, deviation = _moments(parts, targets)
    centre, spread = _scale_of_values(targets)
    learned = ((targets.learned - centre) / spread).float()
    width, classes = len(mean), learned.shape[1]
    weight = torch.zeros(classes, width, device=mean.device, requires_grad=True)
    bias = torch.zeros(classes, device=mean.device, requires_grad=True)
    rows, held = int((~targets.held_out).sum()), int(targets.held_out.sum())
    held_out_loss = 0.0

    def loss_and_gradient(decay: float) -> Tensor:
        nonlocal held_out_loss
        total, held_out_loss = torch.zeros((), device=mean.device), 0.0
        weight.grad = bias.grad = None
        for part, features in parts():
            scaled = weight / deviation
            each = losses(targets.kind, linear(features, scaled, bias - scaled @ mean), learned[part])
            aside = targets.held_out[part]
            loss = each[~aside].sum() / rows
            loss.backward()
            total += loss.detach()
            held_out_loss += float(each.detach()[aside].sum()) / held
        penalty = decay / 2 * weight.square().sum()
        penalty.backward()
        return total + penalty.detach()

    best, best_loss = (weight.detach().clone(), bias.detach().clone()), math.inf
    for decay in DECAYS:
        search = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe", tolerance_grad=1e-6)
        search.step(lambda decay=decay: loss_and_gradient(decay))
        loss_and_gradient(decay)
        if held_out_loss >= best_loss:
            break
        best, best_loss = (weight.detach().clone(), bias.detach().clone()), held_out_loss
    head = nn.Linear(width, classes, device=mean.device)
    _fold(head, *best, mean, deviation)
    _unscale(head, centre, spread)
    return head


def fit_pooled(parts: FeatureParts, take: Callable[[Tensor], Tensor], targets: Targets, seed: int) -> PooledLinear:
    """Return a head with a pooler of its own, by AdamW over batches of rows in random order; it ends where the rows
    held out have been answered no better for IDLE_ROUNDS rounds.

    Args:
        take: features of some rows (int64), [rows, width] float32.
        seed: of its first weights and the order.
    """
    mean, deviation = _moments(parts, targets)
    centre, spread = _scale_of_values(targets)
    learned = ((targets.learned - centre) / spread).float()
    generator = torch.Generator().manual_seed(seed)
    width, classes = len(mean), learned.shape[1]
    head = PooledLinear(width, classes)
    with torch.no_grad():
        for layer in (head.pooler, head):
            layer.weight.normal_(std=width**-0.5, generator=generator)
            layer.bias.zero_()
    head.to(mean.device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE)
    rows = (~targets.held_out).nonzero().flatten().cpu()

    def answer(features: Tensor) -> Tensor:
        return head(ACTIVATIONS[OWN_ACTIVATION](head.pooler((features - mean) / deviation)))

    @torch.no_grad()
    def held_out_loss() -> float:
        each = ((losses(targets.kind, answer(features), learned[part]), part) for part, features in parts())
        return sum(float(loss[targets.held_out[part]].sum()) for loss, part in each)

    best, best_loss, idle = copy.deepcopy(head.state_dict()), held_out_loss(), 0
    passes = math.ceil(ROUND_STEPS / math.ceil(len(rows) / BATCH))
    for _ in range(ROUNDS):
        order = torch.cat([rows[torch.randperm(len(rows), generator=generator)] for _ in range(passes)])
        for members in order.split(BATCH):
            optimizer.zero_grad()
            losses(targets.kind, answer(take(members)), learned[members]).mean().backward()
            optimizer.step()
        if (loss := held_out_loss()) < best_loss:
            best, best_loss, idle = copy.deepcopy(head.state_dict()), loss, 0
        elif (idle := idle + 1) == IDLE_ROUNDS:
            break
    head.load_state_dict(best)
    _fold(head.pooler, head.pooler.weight, head.pooler.bias, mean, deviation)
    _unscale(head, centre, spread)
    return head


def rescale(head: nn.Linear, parts: FeatureParts, targets: Targets) -> tuple[float, float]:
    """Fold into a head what brings its scores to the last head's scale, by the rows held out.

    Labels: softmax(logits / T), or the sigmoid for label sets, is brought as near as it can to the model's own
    probabilities by one temperature T (Guo et al., ICML 2017, with these in place of labels). Values: scale * value +
    shift by least squares. T and scale stay between 1 / HOTTEST and HOTTEST.

    Returns:
        T and 0, or scale and shift.
    """
    aside = targets.held_out
    outputs, answers = asked(head, parts)[aside].double(), targets.answers[aside].double()
    if targets.kind == "value":
        spread = outputs.var(unbiased=False)
        covariance = ((outputs - outputs.mean()) * (answers - answers.mean())).mean()
        factor = min(max(float(covariance / spread), 1 / HOTTEST), HOTTEST) if spread > 0 else 1.0
        shift = float(answers.mean() - factor * outputs.mean())
    else:
        factor, shift = 1 / _temperature(targets.kind, outputs, answers), 0.0
    _unscale(head, shift, factor)
    return (factor if targets.kind == "value" else 1 / factor), shift


@torch.no_grad()
def asked(head: nn.Linear, parts: FeatureParts) -> Tensor:
    """Return a head's logits for all rows, [rows, classes] float32."""
    outputs = []
    for _, features in parts():
        if isinstance(head, PooledLinear):
            features = ACTIVATIONS[OWN_ACTIVATION](head.pooler(features))
        outputs.append(head(features))
    return torch.cat(outputs)


def losses(kind: AnswerKind, logits: Tensor, targets: Tensor) -> Tensor:
    """Return each row's distance, [rows], of logits to targets [rows, classes]: cross-entropy, or the squared
    difference."""
    if kind == "label":
        return -(targets * log_softmax(logits, dim=1)).sum(dim=1)
    if kind == "label_set":
        return binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)
    return (logits - targets).square().sum(dim=1)


def _probabilities(kind: AnswerKind, logits: Tensor) -> Tensor:
    """Of logits [rows, classes]; values stay as they are."""
    return logits.softmax(dim=1) if kind == "label" else logits.sigmoid() if kind == "label_set" else logits


def _temperature(kind: AnswerKind, logits: Tensor, answers: Tensor) -> float:
    """Return the T that brings logits / T nearest to the answers.

    The loss is convex in 1 / T, so its slope has one zero, which halving the interval finds.
    """
    low, high = -math.log(HOTTEST), math.log(HOTTEST)
    for _ in range(50):
        middle = (low + high) / 2
        slope = ((_probabilities(kind, logits * math.exp(middle)) - answers) * logits).sum()
        low, high = (middle, high) if slope < 0 else (low, middle)
    return math.exp(-(low + high) / 2)


def _moments(parts: FeatureParts, targets: Targets) -> tuple[Tensor, Tensor]:
    """Mean and deviation, [width] float32 each, of the features that are learned from."""
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    for part, features in parts():
        learned = features[~targets.held_out[part]].double()
        total, squares = total + learned.sum(dim=0), squares + learned.square().sum(dim=0)
    rows = (~targets.held_out).sum()
    mean = torch.as_tensor(total) / rows
    deviation = (torch.as_tensor(squares) / rows - mean.square()).clamp(min=0).sqrt()
    # A feature that never changes says nothing; 1 leaves it at 0.
    return mean.float(), torch.where(deviation > 1e-6 * mean.abs(), deviation, 1.0).float()


def _scale_of_values(targets: Targets) -> tuple[float, float]:
    """Mean and deviation of the values to learn, so that a weight decay means the same in any unit."""
    if targets.kind != "value":
        return 0.0, 1.0
    values = targets.learned[~targets.held_out].double()
    return float(values.mean()), float(values.std(unbiased=False)) or 1.0


@torch.no_grad()
def _fold(layer: nn.Linear, weight: Tensor, bias: Tensor, mean: Tensor, deviation: Tensor) -> None:
    """Give a layer over raw features what `weight` and `bias` are over scaled ones."""
    folded = weight.double() / deviation.double()
    layer.bias.copy_(bias.double() - folded @ mean.double())
    layer.weight.copy_(folded)


@torch.no_grad()
def _unscale(head: nn.Linear, shift: float, factor: float) -> None:
    """Make a head answer factor * what it did + shift."""
    head.weight.mul_(factor)
    head.bias.mul_(factor).add_(shift)
