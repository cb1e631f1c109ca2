from collections.abc import Iterator

import pytest
import torch

# A failure in a shared case shows its values, as one in a test does.
pytest.register_assert_rewrite(
    "tests.kernels.attention_cases",
    "tests.kernels.compact_cases",
    "tests.kernels.exit_cases",
    "tests.kernels.layer_cases",
)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Let torch.empty give NaN and the largest integers, so that an output nobody wrote cannot pass by luck."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
