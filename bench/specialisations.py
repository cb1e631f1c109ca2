"""Everything that the runtime makes Triton compile, at BERT-base's sizes, by name, and the kernel of a benchmark: what
`bench.static` compiles.

Tensors have no storage here: a launch says what would be compiled, and cannot run.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from pabee_fast.kernels import short_attention
from pabee_fast.kernels.add_norm import add_norm_launch
from pabee_fast.kernels.attention import attention_launch
from pabee_fast.kernels.bias_act import bias_act_launch
from pabee_fast.kernels.checks import (
    FEATURE_DTYPES,
    KINDS,
    POOLINGS,
    RULES,
    ExitHead,
    ExitRows,
    ExitRule,
    RowState,
    memory_words,
)
from pabee_fast.kernels.checks_layer import ID_DTYPES, INNER_ACTIVATIONS
from pabee_fast.kernels.compact import gather_launch, plan_launch
from pabee_fast.kernels.disentangled_attention import disentangled_attention_launch
from pabee_fast.kernels.embed_norm import embed_norm_launch
from pabee_fast.kernels.exit_step import exit_step_launch
from pabee_fast.kernels.launch import FEW_CLASSES, MAX_CLASSES, MAX_HIDDEN_SIZE, Launch, Plan
from pabee_fast.kernels.launch_attention import MAX_SHORT_HEAD
from pabee_fast.kernels.linear_gelu import linear_gelu_launch
from pabee_fast.kernels.pool import pool_launch
from pabee_fast.kernels.short_attention import short_attention_launch

HIDDEN_SIZE = 768
Named = Iterator[tuple[str, Launch]]

_RULES_OF_ANY_KIND = ("agreement", "given", "none")
_HEAVY_RULES = [("label", "agreement"), ("label", "divergence"), ("label_set", "agreement")]


@functools.cache
def by_name() -> dict[str, Launch]:
    """Launch that stand for everything that is compiled."""
    found: dict[str, Launch] = {}
    with torch.device("meta"):
        for name, launch in _every():
            assert name not in found, f"two specialisations are named {name}"
            found[name] = launch
    return found


def _every() -> Named:
    yield from _exit_steps()
    yield from _compactions()
    yield from _pools()
    yield from _attentions()
    yield from _short_attentions()
    yield from _disentangled_attentions()
    yield from _add_norms()
    yield from _bias_acts()
    yield from _linear_gelus()
    yield from _embeddings()


def _name(*words: object) -> str:
    return "-".join(str(word).removeprefix("torch.") for word in words if word is not None)


def _exit_steps() -> Named:
    """A step is a head and then a rule, and all pairs would be thousands: each rule comes behind pooled features, and
    each other head in front of the rule most used and of those that hold most."""
    bf16, classes_of = torch.bfloat16, {"label": 3, "value": 1, "label_set": 33}
    rules = [(kind, rule) for kind in KINDS for rule in RULES if kind == "label" or rule in _RULES_OF_ANY_KIND]
    heads: list[dict[str, Any]] = [
        *({"layout": name} for name in POOLINGS if name != "mean"), {"has_bias": False}
    ]  # fmt: skip
    for dtype in FEATURE_DTYPES:
        pairs: list[Any] = [*itertools.product([{}], rules), *itertools.product(heads, _HEAVY_RULES)]
        for head, (kind, rule) in pairs:
            yield _exit_step(dtype, classes_of[kind], kind=kind, rule=rule, **head)
        # More than are asked one after the other.
        by_product = {"pooled": "agreement", "first": "divergence", "last": "vote"}
        yield from (_exit_step(dtype, FEW_CLASSES + 1, layout=name, rule=rule) for name, rule in by_product.items())
    # As many classes as a program holds: the most registers.
    for dtype in (torch.float32, bf16):
        yield from (_exit_step(dtype, MAX_CLASSES, rule=rule) for rule in ("agreement", "divergence", "vote"))
    yield _exit_step(bf16, MAX_CLASSES, kind="label_set")
    yield _exit_step(bf16, MAX_CLASSES, layout="first")


def _exit_step(
    dtype: torch.dtype,
    classes: int,
    kind: str = "label",
    rule: str = "agreement",
    layout: str = "pooled",
    has_bias: bool = True,
) -> tuple[str, Launch]:
    per_row, per_result = torch.empty(1, dtype=torch.int32), torch.empty(1, dtype=torch.int64)
    memory = torch.empty(1, memory_words(kind, rule, classes), dtype=torch.int32)
    is_pooled = layout == "pooled"
    rows = ExitRows(
        features=torch.empty(1, HIDDEN_SIZE, dtype=dtype),
        state=RowState(torch.empty(1, dtype=torch.int8), per_row, memory, per_result),
        logits=torch.empty(1, classes),
        exit_layers=per_result,
        cu_seqlens=None if is_pooled else torch.empty(2, dtype=torch.int32),
        pooling=None if is_pooled else layout,
    )
    bias = torch.empty(classes, dtype=dtype) if has_bias else None
    head = ExitHead(torch.empty(classes, HIDDEN_SIZE, dtype=dtype), bias)
    given = per_result if rule == "given" else None
    launch = exit_step_launch(rows, head, ExitRule(kind, rule, layer=1, last=12, patience=1, exit_at=given))
    return _name("exit_step", dtype, kind, classes, layout, rule, None if has_bias else "plain"), launch


def _compactions() -> Named:
    per_row, ends = torch.empty(1, dtype=torch.int32), torch.empty(2, dtype=torch.int32)
    keep, row_ids = torch.empty(1, dtype=torch.int8), torch.empty(1, dtype=torch.int64)
    result = Plan(torch.empty(8, dtype=torch.int32), row_ids)
    yield "plan", plan_launch(keep, ends, row_ids, per_row, result)
    cases = [
        *(((HIDDEN_SIZE,), torch.float32, words) for words in (0, 1)),
        *(((HIDDEN_SIZE,), torch.bfloat16, words) for words in (0, 1, 3, 1000)),
        # A call's token ids, and the flags of its keys.
        *(((), dtype, 0) for dtype in (torch.int64, torch.bool)),
    ]
    for shape, dtype, words in cases:
        hidden, memory = torch.empty(1, *shape, dtype=dtype), torch.empty(1, words, dtype=torch.int32)
        moved = {"memory": memory, "new_memory": memory, "sources": per_row}
        yield (
            _name("gather", *shape, dtype, words),
            gather_launch(hidden, hidden, per_row, ends, rows=1, longest=1, **moved),
        )


def _pools() -> Named:
    ends, mask = torch.empty(2, dtype=torch.int32), torch.empty(1, dtype=torch.bool)
    for dtype, pooling in itertools.product(FEATURE_DTYPES, POOLINGS):
        features, name = torch.empty(1, HIDDEN_SIZE, dtype=dtype), _name("pool", dtype, pooling)
        yield name, pool_launch(features, features, ends, pooling=pooling, key_mask=None)
        if pooling == "mean":
            yield f"{name}-masked", pool_launch(features, features, ends, pooling=pooling, key_mask=mask)


def _attentions() -> Named:
    """Yield heads of every block size, one that is odd, and from nothing that hides a key to everything."""
    everything: dict[str, Any] = {"is_causal": True, "window": 64, "is_masked": True, "has_holes": True}
    for dtype, is_causal, is_masked in itertools.product(FEATURE_DTYPES, (False, True), (False, True)):
        yield _attention(dtype, 64, is_causal=is_causal, is_masked=is_masked)
        for has_holes in (False, True):
            yield _attention(dtype, 64, is_causal=is_causal, window=64, is_masked=is_masked, has_holes=has_holes)
    for dtype in (torch.float32, torch.bfloat16):
        yield _attention(dtype, 20, window=64)
        yield _attention(dtype, 128, kv_heads=4, is_causal=True)
        yield _attention(dtype, 256, **everything)


def _short_attentions() -> Named:
    """Yield heads of every block size, and from nothing that hides a key to everything."""
    everything: dict[str, Any] = {"is_causal": True, "window": 8, "is_masked": True, "has_holes": True}
    for dtype, head_dim in itertools.product(FEATURE_DTYPES, (32, 64, 128)):
        if head_dim <= MAX_SHORT_HEAD[dtype]:
            yield _attention(dtype, head_dim, is_short=True)
    for dtype in (torch.float32, torch.bfloat16):
        for more in ({"is_masked": True}, {"window": 8}):
            yield _attention(dtype, 64, is_short=True, **more)
    # In float32, which is for comparisons, all of it at once spills on gfx942 (25 registers).
    yield _attention(torch.bfloat16, 128, is_short=True, kv_heads=4, **everything)
    for dtype, head_dim in itertools.product((torch.float16, torch.bfloat16), (32, 64)):
        yield _attention(dtype, head_dim, is_short=True, has_biases=True)
        for has_biases in (False, True):
            with mock.patch.object(short_attention, "is_hopper", lambda device: True):
                name, launch = _attention(dtype, head_dim, is_short=True, has_biases=has_biases)
            yield f"{name}-hopper", launch


def _attention(
    dtype: torch.dtype,
    head_dim: int,
    *,
    is_short: bool = False,
    kv_heads: int = 12,
    is_causal: bool = False,
    window: int | None = None,
    is_masked: bool = False,
    has_holes: bool = False,
    has_biases: bool = False,
) -> tuple[str, Launch]:
    """Of rows of any length, or of short ones."""
    query, key = (torch.empty(1, heads, head_dim, dtype=dtype) for heads in (12, kv_heads))
    tensors: tuple[Tensor, ...] = (query, key, key, query, torch.empty(2, dtype=torch.int32))
    options: dict[str, Any] = dict(
        scaling=None,
        is_causal=is_causal,
        window=window,
        key_mask=torch.empty(1, dtype=torch.bool) if is_masked else None,
        positions=torch.empty(1, dtype=torch.int32) if has_holes else None,
    )
    words = {
        "grouped": kv_heads < 12, "causal": is_causal, "window": window, "masked": is_masked, "holes": has_holes,
        "biases": has_biases,
    }  # fmt: skip
    told = [word for word, is_told in words.items() if is_told]
    if not is_short:
        return _name("attention", dtype, head_dim, *told), attention_launch(*tensors, **options)
    if has_biases:
        options |= {"query_bias": query[0], "value_bias": key[0]}
    return _name("short_attention", dtype, head_dim, *told), short_attention_launch(*tensors, **options)


def _disentangled_attentions() -> Named:
    """Yield heads of both block sizes, with places that both sides meet, one of them or neither."""
    both, bf16 = ("keys", "queries"), torch.bfloat16
    cases: list[Any] = [(dtype, 64, both, mask) for dtype in FEATURE_DTYPES for mask in (False, True)]
    cases += [(bf16, 64, sides, True) for sides in (("keys",), ("queries",), ())]
    cases += [(dtype, 32, both, True) for dtype in (torch.float32, bf16)]
    for dtype, head_dim, sides, is_masked in cases:
        states = torch.empty(1, 12, head_dim, dtype=dtype)
        launch = disentangled_attention_launch(
            states,
            states,
            states,
            states,
            torch.empty(2, dtype=torch.int32),
            longest=1,
            place_keys=states if "keys" in sides else None,
            place_queries=states if "queries" in sides else None,
            key_mask=torch.empty(1, dtype=torch.bool) if is_masked else None,
        )
        yield _name("disentangled_attention", dtype, head_dim, *sides, "masked" if is_masked else None), launch


def _add_norms() -> Named:
    """BERT's sizes, and the largest."""
    for hidden_size, dtype in [*itertools.product((768, 1024), FEATURE_DTYPES), (MAX_HIDDEN_SIZE, torch.float32)]:
        tokens, weight = torch.empty(1, hidden_size, dtype=dtype), torch.empty(hidden_size, dtype=dtype)
        launch = add_norm_launch(tokens, weight, tokens, weight, weight, eps=1e-12)
        yield _name("add_norm", hidden_size, dtype), launch


