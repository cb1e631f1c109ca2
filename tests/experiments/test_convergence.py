import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

import pabee_fast as pf
from experiments.glue import table as glue_table
from experiments.glue.convergence import loosest, main


def test_the_threshold_is_the_loosest_that_changes_no_more_answers_than_allowed() -> None:
    # Two rows have the last layer's answer from the first on, one has another one there, and one comes to it second.
    sure = torch.tensor([[0.9, 0.8, 0.7, 0.1], [0.95, 0.9, 0.6, 0.2], [1.0, 1.0, 1.0, 1.0]])
    answers = torch.tensor([[1, 0, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0]])
    for changed, threshold, exits in ((0.0, 0.7, [1, 1, 3, 3]), (0.25, 0.1, [1, 1, 1, 2]), (0.5, 0.0, [1, 1, 1, 1])):
        found, leaves = loosest(sure, answers, changed)
        assert (found, leaves.tolist()) == (pytest.approx(threshold), exits)


def test_a_rule_whose_every_threshold_changes_too_many_answers_runs_all_layers() -> None:
    sure, answers = torch.ones(3, 2), torch.tensor([[1, 1], [1, 1], [0, 0]])
    assert loosest(sure, answers, changed=0.1)[1].tolist() == [3, 3]


def test_a_model_and_a_task_give_figures_of_every_rule_and_a_line_of_the_table(
    encoder: Path,
    data: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    pf.attach_heads(model, head="linear", pooling="mean").save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    options = ["--data", data, "--models", f"sst2={tmp_path / 'model'}", "--rounds", 1, "--results", tmp_path / "found"]
    monkeypatch.setattr(sys, "argv", ["convergence", *map(str, options)])
    main()
    found = json.loads((tmp_path / "found" / "sst2.json").read_text())
    assert found["rows"] == 80 and found["layers"] == 6
    for rule in ("states", "answers", "heads"):
        assert 1 <= found["layers_run"][rule] <= 6
        assert abs(found["accuracy"][rule] - found["full_depth_accuracy"]) <= found["changed"]
    clock = found["wall_clock"]["policies"]["heads"]  # the engine leaves where the figures say
    assert clock["mean_exit_layer"] == found["layers_run"]["heads"]
    [line] = [line for line in glue_table.tables([], convergence=[found]).splitlines() if line.startswith("| sst2 |")]
    assert f"| {clock['speed_up']:.2f}x |" in line
