"""How much memory a computation holds at once, beside what it was given."""

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Peak(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.holders: Counter[int] = Counter()
        self.sizes: dict[int, int] = {}
        self.given: set[int] = set()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor) and (place := tensor.untyped_storage().data_ptr()) not in self.sizes:
                self.given.add(place)
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (place := tensor.untyped_storage().data_ptr()) not in self.given:
                self.sizes[place] = tensor.untyped_storage().nbytes()
                self.holders[place] += 1
                weakref.finalize(tensor, self._drop, place)
        self.most = max(self.most, sum(self.sizes.values()))
        return out

    def _drop(self, place: int) -> None:
        self.holders[place] -= 1
        if not self.holders[place]:
            self.sizes.pop(place, None)


def peak_bytes(compute: Callable[[], Any]) -> int:
    """The most bytes that tensors made by `compute` take up at once, the returned ones among them."""
    with torch.no_grad(), _Peak() as peak:
        compute()
    return peak.most
