"""`pabee-fast score` as a user runs it: tables in, tables out, and a clear line where it cannot."""

import csv
import errno
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)
from typer.testing import CliRunner, Result

import pabee_fast as pf
from pabee_fast.cli import app, main
from tests.conftest import tiny_model

ROWS = [
    {"id": 1, "text": "good film"},
    {"id": 2, "text": 'bad,\n"very" bad'},
    {"id": 3, "text": "NA"},
    {"id": 4, "text": ""},
    {"id": 5, "text": "a very long film and it was not good ! " * 9},
]


@pytest.fixture(scope="module")
def model_dir(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    labels = {0: "bad", 1: "so-so", 2: "good"}
    tiny_model("albert", vocab_size=len(tiny_tokenizer), id2label=labels).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["id", "text"])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows, pa.schema([("id", pa.int64()), ("text", pa.string())])), path)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return pq.read_table(path).to_pylist()


def score(*arguments: object) -> Result:
    """Runs the command; a policy that is of use to six layers unless the caller names one."""
    if "--policy" not in arguments:
        arguments = (*arguments, "--policy", "patience:2")
    return CliRunner().invoke(app, ["score", *map(str, arguments)])


def error_of(result: Result) -> str:
    assert isinstance(result.exception, pf.PabeeFastError), result.output
    return str(result.exception)


