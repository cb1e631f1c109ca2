"""The kernels' functions in plain torch: the ground truth of every test, and the path on a CPU."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import gelu, one_hot

from .checks import (
    BITS_PER_WORD,
    ExitHead,
    ExitRows,
    ExitRule,
    Pooler,
    RowState,
    check_exit_step,
    check_gather,
    check_plan,
    check_pool,
    memory_words,
)
from .launch import Plan
from .reference_attention import attention, short_attention
from .reference_disentangled import disentangled_attention
from .reference_layer import add_norm, bias_act, embed_norm, linear_gelu

__all__ = [
    "ExitHead", "ExitRows", "ExitRule", "Plan", "Pooler", "RowState", "add_norm", "attention", "bias_act", "count",
    "disentangled_attention", "embed_norm", "exit_step", "gather", "linear_gelu", "observe", "plan", "pool", "settle",
    "short_attention",
]  # fmt: skip

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "gelu": gelu, "relu": torch.relu}


@torch.no_grad()
def exit_step(rows: ExitRows, head: ExitHead, rule: ExitRule) -> None:
    """Ask one layer's head, bring each row's streak up to date, and write the results of the rows that leave now.

    Rows whose `keep` is 0 on entry are left alone entirely. A row with a logit that is not finite has no valid answer:
    its streak becomes -1 and its memory stays as it was, so that a NaN settles no row; it leaves at `last`.

    With p the softmax of a row's logits, q the one at the layer before and H the entropy in nats, the streak counts by
    the rule's name the consecutive layers that

    - "agreement": kept the answer of the layer before (PABEE, section 3.2); 0 at the first;
    - "confidence": had max p > threshold (Shallow-Deep Networks);
    - "entropy": had H(p) < threshold (BranchyNet; PCEE-BERT with patience, its threshold times ln classes);
    - "divergence": had JSD(q, p) = H((p + q) / 2) - (H(p) + H(q)) / 2 < threshold (F-PABEE); 0 at the first;
    - "vote": does not count layers, but is the number of layers that answered with the class most often answered.

    A row leaves when its streak reaches `patience`; by rule "given", whose streak runs as by "agreement", when
    `exit_at[row_id] <= layer`; and in any case when it has been given `last` layers: by rule "none", only then.

    Raises:
        ValueError: a shape, dtype, device, layout or option does not fit.
    """
    check_exit_step(rows, head, rule)
    state, features = rows.state, rows.features
    active = state.keep.nonzero().flatten()
    if rows.pooling is not None and rows.cu_seqlens is not None:
        features = pool(features, rows.cu_seqlens, pooling=rows.pooling, key_mask=rows.key_mask)
    scores = features[active].float() @ head.weight.float().T  # [active, classes]
    if head.bias is not None:
        scores += head.bias.float()

    streak, memory = settle(
        scores, state.streak[active], state.memory[active], kind=rule.kind, rule=rule.name, threshold=rule.threshold
    )
    state.streak[active], state.memory[active] = streak, memory
    ids = state.row_ids[active]
    leaves = torch.full_like(ids, rule.layer >= rule.last, dtype=torch.bool)
    if rule.exit_at is not None:
        leaves |= rule.exit_at[ids] <= rule.layer
    elif rule.name != "none":
        leaves |= streak >= rule.patience
    rows.logits[ids[leaves]] = scores[leaves]
    rows.exit_layers[ids[leaves]] = rule.layer
    state.keep[active[leaves]] = 0


def settle(
    scores: Tensor, streak: Tensor, memory: Tensor, *, kind: str, rule: str, threshold: float
) -> tuple[Tensor, Tensor]:
    """Return rows' streaks and memory after one more tested layer: the part of `exit_step` that knows the rules.

    Args:
        scores: [rows, classes] float32, the logits of that layer's head.
        streak: [rows] int32, and
        memory: [rows, words] int32, as they were before; see RowState. Neither is changed.
        kind, rule, threshold: see `exit_step`.
    """
    if rule == "none":
        return streak, memory
    measure, memory = observe(scores, memory, kind=kind, rule=rule)
    return count(streak, measure, kind=kind, rule=rule, threshold=threshold), memory


def observe(scores: Tensor, memory: Tensor, *, kind: str, rule: str) -> tuple[Tensor, Tensor]:
    """Return what a rule looks at, and its memory after one more tested layer; neither depends on its settings.

    The measure, [rows] float32, is NaN where a logit is not finite, and such a row's memory stays as it was. By
    "agreement" and "given" it is |y - y before| of one output, and otherwise 0 for the answer before and 1 for another;
    by "confidence" the largest probability; by "entropy" and "divergence" these, in nats; by "vote" the most votes.
    """
    valid = scores.isfinite().all(dim=1)
    if rule == "confidence":
        measure = 1 / (scores - scores.amax(dim=1, keepdim=True)).exp().sum(dim=1)
    elif rule == "entropy":
        measure = _entropy(scores.softmax(dim=1))
    elif rule == "vote":
        memory = memory + one_hot(scores.argmax(dim=1), scores.shape[1]).int() * valid[:, None]
        measure = memory.amax(dim=1).float()
    else:
        if rule == "divergence":
            p, q = scores.softmax(dim=1), memory.view(torch.float32)
            new, measure = p.view(torch.int32), _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
        elif kind == "value":
            new, measure = scores.view(torch.int32), (scores - memory.view(torch.float32)).abs()[:, 0]
        else:
            new = _answers(scores, kind)
            measure = (new != memory).any(dim=1).float()
        memory = torch.where(valid[:, None], new, memory)
    return torch.where(valid, measure, torch.nan), memory


def count(streak: Tensor, measure: Tensor, *, kind: str, rule: str, threshold: float) -> Tensor:
    """Return rows' streaks, [rows] int32, after a layer at which `observe` gave `measure`."""
    if rule == "vote":
        longer = measure.nan_to_num().int()
    elif rule == "confidence":
        longer = torch.where(measure > threshold, streak.clamp(min=0) + 1, 0)
    elif rule == "entropy":
        longer = torch.where(measure < threshold, streak.clamp(min=0) + 1, 0)
    else:
        # From -1 to 0 where there was no valid answer to compare with.
        limit = threshold if kind == "value" or rule == "divergence" else 0.5
        longer = torch.where(measure < limit, streak + 1, 0)
    return torch.where(measure.isnan(), -1, longer).int()


