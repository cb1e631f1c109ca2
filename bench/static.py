"""Every kernel compiled ahead of time, and held against a committed baseline: `python -m bench.static`.

No GPU is needed. Exit status 1, and a table of the specialisations that fail, where one

- spills, or has a stack frame, beyond what is TOLERATED;
- makes a reduction twice, in two layouts, so that what must agree has two sources;
- has any stack or spill that its baseline has not;
- has grown by more than a tenth in registers, shared memory or instructions;
- has lost its matrix instructions, or accesses memory in narrower pieces than before;
- is not in the baseline, or is there and is compiled no more: `--update` writes it anew.

Last come the bytes that each kernel moves, against the fewest possible (see `bench.traffic`): that ratio, too, may not
grow by more than a tenth. It is counted without compiling, so that its baseline, bench/static/traffic.json, serves all.

A baseline belongs to one Triton and one target, bench/static/<triton>/<target>.json; for another Triton there is none,
and only spills, stack and reductions made twice fail. Beside its figures a specialisation has there a hash of what it
was made of: with `--changed` those of which that is the same are not compiled again, since the same would come of it.

sm_90 is compiled whole; the other targets leave out float16, whose code is bfloat16's with other names (`--whole`
compiles it too).
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import triton

from bench import compiled, traffic
from bench.compiled import TARGETS, Figures, compile_for
from bench.occupancy import occupancy
from bench.specialisations import by_name
from bench.text import columns
from bench.traffic import Traffic, count
from bench.traffic import show as show_traffic

BASELINES = Path(__file__).parent / "static"
WHOLE = "sm_90"
GROWTH = 1.1
TOLERATED_STACK, TOLERATED_SPILLS = 16, 2
"""Bytes, and accesses to them. ptxas may park a register or a pair outside the loop, stored once and loaded once, to
fit one more program; a tile that does not fit spills hundreds."""

CAPPED, CAPPED_STACK, CAPPED_SPILLS = "hopper", 64, 24
"""What is given fewer registers than it would take, so that more programs fit (`short_attention_constants`): Triton 3.6
spills nothing of it, 3.9 a few values of a tile with biases."""

MADE_FOR = {"linear_gelu": ("sm_90", "sm_100"), "hopper": ("sm_90",)}
"""Words of names -> targets of what is for some alone. `linear_gelu` moves blocks by hardware that others lack, and
would not fit their registers; it is launched where a record says so."""

Measured = dict[str, Figures]
"""Name of a specialisation -> what it became."""


def names(target: str, *, whole: bool = False) -> list[str]:
    """Return the specialisations that are compiled for `target`."""
    every = [name for name in by_name() if all(target in MADE_FOR.get(word, TARGETS) for word in name.split("-"))]
    return every if whole or target == WHOLE else [name for name in every if "float16" not in name.split("-")]


def measure(
    targets: Iterable[str], known: Mapping[str, Measured], *, whole: bool = False, jobs: int | None = None
) -> dict[str, Measured]:
    """Compile for each target, in `jobs` processes (None: one for each core), and return what came of it; what is
    `known` is not compiled."""
    wanted = {target: names(target, whole=whole) for target in targets}
    work = [(target, name) for target, every in wanted.items() for name in every if name not in known.get(target, {})]
    jobs = jobs or len(os.sched_getaffinity(0))
    found: list[Figures] = []
    if work:
        # Spawned, not forked: this process may hold threads. Launches are looked up by name, since none can be sent.
        with ProcessPoolExecutor(min(jobs, len(work)), mp_context=get_context("spawn")) as pool:
            found = list(pool.map(_compile, *zip(*work, strict=True), chunksize=4))
    anew = dict(zip(work, found, strict=True))
    return {
        target: {name: anew[target, name] if (target, name) in anew else known[target][name] for name in every}
        for target, every in wanted.items()
    }


def made_of(name: str) -> str:
    """Return a hash of all that a specialisation's figures follow from, but for the compiler: source and constants of
    its kernel and of what that calls, what it is specialised to, and how figures are read."""
    made, reader = by_name()[name].specialisation(), Path(compiled.__file__).read_text()
    parts = (made.kernel.cache_key, made.signature, made.constexprs, made.attrs, made.options, reader)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def unchanged(target: str) -> Measured:
    """Return the figures of those specialisations that are made of what they were when their baseline was taken."""
    path = baseline_path(target)
    lines = json.loads(path.read_text()) if path.exists() else {}
    same = {name for name, line in lines.items() if name in by_name() and line.get("of") == made_of(name)}
    return {name: figures for name, figures in (read_baseline(target) or {}).items() if name in same}


def _compile(target: str, name: str) -> Figures:
    return compile_for(by_name()[name], target)


def judge(figures: Figures, before: Figures | None, *, is_capped: bool = False) -> list[str]:
    """Return what is wrong with a specialisation, in words; `before` is its baseline, where there is one."""
    wrong = []
    stack, spills = (CAPPED_STACK, CAPPED_SPILLS) if is_capped else (TOLERATED_STACK, TOLERATED_SPILLS)
    if figures.stack > stack or figures.spills > spills:
        wrong.append(f"{figures.stack} bytes of stack, {figures.spills} spills")
    if figures.remade:
        wrong.append(f"{figures.remade} reductions made in two layouts")
    if before is None:
        return wrong
    for name in ("stack", "spills", "registers", "shared", "instructions"):
        new, old = getattr(figures, name), getattr(before, name)
        if new > (old if name in ("stack", "spills") else GROWTH * old):
            wrong.append(f"{name} {old} -> {new}")
    for name in ("mma", "wgmma"):
        if getattr(before, name) and not getattr(figures, name):
            wrong.append(f"no {name} any more, of {getattr(before, name)}")
    for name in ("loads", "stores"):
        new, old = (max(map(int, getattr(each, name)), default=0) for each in (figures, before))
        if new < old:
            wrong.append(f"{name} of {old} bytes -> {new}")
    return wrong


def baseline_path(target: str) -> Path:
    return BASELINES / triton.__version__ / f"{target}.json"


def read_baseline(target: str) -> Measured | None:
    """Return the baseline of the Triton that is installed, or None."""
    path = baseline_path(target)
    return read_figures(path) if path.exists() else None


def read_figures(path: Path) -> Measured:
    return {
        name: Figures(**{key: value for key, value in line.items() if key != "of"})
        for name, line in json.loads(path.read_text()).items()
    }


def write_baseline(target: str, measured: Measured) -> None:
    """One line a specialisation, so that a change shows as one."""
    path = baseline_path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        f"  {json.dumps(name)}: {json.dumps({'of': made_of(name), **figures.as_json()})}"
        for name, figures in measured.items()
    ]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def compare(measured: Measured, before: Measured | None) -> dict[str, list[str]]:
    """Name of a specialisation -> what is wrong with it, for those with which anything is."""
    found = {
        name: judge(figures, (before or {}).get(name), is_capped=CAPPED in name.split("-"))
        for name, figures in measured.items()
    }
    if before is not None:
        for name in measured.keys() - before.keys():
            found[name].append("not in the baseline")
        found |= {name: ["in the baseline, and compiled no more"] for name in before.keys() - measured.keys()}
    return {name: wrong for name, wrong in found.items() if wrong}


def judge_traffic(found: Traffic, before: Traffic | None) -> list[str]:
    """Return what is wrong with a kernel's traffic, in words."""
    wrong = []
    if found.least != found.expected:
        wrong.append(f"touches {found.least} bytes, and its microbenchmark takes {found.expected} for the least")
    if before is None:
        wrong.append("not in the baseline")
    elif found.ratio > GROWTH * before.ratio:
        wrong.append(f"moves {found.ratio:.2f} times the least, {before.ratio:.2f} before")
    return wrong


