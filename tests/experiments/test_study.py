"""The evaluation on tasks: the whole pipeline on made-up rows and a tiny encoder, and its parts that can mislead."""

import dataclasses
import gzip
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from experiments.glue import choose as glue_choose
from experiments.glue import figures as glue_figures
from experiments.glue import heads as glue_heads
from experiments.glue import models as glue_models
from experiments.glue import promise as glue_promise
from experiments.glue import steps as glue_steps
from experiments.glue import study as glue
from experiments.glue import table as glue_table
from experiments.glue import tasks as glue_tasks
from experiments.glue import train as glue_train
from experiments.glue.tasks import TASKS
from pabee_fast.calibration.replay import Replay, Replayer
from pabee_fast.calibration.trace import Trace
from pabee_fast.scoring.conditions import Conditions
from tests.tolerances import assert_close

pytestmark = pytest.mark.slow


def run(monkeypatch: pytest.MonkeyPatch, *options: object, main: Callable[[], None] = glue.main) -> None:
    """`python -m experiments.glue` with these options, or another of its commands."""
    monkeypatch.setattr(glue, "ROUNDS", 1)
    monkeypatch.setattr(sys, "argv", ["glue", "--device", "cpu", *map(str, options)])
    main()


def test_the_pipeline_goes_from_rows_to_figures_and_a_table_and_repeats_no_step(
    encoder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, page = tmp_path / "results", tmp_path / "page.md"
    options = ["--encoder", encoder, "--data", data, "--work", tmp_path / "work", "--results", results]
    run(monkeypatch, *options, "--tasks", "sst2", "stsb", "--depths", 3)
    by_class, by_value = (
        json.loads((results / f"{task}-minilm-s0-small.json").read_text()) for task in ("sst2", "stsb")
    )
    assert by_class["folds"] == {"dev": 40, "test": 40}
    for figures in (by_class, by_value):
        assert figures["not_comparable"] is None  # so few rows are all used
        assert set(figures["by_layer"]) == {"fit", "pabee", "self-distilled"}
        [line] = figures["equal_layers"]
        assert all(choice["mean_exit_layer"] <= line["layers"] for choice in line.get("choices", ()))
    assert set(by_class["full_depth"]["stock"]["dev"]) == {"accuracy", "F1", "Matthews"}
    assert set(by_value["full_depth"]["stock"]["dev"]) == {"Pearson", "Spearman"}

    monkeypatch.setattr(glue_steps, "finetune", lambda *args, **kwargs: pytest.fail("trained a second time"))
    monkeypatch.setattr(glue_steps.pf, "fit", lambda *args, **kwargs: pytest.fail("fitted a second time"))
    monkeypatch.setattr(glue_steps.pf, "trace", lambda *args, **kwargs: pytest.fail("traced a second time"))
    run(monkeypatch, *options, "--tasks", "sst2", "--depths", 3)

    heads = ["--tasks", "sst2", "--rows", 48, "--judged", 20, "--results", results / "heads"]
    monkeypatch.undo()
    run(monkeypatch, *options[:-2], *heads, main=glue_heads.main)
    compared = json.loads((results / "heads" / "sst2-minilm-s0-small.json").read_text())
    assert len(compared["agreement"]) == 6 and compared["judged_on"] == 40
    assert all(len(layers) == 5 and 0 <= min(layers) <= max(layers) <= 1 for layers in compared["agreement"].values())

    page.write_text(f"by hand\n\n{glue_table.BEGIN}\nstale table\n{glue_table.END}\nby hand too\n")
    glue_table.write(results, page)
    text = page.read_text()
    assert text.startswith("by hand\n") and text.endswith("by hand too\n") and "stale table" not in text
    assert "| mean of 1 |  | linear, mean |" in text
    with gzip.open(data / "sst2" / "dev.jsonl.gz", "rt") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    kept = text + "".join(path.read_text() for path in results.rglob("*.json"))
    assert not any(row in kept for row in texts)  # figures only


def test_folds_are_dev_and_test_or_the_halves_of_dev(data: Path) -> None:
    names, splits = glue.folds_of(data, TASKS["sst2"], most=30)
    assert names == ("dev", "test") and [len(split) for split in splits] == [30, 30]
    names, (one, other) = glue.folds_of(data, TASKS["cola"], most=None)
    whole = glue_tasks.read_split(data, TASKS["cola"], "dev")
    assert sorted([*one.rows, *other.rows]) == sorted(whole.rows) and len(one) == len(other) == 30


def test_budgets_say_how_often_all_models_of_a_run_see_their_rows(encoder: Path, data: Path, tmp_path: Path) -> None:
    steps = glue_steps.Steps(tmp_path, encoder, data, torch.device("cpu"))
    epochs = {
        name: steps.recipe(glue_steps.Run(TASKS["stsb"], "minilm", 0, budget)).epochs
        for name, budget in glue.BUDGETS.items()
    }
    assert epochs == {"small": 2, "medium": 4, "full": 4, "long": 12}


def test_what_chooses_a_rule_has_no_say_in_how_it_is_judged() -> None:
    """Heads whose answers are noise in both folds: chosen on one fold the best looks good, and judged it is chance."""
    noise = torch.Generator().manual_seed(0)

    def trace() -> Trace:
        logits = torch.randn(4, 400, 2, generator=noise)
        labels = torch.randint(2, (400,), generator=noise)
        return Trace(logits, torch.full((400,), 8), "label", Conditions("m", "t", "float32", 8), labels)

    pairs = [(trace(), trace()) for _ in range(8)]
    replayers = [{str(i): Replayer(pair[fold]) for i, pair in enumerate(pairs)} for fold in (0, 1)]

    def accuracy(done: Replay, replayer: Replayer) -> float:
        return float((done.logits.argmax(-1) == replayer.trace.labels).double().mean())

    found = glue_choose.best_within(replayers[0], replayers[1], 3, accuracy)
    assert found is not None and found.replay.mean_exit_layer <= 3
    own, judge = replayers[0][found.heads], replayers[1][found.heads]
    assert accuracy(own.replay(found.policy), own) > 0.54
    assert abs(accuracy(found.replay, judge) - 0.5) < 0.04
    fast = glue_choose.fastest_above(replayers[0], replayers[1], 0.53, accuracy)
    assert fast is not None and accuracy(replayers[0][fast.heads].replay(fast.policy), replayers[0][fast.heads]) >= 0.53


@pytest.mark.parametrize(
    ("sizes", "folds", "left"),
    [((100, 2_700), ["test"], 700), ((900, 1_800), ["dev", "test"], 700), ((2_590, 9), ["dev", "test"], None)],
)
def test_a_promise_is_tested_on_test_alone_where_it_has_the_rows(
    sizes: tuple[int, int], folds: list[str], left: int | None
) -> None:
    made = torch.Generator().manual_seed(0)

    def trace(rows: int) -> Trace:
        """Every head says the same, so that nothing is risked by leaving."""
        logits = torch.randn(1, rows, 2, generator=made).expand(3, rows, 2)
        return Trace(logits, torch.full((rows,), 8), "label", Conditions("m", "t", "float32", 8), torch.zeros(rows))

    traces = (trace(sizes[0]), trace(sizes[1]))
    stock = (traces[0].logits[-1], traces[1].logits[-1])
    found = glue_promise.promise(glue_figures.Folds(("dev", "test"), {"fit": traces}, stock, {}), "fit", draws=2)
    if left is None:
        assert found is None
    else:
        assert found is not None and list(found["folds"]) == folds and found["rows_left"] == left
        assert found["errors"] == 0 and found["p_value"] == 1 and not found["rejected"]
        assert found["draws"]["count"] == 2 and found["mean_exit_layer"] < 3


def test_the_mean_of_several_seeds_is_judged_as_one_model_more(
    encoder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, work = tmp_path / "results", tmp_path / "work"
    options = ["--encoder", encoder, "--data", data, "--work", work, "--results", results, "--tasks", "sst2"]
    run(monkeypatch, *options, "--heads", "fit", "self-distilled", "--depths", 3, "--seeds", 1, 2, "--average")
    found = {path.name: json.loads(path.read_text()) for path in results.iterdir()}
    assert {name: figures["averaged"] for name, figures in found.items()} == {
        "sst2-minilm-s1-small.json": [],
        "sst2-minilm-s2-small.json": [],
        "sst2-minilm-s1+2-small.json": [1, 2],
    }
    for what in ("stock", "first3", "self-distilled"):
        mean, one, two = (
            load_file(next(work.glob(f"sst2-minilm-{what}-{seeds}-????????")) / "model.safetensors")
            for seeds in ("s1+2", "s1", "s2")
        )
        assert mean.keys() == one.keys() and any(not torch.equal(one[name], two[name]) for name in one)
        for name, weight in mean.items():
            assert_close(weight, (one[name] + two[name]) / 2)
    table = glue_table.tables(list(found.values()))
    assert "| sst2 | minilm (small) | 2 |" in table and "| sst2 | minilm (small, mean of 2) | 1 |" in table


def test_a_folder_of_steps_is_refused_for_another_encoder_or_other_data(
    encoder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work, other = tmp_path / "work", tmp_path / "other"
    for _ in range(2):
        glue_steps.Steps(work, encoder, data, torch.device("cpu"))
    shutil.copytree(encoder, other / "encoder")
    (other / "encoder" / "config.json").write_text("{}")
    shutil.copytree(data, other / "data")
    (other / "data" / "sst2" / "dev.jsonl.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="another encoder or other data"):
        glue_steps.Steps(work, encoder, other / "data", torch.device("cpu"))
    with pytest.raises(SystemExit):
        run(monkeypatch, "--encoder", other / "encoder", "--data", data, "--work", work)
    assert "name another folder" in capsys.readouterr().err


def test_a_step_that_was_cut_is_made_anew(encoder: Path, data: Path, tmp_path: Path) -> None:
    steps = glue_steps.Steps(tmp_path, encoder, data, torch.device("cpu"))
    made = []

    def cut(place: Path) -> None:
        (place / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steps._once("step", {"a": 1}, cut)
    place = steps._once("step", {"a": 1}, lambda place: made.append(place))
    assert not (place / "half").exists() and len(made) == 1
    assert steps._once("step", {"a": 1}, cut) == place
    assert steps._once("step", {"a": 2}, lambda place: made.append(place)) != place


def test_twelve_layers_start_near_the_six_they_are_made_from(encoder: Path) -> None:
    tokenizer = glue_models.load_tokenizer(encoder)
    rows = [("the film was good",), ("a very long film , it is bad",)]
    probe = glue_train.padded(glue_train.encode(tokenizer, rows, 48), tokenizer.pad_token_id)
    models = {
        name: glue_models.new_classifier(encoder, TASKS["sst2"], copies, 0, probe).eval()
        for name, copies in glue_models.COPIES.items()
    }
    assert len(models["minilm12"].bert.encoder.layer) == 2 * len(models["minilm"].bert.encoder.layer)
    visible = probe["attention_mask"].bool()
    with torch.no_grad():
        six, twelve = (model.bert(**probe).last_hidden_state[visible] for model in models.values())
    assert torch.cosine_similarity(six, twelve, dim=-1).min() > 0.9
    shallow = glue_models.new_classifier(encoder, TASKS["sst2"], 2, 0, probe, layers=5)
    assert len(shallow.bert.encoder.layer) == shallow.config.num_hidden_layers == 5


def test_one_teacher_teaches_all_seeds_and_models_and_runs_say_so(encoder: Path, data: Path, tmp_path: Path) -> None:
    steps = glue_steps.Steps(tmp_path, encoder, data, torch.device("cpu"), encoder)
    plain = glue_steps.Run(TASKS["sst2"], "minilm", 0, glue.BUDGETS["small"])
    taught = [dataclasses.replace(plain, taught=True, seed=seed) for seed in (0, 1)]
    assert taught[0].name == f"{plain.name}-taught"
    logits = load_file(steps.taught_by(taught[0]) / "logits")["logits"]
    assert logits.shape == (len(steps.train_rows(plain)), 2) and logits.isfinite().all()
    assert steps.taught_by(taught[1]) == steps.taught_by(taught[0])
    assert steps.classifier(taught[0]) != steps.classifier(plain)
    assert len(list(tmp_path.glob("*teacher*"))) == 1


def test_a_taught_run_says_how_often_its_teacher_is_right(encoder: Path, data: Path, tmp_path: Path) -> None:
    steps = glue_steps.Steps(tmp_path, encoder, data, torch.device("cpu"), encoder)
    taught = glue_steps.Run(TASKS["sst2"], "minilm", 0, glue.BUDGETS["small"], taught=True)
    figures = glue.run_one(steps, taught, ["fit"], [])
    labels = torch.tensor(glue_tasks.read_split(data, TASKS["sst2"], "dev").labels)
    answered = load_file(next(tmp_path.glob("*teacher*-dev-*")) / "logits")["logits"].argmax(dim=1)
    share = figures["full_depth"]["teacher"]["dev"]["accuracy"]
    assert share == (answered == labels).double().mean().item()
    [line] = [line for line in glue_table.tables([figures]).splitlines() if "| accuracy | dev" in line]
    assert line.split("| ")[-1].startswith(f"dev {100 * share:.1f}, test ")


def test_a_teacher_of_augmented_texts_speaks_for_these_alone(encoder: Path, data: Path, tmp_path: Path) -> None:
    """sst2's rows here hold none of the others, so some with their parts are added."""
    for folder in ("sst2", "stsb"):
        shutil.copytree(data / folder, tmp_path / "data" / folder)
    with gzip.open(tmp_path / "data" / "sst2" / "train.jsonl.gz", "at") as lines:
        for one in ("film", "plot", "cast"):
            for other in ("dull", "fine", "long"):
                for text in (f"the {one}", f"is {other}", f"the {one} is {other}"):
                    lines.write(json.dumps({"text": text, "label": int(other == "fine")}) + "\n")
    steps = glue_steps.Steps(tmp_path / "work", encoder, tmp_path / "data", torch.device("cpu"), encoder)
    run = glue_steps.Run(TASKS["sst2"], "minilm", 0, glue.BUDGETS["full"], taught=True, augmented=7)
    assert run.name == "sst2-minilm-s0-augmented7"
    (rows, taught), own = steps.lessons(run), steps.train_rows(run)
    assert taught is not None and len(rows) == len(taught) == len(own) + 7
    assert list(rows.rows[: len(own)]) == list(own.rows) and not set(rows.rows[len(own) :]) & set(own.rows)
    assert taught[: len(own)].isnan().all() and taught[len(own) :].isfinite().all()
    assert list(rows.labels[len(own) :]) == taught[len(own) :].argmax(dim=1).tolist()
    assert steps.classifier(run) != steps.classifier(dataclasses.replace(run, augmented=6))
    assert len(list((tmp_path / "work").glob("*teacher*"))) == 1  # the number of texts does not change who answers them
    kept = b"".join(path.read_bytes() for path in (tmp_path / "work").rglob("*") if path.is_file())
    assert not any(text.encode() in kept for (text,) in rows.rows[len(own) :])


def test_augmented_texts_need_a_teacher(encoder: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        run(patch, "--encoder", encoder, "--data", data, "--augment", 10)
    assert "--teacher" in capsys.readouterr().err


@pytest.mark.parametrize(("task", "says"), [("stsb", "rows of pairs"), ("cola", "ask less")])
def test_what_cannot_be_augmented_is_said_before_a_teacher_is_trained(
    task: str, says: str, encoder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--encoder", encoder, "--data", data, "--work", tmp_path, "--teacher", encoder, "--augment", 9_999]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        run(patch, *options, "--tasks", task, "--results", tmp_path)
    assert says in capsys.readouterr().err
    assert not list(tmp_path.glob("*teacher*"))
