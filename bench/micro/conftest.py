"""Options, the measurement that a case's variants share, and the table at the end."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from bench import ceilings, timing
from bench.ceilings import Ceilings
from bench.graphs import Spread
from bench.micro.subject import Case, Subject
from bench.text import columns
from pabee_fast.runtime.device import choose_device, choose_dtype


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("microbenchmarks")
    group.addoption("--cases", choices=("small", "full"), default="small", help="which cases run")
    group.addoption("--micro-device", default="auto", help="auto, cpu or cuda")
    group.addoption("--micro-dtype", default="auto", help="auto, float32, bfloat16 or float16")
    group.addoption("--micro-rounds", type=int, default=None, help="samples of each variant; default: 30, on a CPU 5")


@dataclass(frozen=True)
class Setting:
    """What the session measures on."""

    device: torch.device
    dtype: torch.dtype
    rounds: int
    ceilings: Ceilings


@pytest.fixture(scope="session")
def setting(request: pytest.FixtureRequest) -> Setting:
    option = request.config.getoption
    device = choose_device(option("--micro-device"))
    dtype, _ = choose_dtype(option("--micro-dtype"), device)
    rounds = option("--micro-rounds") or (30 if device.type == "cuda" else 5)
    return Setting(device, dtype, rounds, ceilings.measure(device, dtype))


Report = Callable[[Case, str, Subject, list[float]], dict[str, object]]
LINES = pytest.StashKey[list[list[str]]]()


@pytest.fixture
def report(request: pytest.FixtureRequest, setting: Setting) -> Report:
    """Adds a variant's line to the table at the end, and returns its figures."""

    def add(case: Case, variant: str, subject: Subject, seconds: list[float]) -> dict[str, object]:
        spread = Spread.of(seconds)
        least = setting.ceilings.least_seconds(subject.moved, subject.flops)
        rate = subject.moved / spread.median
        figures: dict[str, object] = {
            "op": case.op,
            "size": case.size,
            "variant": variant,
            "dtype": setting.ceilings.dtype,
            "hardware": timing.hardware(setting.device),
            "microseconds": {name: value * 1e6 for name, value in spread._asdict().items()},
            "bytes": subject.moved,
            "flops": subject.flops,
            "bytes_per_second": rate,
            "share_of_copy_bandwidth": rate / setting.ceilings.copy_bandwidth,
            "least_microseconds": least * 1e6,
            "times_least": spread.median / least,
        }
        micro = [f"{each * 1e6:.1f}" for each in (*spread, least)]
        share = f"{rate / setting.ceilings.copy_bandwidth:.1%}"
        line = [case.name, variant, *micro, f"{spread.median / least:.2f}", f"{rate / 1e9:.1f}", share]
        request.config.stash.setdefault(LINES, []).append(line)
        return figures

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if lines := config.stash.get(LINES, []):
        head = ["case", "variant", "us, median", "p20", "p80", "least", "times it", "GB/s", "of a copy's"]
        terminalreporter.section("microbenchmarks")
        terminalreporter.write_line(columns([head, *lines], left=(0, 1)))
