"""Every family as 12 layers of hidden size 768: full depth against stock, and what early exit reaches of what its exits
allow: `python -m bench.families [--family llama ...]`.

Rows have sst2 dev's lengths and the exits of `bench.cases`; images are as many rows of one length. Stock runs its own
attention over length-sorted batches padded to their longest row, at its best batch size of those given. Variants take
turns; figures are medians over rounds. Before anything is timed the answers are checked.

exit efficiency: (full-depth seconds / early-exit seconds) / (sum tokens * layers / sum tokens * exit layer)
"""

import argparse
import copy
import functools
import json
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

import pabee_fast as pf
from bench import cases, timing, work
from bench.endtoend import TOLERANCE, run_stock, stock_batches
from bench.text import add_so_far, teller
from pabee_fast.models import FAMILIES
from pabee_fast.runtime.device import choose_device, choose_dtype
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.pack import PackedBatch, pack
from pabee_fast.runtime.variants import VARIANTS

Batches = list[tuple[np.ndarray, dict[str, Tensor]]]

LAYERS = 12
SIZES = {
    "vocab_size": 30_522, "hidden_size": 768, "num_hidden_layers": LAYERS, "num_attention_heads": 12,
    "intermediate_size": 3_072, "max_position_embeddings": 514, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 4}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
