"""Every case. A new kernel's module is a line here."""

from bench.micro import attention, compact, exit_step, layer, pool

CASES = [*exit_step.CASES, *compact.CASES, *pool.CASES, *attention.CASES, *layer.CASES]
