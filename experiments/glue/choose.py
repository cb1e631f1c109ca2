"""Which heads and which rule to leave by: chosen on some rows, judged on others.

How strict a rule is may be set by the mean exit layer it gives, which needs no labels; what needs labels, which rule
at all, is chosen on the other fold. So no figure is of rows whose labels had a say in it.
"""

import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pabee_fast as pf
from pabee_fast.calibration.candidates import Chain, chains_for
from pabee_fast.calibration.replay import Replay, Replayer
from pabee_fast.policies import Policy

Score = Callable[[Replay, Replayer], float]
"""How good the answers of a replay are, by the labels of the replayer's trace; more is better."""


@dataclass(frozen=True)
class Choice:
    """A policy over some heads, and what it did with the rows it is judged on."""

    heads: str
    policy: Policy
    replay: Replay


def looking_chains(replayer: Replayer) -> list[Chain]:
    """Return the candidates that look at the row, from strict to loose: all but the fixed depths."""
    return [chain for chain in chains_for(replayer) if not isinstance(chain[0], pf.FixedDepth)]


def within_layers(replayer: Replayer, chain: Chain, mean_layers: float) -> Policy | None:
    """Return the strictest policy of a chain whose mean exit layer is at most `mean_layers`, or None. It needs no
    labels."""
    at = bisect.bisect_left(chain, -mean_layers, key=lambda policy: -replayer.replay(policy).mean_exit_layer)
    return chain[at] if at < len(chain) else None


def best_within(
    chosen_on: Mapping[str, Replayer], judged_on: Mapping[str, Replayer], mean_layers: float, score: Score
) -> Choice | None:
    """Return the heads and rule that score best on `chosen_on` at `mean_layers` or less, as they do on `judged_on`.

    Args:
        chosen_on, judged_on: the heads' name -> a replayer over the rows of one fold and of the other.

    Returns:
        None where no rule leaves so early.
    """
    best: tuple[float, Choice] | None = None
    for heads, replayer in chosen_on.items():
        for chain in looking_chains(replayer):
            policy = within_layers(replayer, chain, mean_layers)
            applied = within_layers(judged_on[heads], chain, mean_layers)
            if policy is None or applied is None:
                continue
            reached = score(replayer.replay(policy), replayer)
            if best is None or reached > best[0]:
                best = reached, Choice(heads, applied, judged_on[heads].replay(applied))
    return best[1] if best else None


def fastest_above(
    chosen_on: Mapping[str, Replayer], judged_on: Mapping[str, Replayer], least_score: float, score: Score
) -> Choice | None:
    """Return the policy of the least mean exit layer on `chosen_on` among those that score `least_score` there, as it
    does, threshold and all, on `judged_on`; None where no policy leaves early and scores so much."""
    best: tuple[float, str, Policy] | None = None
    for heads, replayer in chosen_on.items():
        for chain in looking_chains(replayer):
            for policy in chain:
                done = replayer.replay(policy)
                sooner = best is None or done.mean_exit_layer < best[0]
                if sooner and score(done, replayer) >= least_score:
                    best = done.mean_exit_layer, heads, policy
    if best is None:
        return None
    _, heads, policy = best
    return Choice(heads, policy, judged_on[heads].replay(policy))
