"""How well a schedule keeps a GPU busy, without a GPU: `python -m bench.simulate`.

The engine's own scheduling code (`runtime/schedule.py`) is driven with token counts, and a clock for the device and one
for the host by measured costs (`bench/costs.py`). First the simulation is held against what a GPU said: the schedule of
the first run as a whole, of today's costs how long the kernels work. Every figure is a simulation, and says so.
"""

import argparse
import json
from collections import deque
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np

from bench import cases
from bench.costs import FIRST_RUN, MODELS, Costs, Model
from bench.costs import TODAY as TODAYS_COSTS
from pabee_fast.runtime.budget import LAUNCHES, TOKEN_BUDGETS
from pabee_fast.runtime.engine import UNDER_WAY
from pabee_fast.runtime.schedule import WORTHWHILE, WaveQueue, plan_waves
from pabee_fast.runtime.schedule import Costs as Choices

MEASURED_MS = {"full depth": 382.0, "usual": 270.0, "skewed": 228.0, "nobody leaves": 391.0}
"""Wall-clock of the first run on an H200: BERT-base, 32,768 rows of sst2's lengths, one wave under way."""

MEASURED_BUSY_MS = {"full depth": 368.0, "usual": 225.0, "skewed": 135.0, "nobody leaves": 373.0}
"""Of it, what the kernels took."""

BUSY_SINCE_MS = {"full depth": 270.1, "usual": 167.2, "skewed": 94.5}
"""What they take as they are now, by a profile. In it no wave below half the budget ran while counts travelled, and the
device was idle for 6.2, 10.7 and 12.9 ms, of which the start of a run was some 4."""


@dataclass(frozen=True)
class Schedule:
    """What the engine may choose."""

    token_budget: int
    under_way: int
    worthwhile: float = WORTHWHILE
    launches: float = 0.0
    """Operations in the time of a layer's launches."""


MEASURED_SCHEDULE = Schedule(131_072, 1, 0.0)
"""Each wave alone to its end, as the engine was when it was measured."""

TODAY = Schedule(TOKEN_BUDGETS["cuda"], UNDER_WAY["cuda"], launches=LAUNCHES["cuda"])


class Wave(NamedTuple):
    """Rows under way: those that have left stay in it until they are dropped."""

    rows: np.ndarray
    tokens: int


class Question(NamedTuple):
    """A wave whose counts are known to the host at a moment."""

    wave: Wave
    layer: int
    arrival: float


@dataclass
class Clocks:
    """Microseconds since the start: when host and device are next free, and how long the device worked."""

    host: float = 0.0
    device: float = 0.0
    busy: float = 0.0

    def launch(self, host: float, device: float) -> None:
        """Launch kernels that take `device` in all; the first can begin when a part of the launches is done."""
        began = self.host
        self.host += host
        # The device cannot end before the last launch, nor begin before the first.
        self.device = max(max(self.device, began + min(host, 16.0)) + device, self.host)
        self.busy += device


def simulate(
    lengths: np.ndarray,
    exits: np.ndarray,
    first_exit: int,
    model: Model,
    costs: Costs,
    schedule: Schedule,
    *,
    has_steps: bool = True,
) -> Clocks:
    """Run rows through a model.

    Args:
        lengths: [rows] tokens.
        exits: [rows] the layer at which each row leaves.
        first_exit: the first layer at which one could: from there on counts are asked for.
        has_steps: whether there is an exit step behind every layer, as for policies with a streak.
    """
    clocks, last = Clocks(host=costs.host_run), model.layers
    weights = 4 * model.hidden**2 + 2 * model.hidden * model.inner
    choices = Choices(least_tokens=schedule.launches / (2 * weights))
    fresh = plan_waves(lengths, schedule.token_budget)
    queue: WaveQueue[Wave, Question] = WaveQueue(
        deque(fresh), schedule.token_budget, schedule.under_way, schedule.worthwhile
    )
    while queue:
        if (question := queue.due()) is not None:
            wave, layer, arrival = question
            clocks.host = max(clocks.host, arrival)
            survivors = wave.rows[exits[wave.rows] > layer]
            tokens = int(lengths[survivors].sum())
            if len(survivors) and choices.pays(wave.tokens, tokens, last - layer):
                clocks.launch(costs.host_gather, costs.gather(model, tokens))
                wave = Wave(survivors, tokens)
            if len(survivors):
                queue.put(layer, wave.tokens, wave)
            continue
        layer, picked = queue.pop()
        if isinstance(picked, np.ndarray):
            wave = Wave(picked, int(lengths[picked].sum()))
            clocks.launch(costs.host_embed, costs.embed(model, wave.tokens))
        else:
            wave = Wave(np.concatenate([one.rows for one in picked]), sum(one.tokens for one in picked))
            if len(picked) > 1:
                clocks.launch(costs.host_gather, costs.gather(model, wave.tokens))
        unasked = 0
        while layer < last:
            layer += 1
            clocks.launch(costs.host_layer, costs.layer(model, wave.tokens))
            if not has_steps and layer < last:
                continue
            clocks.launch(costs.host_step, costs.step(len(wave.rows)) + costs.plan)
            unasked += first_exit <= layer
            if has_steps and first_exit <= layer < last and choices.asks(wave.tokens, unasked):
                queue.ask(Question(wave, layer, clocks.device + costs.latency))
                break
    clocks.host = max(clocks.host, clocks.device + costs.latency)
    return clocks


