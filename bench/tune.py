"""Which attention serves short rows fastest, and from how many tokens on a product ends with its GELU: the table that
the runtime reads.

    python -m bench.tune measure    times them on this device; a step of bench/gpu.sh, alone with --tune
    python -m bench.tune write      pabee_fast/runtime/tuned.py, from the records in bench/results and nothing else

What is timed stands in `bench/kernel_times.py`.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import record
from bench.kernel_times import LENGTHS, TOKENS, measure
from bench.text import add_so_far, columns, teller
from pabee_fast.kernels.checks import MAX_SHORT_ROW

WORTH = 0.97
"""A kernel of ours is taken where its time is at most so much of the next best one's."""
TABLE = Path(__file__).parents[1] / "pabee_fast" / "runtime" / "tuned.py"


def most_short(times: Mapping[str, Mapping[str, float]]) -> int:
    """Return the longest rows that the kernel for short rows should take; 0: none.

    Args:
        times: tokens of a row -> attention -> microseconds. It must win at every length measured up to that one.
    """
    most = 0
    for length, by_name in sorted((int(length), by_name) for length, by_name in times.items()):
        others = [value for name, value in by_name.items() if name != "short"]
        if "short" not in by_name or by_name["short"] > WORTH * min(others):
            break
        most = length
    return most


def least_tokens(times: Mapping[str, Mapping[str, float]]) -> int | None:
    """Return the fewest tokens from which on a product should end with its GELU; None: it should not.

    Args:
        times: tokens -> way -> microseconds. One launch must win at every number measured from that one on.
    """
    least = None
    for tokens, by_name in sorted(((int(tokens), by_name) for tokens, by_name in times.items()), reverse=True):
        if by_name["one launch"] > WORTH * by_name["product and pass"]:
            break
        least = tokens
    return least


Choice = dict[tuple[str, str, int], tuple[int, str]]
"""Architecture, dtype and a size -> a number of tokens, and the records by which it was chosen."""


def chosen(records: Sequence[Mapping[str, Any]]) -> tuple[Choice, Choice]:
    """Return, by the size of a head, the most tokens of a row for the kernel for short rows; and, by hidden size, the
    fewest tokens with which a product ends with its GELU.

    A record in which a GPU test of the kernel failed, or those of a whole run did not all run, chooses nothing. Where
    several GPUs are of one architecture, what all of theirs say.
    """
    rows: Choice = {}
    products: dict[tuple[str, str, int], tuple[int | None, str]] = {}
    for each in records:
        figures, gate = each["steps"].get("attention", {}).get("figures") or {}, each["gate"]
        if not gate["passed"] or not (gate["complete"] or each["mode"] == "tune"):
            continue
        failed = " ".join(failure["test"] for failure in gate["failures"])
        source = f"{each['machine']['gpu']}, {each['commit'][:7]}"
        for name, times in figures.get("by_length", {}).items() if "attention" not in failed else ():
            dtype, head_dim = name.split(", heads of ")
            key = figures["architecture"], dtype, int(head_dim)
            most, sources = rows.get(key, (MAX_SHORT_ROW, ""))
            rows[key] = min(most, most_short(times)), f"{sources}; {source}" if sources else source
        for name, times in figures.get("by_tokens", {}).items() if "linear_gelu" not in failed else ():
            dtype, hidden_size = name.split(", hidden size ")
            key = figures["architecture"], dtype, int(hidden_size)
            known, sources = products.get(key, (0, ""))
            least = least_tokens(times)
            least = None if known is None or least is None else max(known, least)
            products[key] = least, f"{sources}; {source}" if sources else source
    return (
        {key: value for key, value in sorted(rows.items()) if value[0]},
        {key: (least, why) for key, (least, why) in sorted(products.items()) if least is not None},
    )


TEXT = '''"""What was measured of kernels on GPUs: `python -m bench.tune write` makes it, from records."""

import torch

SHORT_ROWS: dict[tuple[str, torch.dtype, int], int] = {%s}
"""Architecture, dtype and size of a head -> the most tokens of a batch's longest row with which the kernel for short
rows is faster than what else serves."""

LINEAR_GELU: dict[tuple[str, torch.dtype, int], int] = {%s}
"""Architecture, dtype and hidden size -> the fewest tokens with which a product that ends with its GELU is faster
than the library's product and a pass."""
'''


def source(*tables: Choice) -> str:
    """Return the text of the runtime's tables."""

    def lines(table: Choice) -> str:
        told = [
            f'    ("{place}", torch.{dtype}, {size}): {tokens},  # {records}\n'
            for (place, dtype, size), (tokens, records) in table.items()
        ]
        return f"\n{''.join(told)}" if told else ""

    return TEXT % tuple(map(lines, tables))


def show(found: Mapping[str, Any]) -> str:
    """Return the figures as a table."""
    lines: list[list[object]] = [["us", "library", "kernel", "short", "least"]]

    def line(name: str, times: Mapping[str, float]) -> list[object]:
        values = (times.get(column) for column in ("library", "kernel", "short", "least"))
        return [name, *("" if value is None else f"{value:.1f}" for value in values)]

    lines.append(line("sst2's lengths, bfloat16, heads of 64", found["sst2"]))
    for case, times in found["by_length"].items():
        lines += [line(f"{length} tokens, {case}", each) for length, each in times.items()]
    told = [columns(lines)]
    for case, by_tokens in found["by_tokens"].items():
        for tokens, times in by_tokens.items():
            told.append(f"{tokens} tokens, {case}: {', '.join(f'{name} {us:.1f}' for name, us in times.items())} us")
    for name, times in found["blocks"].items():
        if times:
            best = min(times, key=times.__getitem__)
            told.append(f"{name}: best block {best}, {times[best]:.1f} us of {times['as launched']:.1f} as launched")
    return "\n".join(told)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("--tokens", type=int, default=131_072, help="of a wave")
    measuring.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="of rows")
    measuring.add_argument("--product-tokens", type=int, nargs="+", default=list(TOKENS), help="of products with GELU")
    measuring.add_argument("--rounds", type=int, default=5)
    measuring.add_argument("--device", default="auto")
    add_so_far(measuring)
    writing = commands.add_parser("write")
    writing.add_argument("--results", type=Path, default=record.RESULTS)
    args = parser.parse_args(arguments)
    if args.command == "write":
        records = [newest for newest, *_ in record.by_date(args.results, step="attention").values()]
        tables = chosen(records)
        if not any(tables):  # it would turn off, unseen, what other records had turned on
            parser.error(
                f"--results {args.results}: no record there says that a kernel of ours is worth its launch: it has to "
                "hold attention and products, and GPU tests that passed (bench/gpu.sh without --skip tests-first)"
            )
        TABLE.write_text(source(*tables))
        print(f"{TABLE}: {sum(map(len, tables))} lines")
        return 0
    found = measure(args, teller(args.so_far))
    print(show(found))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