def read_traffic() -> tuple[str, dict[str, Traffic]]:
    """Return the baseline of moved bytes, and what it was made of."""
    kept = json.loads((BASELINES / "traffic.json").read_text())
    return kept["of"], {name: Traffic(**each) for name, each in kept["cases"].items()}


def moved_bytes(only_changed: bool) -> dict[str, Traffic]:
    """Return what each kernel moves; with `only_changed` as it was counted, unless something has changed since."""
    if only_changed:
        of, before = read_traffic()
        if of == traffic.made_of():
            print("bytes: kernels and cases are as they were, and not counted")
            return before
    return count()


def check_traffic(found: dict[str, Traffic], update: bool) -> bool:
    """Compare, prints; returns whether anything is wrong."""
    if update:
        kept = {"of": traffic.made_of(), "cases": {name: asdict(each) for name, each in found.items()}}
        (BASELINES / "traffic.json").write_text(json.dumps(kept, indent=2) + "\n")
    _, before = read_traffic()
    wrong = {name: judge_traffic(each, before.get(name)) for name, each in found.items()}
    print(show_traffic(found))
    for name, reasons in wrong.items():
        if reasons:
            print(f"  {name}: {'; '.join(reasons)}")
    return any(wrong.values())


def show(target: str, measured: Measured) -> str:
    """Return the figures of one target as a table."""
    head = ["registers", "stack", "shared", "occupancy", "instructions", "mma", "fma", "barriers", "loads", "stores"]
    lines: list[list[object]] = [[f"{target}, Triton {triton.__version__}", *head]]
    for name, each in measured.items():
        mma = f"{each.mma} ({each.wgmma} wgmma)" if each.wgmma else each.mma
        widths = [" ".join(f"{width}B:{count}" for width, count in w.items()) for w in (each.loads, each.stores)]
        resident = f"{occupancy(each, target):.0%}"
        lines.append([name, each.registers, each.stack, each.shared, resident, each.instructions, mma, each.fma,
                      each.barriers, *widths])  # fmt: skip
    return columns(lines, left=(0, 9, 10))