def figures(model: Model, rows: int, costs: Costs, schedule: Schedule) -> dict[str, dict[str, float]]:
    """Return milliseconds of wall-clock and of work, and what follows, by exits."""
    lengths = cases.sst2_lengths(rows)
    found: dict[str, dict[str, float]] = {}
    stay = np.full(rows, model.layers)
    for name in MEASURED_MS:
        exits = np.array(cases.exits_of(name, rows, model.layers)) if name in cases.SHARES else stay
        first_exit = int(exits.min()) if name in cases.SHARES else model.layers // 4 + 1
        has_steps = name != "full depth"
        clocks = simulate(lengths, exits, first_exit, model, costs, schedule, has_steps=has_steps)
        wall = clocks.host / 1e3
        each = {"wall_ms": wall, "busy_ms": clocks.busy / 1e3, "idle": 1 - clocks.busy / clocks.host}
        each["rows_per_second"] = rows / wall * 1e3
        if name in cases.SHARES:
            allowed = lengths.sum() * model.layers / (lengths * exits).sum()
            each |= {"allowed": float(allowed), "exit_efficiency": found["full depth"]["wall_ms"] / wall / allowed}
        found[name] = each
    found["nobody leaves"]["no_exit_cost"] = found["nobody leaves"]["wall_ms"] / found["full depth"]["wall_ms"] - 1
    return found


def checked() -> dict[str, dict[str, float]]:
    """Return simulated over measured milliseconds, by exits: of the first run, and of the work of runs since."""
    first = figures(MODELS["bert-base"], 32_768, FIRST_RUN, MEASURED_SCHEDULE)
    since = figures(MODELS["bert-base"], 32_768, TODAYS_COSTS, TODAY)
    return {
        "wall-clock of the first run": {name: first[name]["wall_ms"] / ms for name, ms in MEASURED_MS.items()},
        "its work": {name: first[name]["busy_ms"] / ms for name, ms in MEASURED_BUSY_MS.items()},
        "work since": {name: since[name]["busy_ms"] / ms for name, ms in BUSY_SINCE_MS.items()},
    }


def table(title: str, found: dict[str, dict[str, float]]) -> str:
    """Return figures as Markdown."""
    lines = [f"{title}:", "", "| | wall ms | busy ms | idle | rows/s | exit efficiency |", "|---|---|---|---|---|---|"]
    for name, each in found.items():
        efficiency = f"{each['exit_efficiency']:.3f} of {each['allowed']:.2f}x" if "allowed" in each else ""
        if "no_exit_cost" in each:
            efficiency = f"no-exit cost {each['no_exit_cost']:+.1%}"
        lines.append(
            f"| {name} | {each['wall_ms']:.0f} | {each['busy_ms']:.0f} | {each['idle']:.0%} "
            f"| {each['rows_per_second']:,.0f} | {efficiency} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse options, simulate, print tables and, as the last line, one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--rows", type=int, default=32_768)
    parser.add_argument("--budgets", type=int, nargs="*", default=[], help="also with token budgets of this size")
    parser.add_argument("--worthwhile", type=float, nargs="*", default=[], help="also with this share of the budget")
    args = parser.parse_args()
    check = checked()
    print("Simulated / measured:")
    for kind, ratios in check.items():
        print(f"  {kind}: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
    every_costs = {"costs of the first run": FIRST_RUN, "costs of today": TODAYS_COSTS}
    costs_told = {name: asdict(costs) for name, costs in every_costs.items()}
    document: dict[str, object] = {"simulated_over_measured": check, "costs": costs_told}
    schedules = {"each wave alone": MEASURED_SCHEDULE, "waves joined, two under way": TODAY}
    schedules |= {f"budget {n}": replace(TODAY, token_budget=n) for n in args.budgets}
    schedules |= {f"{share} worthwhile": replace(TODAY, worthwhile=share) for share in args.worthwhile}
    for name in args.model:
        for costs_name, costs in every_costs.items():
            for schedule_name, schedule in schedules.items():
                title = f"{name}, {args.rows} rows of sst2's lengths, H200 simulated, {schedule_name}, {costs_name}"
                found = figures(MODELS[name], args.rows, costs, schedule)
                print(table(title, found) + "\n")
                document[title] = found
    print(json.dumps(document))


if __name__ == "__main__":
    main()
