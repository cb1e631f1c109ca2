"""Every case. A new kernel's module is a line here."""

from bench.micro import attention, compact, disentangled, exit_step, layer, pool

CASES = [*exit_step.CASES, *compact.CASES, *pool.CASES, *attention.CASES, *disentangled.CASES, *layer.CASES]
