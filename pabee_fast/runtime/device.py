"""Which device and which precision, and why. Asked for by name, or chosen by what the machine has."""

import torch

from pabee_fast.arguments import DTYPE_NAMES, require_device, require_dtype
from pabee_fast.errors import InputError

DTYPES = {name: getattr(torch, name) for name in DTYPE_NAMES}


def choose_device(name: str = "auto") -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or one of several, `cuda:1`.

    Raises:
        InputError: another name, or a CUDA device that is not there.
    """
    require_device(name)
    kind, _, index = name.partition(":")
    has_cuda = torch.cuda.is_available()
    if kind == "cuda" and not has_cuda:
        raise InputError(f"device={name!r}: torch sees no CUDA device here; give cpu, or install torch's CUDA build")
    if index and int(index) >= torch.cuda.device_count():
        raise InputError(f"device={name!r}: torch sees {torch.cuda.device_count()} CUDA devices, counted from 0")
    return torch.device(("cuda" if has_cuda else "cpu") if name == "auto" else name)


def choose_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the precision of the layers, and the reason for it.

    `auto` takes bfloat16 where the device multiplies it in hardware (CUDA from compute capability 8.0; CPUs with AMX),
    float16 on older CUDA devices, and float32 elsewhere: without AMX a CPU's bfloat16 products are several times
    slower than float32 ones.

    Raises:
        InputError: another name than auto, float32, bfloat16, float16.
    """
    require_dtype(name)
    if name in DTYPES:
        return DTYPES[name], "asked for"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return torch.bfloat16, "this GPU multiplies bfloat16 in hardware"
        return torch.float16, "this GPU has no bfloat16 products"
    if torch.cpu._is_amx_tile_supported():
        return torch.bfloat16, "this CPU multiplies bfloat16 in hardware (AMX)"
    return torch.float32, "this CPU has no bfloat16 products in hardware (AMX)"
