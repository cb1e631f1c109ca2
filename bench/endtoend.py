"""Rows/s of stock transformers, of our full depth and of early exit, in one run: `python -m bench.endtoend`.

Stock runs sdpa at the same dtype over length-sorted batches padded to their longest row, at its best batch size of
those given. Variants take turns; figures are medians over rounds. Before anything is timed the answers are checked.

exit efficiency: (full-depth seconds / early-exit seconds) / (sum tokens * layers / sum tokens * exit layer)
no-exit cost:    seconds with all heads, exit steps and read-backs while nobody leaves / full-depth seconds - 1
"""

import argparse
import copy
import functools
import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

import pabee_fast as pf
from bench import cases, timing
from pabee_fast.models.heads import heads_of
from pabee_fast.runtime.device import choose_device, choose_dtype
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.packed import pack
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


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the case and returns its figures."""
    device = choose_device(args.device)
    dtype, why = choose_dtype(args.dtype, device)
    # All variants read the same weights in memory: where a copy happens to lie changes CPU times by several percent.
    stock = cases.model(args.model).to(device, dtype)
    ours = copy.deepcopy(stock)
    ours.load_state_dict(stock.state_dict(), assign=True)
    silent = never_agree(pf.attach_heads(ours))
    layers = stock.config.num_hidden_layers
    rows = cases.sst2_like(args.rows, layers)
    lengths, exits = rows.lengths, np.array(rows.exit_layers)
    engine, silent_engine = (Engine(model, token_budget=args.token_budget) for model in (ours, silent))
    batch = pack(ours, **padded(rows.input_ids, torch.device("cpu")))
    scheduled, patience = pf.Scheduled(rows.exit_layers), pf.Patience(max(1, layers // 4))

    def run(engine: Engine, policy: pf.Policy) -> Results:
        results = engine.run(batch, policy)
        return Results(results.logits.cpu(), results.exit_layers.cpu())

    variants: dict[str, Callable[[], Any]] = {
        f"stock, batch {size}": functools.partial(run_stock, stock, stock_batches(rows, size, device), args.rows)
        for size in args.stock_batches
    }
    variants |= {
        "full depth": functools.partial(run, engine, pf.FullDepth()),
        "early exit": functools.partial(run, engine, scheduled),
        "nobody leaves": functools.partial(run, silent_engine, patience),
    }
    reference = variants[f"stock, batch {args.stock_batches[0]}"]()
    difference = float((variants["full depth"]().logits - reference).abs().max() / reference.abs().max())
    if not difference <= TOLERANCE[dtype]:
        raise SystemExit(f"full depth differs from stock by {difference:.1e}, more than {TOLERANCE[dtype]:.0e}")
    if variants["early exit"]().exit_layers.tolist() != list(rows.exit_layers):
        raise SystemExit("rows left at other layers than those given")
    if set(variants["nobody leaves"]().exit_layers.tolist()) != {layers}:
        raise SystemExit("rows left although no two neighbouring heads agree")

    seconds = timing.interleaved(variants, args.rounds, device)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    best_stock = min((name for name in median if name.startswith("stock")), key=median.__getitem__)
    layer_ratio = float(lengths.sum() * layers / (lengths * exits).sum())
    speed_up = timing.median_ratio(seconds["full depth"], seconds["early exit"])
    return {
        "hardware": timing.hardware(device),
        "dtype": str(dtype).removeprefix("torch."),
        "dtype_reason": why,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": args.model,
        "layers": layers,
        "rows": args.rows,
        "tokens": int(lengths.sum()),
        "tokens_per_row": {"mean": float(lengths.mean()), "min": int(lengths.min()), "max": int(lengths.max())},
        "token_budget": engine.token_budget,
        "rounds": args.rounds,
        "rows_per_second": {name: args.rows / value for name, value in median.items()},
        "seconds": seconds,
        "mean_exit_layer": float(exits.mean()),
        "baseline": f"{best_stock} (sdpa, length-sorted, padded to the longest of a batch)",
        "full_depth_vs_stock": timing.median_ratio(seconds[best_stock], seconds["full depth"]),
        "early_exit_vs_stock": timing.median_ratio(seconds[best_stock], seconds["early exit"]),
        "early_exit_vs_full_depth": speed_up,
        "layer_ratio": layer_ratio,
        "exit_efficiency": speed_up / layer_ratio,
        "no_exit_cost": timing.median_ratio(seconds["nobody leaves"], seconds["full depth"]) - 1,
        "full_depth_difference": difference,
    }


def table(figures: dict[str, Any]) -> str:
    """The figures as a README's table, in Markdown."""
    lengths = figures["tokens_per_row"]
    lines = [
        f"{figures['model']}, {figures['rows']} rows of {lengths['min']} to {lengths['max']} tokens "
        f"(mean {lengths['mean']:.1f}), {figures['dtype']}, {figures['hardware']}, torch {figures['torch']}",
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
        f"| no-exit cost | {figures['no_exit_cost']:+.1%} |",
    ]
    return "\n".join(lines)


def main() -> None:
    """Parses options, measures, prints the table and, as the last line, one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=cases.MODELS, default="bert-base")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stock-batches", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--token-budget", type=int, default=None)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    figures = measure(parser.parse_args())
    print(table(figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
