"""What was measured of kernels on GPUs: `python -m bench.tune write` makes it, from records."""

import torch

SHORT_ROWS: dict[tuple[str, torch.dtype, int], int] = {}
"""Architecture, dtype and size of a head -> the most tokens of a batch's longest row with which the kernel for short
rows is faster than what else serves."""

LINEAR_GELU: dict[tuple[str, torch.dtype, int], int] = {}
"""Architecture, dtype and hidden size -> the fewest tokens with which a product that ends with its GELU is faster
than the library's product and a pass."""
