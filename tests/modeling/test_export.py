"""What a graph cannot hold is refused in a line that names the way out, and full depth is exported."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import pabee_fast as pf
from tests.conftest import padded_rows, tiny_model
from tests.tolerances import assert_close

BATCH = padded_rows([7, 3, 5])
SAYS = r"rows leave early by their values.*call pf\.restore\(model\) first"


def exported(model: Any, strict: bool) -> Any:
    return torch.export.export(model, (), kwargs=dict(BATCH), strict=strict).module()


def traced(model: Any) -> Any:
    return torch.jit.trace(model, example_kwarg_inputs=dict(BATCH), strict=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "export": lambda model: exported(model, strict=False),
    "strict export": lambda model: exported(model, strict=True),
    "trace": traced,
    "onnx": lambda model: torch.onnx.export(model, (), "/dev/null", kwargs=dict(BATCH), dynamo=True),
    "onnx by tracing": lambda model: torch.onnx.export(model, (BATCH["input_ids"],), "/dev/null", dynamo=False),
    "one compiled graph": lambda model: torch.compile(model, fullgraph=True)(**BATCH),
}


@pytest.mark.parametrize("policy", [pf.Patience(1), pf.FullDepth()], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_no_graph_is_made_of_rows_that_leave_early(way: str, policy: pf.Policy) -> None:
    if way == "onnx":
        pytest.importorskip("onnxscript")
    model = pf.accelerate(tiny_model("bert"), policy)
    with pytest.raises(Exception, match=f"(?s){SAYS}") as raised:
        WAYS[way](model)
    if way in ("export", "trace", "onnx by tracing"):
        assert isinstance(raised.value, pf.UnsupportedError) and "\n" not in str(raised.value)
    assert model(**BATCH).exit_layers is not None, "a refused export leaves the model as it was"


@pytest.mark.parametrize("way", ["export", "strict export", "trace"])
def test_full_depth_is_exported_of_a_model_with_heads_and_of_a_restored_one(way: str) -> None:
    attached = tiny_model("bert")
    restored = pf.restore(pf.accelerate(tiny_model("bert"), pf.Patience(1)))
    with torch.no_grad():
        for model in (attached, restored):
            assert_close(WAYS[way](model)(**BATCH)["logits"], model(**BATCH).logits)
