"""What a job's end looks like, in words and as figures."""

import os
from typing import Any

from pabee_fast.calibration.audit import CONFIDENCE, interval
from pabee_fast.jobs.marks import rightness
from pabee_fast.scoring.tally import STAGES


def summary_lines(summary: Any, about: Any, place: object) -> list[str]:
    """Return what was done, and how many rows left at each layer.

    Args:
        summary: `pabee_fast.jobs.job.Progress`.
        about: `pabee_fast.jobs.worker.About`.
        place: what was written.
    """
    tally = summary.tally
    lines = [
        f"{summary.rows} rows in {summary.seconds:.2f} s: {summary.rows_per_second:,.0f} rows/s, reading, tokenizing "
        "and writing included"
    ]
    if summary.resumed:
        lines.append(f"{summary.resumed} rows were done before; what follows counts all {tally.rows}")
    lines.append(f"device {about.device}, {about.identity['dtype']} ({about.dtype_reason})")
    lines.append(policy_line(about))
    if summary.rows:
        lines += [_time(summary), _bound(summary, about)]
    if not tally.rows:
        lines.append("the table has no rows: an empty table with the result columns was written")
    if tally.exits:
        lines.append(f"mean exit layer {tally.mean_exit_layer:.2f} of {about.layers}")
        most = max(tally.exits.values())
        for layer in range(1, about.layers + 1):
            count = tally.exits[layer]
            bar = "#" * round(40 * count / most)
            lines.append(f"  {layer:>3} {bar:<40} {count:>8} {count / tally.exits.total():>6.1%}")
    if summary.labels is not None:
        lines.append(_rightness(tally, about.labels, summary.labels))
    lines += length_lines(tally, about)
    if tally.errors:
        all_of_them = f"none of the {tally.rows} rows could be scored"
        some = all_of_them if tally.errors == tally.rows else f"{tally.errors} rows could not be scored"
        lines.append(f"{some}: see the column error")
    if tally.failed:
        lines.append(f"{tally.failed} of them failed in computing: --retry-errors does their parts again")
    if tally.audited:
        audit, compute = tally.seconds["audit"], max(tally.seconds["compute"], 1e-9)
        cost = f"; it cost {audit:.2f} s, {audit / compute:.1%} on top of computing"
        lines += audit_lines(tally, about.guarantee, cost)
    return [*lines, f"wrote {place}"]


def policy_line(about: Any) -> str:
    """When rows leave, why by this rule, and what is guaranteed of it."""
    return f"policy {about.identity['policy']}: {about.policy_reason}"


def summary_figures(summary: Any, about: Any, place: object) -> dict[str, Any]:
    """Return the same for machines."""
    tally = summary.tally
    return {
        "output": str(place),
        "rows": tally.rows,
        "rows_of_this_run": summary.rows,
        "rows_per_second": round(summary.rows_per_second, 1),
        "errors": tally.errors,
        "failed": tally.failed,
        "truncated": tally.truncated,
        "long": tally.long,
        "stretches": tally.stretches,
        "labelled": tally.labelled,
        **rightness(tally, about.labels)._asdict(),
        "mean_exit_layer": round(tally.mean_exit_layer, 4) if tally.exits else None,
        "exits": {str(layer): count for layer, count in sorted(tally.exits.items())},
        "spent": {stage: round(tally.seconds[stage], 3) for stage in STAGES} | {"wait": round(summary.wait, 3)},
        "bound": summary.bound if summary.rows else None,
        "cores": round(summary.cores, 2),
        "tokenizer": about.tokenizer,
        "audit": _audit_figures(tally, about.guarantee),
        "policy": {"name": about.identity["policy"], "reason": about.policy_reason},
        "device": about.device,
        "settings": about.identity,
    }


