"""What attention within packed rows means, and what it refuses; nothing here runs a kernel."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pabee_fast.kernels import reference
from tests.kernels import attention_cases
from tests.kernels.attention_cases import ATTENTION_CASES, AttentionCase

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ATTENTION_CASES, ids=str)
def test_the_reference_is_softmax_of_the_products_within_each_row(case: AttentionCase, dtype: torch.dtype) -> None:
    attention_cases.check_attention(reference.attention, case, dtype, "cpu")


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    place=st.integers(0, 5),
    is_causal=st.booleans(),
    window=st.none() | st.integers(1, 6),
)
def test_a_row_s_output_does_not_depend_on_its_neighbours(
    lengths: list[int], place: int, is_causal: bool, window: int | None
) -> None:
    attention_cases.check_neighbours_do_not_matter(
        reference.attention, lengths, place % len(lengths), is_causal=is_causal, window=window
    )


def test_rows_that_no_tile_holds_are_not_short() -> None:
    with pytest.raises(ValueError, match=r"longest is 65; a tile holds rows of up to 64 tokens, so call attention"):
        reference.short_attention(**arguments(longest=65))
    assert torch.equal(reference.short_attention(**arguments(longest=3)), reference.attention(**arguments()))


def arguments(**changes: Any) -> dict[str, Any]:
    names = ("query", "key", "value")
    tensors = dict(zip(names, AttentionCase(lengths=(3, 2), heads=4, head_dim=8).tensors(torch.float32), strict=True))
    return tensors | {"cu_seqlens": torch.tensor([0, 3, 5], dtype=torch.int32)} | changes


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"query": torch.zeros(5, 32)}, r"query is \[5, 32\]; give it the shape \[tokens, heads, head_dim\]"),
    ({"query": torch.zeros(5, 4, 8).double()}, r"query is torch.float64; convert it to one of torch.float32"),
    ({"query": torch.zeros(5, 3, 8)}, r"query is \[5, 3, 8\], key \[5, 2, 8\] .* a number of heads that divides"),
    ({"key": torch.zeros(5, 2, 0), "query": torch.zeros(5, 4, 0)}, r"no head without numbers"),
    ({"key": torch.zeros(5, 2, 7)}, r"key is \[5, 2, 7\]; .*\[tokens, kv_heads, head_dim\], here \[5, 2, 8\]"),
    ({"key": torch.zeros(5, 2, 8).half()}, r"key is torch.float16; convert it to torch.float32"),
    ({"key": torch.zeros(5, 8, 2).mT}, r"key's last dimension is not contiguous; make it so"),
    ({"value": torch.zeros(5, 4, 8)}, r"value is \[5, 4, 8\]; .*here \[5, 2, 8\]"),
    ({"value": torch.zeros(5, 2, 8, device="meta")}, r"value is on meta; move it to cpu"),
    ({"cu_seqlens": torch.tensor([0, 3, 5])}, r"cu_seqlens is torch.int64; convert it to torch.int32"),
    ({"cu_seqlens": torch.zeros(0, dtype=torch.int32)}, r"cu_seqlens is \[0\]; it starts with 0"),
    ({"window": 0}, r"window is 0; a query sees at least itself"),
    ({"key_mask": torch.ones(5)}, r"key_mask is torch.float32; convert it to torch.bool"),
    ({"key_mask": torch.ones(4, dtype=torch.bool)}, r"key_mask is \[4\]; give it the shape \[tokens\], here \[5\]"),
    ({"positions": torch.arange(5)}, r"positions is torch.int64; convert it to torch.int32"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_attention_names_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reference.attention(**arguments(**changes))
