"""Joined weights are still their owner's: whatever is done to them is right, and none is held twice."""

import copy
import gc
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from transformers import AutoModelForSequenceClassification

import pabee_fast as pf
from pabee_fast.runtime import block, joined
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.pack import pack
from tests.conftest import FAMILIES, padded_rows, tiny_model, tiny_stock
from tests.runtime.answers import packed_answers, stock_answers
from tests.tolerances import assert_close


@pytest.fixture(autouse=True)
def join_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "JOINED", {"cpu"})


def projections(model: Any) -> list[list[torch.Tensor]]:
    """Query's, key's and value's weights, and their biases, of every block."""
    family = Engine(model).family
    blocks = [each for layer in dict.fromkeys(family.layers(model)) for each in family.blocks(layer)]
    parts = [(each.query, each.key, each.value) for each in blocks]
    return [[getattr(part, name) for part in three] for three in parts for name in ("weight", "bias")]


def are_all_joined(model: Any) -> bool:
    return all(map(joined.are_joined, projections(model)))


def bytes_held(model: Any) -> int:
    """Of all storages that the parameters lie in, each once."""
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    return sum(storages.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_joins_the_weights_once_and_holds_none_twice(family: str) -> None:
    stock = tiny_stock(family, **({"inner_group_num": 2} if family == "albert" else {}))
    expected, held = stock_answers(stock), bytes_held(stock)
    parameters = {name: (parameter, parameter.clone()) for name, parameter in stock.named_parameters()}
    assert not are_all_joined(stock)
    assert_close(packed_answers(stock), expected)
    assert are_all_joined(stock)
    assert bytes_held(stock) == held
    for name, parameter in stock.named_parameters():
        assert parameter is parameters[name][0]
        assert torch.equal(parameter, parameters[name][1])
    places = [part.data_ptr() for three in projections(stock) for part in three]
    packed_answers(stock)
    assert [part.data_ptr() for three in projections(stock) for part in three] == places
    assert_close(stock_answers(stock), expected)


def halve(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)


def halve_data(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.5)


def load(model: Any, **options: bool) -> None:
    other = tiny_stock("bert", seed=5)
    model.load_state_dict(other.state_dict(), **options)


def train(model: Any) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    model.train()
    model(**padded_rows([4, 9]), labels=torch.tensor([0, 2])).loss.backward()
    optimiser.step()
    model.eval()


def replace_query(model: Any) -> None:
    query = model.bert.encoder.layer[3].attention.self.query
    query.weight = torch.nn.Parameter(torch.randn_like(query.weight))


EDITS: dict[str, Callable[[Any], Any]] = {
    "in-place arithmetic": halve,
    "arithmetic on .data": halve_data,
    "load_state_dict": load,
    "load_state_dict(assign=True)": lambda model: load(model, assign=True),
    "an optimiser's step": train,
    "another Parameter": replace_query,
    "a change of dtype and back": lambda model: model.bfloat16().float(),
    "shared memory": lambda model: model.share_memory(),
}


@pytest.mark.parametrize("edit", EDITS)
def test_weights_changed_after_a_run_count_in_the_next(edit: str) -> None:
    stock = tiny_stock("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    before, held = packed_answers(stock), bytes_held(stock)
    torch.manual_seed(0)
    EDITS[edit](stock)
    expected = stock_answers(stock)
    if edit != "shared memory":
        assert (expected - before).abs().max() > 1e-4, "the edit changes no answer, so the test could not fail"
    assert_close(packed_answers(stock), expected)
    assert are_all_joined(stock)
    assert bytes_held(stock) == held


def test_training_after_a_run_gives_the_gradients_of_an_untouched_model() -> None:
    used, untouched = tiny_model("bert"), tiny_model("bert")
    pf.accelerate(used, pf.Patience(1))(**padded_rows([4, 9]))
    for model in (pf.restore(used), untouched):
        torch.manual_seed(0)
        model.train()(**padded_rows([4, 9]), labels=torch.tensor([0, 2])).loss.backward()
    for (name, parameter), other in zip(used.named_parameters(), untouched.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad), name


def test_a_graph_made_before_a_run_can_be_gone_back_through_after_it() -> None:
    used, untouched = tiny_stock("bert"), tiny_stock("bert")
    losses = [model(**padded_rows([4, 9]), labels=torch.tensor([0, 2])).loss for model in (used, untouched)]
    packed_answers(used)
    for loss in losses:
        loss.backward()
    for parameter, other in zip(used.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad)


def test_a_first_run_in_inference_mode_leaves_weights_that_can_be_trained() -> None:
    stock = tiny_stock("bert")
    with torch.inference_mode():
        packed_answers(stock)
    assert are_all_joined(stock)
    assert not any(parameter.is_inference() for parameter in stock.parameters())
    train(stock)
    assert_close(packed_answers(stock), stock_answers(stock))


def test_restore_gives_weights_their_own_memory_back() -> None:
    model = pf.accelerate(tiny_stock("bert"), pf.FullDepth())
    batch = padded_rows([4, 9])
    expected = model(**batch).logits
    assert are_all_joined(model)
    pf.restore(model)
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in model.parameters())
    assert_close(model(**batch).logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_used_model_is_saved_as_an_untouched_one(family: str, tmp_path: Path) -> None:
    used, untouched = tiny_model(family), tiny_model(family)
    pf.accelerate(used, pf.Patience(1))(**padded_rows([4, 9], family=family))
    assert are_all_joined(used)
    for options in ({}, {"max_shard_size": "20KB"}):
        files = []
        for model, name in ((used, "used"), (untouched, "untouched")):
            folder = tmp_path / f"{name}{len(options)}"
            model.save_pretrained(folder, **options)
            files.append({path.name: path.read_bytes() for path in folder.glob("*.safetensors")})
        assert files[0] == files[1]
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "used0").eval()
    assert_close(stock_answers(again), stock_answers(tiny_stock(family)))


def wide_tensors() -> list[torch.Tensor]:
    """All live tensors that could be a joined weight of a tiny model."""
    tensors = (each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter))
    return [tensor for tensor in tensors if tensor.shape == (3 * 32, 32) and tensor.dtype == torch.float32]


