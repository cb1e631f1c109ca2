from pathlib import Path

import pytest

from tests.kernels.apart import run_apart

pytestmark = pytest.mark.slow


def test_kernels_agree_with_their_references_under_the_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed, as on macOS and Windows")
    # Threads cost more than they gain on arrays this small.
    options = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    assert run_apart("interpreted.py", tmp_path, **options) > 50
