"""What a list loses when candidates are dropped: a number between 0 and 1, whose mean over lists is a risk."""

import math

import numpy as np
import torch
from torch import Tensor

from pabee_fast.calibration.replay import Replay
from pabee_fast.errors import InputError
from pabee_fast.reranking.guarantee import ListRisk
from pabee_fast.reranking.replay import ListTrace


def losses(risk: ListRisk, of: ListTrace, found: Replay) -> Tensor:
    """Return [lists] float64: what each list loses by what a policy `found`."""
    reached = found.exit_layers == of.trace.layers
    if risk.name == "overlap":
        best = of.best(risk.top_k)
        missing = torch.bincount(of.lists, weights=(best & ~reached).double(), minlength=len(of))
        return missing / of.sizes.clamp(1, risk.top_k)
    # What has left is ranked behind the rest, which is enough: top_k rows of a list never leave.
    full = of.scores[-1].nan_to_num(nan=-torch.inf)
    lost = ndcg(of, full, risk.top_k) - ndcg(of, torch.where(reached, full, -torch.inf), risk.top_k)
    return lost.clamp(min=0)


def ndcg(of: ListTrace, scores: Tensor, top_k: int) -> Tensor:
    """Return the normalised discounted cumulative gain of each list's best `top_k` by such scores, [lists] float64;
    gains are the relevance itself, and a list without any has 0.

    Raises:
        InputError: the trace knows no relevance.
    """
    if of.relevance is None:
        raise InputError("risk='ndcg' needs the candidates' relevance: name its column by --label-column")
    gains = [_gains(of, of.relevance, by, top_k) for by in (scores, of.relevance)]
    return torch.where(gains[1] > 0, gains[0] / gains[1].clamp(min=1e-12), 0.0)


def _gains(of: ListTrace, relevance: Tensor, by: Tensor, top_k: int) -> Tensor:
    places = of.ranked(by)
    gain = torch.where(places < top_k, relevance.double() / (places + 2).double().log2(), 0.0)
    return torch.bincount(of.lists, weights=gain, minlength=len(of))


def mean_p_value(losses: np.ndarray, epsilon: float, delta: float) -> float:
    """Return a p-value of "the mean loss is above epsilon", of independent losses between 0 and 1.

    By betting (Waudby-Smith and Ramdas, arXiv 2010.09686; as Bates et al., arXiv 2101.02703, use it): a gambler who
    bets on smaller losses has a fortune that is at least 1 / p at some time with a probability of at most p. What is
    bet follows the losses before, so that little is needed where these hardly vary.

    Args:
        losses: [lists], in an order that does not depend on them.
        epsilon: between 0 and 1.
        delta: the level that the bets are made for; the p-value holds at any.
    """
    count = np.arange(1, len(losses) + 1)
    mean = (0.5 + np.cumsum(losses)) / (1 + count)
    variance = (0.25 + np.cumsum((losses - mean) ** 2)) / (1 + count)
    before = np.concatenate([[0.25], variance[:-1]])
    bets = np.minimum(1.0, np.sqrt(2 * math.log(1 / delta) / (len(losses) * before)))
    fortune = np.cumsum(np.log1p(-bets * (losses - epsilon)))
    return float(min(1.0, math.exp(-max(0.0, fortune.max(initial=0.0)))))


def lists_needed(epsilon: float, delta: float) -> int:
    """Return the fewest lists that can support a promise: with less, not even no loss at all would do."""
    fewest = math.ceil(math.log(1 / delta) / math.log1p(epsilon))
    while mean_p_value(np.zeros(fewest), epsilon, delta) > delta:
        fewest += 1
    return fewest
