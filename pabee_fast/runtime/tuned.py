"""What was measured of attention for short rows: `python -m bench.tune write` makes it, from records."""

import torch

SHORT_ROWS: dict[tuple[str, torch.dtype, int], int] = {}
"""Architecture, dtype and size of a head -> the most tokens of a batch's longest row with which the kernel for short
rows is faster than what else serves."""
