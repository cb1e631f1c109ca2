"""Seconds of a layer by every variant of `runtime/layers.py`, on packed tokens: `python -m bench.layers`.

The tokens are those of rows with sst2's lengths, longest first, as a wave holds them. Variants take turns; figures are
medians over rounds, and ratios medians of the rounds' ratios. Before anything is timed, every variant is held against
stock. Beside them stand query, key and value as three products and as one, and what each variant costs once: binding
and joining of weights, and the first call, in which Triton compiles.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.functional import linear
from transformers import AlbertConfig, AutoModelForSequenceClassification, BertConfig, RobertaConfig

from bench import cases, timing
from bench.endtoend import TOLERANCE
from pabee_fast.layout import Layout
from pabee_fast.models import family_of
from pabee_fast.runtime.device import choose_device, choose_dtype
from pabee_fast.runtime.layers import Layers
from pabee_fast.runtime.pack import cumulative
from pabee_fast.runtime.schedule import plan_waves
from pabee_fast.runtime.variants import VARIANTS

ALBERT_BASE = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
CONFIGS: dict[str, Callable[..., Any]] = {
    "bert": BertConfig,
    "albert": lambda **options: AlbertConfig(**ALBERT_BASE, **options),
    "roberta": RobertaConfig,
}
"""Each family at its base size, with the activation that its published models have."""


def wave(tokens: int, hidden_size: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Layout]:
    """Return random hidden states [at most tokens, hidden_size] of rows with sst2's lengths, and where these lie."""
    lengths = cases.sst2_like(max(64, tokens // 20), 12).lengths
    rows = max(plan_waves(lengths, tokens), key=lambda members: lengths[members].sum())
    ends = cumulative(lengths[rows])
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(int(ends[-1]), hidden_size, generator=generator).to(device, dtype)
    return hidden, Layout(torch.from_numpy(ends).to(device), int(lengths[rows].max()))


def through(layers: Layers, hidden: Tensor, layout: Layout) -> Tensor:
    """Return all layers, one after another, as the engine runs them."""
    with torch.no_grad(), layers.turn(), layers.running():
        for number in range(1, len(layers) + 1):
            hidden = layers(number, hidden, layout, {})
    return hidden


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run the case and return its figures."""
    device = choose_device(args.device)
    dtype, why = choose_dtype(args.dtype, device)
    torch.manual_seed(0)
    config = CONFIGS[args.family](num_hidden_layers=args.layers)
    model = AutoModelForSequenceClassification.from_config(config).eval().to(device, dtype)
    hidden, layout = wave(args.tokens, config.hidden_size, device, dtype)
    ways = {name: Layers(model, family_of(model), name) for name in args.variants}
    startup: dict[str, dict[str, float]] = {}
    outputs = {}
    for name, layers in ways.items():
        started = time.perf_counter()
        with layers.turn(), layers.running():
            timing.wait_for(device)
        bound = time.perf_counter()
        outputs[name] = through(layers, hidden, layout).float()
        timing.wait_for(device)
        startup[name] = {"bind": bound - started, "first call": time.perf_counter() - bound}
    largest = float(outputs["stock"].abs().max())
    differences = {name: float((out - outputs["stock"]).abs().max()) / largest for name, out in outputs.items()}
    for name, difference in differences.items():
        if not difference <= TOLERANCE[dtype]:
            raise SystemExit(f"{name} differs from stock by {difference:.1e}, more than {TOLERANCE[dtype]:.0e}")

    size = config.hidden_size
    three = [torch.randn(size, size, device=device, dtype=dtype) for _ in range(3)]
    one = torch.cat(three)
    timed: dict[str, Callable[[], Any]] = {
        **{name: functools.partial(through, layers, hidden, layout) for name, layers in ways.items()},
        "three products": lambda: [linear(hidden, weight) for weight in three],
        "one product": lambda: linear(hidden, one),
    }
    clock = time.process_time if args.processor_time else time.perf_counter
    seconds = timing.interleaved(timed, args.rounds, device, clock)
    count = {name: len(ways[name]) if name in ways else 1 for name in timed}
    return {
        "hardware": timing.hardware(device),
        "dtype": str(dtype).removeprefix("torch."),
        "dtype_reason": why,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "family": args.family,
        "activation": config.hidden_act,
        "layers": args.layers,
        "tokens": hidden.shape[0],
        "rows": len(layout.cu_seqlens) - 1,
        "rounds": args.rounds,
        "clock": "processor time of all threads" if args.processor_time else "wall clock",
        "baseline": "stock: transformers' modules on the same packed tokens",
        "seconds_per_layer": {name: statistics.median(times) / count[name] for name, times in seconds.items()},
        "against_stock": {name: timing.median_ratio(seconds["stock"], seconds[name]) for name in ways},
        "difference": differences,
        "startup": startup,
    }


def table(figures: dict[str, Any]) -> str:
    """Return the figures in Markdown."""
    lines = [
        f"{figures['family']}-base, {figures['tokens']} tokens in {figures['rows']} rows, {figures['dtype']}, "
        f"{figures['activation']}, {figures['hardware']}, torch {figures['torch']}, {figures['clock']}",
        "",
        "| | ms a layer | against stock | difference | bind, ms | first call, s |",
        "|---|---|---|---|---|---|",
    ]
    for name, seconds in figures["seconds_per_layer"].items():
        line = f"| {name} | {1e3 * seconds:.2f} |"
        if name in figures["startup"]:
            once = figures["startup"][name]
            line += f" {figures['against_stock'][name]:.3f}x | {figures['difference'][name]:.1e} |"
            line += f" {1e3 * once['bind']:.1f} | {once['first call']:.1f} |"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Parse options, measure, print the table and, as the last line, one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=CONFIGS, default="bert")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--processor-time", action="store_true", help="for a CPU that other programs use as well")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    figures = measure(parser.parse_args())
    print(table(figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
