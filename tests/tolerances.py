"""How far floating-point numbers may differ; integers are compared exactly."""

import torch
from torch import Tensor

# The largest difference as a share of the largest expected magnitude, by the dtype that the computation ran in.
TOLERANCES: dict[torch.dtype, float] = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Fail unless shapes, NaN and infinities are the same and the rest differs by no more than `dtype` allows."""
    finite = expected[expected.isfinite()]
    largest = finite.abs().max().item() if finite.numel() else 0.0
    torch.testing.assert_close(
        actual, expected, rtol=0.0, atol=TOLERANCES[dtype] * largest, equal_nan=True, check_dtype=False
    )
