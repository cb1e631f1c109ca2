"""The simulated schedule: it repeats what was measured, and says what the engine's own scheduling makes of it."""

import json
import sys

import numpy as np
import pytest

from bench import simulate
from bench.costs import FIRST_RUN, MODELS, TODAY

BERT = MODELS["bert-base"]


def test_the_measured_schedule_comes_out_as_it_was_measured() -> None:
    check = simulate.checked()
    assert {"full depth", "usual", "skewed"} <= set.intersection(*map(set, check.values()))
    assert all(0.9 < ratio < 1.1 for kind in check.values() for ratio in kind.values()), check
    assert all(0.96 < ratio < 1.04 for ratio in check["work since"].values()), check


@pytest.mark.parametrize("costs", [FIRST_RUN, TODAY], ids=["first run", "today"])
def test_joined_waves_leave_the_device_less_idle_and_lose_nothing_at_full_depth(costs: simulate.Costs) -> None:
    alone = simulate.figures(BERT, 16_384, costs, simulate.MEASURED_SCHEDULE)
    joined = simulate.figures(BERT, 16_384, costs, simulate.TODAY)
    for name in ("usual", "skewed"):
        assert joined[name]["exit_efficiency"] > alone[name]["exit_efficiency"]
        assert joined[name]["idle"] < alone[name]["idle"]
    assert joined["full depth"]["wall_ms"] == pytest.approx(alone["full depth"]["wall_ms"], rel=0.01)


def test_every_row_is_run_to_its_exit_and_no_further() -> None:
    """With free launches and a cost of one microsecond a token and layer, time is tokens times layers."""
    lengths, exits = np.array([5, 7, 3, 9]), np.array([12, 3, 4, 12])
    free = simulate.Costs(*[0.0] * 2, None, 0, *[0.0] * 7)

    class PerToken(simulate.Costs):
        def layer(self, model: object, tokens: int) -> float:
            return float(tokens)

        def embed(self, model: object, tokens: int) -> float:
            return 0.0

        def step(self, rows: int) -> float:
            return 0.0

        gather = embed

    costs = PerToken(**vars(free))
    for under_way in (1, 2):
        schedule = simulate.Schedule(12, under_way, 0.5)
        clocks = simulate.simulate(lengths, exits, 3, BERT, costs, schedule)
        assert clocks.busy == (lengths * exits).sum()


def test_it_prints_tables_and_one_document(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["simulate", "--model", "bert-base", "--rows", "2048", "--budgets", "65536"])
    simulate.main()
    *printed, document = capsys.readouterr().out.splitlines()
    found = json.loads(document)
    assert any("simulated" in line for line in printed)
    assert sum("budget 65536" in key for key in found) == 2
