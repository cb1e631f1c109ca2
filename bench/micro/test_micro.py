"""Every case times its variants: on a CPU those that run there, on a GPU all."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench import graphs
from bench.micro.conftest import Report, Setting
from bench.micro.subject import Case
from bench.micro.table import CASES


class Clock:
    """A timer of which a call reads how much time the samples taken before have run up: pytest-benchmark keeps the
    statistics, but could neither time a graph's replay by events nor let variants take turns."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    every = metafunc.config.getoption("--cases") == "full"
    metafunc.parametrize("case", [case for case in CASES if every or case.is_small], ids=lambda case: case.name)


@pytest.mark.benchmark(timer=CLOCK)
def test_micro(case: Case, setting: Setting, report: Report, benchmark: BenchmarkFixture) -> None:
    subject = case.build(setting.device, setting.dtype)
    subject.agree()  # nothing that is wrong is timed
    waiting = subject.waiting if setting.device.type == "cuda" else ()
    seconds = graphs.sample(subject.calls, setting.device, rounds=setting.rounds, waiting=waiting)
    benchmark.group = case.op
    benchmark.extra_info["variants"] = {name: report(case, name, subject, samples) for name, samples in seconds.items()}
    first = iter(seconds[next(iter(subject.calls))])

    def next_sample() -> None:
        CLOCK.now += next(first)

    benchmark.pedantic(next_sample, rounds=setting.rounds)
    if setting.device.type == "cuda":
        del subject
        torch.cuda.empty_cache()
