"""How many tokens a wave may hold where nobody says."""

from collections.abc import Sequence

import torch
from torch import nn

TOKEN_BUDGETS = {"cuda": 131_072, "cpu": 2_000}
"""Most tokens of a wave by default. An H200 runs 32,768 tokens of BERT-base at 0.95 of the rate of 131,072 (measured),
and waves shrink before they are joined. On a CPU products run no faster with more rows, but what lies between them does
where arrays stay below 32 MiB: glibc maps fresh pages for a larger one each time (M_MMAP_THRESHOLD in mallopt(3)),
which cost ViT 6 % at full depth. 2,000 tokens stay below in a large model's widest array too, of 4,096 float32."""

LEAST = 2_048
"""Where memory is too short even for this, errors lower the budget further."""

SHARE = 0.5
"""Of a GPU's free memory, what waves may take: the rest is the inputs', the allocator's and other processes'."""


def default_budget(device: torch.device, layers: Sequence[nn.Module], hidden_size: int, dtype: torch.dtype) -> int:
    """Return the most tokens of a wave by device, halved until waves fit into a GPU's free memory.

    Halves, and not what just fits, so that a job that goes on beside other processes has the same waves again.

    Args:
        device: where the model is.
        layers: its layers.
        hidden_size: of the stream of tokens.
        dtype: of the stream.
    """
    budget = TOKEN_BUDGETS.get(device.type, 4_096)
    if device.type != "cuda":
        return budget
    # What the allocator holds unused is free to us, and not to the device.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    room = SHARE * (torch.cuda.mem_get_info(device)[0] + unused)
    while budget > LEAST and budget * bytes_a_token(layers, hidden_size, dtype) > room:
        budget //= 2
    return budget


LAUNCHES = {"cuda": 1e11}
"""Operations in the time that a layer's launches take the host. An estimate: a call of 8 rows takes 5.6 ms on an H200
(BERT-base, 12 layers, drop-in), of which each layer may be 0.2, and it does so many in that. A CPU launches nothing."""


def least_tokens(device: torch.device, layers: Sequence[nn.Module]) -> float:
    """Return the tokens below which a wave is through a layer no sooner."""
    weights = sum(weight.numel() for weight in layers[0].parameters() if weight.ndim == 2)
    return LAUNCHES.get(device.type, 0.0) / (2 * max(weights, 1))


def bytes_a_token(layers: Sequence[nn.Module], hidden_size: int, dtype: torch.dtype) -> int:
    """Return the most bytes that a token of a wave takes: twice a layer's widest array (of a gate and what it lets
    through), the stream with residual, queries, keys, values and what was attended to, and beside it a waiting wave at
    each depth."""
    widest = max((max(weight.shape) for weight in layers[0].parameters() if weight.ndim == 2), default=hidden_size)
    return (2 * widest + (6 + len(layers)) * hidden_size) * dtype.itemsize
