"""Every case. A new kernel's module is a line here."""

import contextlib

from bench.micro import attention, compact, exit_step, layer, pool

CASES = [*exit_step.CASES, *compact.CASES, *pool.CASES, *attention.CASES, *layer.CASES]
with contextlib.suppress(ImportError):  # a kernel of its own, and no Triton
    from bench.micro import product

    CASES += product.CASES