OPTIONS: dict[str, dict[str, Any]] = {
    "roberta": {"pad_token_id": 1},
    "xlm-roberta": {"pad_token_id": 1},
    "camembert": {"pad_token_id": 1},
    "mpnet": {"pad_token_id": 1},
    "electra": {"embedding_size": 768},
    "modernbert": {"intermediate_size": 1_152},
    "deberta": {**RELATIVE, "max_relative_positions": 512},
    "deberta-v2": {**RELATIVE, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "eurobert": GROUPED,
    "gemma": {**GROUPED, "head_dim": 64},
    "deit": {"architectures": ["DeiTForImageClassification"]},
}
"""What a config says beside SIZES; by default what its published base model has."""

PADDED = ("deberta", "mpnet")
GOALS = {False: (0.90, 1.00), True: (0.80, 0.95)}
"""Exit efficiency and full depth against stock, of packed and of padded families."""


def model_of(family: str) -> Any:
    """Return a stock two-class model with random weights, in evaluation mode."""
    torch.manual_seed(0)
    is_vision = "pixel_values" in FAMILIES[family].inputs
    auto = AutoModelForImageClassification if is_vision else AutoModelForSequenceClassification
    return auto.from_config(
        AutoConfig.for_model(family, **{**SIZES, **OPTIONS.get(family, {}), "num_labels": 2})
    ).eval()


def image_batches(images: Tensor, size: int) -> Batches:
    """Return batches of `size` images in their order."""
    cuts = [np.arange(first, min(first + size, len(images))) for first in range(0, len(images), size)]
    return [(members, {"pixel_values": images[members]}) for members in cuts]


def measure(family: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one family and return its figures."""
    device = choose_device(args.device)
    dtype, _ = choose_dtype(args.dtype, device)
    # Both read the same weights in memory: where a copy happens to lie changes CPU times by several percent.
    stock = model_of(family).to(device, dtype)
    ours = copy.deepcopy(stock)
    ours.load_state_dict(stock.state_dict(), assign=True)
    pf.attach_heads(ours)
    engine = Engine(ours, token_budget=args.token_budget, layers=args.layers)
    is_vision = "pixel_values" in engine.family.inputs
    count = args.images if is_vision else args.rows
    rows = cases.sst2_like(count, LAYERS)
    if is_vision:
        images = torch.randn(count, 3, 224, 224, dtype=dtype, device=device)
        batch: PackedBatch = pack(ours, pixel_values=images)
        batches: Callable[..., Batches] = functools.partial(image_batches, images)
    else:
        (_, everything), *_ = stock_batches(rows, count, torch.device("cpu"), engine.model.config.pad_token_id)
        order = np.argsort(-rows.lengths, kind="stable")
        batch = pack(ours, **everything)
        rows = cases.Rows([rows.input_ids[i] for i in order], tuple(rows.exit_layers[i] for i in order))
        batches = functools.partial(stock_batches, rows, device=device, pad=stock.config.pad_token_id)
    exits = np.array(rows.exit_layers)

    def run(policy: pf.Policy) -> tuple[Tensor, Tensor]:
        results = engine.run(batch, policy)
        return results.logits.cpu(), results.exit_layers.cpu()

    variants: dict[str, Callable[[], Any]] = {
        f"stock, batch {size}": functools.partial(run_stock, stock, batches(size=size), count)
        for size in args.stock_batches
    }
    variants |= {
        "full depth": functools.partial(run, pf.FullDepth()),
        "early exit": functools.partial(run, pf.Scheduled(rows.exit_layers)),
    }
    reference = variants[f"stock, batch {args.stock_batches[0]}"]()
    difference = float((variants["full depth"]()[0] - reference).abs().max() / reference.abs().max())
    if not difference <= TOLERANCE[dtype]:
        raise SystemExit(f"{family}: full depth differs from stock by {difference:.1e}")
    if variants["early exit"]()[1].tolist() != exits.tolist():
        raise SystemExit(f"{family}: rows left at other layers than those given")

    seconds = timing.interleaved(variants, args.rounds, device)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    best_stock = min((name for name in median if name.startswith("stock")), key=median.__getitem__)
    layer_ratio = work.most(engine, batch.lengths, exits)
    speed_up = timing.median_ratio(seconds["full depth"], seconds["early exit"])
    return {
        "family": family,
        "hardware": timing.hardware(device),
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rows": count,
        "tokens_per_row": {"mean": float(batch.lengths.mean()), "max": int(batch.lengths.max())},
        "rounds": args.rounds,
        "token_budget": engine.token_budget,
        "layers": engine.layers.describe(),
        "rows_per_second": {name: count / value for name, value in median.items()},
        "seconds": seconds,
        "baseline": best_stock,
        "full_depth_vs_stock": timing.median_ratio(seconds[best_stock], seconds["full depth"]),
        "early_exit_vs_stock": timing.median_ratio(seconds[best_stock], seconds["early exit"]),
        "layer_ratio": layer_ratio,
        "exit_efficiency": speed_up / layer_ratio,
        "full_depth_difference": difference,
    }


def line(figures: dict[str, Any]) -> str:
    """Return one family's line of the table, in Markdown; a figure below its goal is followed by it."""
    efficiency, full_depth = GOALS[figures["family"] in PADDED]
    cells = [
        f"{value:.{digits}f}{'' if value >= goal else f' (goal {goal:.2f})'}"
        for value, goal, digits in (
            (figures["full_depth_vs_stock"], full_depth, 2),
            (figures["exit_efficiency"], efficiency, 3),
        )
    ]
    baseline, rates = figures["baseline"], figures["rows_per_second"]
    stock, full, early = (f"{rates[name]:.1f}" for name in (baseline, "full depth", "early exit"))
    return (
        f"| {figures['family']} | {stock} ({baseline}) | {full} | {early} | {cells[0]} | {cells[1]} | "
        f"{figures['early_exit_vs_stock']:.2f} |"
    )


def main() -> None:
    """Parse options, measure family by family, print the table and, as the last line, one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, nargs="+", default=list(FAMILIES))
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stock-batches", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--token-budget", type=int, default=None, help="of our waves; default: the engine's")
    parser.add_argument("--layers", choices=VARIANTS, default=None, help="how ours run; default: the engine's choice")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    add_so_far(parser)
    args = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    tell = teller(args.so_far)
    for family in args.family:
        found[family] = measure(family, args)
        tell(found)
        if family == args.family[0]:
            first = found[family]
            print(
                f"{LAYERS} layers of 768, {args.rows} rows of sst2 dev's lengths, {args.images} images of 224 x 224, "
                f"{first['dtype']}, {first['hardware']}, torch {first['torch']}, transformers {first['transformers']}; "
                f"these exits allow {first['layer_ratio']:.2f}x\n\n"
                "| family | stock rows/s | full depth | early exit | full depth / stock | exit efficiency | "
                "early exit / stock |\n|---|---|---|---|---|---|---|"
            )
        print(line(found[family]), flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
