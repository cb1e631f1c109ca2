"""Rows/s of stock transformers, of our full depth and of early exit, in one run: `python -m bench.endtoend`.

Stock runs sdpa at the same dtype over length-sorted batches padded to their longest row, at its best batch size of
those given. Variants take turns; figures are medians over rounds. Before anything is timed the answers are checked.
Other ways to run it (waves under way, layers, attention, wave sizes) come second, in turns with the default: one whose
answers are wrong is named and not timed.

exit efficiency: (full-depth seconds / early-exit seconds) / (sum tokens * layers / sum tokens * exit layer)
no-exit cost:    seconds with all heads, exit steps and read-backs while nobody leaves / full-depth seconds - 1
utilisation:     operations of full depth / its seconds / the measured rate of a matrix product (`bench.ceilings`)
step's share:    of the early-exit run's time, what lies in exit step, plan and gather (`bench.shares`)
memory:          peak beyond weights and inputs, full depth in waves of as many tokens as stock's largest batch / stock
"""

import argparse
import copy
import functools
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

import pabee_fast as pf
from bench import cases, ceilings, outcome, shares, timing, work
from bench.text import add_so_far, teller
from pabee_fast.models.heads import heads_of
from pabee_fast.runtime import choice
from pabee_fast.runtime.device import choose_device, choose_dtype
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.pack import PackedBatch, pack
from pabee_fast.runtime.state import Results
from pabee_fast.runtime.variants import VARIANTS

TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""Of full-depth logits against stock, max |difference| / max |logit|."""


def stock_batches(
    rows: cases.Rows, size: int, device: torch.device, pad: int = 0
) -> list[tuple[np.ndarray, dict[str, Tensor]]]:
    """Length-sorted batches of `size` rows, each padded to its longest, on the device already."""
    order, batches = np.argsort(-rows.lengths, kind="stable"), []
    for first in range(0, len(order), size):
        members = order[first : first + size]
        batches.append((members, padded([rows.input_ids[i] for i in members], device, pad)))
    return batches


def padded(input_ids: Sequence[Sequence[int]], device: torch.device, pad: int = 0) -> dict[str, Tensor]:
    """input_ids and attention_mask [rows, longest], padded with `pad` on the right."""
    longest = max(map(len, input_ids))
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in input_ids], device=device)
    return {"input_ids": ids, "attention_mask": (ids != pad).long()}


@torch.no_grad()
def run_stock(model: Any, batches: list[tuple[np.ndarray, dict[str, Tensor]]], rows: int) -> Tensor:
    """Return every row's logits in input order, [rows, classes] on the host."""
    out = torch.empty(rows, model.config.num_labels)
    for members, batch in batches:
        out[torch.from_numpy(members)] = model(**batch).logits.float().cpu()
    return out


def on_the_same_weights(model: Any) -> Any:
    """Return a copy that reads the model's own weights."""
    other = copy.deepcopy(model)
    other.load_state_dict(model.state_dict(), assign=True)
    return other


def never_agree(model: Any) -> Any:
    """Return a model on the same weights whose neighbouring heads give different answers for every row, whatever the
    text."""
    silent = on_the_same_weights(model)
    for layer, head in enumerate(heads_of(silent)):
        head.weight = nn.Parameter(torch.zeros_like(head.weight))
        head.bias = nn.Parameter(torch.tensor([1.0, -1.0]).to(head.bias) * (-1) ** layer)
    return silent


