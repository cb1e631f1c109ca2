"""The kernels' functions in plain torch: the ground truth of every test, and the path on a CPU."""

import torch
from torch import Tensor

from .checks import BITS_PER_WORD, answer_words, check_exit_step, check_gather, check_plan
from .launch import Plan

__all__ = ["Plan", "exit_step", "gather", "plan"]


@torch.no_grad()
def exit_step(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    keep: Tensor,
    streak: Tensor,
    answer: Tensor,
    row_ids: Tensor,
    logits: Tensor,
    exit_layers: Tensor,
    *,
    starts: Tensor | None,
    layer: int,
    kind: str,
    rule: str,
    patience: int = 0,
    threshold: float = 0.0,
    exit_at: Tensor | None = None,
) -> None:
    """Ask one layer's head, bring each row's streak up to date, and write the results of the rows that leave now.

    Rows whose `keep` is 0 on entry are left alone entirely. A row with a logit that is not finite has no valid answer:
    its streak becomes -1 and its answer stays as it was, so that a NaN settles no row by its streak.

    Args:
        features: [tokens, hidden_size] packed hidden states, with `starts`; or [rows, hidden_size] pooled features,
            with `starts=None`. float32, float16 or bfloat16; products are summed in float32.
        weight: [classes, hidden_size], dtype of `features`.
        bias: [classes], dtype of `features`, or None.
        keep: [rows] int8, changed in place: 1 while the row is being computed, 0 once it has left.
        streak: [rows] int32, changed in place: how many consecutive layers kept the same answer; -1 before the first
            valid one.
        answer: [rows, words] int32, changed in place: see `kind`.
        row_ids: [rows] int64: where the row's results go; no two rows share one.
        logits: [results, classes] float32: written at `row_ids` for rows that leave now, and only for these.
        exit_layers: [results] int64: likewise.
        starts: [rows] int32: the line of `features` that a row's head reads (`cu_seqlens[:-1]` for the first token).
        layer: 1-based number of layers the rows have been given.
        kind: "label", the argmax, lowest index on ties (1 word); "value", the bits of the one float32 output (1 word);
            "label_set", the set of logits above 0 as bits, lowest class first (ceil(classes / 32) words).
        rule: "streak", a row leaves when its streak reaches `patience`; "given", when `exit_at[row_id] <= layer`;
            "all", every row leaves now. The streak runs under every rule.
        patience: number of layers, at least 1; for rule "streak".
        threshold: for kind "value", in units of the output: a change strictly below it counts as the same answer.
        exit_at: [results] int64, number of layers; for rule "given" and only then.

    Raises:
        ValueError: a shape, dtype, device, layout or option does not fit.
    """
    check_exit_step(
        features, weight, bias, keep, streak, answer, row_ids, logits, exit_layers,
        starts=starts, layer=layer, kind=kind, rule=rule, patience=patience, threshold=threshold, exit_at=exit_at,
    )  # fmt: skip
    active = keep.nonzero().flatten()
    lines = active if starts is None else starts[active]
    scores = features.index_select(0, lines).float() @ weight.float().T  # [active, classes]
    if bias is not None:
        scores += bias.float()

    valid = scores.isfinite().all(dim=1)
    new, old, run = _answers(scores, kind), answer[active], streak[active]
    if kind == "value":
        same = (new.view(torch.float32) - old.view(torch.float32)).abs()[:, 0] < threshold
    else:
        same = (new == old).all(dim=1)
    run = torch.where(valid, torch.where(same & (run >= 0), run + 1, 0), -1)
    streak[active] = run
    answer[active] = torch.where(valid[:, None], new, old)

    ids = row_ids[active]
    if rule == "streak":
        leaves = run >= patience
    elif exit_at is not None:
        leaves = exit_at[ids] <= layer
    else:
        leaves = torch.ones_like(valid)
    logits[ids[leaves]] = scores[leaves]
    exit_layers[ids[leaves]] = layer
    keep[active[leaves]] = 0


