"""One head on features of which the right answer is known."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pabee_fast.policies import AnswerKind
from pabee_fast.training.fit_head import HOTTEST, FeatureParts, Targets, asked, fit_linear, fit_pooled, losses, rescale

ROWS, WIDTH = 1500, 6
KINDS: tuple[AnswerKind, ...] = ("label", "value", "label_set")


def made_features(seed: int = 0) -> Tensor:
    """[rows, width], of very different scales and offsets, one of them constant."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(ROWS, WIDTH, generator=generator) * torch.tensor([1.0, 40.0, 0.01, 1.0, 5.0, 0.0])
    return features + torch.tensor([0.0, 300.0, 1.0, -2.0, 50.0, 7.0])


def in_parts(features: Tensor, size: int = ROWS) -> FeatureParts:
    def parts() -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(features), size):
            yield slice(start, start + size), features[start : start + size]

    return parts


def aside(every: int = 5) -> Tensor:
    return torch.arange(ROWS) % every == 0


def teacher(kind: AnswerKind, features: Tensor, seed: int = 1) -> Tensor:
    """Logits [rows, classes] that are linear in the features, over the whole range of answers."""
    classes = 1 if kind == "value" else 3
    weight = torch.randn(classes, WIDTH, generator=torch.Generator().manual_seed(seed))
    scaled = (features - features.mean(0)) / features.std(0).clamp(min=1e-3)
    return scaled @ weight.T + torch.arange(classes) + (100.0 if kind == "value" else 0.0)


def make_targets(kind: AnswerKind, logits: Tensor, labels: Tensor | None = None, alpha: float = 0.5) -> Targets:
    return Targets.of(kind, logits, labels, alpha=alpha, held_out=aside())


@pytest.mark.parametrize("kind", KINDS)
def test_a_linear_head_finds_a_linear_teacher(kind: AnswerKind) -> None:
    features = made_features()
    logits = teacher(kind, features)
    targets = make_targets(kind, logits)
    head = fit_linear(in_parts(features), targets)
    distance = losses(kind, head(features), targets.answers).mean() - losses(kind, logits, targets.answers).mean()
    assert 0 <= distance < 1e-3
    assert head.weight.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_does_not_depend_on_the_parts_it_was_read_in(kind: AnswerKind) -> None:
    features = made_features()
    targets = make_targets(kind, teacher(kind, features))
    whole, cut = fit_linear(in_parts(features), targets), fit_linear(in_parts(features, size=97), targets)
    torch.testing.assert_close(cut(features), whole(features), rtol=1e-2, atol=1e-2)


def test_noise_is_not_learned_where_rows_are_few() -> None:
    generator = torch.Generator().manual_seed(0)
    features, logits = torch.randn(300, 200, generator=generator), torch.randn(300, 2, generator=generator)
    targets = Targets.of("label", 4 * logits, None, alpha=1.0, held_out=torch.arange(300) % 3 == 0)
    head = fit_linear(in_parts(features), targets)
    held = targets.held_out
    found = losses("label", head(features), targets.answers)[held].mean()
    prior = losses("label", targets.answers.mean(0).log().expand(300, 2), targets.answers)[held].mean()
    assert found < prior + 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_pooler_of_ones_own_finds_what_no_linear_head_can(kind: AnswerKind) -> None:
    torch.manual_seed(0)
    scaled = torch.randn(ROWS, 2)
    features = 5 + scaled @ torch.randn(2, 16)
    far = 3 * (scaled[:, :1].abs() - 0.7)  # far from the mean, on either side
    logits = 10 + far if kind == "value" else torch.cat([far, -far], dim=1)
    targets = make_targets(kind, logits)
    parts = in_parts(features, size=400)
    pooled = fit_pooled(parts, lambda rows: features[rows], targets, seed=0)
    best = losses(kind, logits, targets.answers).mean()
    own = losses(kind, asked(pooled, parts), targets.answers).mean() - best
    linear = losses(kind, fit_linear(parts, targets)(features), targets.answers).mean() - best
    assert own < 0.3 * linear
    again = fit_pooled(parts, lambda rows: features[rows], targets, seed=0)
    assert torch.equal(again.pooler.weight, pooled.pooler.weight)


@pytest.mark.parametrize("kind", ["label", "label_set"])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_is_found_and_folded_into_the_head(kind: AnswerKind, temperature: float) -> None:
    features = made_features()
    targets = make_targets(kind, teacher(kind, features))
    head = fit_linear(in_parts(features), targets)
    before = head(features).detach()
    with torch.no_grad():
        head.weight.mul_(temperature)
        head.bias.mul_(temperature)
    found, shift = rescale(head, in_parts(features), targets)
    assert found == pytest.approx(temperature, rel=0.02)
    assert shift == 0.0
    torch.testing.assert_close(head(features), before, rtol=0.02, atol=0.02)


