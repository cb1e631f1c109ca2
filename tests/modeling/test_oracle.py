"""The published code's recorded answers, row by row: every exit layer exactly, logits to float32 rounding."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, BertConfig, PreTrainedModel

import pabee_fast as pf
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.pack import pack
from tests.tolerances import TOLERANCES

CASES = [f"{family}-{task}" for family in ("bert", "albert") for task in ("cls2", "cls3", "reg")]
INPUTS = ("input_ids", "attention_mask", "token_type_ids")

Orders = dict[str, tuple[list[torch.Tensor], dict[str, Any]]]


def orders(rows: int) -> Orders:
    """Name -> (the rows of each call, engine options)."""
    everything = torch.arange(rows)
    shuffled = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    return {
        "one batch": ([everything], {}),
        "shuffled": ([shuffled], {}),
        "batches of 7": (list(everything.split(7)), {}),
        "compaction forced at every layer": ([everything], {"gather_cost": 0.0}),
        "never compacted": ([everything], {"gather_cost": float("inf")}),
        "waves of at most 60 tokens": ([shuffled], {"token_budget": 60}),
    }


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, oracle: Path) -> Iterator[tuple[PreTrainedModel, dict, list[dict]]]:
    path = oracle / request.param
    description = json.loads(path.with_suffix(".json").read_text())
    model = pf.load_pabee_checkpoint(f"{path}.weights.safetensors", description["config"])
    yield model, load_file(f"{path}.expected.safetensors"), description["runs"]


def policy_of(run: dict[str, Any]) -> pf.Policy:
    return pf.Patience(run["patience"], run.get("threshold")) if run["patience"] else pf.FullDepth()


def test_every_run_equals_the_published_code_whatever_the_batch_order_and_compaction(
    case: tuple[PreTrainedModel, dict, list[dict]],
) -> None:
    model, expected, runs = case
    for run in runs:
        logits, exit_layers = expected[f"{run['name']}/logits"], expected[f"{run['name']}/exit_layer"]
        for name, (calls, options) in orders(len(logits)).items():
            for rows in calls:
                batch = pack(model, **{key: expected[key][rows] for key in INPUTS})
                out = Engine(model, **options).run(batch, policy_of(run))
                assert out.exit_layers.tolist() == exit_layers[rows].tolist(), (run["name"], name)
                difference = (out.logits - logits[rows]).abs().max() / logits.abs().max()
                assert difference <= TOLERANCES[torch.float32], (run["name"], name)


def test_the_accelerated_forward_equals_the_published_code(
    case: tuple[PreTrainedModel, dict, list[dict]],
) -> None:
    model, expected, runs = case
    run = next(run for run in runs if run["patience"] == 2)
    out = pf.accelerate(model, policy_of(run))(**{key: expected[key] for key in INPUTS})
    logits = expected[f"{run['name']}/logits"]
    assert out.exit_layers.tolist() == expected[f"{run['name']}/exit_layer"].tolist()
    assert (out.logits - logits).abs().max() / logits.abs().max() <= TOLERANCES[torch.float32]


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        ("too few layers", r"has classifiers\.\d+\.bias, classifiers\.\d+\.weight beside them"),
        ("other sizes", r"does not fit its config: size mismatch for bert\.encoder\.layer\.0\.\S+: [^\n]*$"),
        ("a missing tensor", "lacks bert.pooler.dense.bias and has nothing beside the config's tensors"),
        ("an unknown tensor", "lacks nothing and has bert.other beside the config's tensors"),
        ("a missing head", "lacks classifiers.0.weight and has nothing beside them"),
        ("an unnumbered head", "lacks nothing and has classifiers.x.weight beside them"),
        ("no heads", r"lacks classifiers\.0\.bias, classifiers\.0\.weight, classifiers\.1\.bias and \d+ more"),
    ],
)
def test_a_checkpoint_whose_parts_do_not_match_is_refused(oracle: Path, break_it: str, says: str) -> None:
    path = oracle / "bert-cls3"
    state = load_file(f"{path}.weights.safetensors")
    config = json.loads(path.with_suffix(".json").read_text())["config"]
    if break_it == "too few layers":
        config["num_hidden_layers"] -= 1
    elif break_it == "other sizes":
        config["intermediate_size"] += 8
    elif break_it == "a missing tensor":
        del state["bert.pooler.dense.bias"]
    elif break_it == "an unknown tensor":
        state["bert.other"] = torch.zeros(1)
    elif break_it == "a missing head":
        del state["classifiers.0.weight"]
    elif break_it == "an unnumbered head":
        state["classifiers.x.weight"] = state["classifiers.0.weight"].clone()
    else:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("classifiers.")}
    with pytest.raises(pf.CheckpointError, match=says):
        pf.load_pabee_checkpoint(state, config)


def test_loading_leaves_the_callers_config_as_it_was(oracle: Path) -> None:
    path = oracle / "bert-cls3"
    config = AutoConfig.for_model(**json.loads(path.with_suffix(".json").read_text())["config"])
    before = config.to_dict()
    model = pf.load_pabee_checkpoint(f"{path}.weights.safetensors", config)
    assert config.to_dict() == before and model.config.num_labels == 3


@pytest.mark.parametrize("name", ["cut.safetensors", "text.bin", "list.pt"])
def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path, name: str) -> None:
    if name == "list.pt":
        torch.save([torch.zeros(1)], tmp_path / name)
    else:
        (tmp_path / name).write_text("no tensors here")
    with pytest.raises(pf.CheckpointError, match=name):
        pf.load_pabee_checkpoint(tmp_path / name, BertConfig())


def test_a_published_bin_file_is_read_without_running_its_pickle(oracle: Path, tmp_path: Path) -> None:
    path = oracle / "albert-cls2"
    state = load_file(f"{path}.weights.safetensors")
    torch.save(state, tmp_path / "pytorch_model.bin")
    config = json.loads(path.with_suffix(".json").read_text())["config"]
    model = pf.load_pabee_checkpoint(tmp_path / "pytorch_model.bin", config)
    assert torch.equal(model.classifier.weight, state["classifiers.11.weight"])

    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "was_run",))

    torch.save({"classifiers.0.weight": Harmful()}, tmp_path / "harmful.bin")
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        pf.load_pabee_checkpoint(tmp_path / "harmful.bin", config)
    assert not (tmp_path / "was_run").exists()