def _answers(scores: Tensor, kind: str) -> Tensor:
    # scores: [rows, classes] float32 -> [rows, words] int32
    if kind == "label":
        # torch promises no order among equal maxima, so the lowest index is asked for.
        classes = torch.arange(scores.shape[1], device=scores.device)
        is_best = scores == scores.amax(dim=1, keepdim=True)
        return torch.where(is_best, classes, scores.shape[1]).amin(dim=1, keepdim=True).int()
    if kind == "value":
        return scores.view(torch.int32)
    rows, classes_count = scores.shape
    words = answer_words(kind, classes_count)
    members = scores.new_zeros((rows, words * BITS_PER_WORD), dtype=torch.int64)
    members[:, :classes_count] = scores > 0
    bits = torch.arange(BITS_PER_WORD, device=scores.device)
    # The highest bit becomes int32's sign.
    return (members.view(rows, words, BITS_PER_WORD) << bits).sum(dim=2).int()


@torch.no_grad()
def plan(keep: Tensor, cu_seqlens: Tensor, row_ids: Tensor, streak: Tensor, answer: Tensor) -> Plan:
    """Lay the survivors of a packed batch end to end, in their order, and carry their state along.

    The tensors of the result are as long as the arguments, as the kernel's are; entries past the valid ones are 0 here
    and undefined there.

    Args:
        keep: [rows] int8: 1 for a survivor, 0 for a row that has left.
        cu_seqlens: [rows + 1] int32: cumulative lengths in tokens, starting with 0.
        row_ids: [rows] int64.
        streak: [rows] int32.
        answer: [rows, words] int32.

    Raises:
        ValueError: a shape, dtype, device or layout does not fit.
    """
    check_plan(keep, cu_seqlens, row_ids, streak, answer)
    survivors = keep.nonzero().flatten()
    lengths = cu_seqlens.diff()[survivors]
    ends = lengths.cumsum(0, dtype=torch.int32)
    tokens, longest = (ends[-1:], lengths.max()[None]) if len(survivors) else (ends.new_zeros(1), ends.new_zeros(1))
    return Plan(
        cu_seqlens=_padded(torch.cat([ends.new_zeros(1), ends]), cu_seqlens),
        row_ids=_padded(row_ids[survivors], row_ids),
        streak=_padded(streak[survivors], streak),
        answer=_padded(answer[survivors], answer),
        starts=_padded(cu_seqlens[survivors], streak),
        counts=torch.cat([tokens.new_full((1,), len(survivors)), tokens, longest]),
    )


def _padded(values: Tensor, like: Tensor) -> Tensor:
    out = torch.zeros_like(like)
    out[: len(values)] = values
    return out


@torch.no_grad()
def gather(hidden: Tensor, starts: Tensor, cu_seqlens: Tensor, *, rows: int, tokens: int, longest: int) -> Tensor:
    """Copy the survivors' tokens into a new packed batch.

    Args:
        hidden: [old_tokens, ...] of any dtype: [old_tokens, hidden_size] hidden states, or [old_tokens] flags, say.
        starts: [rows or more] int32, from a plan: a survivor's first token in `hidden`.
        cu_seqlens: [rows + 1 or more] int32, from the same plan: where the survivors' tokens go.
        rows: number of survivors.
        tokens: number of their tokens.
        longest: number of tokens of the longest one.

    Returns:
        [tokens, ...], dtype of `hidden`.

    Raises:
        ValueError: a shape, dtype, device or layout does not fit, or the numbers contradict each other.
    """
    check_gather(hidden, starts, cu_seqlens, rows=rows, tokens=tokens, longest=longest)
    ends = cu_seqlens[: rows + 1]
    shifts = (starts[:rows] - ends[:-1]).repeat_interleave(ends.diff(), output_size=tokens)
    return hidden.index_select(0, shifts + torch.arange(tokens, device=hidden.device))