def main(arguments: list[str] | None = None) -> int:
    """Compile, compares, print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, help="default: all, and the count of bytes")
    parser.add_argument("--update", action="store_true", help="write the baselines of this Triton")
    parser.add_argument(
        "--changed", action="store_true", help="compile nothing that is made of what its baseline was made of"
    )
    parser.add_argument("--whole", action="store_true", help="leave nothing out for any target; compares nothing")
    parser.add_argument("--table", action="store_true", help="print everything, not those that fail only")
    parser.add_argument("--jobs", type=int, help="processes; default: one for each core")
    args = parser.parse_args(arguments)
    if args.update and (args.whole or args.changed):
        parser.error("--update writes what is compared, and compiles it; leave --whole and --changed out")
    failed = False
    # Beside the compiling processes, since it has one process of its own.
    counted = ThreadPoolExecutor(1).submit(moved_bytes, args.changed) if not args.targets else None
    targets = args.targets or list(TARGETS)
    known = {target: unchanged(target) for target in targets} if args.changed else {}
    for target, measured in measure(targets, known, whole=args.whole, jobs=args.jobs).items():
        if args.update:
            write_baseline(target, measured)
        before = None if args.whole else read_baseline(target)
        wrong = compare(measured, before)
        if shown := measured if args.table else {name: measured[name] for name in measured if name in wrong}:
            print(show(target, shown), end="\n\n")
        failed |= bool(wrong)
        against = f"no baseline for Triton {triton.__version__}" if before is None else f"{len(before)} in the baseline"
        spared = f", {len(known[target])} as they were and not compiled" if args.changed else ""
        print(f"{target}: {len(measured)} specialisations, {against}{spared}, {len(wrong)} fail")
        for name, reasons in wrong.items():
            print(f"  {name}: {'; '.join(reasons)}")
    if counted is not None:
        failed |= check_traffic(counted.result(), args.update)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
