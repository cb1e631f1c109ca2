from pathlib import Path

import pytest
import torch

from tests.kernels.apart import run_apart

pytestmark = pytest.mark.slow


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has a CUDA of its own")
def test_launches_with_addresses_reach_the_driver_as_triton_s_own_do(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed, as on macOS and Windows")
    assert run_apart("driven.py", tmp_path) > 10
