"""The loss over all heads and the distillation loss, against arithmetic written out by hand."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

import pabee_fast as pf
from pabee_fast.modeling.loss import SELF_DISTILLATION, Distillation, weighted_mean
from pabee_fast.models.heads import heads_of

IDS = torch.tensor([[2, 5, 9, 3], [2, 7, 9, 3], [2, 6, 3, 0]])
MASK = (IDS != 0).long()
CASES = {
    "single_label_classification": (3, torch.tensor([0, 2, 1])),
    "regression": (1, torch.tensor([0.5, -1.0, 2.0])),
    "multi_label_classification": (3, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])),
}


def label_loss(problem_type: str, logits: Tensor, labels: Tensor) -> float:
    """One head's mean loss, row by row."""
    rows = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        if problem_type == "regression":
            rows.append((row[0] - label) ** 2)
        elif problem_type == "single_label_classification":
            rows.append(math.log(sum(math.exp(x) for x in row)) - row[label])
        else:
            rows.append(sum(math.log1p(math.exp(-x if y else x)) for x, y in zip(row, label, strict=True)) / len(row))
    return sum(rows) / len(rows)


def logits_by_hand(model: Any) -> list[Tensor]:
    """Every head's logits, from the stock backbone's hidden states."""
    with torch.no_grad():
        states = model.base_model(IDS, attention_mask=MASK, output_hidden_states=True).hidden_states
        pooler = model.base_model.pooler
        dense = getattr(pooler, "dense", pooler)
        return [head(torch.tanh(dense(s[:, 0]))) for head, s in zip(heads_of(model), states[1:], strict=True)]


def make_model(config: Any) -> Any:
    torch.manual_seed(0)
    model = pf.attach_heads(AutoModelForSequenceClassification.from_config(config))
    for head in heads_of(model):  # far from zero, so that a wrong weighting shows
        torch.nn.init.normal_(head.weight)
    return model.train()


@pytest.mark.parametrize("problem_type", CASES)
@pytest.mark.parametrize("family", ["bert", "albert"])
def test_loss_is_the_mean_of_the_heads_losses_weighted_by_depth(
    tiny_config: Callable[..., Any], family: str, problem_type: str
) -> None:
    outputs, labels = CASES[problem_type]
    model = make_model(tiny_config(family, num_labels=outputs, problem_type=problem_type))
    losses = [label_loss(problem_type, logits, labels) for logits in logits_by_hand(model)]
    expected = (1 * losses[0] + 2 * losses[1] + 3 * losses[2]) / 6
    loss = model(input_ids=IDS, attention_mask=MASK, labels=labels).loss
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_every_head_and_the_backbone_get_gradients(tiny_config: Callable[..., Any]) -> None:
    model = make_model(tiny_config(num_labels=3))
    model(input_ids=IDS, attention_mask=MASK, labels=CASES["single_label_classification"][1]).loss.backward()
    assert all(head.weight.grad.abs().sum() > 0 for head in heads_of(model))
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_weights_count_layers_from_one() -> None:
    assert weighted_mean([torch.tensor(6.0), torch.tensor(0.0), torch.tensor(0.0)]).item() == pytest.approx(1.0)
    assert weighted_mean([torch.tensor(0.0), torch.tensor(0.0), torch.tensor(6.0)]).item() == pytest.approx(3.0)


def divergence(teacher: list[float], head: list[float]) -> float:
    """KL(teacher || head) of two distributions."""
    return sum(p * math.log(p / q) for p, q in zip(teacher, head, strict=True))


def softmax(row: list[float], temperature: float) -> list[float]:
    weights = [math.exp(x / temperature) for x in row]
    return [w / sum(weights) for w in weights]


def test_labels_given_by_position_train_every_head(tiny_config: Callable[..., Any]) -> None:
    model, labels = make_model(tiny_config(num_labels=3)), CASES["single_label_classification"][1]
    by_name = model(IDS, MASK, labels=labels, teacher_logits=torch.ones(3, 3))
    by_position = model(IDS, MASK, None, None, None, labels, teacher_logits=torch.ones(3, 3))
    assert torch.equal(by_position.loss, by_name.loss)
    assert isinstance(model(IDS, MASK, None, None, None, labels, return_dict=False), tuple)


def to_teacher_by_hand(kind: str, head: list[float], teacher: list[float], temperature: float) -> float:
    """One row's distance to the teacher."""
    if kind == "value":
        return (head[0] - teacher[0]) ** 2
    if kind == "label":
        return temperature**2 * divergence(softmax(teacher, temperature), softmax(head, temperature))
    pairs = [
        (softmax([t, 0.0], temperature), softmax([h, 0.0], temperature)) for t, h in zip(teacher, head, strict=True)
    ]
    return temperature**2 * sum(divergence(t, h) for t, h in pairs) / len(pairs)


