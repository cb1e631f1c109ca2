import torch

from experiments.glue.convergence import fewest


def test_the_fewest_layers_are_those_of_the_loosest_threshold_that_changes_no_more_answers_than_allowed() -> None:
    # Two rows have the last layer's answer from the first on, one has another one there, and one comes to it second.
    sure = torch.tensor([[0.9, 0.8, 0.7, 0.1], [0.95, 0.9, 0.6, 0.2], [1.0, 1.0, 1.0, 1.0]])
    answers = torch.tensor([[1, 0, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0]])
    assert fewest(sure, answers, changed=0.0) == (1 + 1 + 3 + 3) / 4
    assert fewest(sure, answers, changed=0.25) == (1 + 1 + 1 + 2) / 4
    assert fewest(sure, answers, changed=0.5) == 1.0


def test_a_rule_whose_every_threshold_changes_too_many_answers_runs_all_layers() -> None:
    sure, answers = torch.ones(3, 2), torch.tensor([[1, 1], [1, 1], [0, 0]])
    assert fewest(sure, answers, changed=0.1) == 3.0
