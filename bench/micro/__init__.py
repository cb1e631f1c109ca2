"""Microbenchmarks: each kernel against its reference and against the obvious torch expression.

`pytest bench/micro` runs the small cases, `--cases full` all of them; bench/README.md says what is measured.
"""
