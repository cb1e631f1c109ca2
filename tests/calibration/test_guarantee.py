"""A stored policy: where it is kept, what it holds for, and what makes it void."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import pabee_fast as pf
from pabee_fast.calibration.guarantee import store_guarantee
from pabee_fast.calibration.risks import Risk
from pabee_fast.scoring.conditions import model_fingerprint, tokenizer_fingerprint
from pabee_fast.tables import durable
from tests.calibration.traces import CONDITIONS
from tests.conftest import tiny_model, tiny_stock
from tests.zoo import model_with_heads

GUARANTEE = pf.Guarantee(
    policy=pf.Confidence(0.875, first_layer=2),
    risk=Risk("disagreement"),
    epsilon=0.01,
    delta=0.05,
    rows=1500,
    errors=7,
    ordering_rows=500,
    cost=0.625,
    conditions=CONDITIONS,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("bert").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "guarantee",
    [
        GUARANTEE,
        dataclasses.replace(GUARANTEE, policy=pf.FullDepth(), errors=0, cost=1.0),
        dataclasses.replace(GUARANTEE, policy=pf.Patience(2, threshold=0.25), risk=Risk("distance", 0.5)),
    ],
)
def test_a_guarantee_comes_back_from_a_model_directory_and_is_kept_when_it_is_saved(
    guarantee: pf.Guarantee, folder: Path, tmp_path: Path
) -> None:
    assert pf.guarantee_of(pf.from_pretrained(folder)) is None
    store_guarantee(folder, guarantee)
    model = pf.from_pretrained(folder)
    assert pf.guarantee_of(model) == guarantee
    model.save_pretrained(tmp_path / "again")
    assert pf.guarantee_of(pf.from_pretrained(tmp_path / "again")) == guarantee


def test_storing_changes_nothing_but_the_guarantee_and_where_rows_are_cut(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    store_guarantee(folder, GUARANTEE)
    config = json.loads((folder / "config.json").read_text())
    del config["pabee_fast"]["guarantee"]
    assert config["pabee_fast"].pop("max_length") == GUARANTEE.conditions.max_length
    assert config == json.loads(before["config.json"])
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after | {"config.json": b""} == before | {"config.json": b""}


def test_storing_that_is_cut_leaves_the_directory_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def stop(point: str) -> None:
        if point == "guarantee: after fsync":
            raise KeyboardInterrupt

    monkeypatch.setattr(durable, "reached", stop)
    with pytest.raises(KeyboardInterrupt):
        store_guarantee(folder, GUARANTEE)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_stored_policy_is_used_in_python_by_name(folder: Path) -> None:
    store_guarantee(folder, GUARANTEE)
    model = pf.from_pretrained(folder)
    assert model.exit_policy is None, "no policy asked for: full depth"
    found = pf.guarantee_of(model)
    assert found is not None
    assert pf.accelerate(model, found.policy).exit_policy == GUARANTEE.policy


def test_a_guarantee_that_cannot_be_read_says_what_to_do(folder: Path) -> None:
    store_guarantee(folder, GUARANTEE)
    model = pf.from_pretrained(folder)
    model.config.pabee_fast["guarantee"]["policy"] = "sooner:3"
    with pytest.raises(pf.CheckpointError, match="tune` again"):
        pf.guarantee_of(model)
    model.config.pabee_fast["guarantee"] = "broken"
    with pytest.raises(pf.CheckpointError, match="tune` again"):
        pf.guarantee_of(model)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "another"}, "weights, heads or config are others"),
        ({"tokenizer": "another"}, "tokenizer is another"),
        ({"dtype": "bfloat16", "model": "rounded"}, "made in float32 and this runs in bfloat16"),
        ({"texts": 2}, "made with single texts and these are pairs of texts"),
        ({"max_length": 16}, "cut at 32 tokens and this cuts at 16"),
    ],
)
def test_what_changes_makes_it_void_and_is_named(change: dict[str, Any], says: str) -> None:
    assert GUARANTEE.why_void(CONDITIONS) == []
    (reason,) = GUARANTEE.why_void(dataclasses.replace(CONDITIONS, **change))
    assert says in reason


def test_a_statement_says_the_promise_and_what_it_holds_for() -> None:
    said = GUARANTEE.statement()
    for words in (
        "not the one of full depth",
        "at most 0.01",
        "at least 0.95",
        "7 of the 1,500",
        "float32",
        "32 tokens",
    ):
        assert words in said


@pytest.mark.parametrize(("delta", "said"), [(0.05, "0.95"), (1e-5, "0.99999"), (3e-7, "0.9999997")])
def test_a_promise_is_never_said_to_be_certain(delta: float, said: str) -> None:
    assert f"with probability at least {said} (" in dataclasses.replace(GUARANTEE, delta=delta).statement()


def test_a_fingerprint_is_of_all_that_answers_and_of_nothing_else(tmp_path: Path) -> None:
    model = tiny_model("bert")
    first = model_fingerprint(model)
    model.save_pretrained(tmp_path)
    assert model_fingerprint(pf.from_pretrained(tmp_path)) == first
    assert model_fingerprint(pf.accelerate(model, pf.Patience(2))) == first
    assert model_fingerprint(pf.from_pretrained(tmp_path, dtype=torch.bfloat16)) != first
    assert model_fingerprint(tiny_model("bert", hidden_act="relu")) != first
    assert model_fingerprint(tiny_stock("bert")) != first
    with torch.no_grad():
        model.exit_heads[1].bias[0] += 1
    assert model_fingerprint(model) != first


@pytest.mark.parametrize(
    ("variant", "change"),
    [
        ("modernbert", {"local_attention": 4}),
        ("mistral", {"sliding_window": 3}),
        ("llama", {"rms_norm_eps": 0.5}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 10.0}}),
        ("gpt2", {"activation_function": "relu"}),
        ("roberta", {"pad_token_id": 3}),
    ],
)
def test_a_fingerprint_is_of_what_a_familys_layers_read_of_the_config(
    variant: str, change: dict[str, Any], tmp_path: Path
) -> None:
    """The weights are the same, and the answers are not."""
    model = model_with_heads(variant)
    first = model_fingerprint(model)
    model.save_pretrained(tmp_path)
    assert model_fingerprint(pf.from_pretrained(tmp_path)) == first
    written = tmp_path / "config.json"
    written.write_text(json.dumps(json.loads(written.read_text()) | {"id2label": {"0": "no", "1": "yes"}}))
    assert model_fingerprint(pf.from_pretrained(tmp_path)) == first
    written.write_text(json.dumps(json.loads(written.read_text()) | change))
    assert model_fingerprint(pf.from_pretrained(tmp_path)) != first


def test_a_tokenizers_fingerprint_is_of_its_rules_and_not_of_its_last_call(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    first = tokenizer_fingerprint(tiny_tokenizer)
    tiny_tokenizer(["a film", "good"], truncation=True, max_length=4, padding=True)
    assert tokenizer_fingerprint(tiny_tokenizer) == first
    again = type(tiny_tokenizer)(
        tokenizer_object=type(tiny_tokenizer.backend_tokenizer).from_str(tiny_tokenizer.backend_tokenizer.to_str()),
        pad_token="[PAD]",
        unk_token="[UNK]",
    )
    assert tokenizer_fingerprint(again) == first
    again.split_special_tokens = True
    assert tokenizer_fingerprint(again) != first
    again.split_special_tokens = False
    again.add_tokens(["dull"])
    assert tokenizer_fingerprint(again) != first


def test_without_the_extra_the_core_imports_and_calibration_says_what_to_install(run_python: Any) -> None:
    printed = run_python(
        "import sys\n"
        "sys.modules.update(scipy=None, sklearn=None, matplotlib=None)\n"
        "import pabee_fast as pf\n"
        "from tests.calibration.traces import made_up\n"
        "from pabee_fast.calibration import candidates, plots, tune\n"
        "from pabee_fast.report import metrics\n"
        "print(pf.replay(made_up(), pf.Patience(1)).mean_exit_layer > 1)\n"
        "try:\n"
        "    pf.calibrate(made_up(400), epsilon=0.1)\n"
        "except pf.PabeeFastError as error:\n"
        "    print(error)\n"
    )
    assert printed.splitlines() == ["True", "this needs scipy: pip install 'pabee-fast[evaluation]'"]
