"""The table of kernels: which module serves each function of the runtime on CUDA.

A new kernel is a line here, and is then compiled ahead of time for every target and held against its baseline.
"""

from collections.abc import Iterator

from . import add_norm, attention, bias_act, compact, exit_step, pool, short_attention
from .launch import Launch

FUNCTIONS = {
    "exit_step": exit_step,
    "plan": compact,
    "gather": compact,
    "pool": pool,
    "attention": attention,
    "short_attention": short_attention,
    "add_norm": add_norm,
    "bias_act": bias_act,
}
"""Name of a function, as in `reference` -> the module that launches it under that name."""

MODULES = tuple(dict.fromkeys(FUNCTIONS.values()))


def specialisations() -> Iterator[tuple[str, Launch]]:
    """Yield, by name, launches that stand for everything the runtime makes Triton compile, at BERT-base's hidden size.

    Their tensors have no storage: a launch says what would be compiled, and cannot run.
    """
    for module in MODULES:
        yield from module.specialisations()
