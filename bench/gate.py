"""The correctness gate of bench/gpu.sh: the GPU tests, in several processes at once, since Triton compiles on one core.

`python -m bench.gate FOLDER [--quick]` writes the reports to FOLDER/tests-*.xml.
"""

import argparse
import subprocess
import sys
from pathlib import Path

KERNELS, RUNTIME = "tests/kernels/test_gpu.py", "tests/runtime/test_cuda.py"
SHARDS = {
    "kernels-float32": [KERNELS, "-k", "float32 and not float16"],
    "kernels-half": [KERNELS, "-k", "float16"],
    "kernels-others": [KERNELS, "-k", "not float32 and not float16"],
    "runtime-bert": [RUNTIME, "-k", "bert and not albert and not roberta"],
    "runtime-others": [RUNTIME, "-k", "not bert or albert or roberta"],
}
"""Every test is in one of them."""
QUICK = ("kernels-others", "runtime-bert")
"""What moves rows, and a whole model against stock."""


def main() -> int:
    """Runs the shards; returns 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    names = QUICK if args.quick else tuple(SHARDS)
    running = {}
    for name in names:
        report = f"--junit-xml={args.folder / f'tests-{name}.xml'}"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", report, *SHARDS[name]]
        log = (args.folder / f"tests-{name}.log").open("w")
        running[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    failed = [name for name, process in running.items() if process.wait() != 0]
    for name in names:
        lines = (args.folder / f"tests-{name}.log").read_text().splitlines()
        # Passed and skipped in a line; of a failure what a reader needs to begin with.
        print(f"{name}:", *lines[-15 if name in failed else -1 :], sep="\n  ")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