def _entropy(p: Tensor) -> Tensor:
    # p: [rows, classes] float32 -> [rows], in nats
    return -torch.xlogy(p, p).sum(dim=1)


def _answers(scores: Tensor, kind: str) -> Tensor:
    # scores: [rows, classes] float32 -> [rows, words] int32
    if kind == "label":
        return scores.argmax(dim=1, keepdim=True).int()  # torch promises the lowest index on ties
    rows, classes_count = scores.shape
    words = memory_words(kind, "agreement", classes_count)
    members = scores.new_zeros((rows, words * BITS_PER_WORD), dtype=torch.int64)
    members[:, :classes_count] = scores > 0
    bits = torch.arange(BITS_PER_WORD, device=scores.device)
    # The highest bit becomes int32's sign.
    return (members.view(rows, words, BITS_PER_WORD) << bits).sum(dim=2).int()


@torch.no_grad()
def pool(features: Tensor, cu_seqlens: Tensor, *, pooling: str, key_mask: Tensor | None = None) -> Tensor:
    """Return what the heads read of every row of a packed batch.

    Args:
        features: [tokens, hidden_size]; float32, float16 or bfloat16.
        cu_seqlens: [rows + 1] int32: cumulative lengths in tokens.
        pooling: "first" or "last" token, or the "mean" of all, summed in float32 and rounded once.
        key_mask: [tokens] bool: the tokens that count in a mean; None: all.

    Returns:
        [rows, hidden_size], dtype of `features`; NaN for a mean of no token.

    Raises:
        ValueError: a shape, dtype, device, layout or option does not fit.
    """
    check_pool(features, cu_seqlens, rows=cu_seqlens.shape[0] - 1, pooling=pooling, key_mask=key_mask)
    if pooling == "first":
        return features.index_select(0, cu_seqlens[:-1])
    if pooling == "last":
        return features.index_select(0, cu_seqlens[1:] - 1)
    counted = features.new_ones(len(features), dtype=torch.bool) if key_mask is None else key_mask
    lengths = cu_seqlens.diff()
    row = torch.repeat_interleave(torch.arange(len(lengths), device=features.device), lengths)
    sums = torch.zeros((len(lengths), features.shape[1]), dtype=torch.float32, device=features.device)
    sums.index_add_(0, row[counted], features[counted].float())
    counts = torch.zeros(len(lengths), dtype=torch.float32, device=features.device)
    counts.index_add_(0, row[counted], torch.ones_like(row[counted], dtype=torch.float32))
    return (sums / counts[:, None]).to(features.dtype)