@pytest.mark.parametrize(("kind", "outputs"), [("label", 3), ("value", 1), ("label_set", 3)])
@pytest.mark.parametrize(("alpha", "temperature"), [(0.3, 2.0), (1.0, 1.0), (0.0, 4.0)])
def test_distillation_mixes_labels_and_teacher(kind: Any, outputs: int, alpha: float, temperature: float) -> None:
    torch.manual_seed(0)
    logits, teacher = torch.randn(4, outputs), torch.randn(4, outputs)
    rows = [to_teacher_by_hand(kind, h, t, temperature) for h, t in zip(logits.tolist(), teacher.tolist(), strict=True)]
    expected = (1 - alpha) * 0.7 + alpha * sum(rows) / 4
    loss = Distillation(alpha, temperature).loss(torch.tensor(0.7), logits, teacher, kind)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(("kind", "outputs"), [("label", 3), ("value", 1), ("label_set", 3)])
def test_a_row_without_a_teacher_adds_nothing_to_the_teachers_term_and_gets_no_gradient_from_it(
    kind: Any, outputs: int
) -> None:
    torch.manual_seed(0)
    logits, teacher = torch.randn(4, outputs, requires_grad=True), torch.randn(4, outputs)
    teacher[1] = torch.nan
    loss = Distillation(1.0, 2.0).loss(torch.tensor(0.7), logits, teacher, kind)
    rows = [to_teacher_by_hand(kind, logits[i].tolist(), teacher[i].tolist(), 2.0) for i in (0, 2, 3)]
    assert loss.item() == pytest.approx(sum(rows) / 4, rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[1].abs().max() < 1e-7 < logits.grad[[0, 2, 3]].abs().amax(1).min()


@pytest.mark.parametrize("given", [{"alpha": 1.5}, {"alpha": float("nan")}, {"temperature": 0.0}])
def test_a_distillation_out_of_range_is_refused(given: dict[str, float]) -> None:
    [(name, value)] = given.items()
    with pytest.raises(pf.InputError, match=f"{name}={value}: give a"):
        Distillation(**given)


def test_distilled_heads_are_weighted_by_depth(tiny_config: Callable[..., Any]) -> None:
    model = make_model(tiny_config(num_labels=3))
    labels, teacher = CASES["single_label_classification"][1], torch.randn(3, 3)
    losses = []
    for logits in logits_by_hand(model):
        pairs = zip(logits.tolist(), teacher.tolist(), strict=True)
        soft = sum(to_teacher_by_hand("label", h, t, 3.0) for h, t in pairs) / 3
        losses.append(0.4 * label_loss("single_label_classification", logits, labels) + 0.6 * soft)
    expected = (1 * losses[0] + 2 * losses[1] + 3 * losses[2]) / 6
    distillation = Distillation(alpha=0.6, temperature=3.0)
    loss = model(IDS, MASK, labels=labels, teacher_logits=teacher, distillation=distillation).loss
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("problem_type", CASES)
@pytest.mark.parametrize("with_teacher", [False, True])
def test_self_distillation_adds_the_last_heads_answers_to_the_others(
    tiny_config: Callable[..., Any], problem_type: str, with_teacher: bool
) -> None:
    outputs, labels = CASES[problem_type]
    kind = {"regression": "value", "multi_label_classification": "label_set"}.get(problem_type, "label")
    model, teacher = make_model(tiny_config(num_labels=outputs, problem_type=problem_type)), torch.randn(3, outputs)
    all_logits = logits_by_hand(model)

    def distance(logits: Tensor, to: Tensor, temperature: float) -> float:
        pairs = zip(logits.tolist(), to.tolist(), strict=True)
        return sum(to_teacher_by_hand(kind, head, target, temperature) for head, target in pairs) / 3

    losses = [label_loss(problem_type, logits, labels) for logits in all_logits]
    if with_teacher:
        losses = [
            0.5 * loss + 0.5 * distance(logits, teacher, 2.0) for loss, logits in zip(losses, all_logits, strict=True)
        ]
    for i in (0, 1):
        losses[i] = 0.7 * losses[i] + 0.3 * distance(all_logits[i], all_logits[2], 3.0)
    expected = (1 * losses[0] + 2 * losses[1] + 3 * losses[2]) / 6
    given = {"teacher_logits": teacher} if with_teacher else {}
    loss = model(IDS, MASK, labels=labels, self_distillation=SELF_DISTILLATION, **given).loss
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_last_head_does_not_learn_from_the_others(tiny_config: Callable[..., Any]) -> None:
    gradients = []
    for objective in (None, SELF_DISTILLATION):
        model = make_model(tiny_config(num_labels=3))
        labels = CASES["single_label_classification"][1]
        model(IDS, MASK, labels=labels, self_distillation=objective).loss.backward()
        gradients.append([head.weight.grad for head in heads_of(model)])
    plain, distilled = gradients
    assert torch.equal(plain[-1], distilled[-1])
    assert not torch.equal(plain[0], distilled[0])
