"""A malformed model directory is one error of ours that names it, whatever the libraries that read it raise."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

import pabee_fast as pf
from pabee_fast.cli import app
from pabee_fast.errors import PabeeFastError
from pabee_fast.jobs.executors import DeviceExecutor
from pabee_fast.jobs.recipe import Recipe
from pabee_fast.scoring.load import Setting, load_scorer

CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ABSENT = object()


@pytest.fixture
def model(small_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_model, tmp_path / "model"))


def refusal(path: Path) -> str:
    """What is said where a scorer of a directory cannot be made."""
    setting = Setting(torch.device("cpu"), torch.float32, "")
    with pytest.raises(PabeeFastError) as caught:
        load_scorer(str(path), pf.Patience(1), setting)
    assert str(path) in str(caught.value) or isinstance(caught.value, pf.UnsupportedError)
    return str(caught.value)


@pytest.mark.parametrize("file", [CONFIG, TOKENIZER, WEIGHTS])
@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"{}", b"3", b'{"a":', b"\xff\xfe\x00", b"[" * 100_000, bytes(range(256))]
)
def test_files_that_are_something_else(file: str, content: bytes, model: Path) -> None:
    (model / file).write_bytes(content)
    refusal(model)


@pytest.mark.parametrize("file", [CONFIG, TOKENIZER, WEIGHTS])
def test_files_that_are_cut(file: str, model: Path) -> None:
    content = (model / file).read_bytes()
    (model / file).write_bytes(content[: len(content) // 2])
    refusal(model)


VALUES: list[tuple[str, str, Any]] = [
    (CONFIG, "model_type", ABSENT),
    (CONFIG, "model_type", "unheard-of"),
    (CONFIG, "model_type", ["bert"]),
    (CONFIG, "architectures", 3),
    (CONFIG, "architectures", [1, 2]),
    (CONFIG, "num_attention_heads", 5),
    (CONFIG, "num_attention_heads", -1),
    (CONFIG, "num_attention_heads", 0),
    (CONFIG, "num_hidden_layers", "3"),
    (CONFIG, "num_hidden_layers", 0),
    (CONFIG, "num_hidden_layers", -1),
    (CONFIG, "hidden_act", "unheard-of"),
    (CONFIG, "hidden_size", -16),
    (CONFIG, "hidden_dropout_prob", float("nan")),
    (CONFIG, "layer_norm_eps", "small"),
    (CONFIG, "pad_token_id", 10**9),
    (CONFIG, "id2label", [1, 2]),
    (CONFIG, "id2label", {"a": "b"}),
    (CONFIG, "num_labels", None),
    (CONFIG, "auto_map", 3),
    (CONFIG, "quantization_config", "4bit"),
    (CONFIG, "transformers_weights", 3),
    (CONFIG, "pabee_fast", None),
    (CONFIG, "pabee_fast", []),
    (CONFIG, "pabee_fast", {"format": 1}),
    (CONFIG, "pabee_fast.format", 99),
    (CONFIG, "pabee_fast.shapes", [1]),
    (CONFIG, "pabee_fast.shapes", {}),
    (CONFIG, "pabee_fast.shapes", {"exit_heads.0.weight": 3}),
    (CONFIG, "pabee_fast.first_layer", "x"),
    (CONFIG, "pabee_fast.first_layer", 10**9),
    (CONFIG, "pabee_fast.head", ["pabee"]),
    (CONFIG, "pabee_fast.head", ABSENT),
    (CONFIG, "pabee_fast.pooling", {}),
    (CONFIG, "pabee_fast.sha256", None),
    (TOKENIZER, "model", ABSENT),
    (TOKENIZER, "model", {"type": "unheard-of"}),
    (TOKENIZER, "model.vocab", {"a": 1}),
    (TOKENIZER, "model.vocab", [1]),
    (TOKENIZER, "added_tokens", 3),
    (TOKENIZER, "normalizer", {"type": "unheard-of"}),
    (TOKENIZER, "post_processor.special_tokens", {}),
    (TOKENIZER_CONFIG, "tokenizer_class", 3),
    (TOKENIZER_CONFIG, "pad_token", 3),
]


@pytest.mark.parametrize(("file", "key", "value"), VALUES)
def test_values_that_are_none_there_can_be(file: str, key: str, value: Any, model: Path) -> None:
    content = json.loads((model / file).read_text())
    *path, last = key.split(".")
    place = content
    for name in path:
        place = place[name]
    if value is ABSENT:
        del place[last]
    else:
        place[last] = value
    (model / file).write_text(json.dumps(content))
    refusal(model)


@pytest.mark.parametrize("longest", ["x", [1], 0, -5])
def test_a_tokenizers_longest_row_is_named_as_its_own(longest: Any, model: Path) -> None:
    content = json.loads((model / TOKENIZER_CONFIG).read_text())
    (model / TOKENIZER_CONFIG).write_text(json.dumps(content | {"model_max_length": longest}))
    assert f"model_max_length={longest!r}" in refusal(model)


def with_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """Of a safetensors file: the same with another header."""

    def changed(content: bytes) -> bytes:
        end = 8 + struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8:end])
        new = json.dumps(change(header) or header).encode()
        return struct.pack("<Q", len(new)) + new + content[end:]

    return changed


NAME = "bert.encoder.layer.0.attention.self.query.weight"
FILES: dict[str, Callable[[bytes], bytes]] = {
    "a cut one": lambda content: content[:-10],
    "more behind the end": lambda content: content + b"xx",
    "a header without end": lambda content: struct.pack("<Q", 2**60) + content[8:],
    "no header": lambda content: struct.pack("<Q", 0) + content[8:],
    "no tensors": lambda content: struct.pack("<Q", 2) + b"{}",
    "an unknown precision": with_header(lambda header: header[NAME].update(dtype="F7")),
    "a negative size": with_header(lambda header: header[NAME].update(shape=[-1, 2])),
    "another shape": with_header(lambda header: header[NAME].update(shape=[16, 64])),
    "no end of a shape": with_header(lambda header: header[NAME].update(shape=[2**40, 2**40])),
    "offsets beyond the file": with_header(lambda header: header[NAME].update(data_offsets=[0, 2**40])),
    "a name that is another": with_header(lambda header: header.update({"another": header.pop(NAME)})),
}


@pytest.mark.parametrize("what", FILES)
def test_safetensors_that_are_damaged(what: str, model: Path) -> None:
    content = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(FILES[what](content))
    refusal(model)


MAPS = ("null", "[1]", '{"a": 1}', '{"a": null}', '{"a": "none.safetensors"}', '{"a": "config.json"}')


@pytest.mark.parametrize("index", ["", "null", "[]", "{}", *(f'{{"weight_map": {each}}}' for each in MAPS)])
def test_an_index_of_weights_that_is_malformed(index: str, model: Path) -> None:
    shutil.move(model / WEIGHTS, model / "weights.safetensors")
    (model / INDEX).write_text(index)
    refusal(model)


def test_an_index_names_the_files_that_are_read(model: Path) -> None:
    shutil.move(model / WEIGHTS, model / "weights.safetensors")
    with safe_open(model / "weights.safetensors", "pt") as file:
        names = dict.fromkeys(file.keys(), "weights.safetensors")
    (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert load_scorer(str(model), pf.Patience(1), Setting(torch.device("cpu"), torch.float32, "")).labels


def break_hidden_act(model: Path) -> None:
    config = json.loads((model / CONFIG).read_text())
    (model / CONFIG).write_text(json.dumps(config | {"hidden_act": "unheard-of"}))


@pytest.mark.parametrize("command", ["score", "fit", "tune", "report", "info"])
def test_every_command_that_loads_a_model_says_it_in_one_line(command: str, model: Path, tmp_path: Path) -> None:
    break_hidden_act(model)
    table = tmp_path / "in.jsonl"
    table.write_text("".join(json.dumps({"text": f"good film {i}", "label": i % 3}) + "\n" for i in range(40)))
    words = [command, *([] if command == "info" else [str(table)]), "--model", str(model)]
    output = tmp_path / ("fitted" if command == "fit" else "report.html" if command == "report" else "out.csv")
    words += ["--output", str(output)] if command in ("score", "fit", "report") else []
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, PabeeFastError) and "unheard-of" in str(result.exception)
    assert not output.exists()


def test_workers_of_several_devices_refuse_it_as_one_does(model: Path) -> None:
    break_hidden_act(model)
    recipe = Recipe(str(model), pf.Patience(1), device="cpu", dtype="float32", threads=1)
    with pytest.raises(pf.InputError, match="unheard-of"):
        DeviceExecutor([recipe, recipe])


def test_info_says_that_the_weights_are_finite_and_how_many(model: Path) -> None:
    count = sum(parameter.numel() for parameter in pf.from_pretrained(model).parameters())
    result = CliRunner().invoke(app, ["info", "--model", str(model)])
    assert f"{count:,} values, all finite" in result.output