@dataclass
class Setup:
    """One case: its rows, and the models and engines that run them."""

    device: torch.device
    dtype: torch.dtype
    rows: cases.Rows
    batch: PackedBatch
    stock: Any
    batches: dict[int, list[tuple[np.ndarray, dict[str, Tensor]]]]
    engine: Engine
    silent: Engine
    """On the same weights, with heads by which nobody leaves."""
    others: dict[str, Engine]
    """Other ways to run it, by what they are called."""
    exits: dict[str, tuple[int, ...]]

    @classmethod
    def build(cls, args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> "Setup":
        # All variants read the same weights in memory: where a copy happens to lie changes CPU times by percents.
        stock = cases.model(args.model).to(device, dtype)
        ours = on_the_same_weights(stock)
        silent = never_agree(pf.attach_heads(ours))
        layers = stock.config.num_hidden_layers
        if args.lengths == "sst2":
            rows = cases.sst2_like(args.rows, layers)
        else:
            rows = cases.of_length(args.rows, int(args.lengths), layers)
        budget = args.token_budget
        others: dict[str, dict[str, Any]] = {f"{n} under way": {"under_way": n} for n in args.under_way}
        others |= {f"{variant} layers": {"layers": variant} for variant in args.layers}
        others |= {f"{name} attention": {"attention": name} for name in args.attention}
        others |= {f"waves of {n}": {"token_budget": n} for n in args.waves}
        ways = {name: Engine(ours, **{"token_budget": budget, **options}) for name, options in others.items()}
        if args.fitted_heads:
            fitted = pf.attach_heads(on_the_same_weights(stock), head="linear", pooling="mean")
            ways["linear heads over the mean"] = Engine(fitted, token_budget=budget)
        return cls(
            device, dtype, rows,
            batch=pack(ours, **padded(rows.input_ids, device)),  # as stock's
            stock=stock,
            batches={size: stock_batches(rows, size, device) for size in args.stock_batches},
            engine=Engine(ours, token_budget=budget),
            silent=Engine(silent, token_budget=budget),
            others=ways,
            exits={"usual": rows.exit_layers}
            | {name: cases.exits_of(name, args.rows, layers) for name in args.exits},
        )  # fmt: skip

    @property
    def layers(self) -> int:
        return len(self.engine.layers)

    @property
    def has_measured_kernels(self) -> bool:
        """Whether `tuned.py` names kernels for this device: without, libraries attend and GELU is a pass."""
        config = self.stock.config
        return choice.most_short(self.device, self.dtype, config.hidden_size // config.num_attention_heads) > 0

    def run(self, engine: Engine, policy: pf.Policy) -> Results:
        results = engine.run(self.batch, policy)
        return Results(results.logits.cpu(), results.exit_layers.cpu())

    def run_stock(self, size: int) -> Tensor:
        return run_stock(self.stock, self.batches[size], len(self.rows.input_ids))

    def variants(self) -> dict[str, Callable[[], Any]]:
        """Return what is timed, by name; the most wanted first."""
        found = self._both("", self.engine)
        for name, exits in self.exits.items():
            if name != "usual":
                found[f"early exit, {name}"] = functools.partial(self.run, self.engine, pf.Scheduled(exits))
        patience = pf.Patience(max(1, self.layers // 4))
        found["nobody leaves"] = functools.partial(self.run, self.silent, patience)
        return found | {f"stock, batch {size}": functools.partial(self.run_stock, size) for size in self.batches}

    def ways(self, reference: Tensor) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
        """Return the other ways whose answers are right, beside the default, and what is wrong with the others."""
        found, wrong = self._both("", self.engine), {}
        for way, engine in self.others.items():
            variants = self._both(f", {way}", engine)
            try:
                for name, run in variants.items():
                    self.check(name, run, reference)
            except Exception as error:  # a kernel that does not compile, say: the others are still to be timed
                wrong[way] = f"{type(error).__name__}: {error}"
            else:
                found |= variants
        return found, wrong

    def _both(self, way: str, engine: Engine) -> dict[str, Callable[[], Any]]:
        return {
            f"full depth{way}": functools.partial(self.run, engine, pf.FullDepth()),
            f"early exit{way}": functools.partial(self.run, engine, pf.Scheduled(self.rows.exit_layers)),
        }

    def check(self, name: str, run: Callable[[], Any], reference: Tensor) -> float:
        """Hold a variant's answers against stock's, [rows, classes], and the exits given.

        Returns:
            The largest difference of logits over the largest logit; 0 where a variant has none to compare.

        Raises:
            ValueError: they are wrong, and may not be timed.
        """
        got = run()
        if name.startswith("early exit"):
            expected = list(self.exits.get(name.removeprefix("early exit, "), self.rows.exit_layers))
            if got.exit_layers.tolist() != expected:
                raise ValueError(f"{name}: rows left at other layers than those given")
            return 0.0
        if name == "nobody leaves":
            if set(got.exit_layers.tolist()) != {self.layers}:
                raise ValueError("rows left although no two neighbouring heads agree")
            return 0.0
        logits = got if isinstance(got, Tensor) else got.logits
        difference = float((logits - reference).abs().max() / reference.abs().max())
        if not difference <= TOLERANCE[self.dtype]:
            limit = TOLERANCE[self.dtype]
            raise ValueError(f"{name} differs from stock by {difference:.1e}, more than {limit:.0e}")
        return difference

    def flops(self) -> float:
        """Return operations of our full depth: 8 H^2 + 4 H I for the products of a token and 4 L H for its attention, a
        layer; of the last one those that are made."""
        config, lengths = self.stock.config, self.rows.lengths
        hidden, inner = config.hidden_size, config.intermediate_size
        products = (8 * hidden**2 + 4 * hidden * inner) * work.computed(
            self.engine, lengths, np.full_like(lengths, self.layers)
        )
        return float(products + self.layers * 4 * hidden * (lengths.astype(float) ** 2).sum())

    def layer_ratio(self, exits: tuple[int, ...], engine: Engine | None = None) -> float:
        """Return the most that exits can save of what an engine computes; None: the default one."""
        return work.most(engine or self.engine, self.rows.lengths, np.array(exits))

    def memory(self) -> dict[str, float]:
        """Return peaks of full depth and of stock with as many tokens in flight, in bytes beyond weights and inputs."""
        size, batches = max(self.batches.items())
        ids = batches[0][1]["input_ids"]
        engine = Engine(self.engine.model, token_budget=ids.numel())
        runs = {
            "stock": lambda: run_stock(self.stock, batches[:1], len(self.rows.input_ids)),
            "ours": lambda: engine.run(self.batch, pf.FullDepth()),
        }
        peaks = {name: shares.peak_bytes(run, self.device) for name, run in runs.items()}
        beyond = {name: float(peak - before) for name, (peak, before) in peaks.items()}
        return {
            "tokens_in_flight": ids.numel(),
            "stock_batch": size,
            **{f"{name}_bytes": value for name, value in beyond.items()},
            "ratio": beyond["ours"] / beyond["stock"],
            "ratio_with_weights": peaks["ours"][0] / peaks["stock"][0],
        }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run the case and return its figures."""
    device = choose_device(args.device)
    dtype, why = choose_dtype(args.dtype, device)
    setup, tell = Setup.build(args, device, dtype), teller(args.so_far)
    limits, lengths = ceilings.measure(device, dtype), setup.rows.lengths
    figures: dict[str, Any] = {
        "hardware": timing.hardware(device),
        "dtype": str(dtype).removeprefix("torch."),
        "dtype_reason": why,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": args.model,
        "layers": setup.layers,
        "layers_run": setup.engine.layers.describe(),
        "kernels_by_measure": setup.has_measured_kernels,
        "rows": args.rows,
        "tokens": int(lengths.sum()),
        "tokens_per_row": {"mean": float(lengths.mean()), "min": int(lengths.min()), "max": int(lengths.max())},
        "token_budget": setup.engine.token_budget,
        "rounds": args.rounds,
        "mean_exit_layers": {name: float(np.mean(exits)) for name, exits in setup.exits.items()},
        "ceilings": asdict(limits),
    }

    # 1. What the goals are about. All of it has run once when it is timed.
    reference, variants = setup.run_stock(next(iter(setup.batches))), setup.variants()
    try:
        differences = {name: setup.check(name, run, reference) for name, run in variants.items()}
    except ValueError as error:
        raise SystemExit(str(error)) from None
    figures["full_depth_difference"] = differences["full depth"]
    layer_ratios = {name: setup.layer_ratio(exits) for name, exits in setup.exits.items()}
    for seconds in timing.turns(variants, args.rounds, device, uncounted=0):
        figures |= outcome.speeds(seconds, args.rows, layer_ratios)
        if full_depth := seconds["full depth"]:
            figures["utilisation"] = setup.flops() / statistics.median(full_depth) / limits.matrix_rate
        tell(figures)

    # 2. Where its time and memory go.
    early = variants["early exit"]
    figures["time_shares"] = shares.time_shares(early, device)
    if device.type == "cuda":
        figures["kernel_shares"] = shares.kernel_shares(early)
        tell(figures)
        figures["memory"] = setup.memory()
    tell(figures)

    # 3. Other ways to run it.
    figures["other_ways"] = {}
    ratios = {way: setup.layer_ratio(setup.exits["usual"], engine) for way, engine in setup.others.items()}
    others, figures["wrong_ways"] = setup.ways(reference)
    for seconds in timing.turns(others, args.rounds if setup.others else 0, device, uncounted=0):
        figures["other_ways"] = outcome.ways(seconds, args.rows, ratios)
        tell(figures)
    return figures


def main() -> None:
    """Parse options, measure, print the table and, as the last line, one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=cases.MODELS, default="bert-base")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--lengths", default="sst2", help="sst2, or the tokens of every row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stock-batches", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--token-budget", type=int, default=None)
    parser.add_argument("--exits", nargs="*", choices=cases.SHARES.keys() - {"usual"}, default=[], help="beside usual")
    parser.add_argument("--under-way", type=int, nargs="*", default=[], help="also with so many waves under way")
    parser.add_argument("--layers", nargs="*", choices=VARIANTS, default=[], help="also with these layers")
    parser.add_argument(
        "--attention", nargs="*", choices=choice.ATTENTIONS, default=[], help="also with this attention"
    )
    parser.add_argument("--waves", type=int, nargs="*", default=[], help="also with token budgets of this size")
    parser.add_argument(
        "--fitted-heads", action="store_true", help="also with heads as fit leaves them: linear, over the mean token"
    )
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    add_so_far(parser)
    figures = measure(parser.parse_args())
    print(outcome.table(figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
