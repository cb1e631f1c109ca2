"""Rules that others have published: what they look at, by hand, and the depth at which they are compared."""

import pytest
import torch

from experiments.glue.rules import Context, Rows, beem, cap, changed, compare, edr, leave, nsp


def rows(features: torch.Tensor, logits: torch.Tensor, full: list[int]) -> Rows:
    return Rows(features, logits, torch.tensor(full), torch.tensor(full))


def test_nsp_is_the_sine_between_a_feature_and_what_its_head_sees_and_cap_its_probability_as_one_more_class() -> None:
    weight, bias = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), torch.tensor([1.0, -2.0])
    # By the bias the head sees (x + 1, y - 1): of the first row (3, 0) beside 4, of the second (0, 2) beside 0.
    features = torch.tensor([[[2.0, 1.0, 4.0], [-1.0, 3.0, 0.0]]])
    some = rows(features, features @ weight.T + bias, [0, 1])
    context = Context([(weight, bias)], some)
    assert nsp(some, context, 0)[0].tolist() == pytest.approx([0.8, 0.0])
    expected = torch.tensor([[3.0, 0.0, 5 * 0.8], [0.0, 4.0, 0.0]]).softmax(-1)[:, -1]
    torch.testing.assert_close(cap(some, context, 5.0)[0], expected)


def test_beem_adds_up_weighted_confidences_while_neighbouring_heads_agree() -> None:
    sure = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]).log()[:, None]
    known = rows(torch.zeros(3, 1, 1), sure, [0])  # the heads are right, right, wrong
    found = beem(known, Context([], known), 0)[:, 0].tolist()
    assert found == pytest.approx([-0.9, -0.9 - 0.8, 0.0])


def test_a_row_at_a_class_mean_leaves_before_one_between_them() -> None:
    features = torch.tensor([[[0.0], [2.0], [1.0]]])
    known = rows(features, torch.tensor([[[2.0, 0.0], [0.0, 2.0], [1.0, 0.5]]]), [0, 1, 1])
    signal = edr(known, Context([], known), 1.0)[0]
    assert signal[0] < signal[2]


def test_thresholds_give_the_depth_and_answers_are_held_against_full_depth_s() -> None:
    torch.manual_seed(0)
    signal = torch.rand(5, 400)
    for first, depth in ((1, 2.5), (2, 4.0)):
        exits = leave(signal, first, depth)
        assert exits.min() >= first
        assert depth - 0.02 <= exits.double().mean() <= depth
    logits = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]])
    some = rows(torch.zeros(2, 2, 1), logits, [1, 0])
    assert changed(some, torch.tensor([1, 2])).tolist() == [True, False]
    assert changed(some, torch.tensor([3, 3])).tolist() == [False, False]


def test_every_rule_is_compared_at_every_depth() -> None:
    torch.manual_seed(0)
    heads = [(torch.randn(3, 8), torch.randn(3)) for _ in range(5)]
    features = torch.randn(5, 60, 8)
    logits = torch.stack([each @ weight.T + bias for each, (weight, bias) in zip(features, heads, strict=True)])
    some = Rows(features, logits, logits[-1].argmax(-1), logits[-1].argmax(-1))
    found = compare(some, some, heads)
    assert list(found) == ["1.8", "2.4", "3.0", "3.6", "4.2"]
    for lines in found.values():
        assert list(lines) == ["confidence", "entropy", "NSP", "CAP", "BEEM-A", "EDR"]
        assert lines["confidence"]["p_against_confidence"] == 1
