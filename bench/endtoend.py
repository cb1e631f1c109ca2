"""Rows/s of stock transformers, of our full depth and of early exit, in one run: `python -m bench.endtoend`.

Stock runs sdpa at the same dtype over length-sorted batches padded to their longest row, at its best batch size of
those given. Variants take turns; figures are medians over rounds. Before anything is timed the answers are checked.

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
from bench import cases, ceilings, shares, timing
from pabee_fast.models.heads import heads_of
from pabee_fast.runtime.choice import ATTENTIONS
from pabee_fast.runtime.device import choose_device, choose_dtype
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.layers import VARIANTS
from pabee_fast.runtime.pack import PackedBatch, pack
from pabee_fast.runtime.state import Results

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
    """Every row's logits in input order, [rows, classes] on the host."""
    out = torch.empty(rows, model.config.num_labels)
    for members, batch in batches:
        out[torch.from_numpy(members)] = model(**batch).logits.float().cpu()
    return out


def never_agree(model: Any) -> Any:
    """A model on the same weights whose neighbouring heads give different answers for every row, whatever the text."""
    silent = copy.deepcopy(model)
    silent.load_state_dict(model.state_dict(), assign=True)
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
        ours = copy.deepcopy(stock)
        ours.load_state_dict(stock.state_dict(), assign=True)
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
        return cls(
            device, dtype, rows,
            batch=pack(ours, **padded(rows.input_ids, torch.device("cpu"))),
            stock=stock,
            batches={size: stock_batches(rows, size, device) for size in args.stock_batches},
            engine=Engine(ours, token_budget=budget),
            silent=Engine(silent, token_budget=budget),
            others={name: Engine(ours, **{"token_budget": budget, **options}) for name, options in others.items()},
            exits={"usual": rows.exit_layers}
            | {name: cases.exits_of(name, args.rows, layers) for name in args.exits},
        )  # fmt: skip

    @property
    def layers(self) -> int:
        return len(self.engine.layers)

    def run(self, engine: Engine, policy: pf.Policy) -> Results:
        results = engine.run(self.batch, policy)
        return Results(results.logits.cpu(), results.exit_layers.cpu())

    def run_stock(self, size: int) -> Tensor:
        return run_stock(self.stock, self.batches[size], len(self.rows.input_ids))

    def variants(self) -> dict[str, Callable[[], Any]]:
        """What is timed, by name."""
        found: dict[str, Callable[[], Any]] = {
            f"stock, batch {size}": functools.partial(self.run_stock, size) for size in self.batches
        }
        patience = pf.Patience(max(1, self.layers // 4))
        found["full depth"] = functools.partial(self.run, self.engine, pf.FullDepth())
        for name, exits in self.exits.items():
            label = "early exit" if name == "usual" else f"early exit, {name}"
            found[label] = functools.partial(self.run, self.engine, pf.Scheduled(exits))
        found["nobody leaves"] = functools.partial(self.run, self.silent, patience)
        for name, engine in self.others.items():
            found[f"full depth, {name}"] = functools.partial(self.run, engine, pf.FullDepth())
            found[f"early exit, {name}"] = functools.partial(self.run, engine, pf.Scheduled(self.rows.exit_layers))
        return found

    def check(self, variants: dict[str, Callable[[], Any]]) -> float:
        """Holds every variant's answers against stock's and the exits given; returns full depth's difference.

        Raises:
            SystemExit: something is wrong, and nothing may be timed.
        """
        reference, differences = self.run_stock(next(iter(self.batches))), {}
        for name, run in variants.items():
            if name.startswith("full depth"):
                differences[name] = float((run().logits - reference).abs().max() / reference.abs().max())
                if not differences[name] <= TOLERANCE[self.dtype]:
                    raise SystemExit(f"{name} differs from stock by {differences[name]:.1e}, "
                                     f"more than {TOLERANCE[self.dtype]:.0e}")  # fmt: skip
            elif name.startswith("early exit"):
                shares = name.removeprefix("early exit").removeprefix(", ")
                if run().exit_layers.tolist() != list(self.exits.get(shares, self.rows.exit_layers)):
                    raise SystemExit(f"{name}: rows left at other layers than those given")
        if set(variants["nobody leaves"]().exit_layers.tolist()) != {self.layers}:
            raise SystemExit("rows left although no two neighbouring heads agree")
        return differences["full depth"]

    def flops(self) -> float:
        """Operations of full depth: 8 H^2 + 4 H I for the products of a token and 4 L H for its attention, a layer."""
        config, lengths = self.stock.config, self.rows.lengths.astype(float)
        hidden, inner = config.hidden_size, config.intermediate_size
        products = (8 * hidden**2 + 4 * hidden * inner) * lengths.sum()
        return float(self.layers * (products + 4 * hidden * (lengths**2).sum()))

    def layer_ratio(self, exits: tuple[int, ...]) -> float:
        """The most that exits can save."""
        lengths = self.rows.lengths
        return float(lengths.sum() * self.layers / (lengths * np.array(exits)).sum())

    def memory(self) -> dict[str, float]:
        """Peaks of full depth and of stock with as many tokens in flight, in bytes beyond weights and inputs."""
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
    """Runs the case and returns its figures."""
    device = choose_device(args.device)
    dtype, why = choose_dtype(args.dtype, device)
    setup = Setup.build(args, device, dtype)
    variants = setup.variants()
    difference = setup.check(variants)
    limits = ceilings.measure(device, dtype)
    seconds = timing.interleaved(variants, args.rounds, device)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    best_stock = min((name for name in median if name.startswith("stock")), key=median.__getitem__)
    full_depth, lengths = seconds["full depth"], setup.rows.lengths

    def efficiency(name: str, full: str, exits: tuple[int, ...]) -> float:
        return timing.median_ratio(seconds[full], seconds[name]) / setup.layer_ratio(exits)

    early = variants["early exit"]
    figures = {
        "hardware": timing.hardware(device),
        "dtype": str(dtype).removeprefix("torch."),
        "dtype_reason": why,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": args.model,
        "layers": setup.layers,
        "layers_run": setup.engine.layers.describe(),
        "rows": args.rows,
        "tokens": int(lengths.sum()),
        "tokens_per_row": {"mean": float(lengths.mean()), "min": int(lengths.min()), "max": int(lengths.max())},
        "token_budget": setup.engine.token_budget,
        "rounds": args.rounds,
        "rows_per_second": {name: args.rows / value for name, value in median.items()},
        "seconds": seconds,
        "mean_exit_layer": float(np.mean(setup.rows.exit_layers)),
        "baseline": f"{best_stock} (sdpa, length-sorted, padded to the longest of a batch)",
        "full_depth_vs_stock": timing.median_ratio(seconds[best_stock], full_depth),
        "early_exit_vs_stock": timing.median_ratio(seconds[best_stock], seconds["early exit"]),
        "early_exit_vs_full_depth": timing.median_ratio(full_depth, seconds["early exit"]),
        "layer_ratio": setup.layer_ratio(setup.rows.exit_layers),
        "exit_efficiency": efficiency("early exit", "full depth", setup.rows.exit_layers),
        "other_exits": {
            name: {
                "mean_exit_layer": float(np.mean(exits)),
                "vs_full_depth": timing.median_ratio(full_depth, seconds[f"early exit, {name}"]),
                "layer_ratio": setup.layer_ratio(exits),
                "exit_efficiency": efficiency(f"early exit, {name}", "full depth", exits),
            }
            for name, exits in setup.exits.items()
            if name != "usual"
        },
        "other_ways": {
            name: {
                "full_depth_speed": timing.median_ratio(full_depth, seconds[f"full depth, {name}"]),
                "early_exit_speed": timing.median_ratio(seconds["early exit"], seconds[f"early exit, {name}"]),
                "exit_efficiency": efficiency(f"early exit, {name}", f"full depth, {name}", setup.rows.exit_layers),
            }
            for name in setup.others
        },
        "no_exit_cost": timing.median_ratio(seconds["nobody leaves"], full_depth) - 1,
        "full_depth_difference": difference,
        "ceilings": asdict(limits),
        "utilisation": setup.flops() / median["full depth"] / limits.matrix_rate,
        "time_shares": shares.time_shares(early, device),
    }
    if device.type == "cuda":
        figures |= {"kernel_shares": shares.kernel_shares(early), "memory": setup.memory()}
    return figures


def table(figures: dict[str, Any]) -> str:
    """The figures as a README's table, in Markdown."""
    lengths = figures["tokens_per_row"]
    lines = [
        f"{figures['model']}, {figures['rows']} rows of {lengths['min']} to {lengths['max']} tokens "
        f"(mean {lengths['mean']:.1f}), {figures['dtype']}, {figures['hardware']}, torch {figures['torch']}, "
        f"transformers {figures['transformers']}:",
        "",
        "| | rows/s |",
        "|---|---|",
        *(f"| {name} | {rate:.1f} |" for name, rate in figures["rows_per_second"].items()),
        "",
        "| | |",
        "|---|---|",
        f"| full depth against the best stock batch | {figures['full_depth_vs_stock']:.2f}x |",
        f"| early exit against the best stock batch | {figures['early_exit_vs_stock']:.2f}x |",
        f"| early exit against our full depth | {figures['early_exit_vs_full_depth']:.2f}x |",
        f"| most that these exits allow | {figures['layer_ratio']:.2f}x |",
        f"| exit efficiency | {figures['exit_efficiency']:.3f} |",
        *(
            f"| exit efficiency, {name} exits ({each['vs_full_depth']:.2f}x of {each['layer_ratio']:.2f}x) "
            f"| {each['exit_efficiency']:.3f} |"
            for name, each in figures["other_exits"].items()
        ),
        f"| no-exit cost | {figures['no_exit_cost']:+.1%} |",
        f"| exit step, plan and gather, of the time | {figures['time_shares']['together']:.1%} |",
        f"| full depth, of the rate of a matrix product | {figures['utilisation']:.1%} |",
    ]
    if "memory" in figures:
        lines.append(f"| peak memory against stock, as many tokens | {figures['memory']['ratio']:.2f}x |")
    for name, each in figures["other_ways"].items():
        lines.append(f"| {name}: full depth, early exit against the default | {each['full_depth_speed']:.3f}x, "
                     f"{each['early_exit_speed']:.3f}x |")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Parses options, measures, prints the table and, as the last line, one JSON document."""
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
    parser.add_argument("--attention", nargs="*", choices=ATTENTIONS, default=[], help="also with this attention")
    parser.add_argument("--waves", type=int, nargs="*", default=[], help="also with token budgets of this size")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    figures = measure(parser.parse_args())
    print(table(figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