def _bias_acts() -> Named:
    for dtype, activation in itertools.product(FEATURE_DTYPES, INNER_ACTIVATIONS):
        product, bias = torch.empty(1, 3072, dtype=dtype), torch.empty(3072, dtype=dtype)
        yield _name("bias_act", dtype, activation), bias_act_launch(product, bias, activation=activation)


def _embeddings() -> Named:
    """Yield BERT's sizes, and ids as callers and tokenizers give them."""
    for hidden_size, dtype, ids in itertools.product((768, 1024), FEATURE_DTYPES, ID_DTYPES):
        table, row = torch.empty(1, hidden_size, dtype=dtype), torch.empty(hidden_size, dtype=dtype)
        place = torch.empty(1, dtype=ids)
        launch = embed_norm_launch(table, place, place, place, table, table, table, row, row, eps=1e-12)
        yield _name("embed_norm", hidden_size, dtype, ids), launch


def _linear_gelus() -> Named:
    """Yield half precision alone: float32 is for comparisons."""
    for dtype in (torch.float16, torch.bfloat16):
        sizes = ((1, 768), (3072, 768), (3072,), (1, 3072))
        hidden, weight, bias, out = (torch.empty(size, dtype=dtype) for size in sizes)
        yield _name("linear_gelu", dtype), linear_gelu_launch(hidden, weight, bias, out)