@torch.no_grad()
def plan(keep: Tensor, cu_seqlens: Tensor, row_ids: Tensor, streak: Tensor) -> Plan:
    """Lay the survivors of a packed batch end to end, in their order.

    The tensors of the result are as long as the arguments, as the kernel's are; entries past the valid ones are 0 here
    and undefined there.

    Args:
        keep: [rows] int8: 1 for a survivor, 0 for a row that has left.
        cu_seqlens: [rows + 1] int32: cumulative lengths in tokens, starting with 0.
        row_ids: [rows] int64.
        streak: [rows] int32.

    Raises:
        ValueError: a shape, dtype, device or layout does not fit.
    """
    check_plan(keep, cu_seqlens, row_ids, streak)
    survivors = keep.nonzero().flatten()
    lengths = cu_seqlens.diff()[survivors]
    ends = lengths.cumsum(0, dtype=torch.int32)
    tokens, longest = (ends[-1:], lengths.max()[None]) if len(survivors) else (ends.new_zeros(1), ends.new_zeros(1))
    return Plan.of(
        cu_seqlens=_padded(torch.cat([ends.new_zeros(1), ends]), cu_seqlens),
        row_ids=_padded(row_ids[survivors], row_ids),
        streak=_padded(streak[survivors], streak),
        sources=_padded(survivors, streak),
        starts=_padded(cu_seqlens[survivors], streak),
        counts=torch.cat([tokens.new_full((1,), len(survivors)), tokens, longest]),
    )


def _padded(values: Tensor, like: Tensor) -> Tensor:
    out = torch.zeros_like(like)
    out[: len(values)] = values
    return out


@torch.no_grad()
def gather(
    hidden: Tensor,
    starts: Tensor,
    cu_seqlens: Tensor,
    *,
    rows: int,
    tokens: int,
    longest: int,
    memory: Tensor | None = None,
    sources: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Copy the survivors' tokens, and what their rule remembers, into a new packed batch.

    Args:
        hidden: [old_tokens, ...] of any dtype: [old_tokens, hidden_size] hidden states, or [old_tokens] flags, say.
        starts: [rows or more] int32, from a plan: a survivor's first token in `hidden`.
        cu_seqlens: [rows + 1 or more] int32, from the same plan: where the survivors' tokens go.
        rows: number of survivors.
        tokens: number of their tokens.
        longest: number of tokens of the longest one.
        memory: [old_rows, words] int32, see RowState; None: there is none to move.
        sources: [rows or more] int32, from the same plan: a survivor's row in `memory`; with `memory` and only then.

    Returns:
        [tokens, ...], dtype of `hidden`; and [rows, words] int32, or None without `memory`.

    Raises:
        ValueError: a shape, dtype, device or layout does not fit, or the numbers contradict each other.
    """
    check_gather(hidden, starts, cu_seqlens, rows=rows, tokens=tokens, longest=longest, memory=memory, sources=sources)
    ends = cu_seqlens[: rows + 1]
    shifts = (starts[:rows] - ends[:-1]).repeat_interleave(ends.diff(), output_size=tokens)
    moved = hidden.index_select(0, shifts + torch.arange(tokens, device=hidden.device))
    return moved, None if memory is None or sources is None else memory.index_select(0, sources[:rows])