@pytest.mark.parametrize("source", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("target", [".csv", ".jsonl", ".parquet"])
def test_every_format_into_every_format(source: str, target: str, model_dir: Path, tmp_path: Path) -> None:
    table, output = write(tmp_path / f"in{source}", ROWS), tmp_path / f"out{target}"
    result = score(table, "--model", model_dir, "--output", output, "--policy", "patience:2", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    rows = read(output)
    assert [str(row["id"]) for row in rows] == ["1", "2", "3", "4", "5"]
    assert [row["text"] for row in rows] == [row["text"] for row in ROWS]
    assert list(rows[0]) == ["id", "text", "prediction", "score", "exit_layer", "error"]

    model = pf.from_pretrained(model_dir)
    from transformers import AutoTokenizer

    scorer = pf.Scorer(model, AutoTokenizer.from_pretrained(model_dir), policy=pf.Patience(2))
    for row, text in zip(rows, (row["text"] for row in ROWS), strict=True):
        alone = next(scorer.score([text]))
        assert row["prediction"] == alone.prediction
        assert int(row["exit_layer"]) == alone.exit_layer
        assert float(row["score"]) == pytest.approx(alone.score, rel=1e-4)
        assert row["error"] in (None, "")
    assert "5 rows in" in result.output
    assert "mean exit layer" in result.output
    assert "1 rows were longer than the limit and were cut" in result.output


def test_pairs_all_scores_and_a_prefix(model_dir: Path, tmp_path: Path) -> None:
    table, output = tmp_path / "pairs.jsonl", tmp_path / "out.parquet"
    table.write_text('{"a": "good", "b": "bad film"}\n{"a": "good", "b": null}\nnot json\n{"a": "it", "b": "is"}\n')
    result = score(
        table, "--model", model_dir, "--output", output, "--text-column", "a", "--text-pair-column", "b",
        "--all-scores", "--prefix", "pf_", "--policy", "full-depth",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = read(output)
    names = [
        "pf_prediction",
        "pf_score",
        "pf_exit_layer",
        "pf_error",
        "pf_score_bad",
        "pf_score_so-so",
        "pf_score_good",
    ]
    assert list(rows[0]) == ["a", "b", *names]
    assert [row["pf_error"] is None for row in rows] == [True, False, False, True]
    assert "b" in rows[1]["pf_error"]
    assert rows[1]["pf_prediction"] is rows[2]["pf_prediction"] is None
    assert sum(rows[0][name] for name in names[4:]) == pytest.approx(1, abs=1e-5)
    assert "2 rows could not be scored" in result.output


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_an_empty_table_gives_an_empty_table_with_the_right_columns(
    suffix: str, model_dir: Path, tmp_path: Path
) -> None:
    table, output = write(tmp_path / f"in{suffix}", []), tmp_path / "out.parquet"
    result = score(table, "--model", model_dir, "--output", output)
    assert result.exit_code == 0, result.output
    assert "no rows" in result.output
    written = pq.read_table(output)
    assert written.num_rows == 0
    assert written.schema.names[-4:] == ["prediction", "score", "exit_layer", "error"]
    assert written.schema.field("exit_layer").type == pa.int32()


def test_regression_writes_values(tiny_tokenizer: Any, tmp_path: Path) -> None:
    tiny_model("bert", vocab_size=len(tiny_tokenizer), num_labels=1).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    table, output = write(tmp_path / "in.csv", ROWS), tmp_path / "out.parquet"
    result = score(table, "--model", tmp_path / "model", "--output", output, "--policy", "patience:1,threshold=0.5")
    assert result.exit_code == 0, result.output
    written = pq.read_table(output)
    assert written.schema.field("prediction").type == pa.float32()
    assert written.column("score").null_count == len(ROWS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--text-column": "texts"}, "'texts'.*'id', 'text'"),
        ({"--policy": "patients:6"}, "patience, confidence, .*full-depth, fixed-depth"),
        ({"--policy": "patience:0"}, "FullDepth"),
        ({"--policy": "patience:2,threshold=0.5"}, "threshold"),
        ({"--dtype": "int8"}, "float32, bfloat16, float16"),
        ({"--device": "tpu"}, "auto, cpu or cuda"),
        ({"--model": "nowhere/nothing"}, "no such directory"),
        ({"--max-length": "49"}, "allow 48"),
        ({"--output": "out.xlsx"}, r"\.csv.*\.parquet"),
    ],
)
def test_bad_input_names_the_fix_and_writes_nothing(
    change: dict[str, str], says: str, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.csv", ROWS)
    options = {"--model": str(model_dir), "--output": "out.csv", **change}
    message = error_of(score("in.csv", *(word for pair in options.items() for word in pair)))
    assert re.search(says, message), message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv"]


def test_the_input_is_never_overwritten_and_an_output_only_when_asked(model_dir: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "in.csv", ROWS)
    before = table.read_bytes()
    assert "input itself" in error_of(score(table, "--model", model_dir, "--output", table, "--overwrite"))
    assert table.read_bytes() == before
    output = tmp_path / "out.csv"
    output.write_text("precious")
    assert "overwrite" in error_of(score(table, "--model", model_dir, "--output", output))
    assert output.read_text() == "precious"
    assert score(table, "--model", model_dir, "--output", output, "--overwrite").exit_code == 0
    assert len(read(output)) == len(ROWS)


def test_a_taken_column_name_is_refused_before_work_starts(model_dir: Path, tmp_path: Path) -> None:
    table = tmp_path / "in.jsonl"
    table.write_text('{"text": "good", "score": 3}\n')
    assert "--prefix" in error_of(score(table, "--model", model_dir, "--output", tmp_path / "out.jsonl"))


def test_a_model_without_heads_says_how_to_add_them_and_serves_full_depth(tiny_tokenizer: Any, tmp_path: Path) -> None:
    from tests.conftest import tiny_stock

    tiny_stock("bert", vocab_size=len(tiny_tokenizer)).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    arguments = (write(tmp_path / "in.csv", ROWS), "--model", tmp_path / "model", "--output", tmp_path / "out.csv")
    assert "pabee-fast train" in error_of(score(*arguments))
    assert score(*arguments, "--policy", "full-depth").exit_code == 0
    assert {row["exit_layer"] for row in read(tmp_path / "out.csv")} == {"6"}


def test_weights_that_are_no_safetensors_are_refused(model_dir: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    import torch

    from tests.conftest import tiny_stock

    for name, model in (("heads", pf.from_pretrained(model_dir)), ("stock", tiny_stock("bert"))):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
        torch.save(model.state_dict(), tmp_path / name / "pytorch_model.bin")
        (tmp_path / name / "model.safetensors").unlink()
        words = (write(tmp_path / "in.csv", ROWS), "--model", tmp_path / name, "--output", tmp_path / "out.csv")
        assert "safetensors" in error_of(score(*words, "--policy", "full-depth"))


@pytest.mark.parametrize("command", [["score"], ["fit"]])
def test_a_directory_without_its_tokenizer_is_refused(command: list[str], model_dir: Path, tmp_path: Path) -> None:
    """transformers makes a tokenizer that knows its special tokens alone, and every text would be unknown words."""
    model = tmp_path / "model"
    pf.from_pretrained(model_dir).save_pretrained(model)
    table = write(tmp_path / "in.csv", ROWS)
    words = [*command, str(table), "--model", str(model), "--output", str(tmp_path / "out.csv")]
    assert "has no tokenizer" in error_of(CliRunner().invoke(app, words))
    assert not (tmp_path / "out.csv").exists()


def test_a_model_that_answers_no_question_is_refused(model_dir: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    AutoModel.from_config(AutoConfig.from_pretrained(model_dir)).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    table = write(tmp_path / "in.csv", ROWS)
    result = score(table, "--model", tmp_path / "model", "--output", tmp_path / "out.csv", "--policy", "full-depth")
    assert "is no fine-tuned classifier (AlbertModel)" in error_of(result)


def test_a_file_that_cannot_be_written_is_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def refused() -> None:
        raise PermissionError(13, "Permission denied", "/there/out.csv.parts")

    monkeypatch.setattr("pabee_fast.cli.app", refused)
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err == (
        "pabee-fast: /there/out.csv.parts cannot be read or written: Permission denied\n"
    )


def test_a_full_disk_is_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pabee_fast.cli.app", full)
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err == (
        "pabee-fast: No space left on device: make room, and run the same command again\n"
    )


@pytest.mark.parametrize("command", ["score", "fit", "tune"])
def test_weights_that_are_a_pointer_or_cut_are_named(command: str, model_dir: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(model_dir, tmp_path / "model"))
    (broken / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    table = write(tmp_path / "in.jsonl", [{"text": f"good film {i}"} for i in range(500)])
    words = ["--model", broken, *(["--output", tmp_path / "out.csv"] if command == "score" else [])]
    words += ["--output", tmp_path / "fitted"] if command == "fit" else []
    result = CliRunner().invoke(app, [command, str(table), *map(str, words)])
    assert "has weights that are no safetensors" in error_of(result) and "git lfs pull" in error_of(result)


def test_labels_of_one_name_have_no_scores_of_their_own(model_dir: Path, tmp_path: Path) -> None:
    twins = Path(shutil.copytree(model_dir, tmp_path / "model"))
    config = json.loads((twins / "config.json").read_text())
    config["id2label"] = {label: "same" for label in config["id2label"]}
    (twins / "config.json").write_text(json.dumps(config))
    table = write(tmp_path / "in.jsonl", [{"text": "good film"}])
    result = score(table, "--model", twins, "--output", tmp_path / "out.csv", "--all-scores")
    assert "several labels named same" in error_of(result)


def test_rows_none_of_which_could_be_scored_are_said_so(model_dir: Path, tmp_path: Path) -> None:
    table = tmp_path / "in.jsonl"
    table.write_text('{"text": null}\n' * 3)
    result = score(table, "--model", model_dir, "--output", tmp_path / "out.jsonl")
    assert "none of the 3 rows could be scored" in result.output


def test_an_error_is_one_line_on_stderr_with_status_2(run_python: Any) -> None:
    printed = run_python(
        "import subprocess, sys\n"
        "done = subprocess.run([sys.executable, '-m', 'pabee_fast', 'score', 'absent.csv', '--model', 'm',"
        " '--output', 'o.csv'], capture_output=True, text=True)\n"
        "print(done.returncode, done.stdout, done.stderr)"
    )
    assert printed.startswith("2 ")
    assert "absent.csv" in printed
    assert "Traceback" not in printed


def test_info_tells_what_runs_and_why(model_dir: Path) -> None:
    result = CliRunner().invoke(app, ["info", "--model", str(model_dir), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    for word in ("dtype:", "AMX", "attention:", "exit step", "albert, 6 layers of 32", "6, the model's own included"):
        assert word in result.output
    assert re.search(r"^layers: +fused \(measured\)$", result.output, re.MULTILINE)


def test_info_tells_of_images_and_of_attention_that_is_a_familys_own(tmp_path: Path, tiny_tokenizer: Any) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(tmp_path / "vit")
    config = MPNetConfig(**sizes, vocab_size=len(tiny_tokenizer), max_position_embeddings=64)
    MPNetForSequenceClassification(config).save_pretrained(tmp_path / "mpnet")
    config = DebertaV2Config(**sizes, vocab_size=60, relative_attention=True, pos_att_type=["c2p", "p2c"])
    DebertaV2ForSequenceClassification(config).save_pretrained(tmp_path / "deberta")

    def run(*words: object) -> str:
        result = CliRunner().invoke(app, [*map(str, words), "--device", "cpu"])
        return " ".join(f"{result.output} {result.exception}".split())

    assert "attention: scaled_dot_product_attention" in run("info", "--model", tmp_path / "vit")
    assert "model: vit, 2 layers of 32" in run("info", "--model", tmp_path / "vit")
    assert "tokenizer: none, for images" in run("info", "--model", tmp_path / "vit")
    assert "attention: mpnet's own, over rows padded to one length" in run("info", "--model", tmp_path / "mpnet")
    assert "attention: by content and place, scaled_dot" in run("info", "--model", tmp_path / "deberta")
    assert "tokenizer: none: the tokenizer of" in run("info", "--model", tmp_path / "mpnet")
    (tmp_path / "in.csv").write_text("text\na\n")
    options = ["--model", tmp_path / "vit", "--output", tmp_path / "out.csv"]
    assert "classifies images, and rows are texts" in run("score", tmp_path / "in.csv", *options)


def test_a_csv_by_another_delimiter_and_encoding_is_scored(model_dir: Path, tmp_path: Path) -> None:
    table, output = tmp_path / "in.csv", tmp_path / "out.jsonl"
    table.write_bytes("id;text\n1;caf\xe9, good\n".encode("cp1252"))
    result = score(
        table, "--model", model_dir, "--output", output, "--delimiter", ";", "--encoding", "cp1252", "--quoting", "none"
    )
    assert result.exit_code == 0, result.output
    assert read(output)[0]["text"] == "caf\xe9, good"


def test_an_unknown_way_of_reading_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    for option, value in (("--delimiter", ";;"), ("--quoting", "all"), ("--encoding", "utf8x")):
        result = score(tmp_path / "in.csv", "--model", "absent", "--output", tmp_path / "out.csv", option, value)
        assert f"{option.removeprefix('--')}={value!r}" in error_of(result)
    result = score("-", "--model", "absent", "--output", "-", "--delimiter", ";")
    assert "--delimiter: standard input is JSON Lines" in error_of(result)
