"""Wall-clock speed-ups of chosen policies over full depth, beside the most that their exits allow."""

import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

import pabee_fast as pf
from bench import timing
from pabee_fast.policies import Policy
from pabee_fast.runtime.engine import Engine


def wall_clock(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[tuple[str, ...]],
    policies: Mapping[str, Policy],
    *,
    max_length: int,
    rounds: int,
) -> dict[str, Any]:
    """Times the engine on rows that are tokenised beforehand; full depth and the policies take turns."""
    engine = Engine(model)
    batch = pf.Scorer(model, tokenizer, policy=pf.FullDepth(), max_length=max_length).batch(rows)
    all_policies = {"full depth": pf.FullDepth(), **policies}
    exits = {name: engine.run(batch, policy).exit_layers.cpu().numpy() for name, policy in all_policies.items()}
    variants = {name: functools.partial(_run, engine, batch, policy) for name, policy in all_policies.items()}
    seconds = timing.interleaved(variants, rounds, engine.device)
    layers = len(engine.layers)
    return {
        "rows": len(rows),
        "tokens": int(batch.lengths.sum()),
        "rounds": rounds,
        "hardware": timing.hardware(engine.device),
        "dtype": str(engine.dtype).removeprefix("torch."),
        "full_depth_rows_per_second": len(rows) / statistics.median(seconds["full depth"]),
        "policies": {
            name: {
                "policy": str(policy),
                "mean_exit_layer": float(exits[name].mean()),
                "layer_ratio": float(batch.lengths.sum() * layers / (batch.lengths * exits[name]).sum()),
                "speed_up": timing.median_ratio(seconds["full depth"], seconds[name]),
                "rows_per_second": len(rows) / statistics.median(seconds[name]),
            }
            for name, policy in policies.items()
        },
    }


def _run(engine: Engine, batch: Any, policy: Policy) -> None:
    engine.run(batch, policy).exit_layers.cpu()