def test_rows_that_were_learned_do_not_count_for_the_temperature() -> None:
    features = made_features()
    logits = teacher("label", features)
    head = fit_linear(in_parts(features), make_targets("label", logits))
    skewed = make_targets("label", torch.where(aside()[:, None], logits / 2, 9 * logits))
    found, _ = rescale(head, in_parts(features), skewed)
    assert found == pytest.approx(2.0, rel=0.02)


def test_a_head_that_knows_nothing_gets_flat_scores_and_no_overflow() -> None:
    features = made_features()
    logits = teacher("label", features)
    head = fit_linear(in_parts(features), make_targets("label", -logits))
    found, _ = rescale(head, in_parts(features), make_targets("label", logits))
    assert found == pytest.approx(HOTTEST, rel=1e-3)
    certain = Targets.of("label", 1e4 * torch.eye(2)[torch.arange(ROWS) % 2], None, alpha=1.0, held_out=aside())
    head = torch.nn.Linear(2, 2)
    with torch.no_grad():
        head.weight.copy_(torch.eye(2))
    found, _ = rescale(head, in_parts(torch.eye(2)[torch.arange(ROWS) % 2]), certain)
    assert math.isfinite(found)


def test_values_are_brought_to_the_last_heads_scale() -> None:
    features = made_features()
    logits = teacher("value", features)
    targets = make_targets("value", logits)
    head = fit_linear(in_parts(features), targets)
    before = head(features).detach()
    with torch.no_grad():
        head.weight.mul_(0.5)
        head.bias.mul_(0.5).add_(3)
    scale, shift = rescale(head, in_parts(features), targets)
    assert scale == pytest.approx(2.0, rel=1e-3)
    assert shift == pytest.approx(-6.0, rel=1e-2)
    torch.testing.assert_close(head(features), before, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(("slope", "kept"), [(-3.0, 1 / HOTTEST), (1e-4, 1 / HOTTEST), (90.0, HOTTEST), (4.0, 4.0)])
def test_few_held_out_values_turn_no_head_round_and_make_none_absurd(slope: float, kept: float) -> None:
    features = torch.arange(ROWS, dtype=torch.float32)[:, None]
    head = torch.nn.Linear(1, 1)
    with torch.no_grad():
        head.weight.fill_(1.0)
        head.bias.zero_()
    targets = Targets.of("value", slope * features, None, alpha=1.0, held_out=aside())
    scale, _ = rescale(head, in_parts(features), targets)
    assert scale == pytest.approx(kept)
    means = [values[targets.held_out].mean() for values in (head(features).detach(), slope * features)]
    assert means[0] == pytest.approx(float(means[1]), rel=1e-4)


def test_a_head_of_one_value_is_shifted_only() -> None:
    head = torch.nn.Linear(1, 1)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(1.0)
    targets = Targets.of("value", torch.full((ROWS, 1), 3.0), None, alpha=1.0, held_out=aside())
    assert rescale(head, in_parts(torch.ones(ROWS, 1)), targets) == (1.0, 2.0)


def test_labels_and_answers_are_mixed_where_there_are_labels() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    labels = torch.tensor([[0.0, 1.0], [float("nan")] * 2])
    targets = Targets.of("label", logits, labels, alpha=0.25, held_out=torch.tensor([True, False]))
    assert torch.allclose(targets.answers, torch.tensor([[0.5, 0.5], [0.75, 0.25]]))
    assert torch.allclose(targets.learned, torch.tensor([[0.125, 0.875], [0.75, 0.25]]))
    values = Targets.of("value", logits[:, :1], torch.tensor([[4.0], [8.0]]), alpha=0.5, held_out=aside())
    assert torch.allclose(values.learned, torch.tensor([[2.0], [4 + math.log(3) / 2]]))


@pytest.mark.parametrize("kind", KINDS)
def test_learning_a_mixture_is_learning_both(kind: AnswerKind) -> None:
    """The gradient of the distance to the mixture is the mixture of the gradients."""
    torch.manual_seed(0)
    logits, teachers = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    labels = torch.eye(3)[torch.tensor([0, 2, 1, 1])]
    targets = Targets.of(kind, teachers, labels, alpha=0.3, held_out=aside())

    def gradient(to: Tensor) -> Tensor:
        return torch.autograd.grad(losses(kind, logits, to).sum(), logits)[0]

    torch.testing.assert_close(gradient(targets.learned), 0.3 * gradient(targets.answers) + 0.7 * gradient(labels))
