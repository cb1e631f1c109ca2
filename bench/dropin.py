"""A call of the drop-in forward against the stock one, by device and batch size: `python -m bench.dropin`.

Every device here takes its turn, or those of `--device`. A batch is rows with sst2's lengths, padded to its longest, as
a pipeline gives it. Full depth shows what packing, binding and unpacking cost; early exit, what rows that leave give
back: the exits are given (`bench.cases`), the weights random. Variants take turns; figures are medians, and ratios
medians of the rounds' ratios. Answers are checked first.
"""

import argparse
import copy
import functools
import json
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import Tensor

import pabee_fast as pf
from bench import cases, timing
from bench.endtoend import TOLERANCE, padded
from bench.text import Tell, add_so_far, teller
from pabee_fast.runtime.device import choose_device, choose_dtype

SIZES = (1, 8, 32, 64, 256)
SCALE_ROWS = 64
"""Of whose largest logit a difference may be a share."""


@torch.no_grad()
def call(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return the logits of one call, on the host."""
    logits: Tensor = model(**batch).logits
    return logits.float().cpu()


def measure(args: argparse.Namespace, tell: Tell) -> dict[str, Any]:
    """Run every batch size on every device and return their figures, by the devices' types."""
    devices = args.device or ["cuda"] * torch.cuda.is_available() + ["cpu"]
    found: dict[str, Any] = {}
    for name in devices:
        device = choose_device(name)
        dtype, why = choose_dtype(args.dtype, device)
        found[device.type] = {
            "hardware": timing.hardware(device),
            "dtype": str(dtype).removeprefix("torch."),
            "dtype_reason": why,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "model": args.model,
            "rounds": args.rounds,
            "baseline": "stock: transformers' forward (sdpa) on the same padded batch",
            "by_rows": {},
        }
        for size, figures in _by_size(args, device, dtype):
            found[device.type]["by_rows"][size] = figures
            tell(found)
    return found


def _by_size(
    args: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each batch size and its figures."""
    stock = cases.model(args.model).to(device, dtype)
    ours = copy.deepcopy(stock)
    ours.load_state_dict(stock.state_dict(), assign=True)
    ours = pf.accelerate(pf.attach_heads(ours).eval(), pf.FullDepth())
    # One row's logits, of random weights, may be as small as their error.
    layers = stock.config.num_hidden_layers
    largest = call(stock, padded(cases.sst2_like(SCALE_ROWS, layers).input_ids, device)).abs().max()
    for size in args.sizes:
        rows = cases.sst2_like(size, layers)
        batch = padded(rows.input_ids, device)
        early = copy.copy(ours)  # on the same weights
        early.__dict__ = {**ours.__dict__}
        early = pf.accelerate(early, pf.Scheduled(rows.exit_layers))
        variants: dict[str, Callable[[], Tensor]] = {
            "stock": functools.partial(call, stock, batch),
            "full depth": functools.partial(call, ours, batch),
            "early exit": functools.partial(call, early, batch),
        }
        expected, answered = variants["stock"](), variants["full depth"]()
        difference = float((answered - expected).abs().max() / largest)
        if not difference <= TOLERANCE[dtype]:
            raise SystemExit(f"{size} rows differ from stock by {difference:.1e}, more than {TOLERANCE[dtype]:.0e}")
        with torch.no_grad():
            left = early(**batch).exit_layers.tolist()
        if left != list(rows.exit_layers):
            raise SystemExit(f"of {size} rows, some left at other layers than those given")
        seconds = timing.interleaved(variants, args.rounds, device)
        yield (
            size,
            {
                "milliseconds": {name: 1e3 * statistics.median(times) for name, times in seconds.items()},
                "full_depth_vs_stock": timing.median_ratio(seconds["stock"], seconds["full depth"]),
                "early_exit_vs_stock": timing.median_ratio(seconds["stock"], seconds["early exit"]),
                "tokens": int(rows.lengths.sum()),
                "padded_tokens": batch["input_ids"].numel(),
                "difference": difference,
            },
        )


def table(found: dict[str, Any]) -> str:
    """Return the figures in Markdown, a table for each device."""
    lines = []
    for figures in found.values():
        lines += [
            f"{figures['model']}, rows of sst2's lengths, {figures['dtype']}, {figures['hardware']}, torch "
            f"{figures['torch']}, transformers {figures['transformers']}; {figures['baseline']}:",
            "",
            "| rows | stock, ms | full depth, ms | against stock | early exit, ms | against stock |",
            "|---|---|---|---|---|---|",
        ]
        for size, each in figures["by_rows"].items():
            ms = each["milliseconds"]
            lines.append(
                f"| {size} | {ms['stock']:.1f} | {ms['full depth']:.1f} | {each['full_depth_vs_stock']:.2f}x "
                f"| {ms['early exit']:.1f} | {each['early_exit_vs_stock']:.2f}x |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Parse options, measure, print the table and, as the last line, one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=cases.MODELS, default="bert-base")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", nargs="+", default=[], help="cpu, cuda, or both; default: all that are here")
    add_so_far(parser)
    args = parser.parse_args()
    figures = measure(args, teller(args.so_far))
    print(table(figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
