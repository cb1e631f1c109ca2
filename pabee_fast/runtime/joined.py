"""Parameters that lie one after another in memory, so that one product serves them all.

Nothing is kept beside the parameters themselves: the joined tensor owns their memory and they are views of it, so that
whatever changes a weight in place changes it for both, and no weight is held twice. What gives a parameter other memory
(`.to`, `load_state_dict(assign=True)`, a copy) parts it from the others; they are joined anew when next asked for.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return some parameters as one tensor [sum of their lengths, ...] over their own memory, moved together if need
    be.

    They keep their identity, values and gradients. `save_pretrained`, copies and optimisers work as before;
    `safetensors.torch.save_model` refuses parameters that are parts of a larger storage, until they are `separate`.
    """
    if not are_joined(parts):
        # A tensor made in inference mode could not be trained afterwards.
        with torch.inference_mode(False), torch.no_grad():
            whole = torch.cat([part.detach() for part in parts])
            for part, own in zip(parts, whole.split([part.shape[0] for part in parts]), strict=True):
                part.data = own
    first = parts[0].detach()
    return first.as_strided((sum(part.shape[0] for part in parts), *first.shape[1:]), first.stride())


def separate(parts: Sequence[Tensor]) -> None:
    """Give each of some joined parameters memory of its own again; others are left as they are."""
    if are_joined(parts):
        with torch.inference_mode(False):
            for part in parts:
                part.data = part.detach().clone()


def are_joined(parts: Sequence[Tensor]) -> bool:
    """Return whether the parameters follow one another in one storage; reads addresses, not the device."""
    storage, address = parts[0].untyped_storage().data_ptr(), parts[0].data_ptr()
    for part in parts:
        # Two storages may be neighbours by chance, and a tensor over both would reach beyond its own.
        if part.data_ptr() != address or part.untyped_storage().data_ptr() != storage or not part.is_contiguous():
            return False
        address += part.nbytes
    return True
