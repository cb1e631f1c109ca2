"""What the device can do at most, measured: `python -m bench.ceilings`. Every other figure is a share of these.

copy bandwidth: bytes read plus bytes written by a copy of a tensor several times larger than any cache
matrix rate:    of a square product on random data, in the dtype used, 2 n^3 operations
launch floor:   one element added to: what any kernel costs behind another one in a graph, or a call on a CPU
"""

import argparse
import functools
import json
import statistics
from dataclasses import asdict, dataclass

import torch

from bench import graphs, timing
from pabee_fast.runtime.device import choose_device, choose_dtype

SIZES = {"cuda": (1 << 30, 8192), "cpu": (1 << 28, 1024)}
"""Device type -> bytes of the copied tensor, n of the product."""


@dataclass(frozen=True)
class Ceilings:
    copy_bandwidth: float
    """Bytes a second."""
    matrix_rate: float
    """Floating-point operations a second."""
    launch_floor: float
    """Seconds."""
    dtype: str

    def least_seconds(self, moved: float, flops: float = 0.0) -> float:
        """Return the least time for work that must move so many bytes and do so many operations of a matrix product."""
        return max(self.launch_floor, moved / self.copy_bandwidth, flops / self.matrix_rate)


@functools.cache
def measure(device: torch.device, dtype: torch.dtype, rounds: int = 5) -> Ceilings:
    """Measure all three; medians of `rounds` after one that is not counted."""
    size, n = SIZES[device.type]
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    one = torch.zeros(1, device=device)
    long = timing.interleaved({"copy": lambda: target.copy_(source), "product": lambda: torch.mm(a, b, out=out)},
                              rounds, device)  # fmt: skip
    short = graphs.sample({"floor": lambda: one.add_(1)}, device, rounds=rounds)
    return Ceilings(
        copy_bandwidth=2 * size / statistics.median(long["copy"]),
        matrix_rate=2 * n**3 / statistics.median(long["product"]),
        launch_floor=statistics.median(short["floor"]),
        dtype=str(dtype).removeprefix("torch."),
    )


def show(ceilings: Ceilings) -> str:
    """In words."""
    return (
        f"copy {ceilings.copy_bandwidth / 1e9:,.0f} GB/s, {ceilings.dtype} matrix product "
        f"{ceilings.matrix_rate / 1e12:,.2f} TFLOP/s, smallest launch {ceilings.launch_floor * 1e6:.1f} us"
    )


def main() -> None:
    """Print the ceilings and, as the last line, one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = choose_device(args.device)
    dtype, _ = choose_dtype(args.dtype, device)
    ceilings = measure(device, dtype)
    print(f"{timing.hardware(device)}: {show(ceilings)}")
    print(json.dumps({"hardware": timing.hardware(device), **asdict(ceilings)}))


if __name__ == "__main__":
    main()
