"""The measuring process of `bench.compare`: one commit's package under this checkout's cases.

Answers the line "round" on stdin with one JSON object, seconds by case, until stdin ends.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHORTEST = 5e-3
"""Seconds of one sample: shorter cases are repeated."""


def main(checkout: str, module: str, device: str) -> None:
    """Build the cases, say which cannot be run, and time the others as often as asked."""
    package = importlib.import_module("pabee_fast")
    home = Path(package.__file__ or "").resolve()
    if Path(checkout).resolve() not in home.parents:
        raise SystemExit(f"pabee_fast comes from {home}, not from {checkout}")
    # Answers go to the pipe alone; what else is printed must not mix with them.
    answers, sys.stdout = sys.stdout, sys.stderr
    ready: dict[str, Callable[[], Any]] = {}
    why_not: dict[str, str | None] = {}
    for name, build in importlib.import_module(module).cases(device).items():
        try:
            ready[name] = build()
            ready[name]()
            why_not[name] = None
        except Exception as error:  # another version's interface: the case is left out, and why is said
            ready.pop(name, None)
            why_not[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    repeats = {name: _repeats(call) for name, call in ready.items()}
    print(json.dumps(why_not), file=answers, flush=True)
    for _ in sys.stdin:
        seconds = {name: _seconds(call, repeats[name]) for name, call in ready.items()}
        print(json.dumps(seconds), file=answers, flush=True)


def _repeats(call: Callable[[], Any]) -> int:
    return max(1, round(SHORTEST / max(_seconds(call, 1), 1e-7)))


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats


if __name__ == "__main__":
    main(*sys.argv[1:])