def _rightness(tally: Any, labels: Any, column: str) -> str:
    """Return how often answers are right, in words."""
    found = rightness(tally, labels)
    rows = f"{tally.labelled:,} rows with an answer and a label"
    if found.accuracy is not None:
        return f"accuracy {found.accuracy:.2%}: {tally.right:,} of {rows}"
    if found.mean_squared_error is not None:
        return f"mean squared error {found.mean_squared_error:.6g} over {rows}"
    return f"accuracy: no row with an answer has a label in the column {column}"


def length_lines(tally: Any, about: Any) -> list[str]:
    """Return what became of rows that are longer than the model reads at once; nothing where there are none."""
    limit, lines = about.identity["max_length"], []
    if tally.truncated:
        lines.append(
            f"{tally.truncated} rows were longer than the limit and were cut at {limit} tokens: --stride reads texts "
            "whole, in stretches (not pairs); --max-length is the limit, as far as the model allows"
        )
    if tally.long:
        lines.append(
            f"{tally.long} rows were longer than {limit} tokens and were read in {tally.stretches} stretches that "
            f"overlap by {about.identity['stride']}"
        )
    return lines


def _time(summary: Any) -> str:
    """Return where the time went: the device's share first, then what stood beside it."""
    spent = summary.tally.seconds
    computing = spent["compute"] + spent["audit"]
    share = computing / (summary.seconds * summary.workers)
    devices = "the device" if summary.workers == 1 else f"{summary.workers} devices"
    return (
        f"time: compute {computing:.2f} s ({share:.0%} of {devices}), wait {summary.wait:.2f} s; beside it read "
        f"{spent['read']:.2f} s, tokenise {spent['tokenise']:.2f} s, write {spent['write']:.2f} s"
    )


def _bound(summary: Any, about: Any) -> str:
    """Return what the job waited for, and what would help."""
    bound = {
        "compute": "computing; more devices would help (--devices), or a policy by which rows leave earlier",
        "read": "reading; parquet is read several times faster than csv and jsonl, and a table of fewer columns too",
        "tokenise": f"tokenizing, by {about.tokenizer}; {_faster_tokens(about.tokenizer)}",
        "write": "writing; parquet is written fastest, and larger parts (--part-rows) more seldom",
    }[summary.bound]
    return f"bounded by {bound} (this process kept {summary.cores:.1f} of {os.cpu_count()} cores busy)"


def _faster_tokens(tokenizer: str) -> str:
    if "nanotoken is not installed" in tokenizer:
        return "pip install 'pabee-fast[fast-tokenizer]' would help"
    return "more cores would help" if tokenizer == "nanotoken" else "more processes would help (--tokenizers)"


def audit_lines(tally: Any, guarantee: Any, cost: str = "") -> list[str]:
    """Return how often an early answer is not the one at full depth, what that says of all rows, and what it cost."""
    low, high = interval(tally.disagreed, tally.audited)
    share = tally.disagreed / tally.audited
    lines = [
        f"audit: {tally.disagreed} of {tally.audited} rows disagree with full depth, {share:.3%} ({CONFIDENCE:.0%} "
        f"interval {low:.3%} to {high:.3%}){cost}"
    ]
    if guarantee is not None and guarantee.is_contradicted(tally.disagreed, tally.audited):
        lines.append(
            f"WARNING: the guarantee stored with the model says at most {guarantee.epsilon:.3%}, and these rows "
            "contradict it: they are unlike those it was calibrated on. Run `pabee-fast tune` on rows like these, or "
            "use --policy full-depth"
        )
    elif guarantee is not None and guarantee.is_of_disagreement:
        lines.append(f"the audit does not contradict the guarantee of at most {guarantee.epsilon:.3%}")
    return lines


def _audit_figures(tally: Any, guarantee: Any) -> dict[str, Any] | None:
    if not tally.audited:
        return None
    low, high = interval(tally.disagreed, tally.audited)
    contradicted = guarantee is not None and guarantee.is_contradicted(tally.disagreed, tally.audited)
    return {
        "rows": tally.audited,
        "disagreed": tally.disagreed,
        "low": low,
        "high": high,
        "contradicts_guarantee": contradicted,
    }
