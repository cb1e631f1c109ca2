"""Rows that lie end to end already are packed as rows that come padded on the right."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import pabee_fast as pf
from pabee_fast.runtime import pack as pack_module
from pabee_fast.runtime.pack import pack, pack_rows
from tests.zoo import VARIANTS, is_vision, stock_model

TEXTS = [name for name in VARIANTS if not is_vision(name)]
MODELS: dict[str, Any] = {}


def model_of(variant: str) -> Any:
    return MODELS.setdefault(variant, stock_model(variant))


def check(model: Any, rows: list[list[int]]) -> None:
    """Holds `pack_rows` against `pack` of the padded rows."""
    lengths = np.array([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < torch.tensor(lengths)[:, None]
    padded = torch.full(mask.shape, model.config.pad_token_id)
    padded[mask] = torch.tensor([token for row in rows for token in row])
    wanted = pack(model, attention_mask=mask, input_ids=padded)
    got = pack_rows(model, {"input_ids": np.array([token for row in rows for token in row], dtype=np.int32)}, lengths)
    assert got.lengths.tolist() == wanted.lengths.tolist()
    assert got.inputs.keys() == wanted.inputs.keys()
    for name, values in wanted.inputs.items():
        assert torch.equal(got.inputs[name], values), name
    assert got.key_mask is wanted.key_mask is None and got.positions is wanted.positions is None


@pytest.mark.parametrize("variant", TEXTS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_rows_laid_end_to_end_are_packed_as_padded_ones(variant: str, data: st.DataObject) -> None:
    model = model_of(variant)
    words = st.integers(5, 60)
    if data.draw(st.booleans()):  # some texts spell the padding token
        words = st.one_of(words, st.just(model.config.pad_token_id))
    rows = data.draw(st.lists(st.lists(words, min_size=1, max_size=9), min_size=1, max_size=6))
    check(model, rows)


@pytest.mark.parametrize("variant", ["gpt2", "roberta", "bert"])
def test_rows_with_padding_tokens_pass_through_the_padded_layout_a_few_at_a_time(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = model_of(variant), []
    pad = model.config.pad_token_id
    rows = [[7] * length + [pad] for length in (1, 9, 2, 5, 3, 3)]
    real = pack_module.pack
    monkeypatch.setattr(pack_module, "PLACES", 25)
    monkeypatch.setattr(pack_module, "pack", lambda *args, **given: (calls.append(given), real(*args, **given))[1])
    check(model, rows)
    masks = [given["attention_mask"] for given in calls if "attention_mask" in given]
    assert [len(mask) for mask in masks] == [2, 2, 2]


class Asked(TorchDispatchMode):
    """Counts what would make the host wait for a device: values read one by one, and sizes that depend on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        indices = args[1] if self.names[-1] == "index" else ()
        if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices):
            self.names[-1] = "nonzero"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", TEXTS)
@pytest.mark.parametrize("shown", [None, [[1, 1, 1, 1], [1, 1, 0, 0]], [[0, 1, 0, 1], [1, 0, 0, 1]]])
def test_packing_reads_no_value_of_a_device_but_its_marks_together(variant: str, shown: Any) -> None:
    model, ids = model_of(variant), torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    mask = None if shown is None else torch.tensor(shown)
    pack(model, input_ids=ids, attention_mask=mask)
    with Asked() as asked:
        pack(model, input_ids=ids, attention_mask=mask)
    assert not set(Asked.WAITS) & set(asked.names)


def test_a_row_that_is_longer_than_the_model_has_positions_for_is_refused() -> None:
    model = model_of("bert")
    long = model.config.max_position_embeddings + 1
    with pytest.raises(pf.InputError, match=f"row 0 has {long} tokens"):
        pack_rows(model, {"input_ids": np.full(3 + long, 7)}, np.array([3, long]))
