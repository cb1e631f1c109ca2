"""The published code's recorded answers, row by row: every exit layer exactly, logits to float32 rounding."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

import pabee_fast as pf
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.packed import pack
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


@pytest.mark.parametrize("break_it", ["too few layers", "other classes", "a missing tensor", "no heads"])
def test_a_checkpoint_whose_parts_do_not_match_is_refused(oracle: Path, break_it: str) -> None:
    path = oracle / "bert-cls3"
    state = load_file(f"{path}.weights.safetensors")
    config = json.loads(path.with_suffix(".json").read_text())["config"]
    options: dict[str, Any] = {}
    if break_it == "too few layers":
        config["num_hidden_layers"] -= 1
    elif break_it == "other classes":
        options["num_labels"] = 2
    elif break_it == "a missing tensor":
        del state["bert.pooler.dense.bias"]
    else:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("classifiers.")}
    with pytest.raises(pf.CheckpointError):
        pf.load_pabee_checkpoint(state, config, **options)


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