@pytest.mark.parametrize("way", ["engine", "accelerated"])
def test_weights_that_have_moved_on_are_held_by_nobody(way: str) -> None:
    of_other_tests = {id(tensor): tensor for tensor in wide_tensors()}  # held, so that no identity is used again
    stock, engine = tiny_stock("bert"), None
    if way == "engine":
        engine = Engine(stock)
        engine.run(pack(stock, **padded_rows([4, 9])), pf.FullDepth())
    else:
        pf.accelerate(stock, pf.FullDepth())(**padded_rows([4, 9]))
    stock.bfloat16()
    gc.collect()
    assert not [tensor for tensor in wide_tensors() if id(tensor) not in of_other_tests]
    assert engine is None or len(engine.layers) == 6


def test_a_state_dict_of_a_used_model_holds_its_weights_once(tmp_path: Path) -> None:
    stock, used = tiny_stock("bert"), tiny_stock("bert")
    packed_answers(used)
    for name, model in (("stock", stock), ("used", used)):
        torch.save(model.state_dict(), tmp_path / name)
    sizes = [(tmp_path / name).stat().st_size for name in ("stock", "used")]
    assert sizes[1] <= sizes[0]
    loaded = torch.load(tmp_path / "used", weights_only=True)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in stock.state_dict().items())


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_used_model_are_as_small_and_their_own(make_copy: Any) -> None:
    model = pf.accelerate(tiny_stock("bert"), pf.FullDepth())
    size, held = len(pickle.dumps(model)), bytes_held(model)
    expected = model(**padded_rows([4, 9])).logits
    assert len(pickle.dumps(model)) <= size
    model(**padded_rows([4, 9]))
    twin = make_copy(model)
    assert bytes_held(twin) == held
    halve(model)
    assert_close(twin(**padded_rows([4, 9])).logits, expected)


def test_two_storages_that_are_neighbours_by_chance_are_not_taken_for_one() -> None:
    memory, size = bytearray(3 * 8 * 4), 8 * 4
    parts = [torch.frombuffer(memory, dtype=torch.float32, count=8, offset=n * size).view(2, 4) for n in range(3)]
    for number, part in enumerate(parts):
        part.fill_(number)
    whole = torch.cat(parts)
    assert [part.data_ptr() - parts[0].data_ptr() for part in parts] == [0, size, 2 * size]
    assert not joined.are_joined(parts)
    one = joined.joined(parts)
    assert torch.equal(one, whole)
    assert one.data_ptr() == parts[0].data_ptr()
    assert joined.are_joined(parts)
    # The right addresses in the wrong order, and one of them missing.
    assert not joined.are_joined(parts[::-1])
    assert not joined.are_joined([parts[0], parts[2]])
    assert joined.are_joined(parts[1:])
    assert torch.equal(joined.joined(parts[1:]), whole[2:])


def test_safetensors_files_of_state_dicts_are_whole(tmp_path: Path) -> None:
    stock, used = tiny_stock("bert"), tiny_stock("bert")
    packed_answers(used)
    save_file(used.state_dict(), tmp_path / "file")
    loaded = load_file(tmp_path / "file")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in stock.state_dict().items())
    # What restore is for: this function wants every tensor to fill its storage.
    pf.restore(pf.accelerate(used, pf.FullDepth()))
    save_model(used, str(tmp_path / "model"))
