"""The replay benchmark: what it replays, and a last line that is one JSON document."""

import json
import sys

import pytest

from bench import replay


def test_the_last_line_is_one_json_document_that_says_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["replay", "--rows", "200", "--rounds", "1"])
    replay.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"hardware", "dtype", "torch", "layers", "seconds"} <= set(figures)
    assert (figures["rows"], figures["policies"]) == (200, 100)
    assert figures["mean_exit_layers"]["min"] < 4 < 8 < figures["mean_exit_layers"]["max"]


def test_the_hundred_policies_differ_hold_every_rule_and_all_can_leave_early() -> None:
    policies = replay.hundred_policies()
    assert len(set(policies)) == 100
    rules = {policy.rule(replay.LAYERS, 2).name for policy in policies}
    assert rules == {"agreement", "confidence", "entropy", "divergence", "vote"}
    assert all(policy.first_exit(replay.LAYERS) < replay.LAYERS for policy in policies)
