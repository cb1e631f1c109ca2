import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent


def test_kernels_agree_with_their_references_under_the_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed, as on macOS and Windows")
    report = tmp_path / "report.xml"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(HERE / "interpreted.py"), f"--junit-xml={report}"],
        cwd=HERE.parents[1],
        # Threads cost more than they gain on arrays this small.
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    suite = next(ElementTree.parse(report).iter("testsuite"))
    assert int(suite.attrib["tests"]) > 50, done.stdout
    assert suite.attrib["skipped"] == "0", done.stdout
