"""What was measured of kernels on GPUs: `python -m bench.tune write` makes it, from records."""

import torch

SHORT_ROWS: dict[tuple[str, torch.dtype, int], int] = {
    ("sm_90", torch.bfloat16, 32): 64,  # NVIDIA H200, 703e448
    ("sm_90", torch.bfloat16, 64): 64,  # NVIDIA H200, 703e448
    ("sm_90", torch.float16, 32): 64,  # NVIDIA H200, 703e448
    ("sm_90", torch.float16, 64): 64,  # NVIDIA H200, 703e448
}
"""Architecture, dtype and size of a head -> the most tokens of a batch's longest row with which the kernel for short
rows is faster than what else serves."""

LINEAR_GELU: dict[tuple[str, torch.dtype, int], int] = {
    ("sm_90", torch.bfloat16, 384): 8192,  # NVIDIA H200, 703e448
    ("sm_90", torch.bfloat16, 768): 8192,  # NVIDIA H200, 703e448
    ("sm_90", torch.bfloat16, 1024): 8192,  # NVIDIA H200, 703e448
    ("sm_90", torch.float16, 384): 8192,  # NVIDIA H200, 703e448
    ("sm_90", torch.float16, 768): 8192,  # NVIDIA H200, 703e448
    ("sm_90", torch.float16, 1024): 8192,  # NVIDIA H200, 703e448
}
"""Architecture, dtype and hidden size -> the fewest tokens with which a product that ends with its GELU is faster
than the library's product and a pass."""
