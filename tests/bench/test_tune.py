"""The choice of kernels: from records and nothing else."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import kernel_times, record, tune
from pabee_fast.runtime import tuned

pytestmark = pytest.mark.slow


def made(*, gpu: str = "NVIDIA H200", commit: str = "abcdef012", **lengths: dict[int, tuple[float, float]]) -> Any:
    """A record of these microseconds: case -> tokens of a row -> the library's and the short kernel's."""
    by_length = {
        case.replace("_", ", heads of "): {
            str(length): {"library": library, "kernel": 2 * library, "short": short}
            for length, (library, short) in times.items()
        }
        for case, times in lengths.items()
    }
    return {
        "commit": commit,
        "dirty": False,
        "mode": "tune",
        "date": "2026-01-01",
        "machine": {"gpu": gpu},
        "gate": {"passed": 3, "failed": 0, "failures": [], "complete": False},
        "steps": {"attention": {"figures": {"architecture": "sm_90", "by_length": by_length}}},
    }


def test_the_tables_stay_as_they_are_where_no_record_holds_what_they_are_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "TABLE", tmp_path / "tuned.py")
    with pytest.raises(SystemExit):
        tune.main(["write", "--results", str(tmp_path)])
    assert not tune.TABLE.exists()


def test_the_kernel_for_short_rows_is_taken_up_to_the_first_length_at_which_it_does_not_win() -> None:
    lengths = {8: (9, 3), 32: (9, 4), 33: (9, 9), 40: (9, 5)}
    found, _ = tune.chosen([made(bfloat16_64=lengths, float16_32={8: (9, 9)})])
    assert found == {("sm_90", "bfloat16", 64): (32, "NVIDIA H200, abcdef0")}
    # Faster by less than times vary: not taken.
    assert tune.chosen([made(bfloat16_64={8: (100, 98)})]) == ({}, {})
    # Lengths are numbers, though JSON makes them text.
    assert tune.most_short({"64": {"library": 9, "short": 9}, "8": {"library": 9, "short": 3}}) == 8


def test_of_two_gpus_of_one_architecture_the_least_is_taken() -> None:
    wide = made(bfloat16_64={8: (9, 3), 64: (9, 3)})
    narrow = made(gpu="NVIDIA H100", commit="fedcba987", bfloat16_64={8: (9, 3), 64: (9, 9)})
    found, _ = tune.chosen([narrow, wide])
    assert found == {("sm_90", "bfloat16", 64): (8, "NVIDIA H100, fedcba9; NVIDIA H200, abcdef0")}


def product(*times: dict[int, tuple[float, float]]) -> list[Any]:
    """Records of these microseconds: tokens -> the library's product with a pass, and one launch."""
    records = [made(gpu=f"GPU {number}") for number in range(len(times))]
    for each, by_tokens in zip(records, times, strict=True):
        each["steps"]["attention"]["figures"]["by_tokens"] = {
            "bfloat16, hidden size 768": {
                str(tokens): {"product and pass": two, "one launch": one} for tokens, (two, one) in by_tokens.items()
            }
        }
    return records


def test_a_product_ends_with_its_gelu_from_where_that_wins_at_every_number_of_tokens() -> None:
    key = ("sm_90", "bfloat16", 768)
    fast = {1024: (9, 3), 2048: (9, 9), 4096: (9, 4), 16384: (9, 3)}
    assert tune.chosen(product(fast)) == ({}, {key: (4096, "GPU 0, abcdef0")})
    # Faster by less than times vary, at the most tokens: not taken.
    assert tune.chosen(product({1024: (9, 3), 4096: (100, 98)})) == ({}, {})
    # Of two GPUs of one architecture, where both win.
    late = {1024: (9, 9), 4096: (9, 9), 16384: (9, 3)}
    for records in (product(fast, late), product(late, fast)):
        assert tune.chosen(records)[1][key][0] == 16384
    for records in (product(fast, {1024: (9, 9)}), product({1024: (9, 9)}, fast)):
        assert tune.chosen(records) == ({}, {})
    wrong = product(fast)
    wrong[0]["gate"]["failures"] = [{"test": "test_linear_gelu_equals_double_precision"}]
    assert tune.chosen(wrong) == ({}, {})


@pytest.mark.parametrize(
    "trouble",
    [
        {"gate": {"passed": 0, "failures": [], "complete": True}},
        {"gate": {"passed": 3, "failures": [], "complete": False}, "mode": "full"},
        {"gate": {"passed": 3, "failures": [{"test": "test_attention_is_its_formula"}], "complete": True}},
    ],
    ids=["no test ran", "not all of a whole run", "one of attention failed"],
)
def test_a_record_whose_attention_was_not_found_right_chooses_nothing(trouble: dict[str, Any]) -> None:
    assert tune.chosen([made(bfloat16_64={8: (9, 3)}) | trouble]) == ({}, {})
    green = {"passed": 3, "failures": [{"test": "test_exit_step"}], "complete": True}
    assert len(tune.chosen([made(bfloat16_64={8: (9, 3)}) | {"mode": "full", "gate": green}])[0]) == 1


def test_the_table_is_written_from_the_newest_record_that_measured_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = made(bfloat16_64={8: (9, 3)}), made(bfloat16_64={8: (9, 3), 16: (9, 3)}) | {"date": "2026-01-02"}
    other = {**made(), "steps": {}, "date": "2026-01-03"}
    (tmp_path / "gpu").mkdir()
    for name, each in {"old": old, "new": new, "other": other, "dirty": {**old, "dirty": True}}.items():
        (tmp_path / "gpu" / f"{name}.json").write_text(json.dumps(each))
    monkeypatch.setattr(tune, "TABLE", tmp_path / "tuned.py")
    tune.main(["write", "--results", str(tmp_path)])
    found = runpy.run_path(str(tune.TABLE))
    assert (found["SHORT_ROWS"], found["LINEAR_GELU"]) == ({("sm_90", torch.bfloat16, 64): 16}, {})
    assert tune.source({}, {("sm_90", "float16", 384): (8192, "why")}).count("384): 8192,  # why") == 1


def test_a_record_that_no_gpu_test_vouches_for_does_not_empty_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    untested = made(bfloat16_64={8: (9, 3)}) | {"gate": {"passed": 0, "failures": [], "complete": False}}
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "untested.json").write_text(json.dumps(untested))
    monkeypatch.setattr(tune, "TABLE", tmp_path / "tuned.py")
    tune.TABLE.write_text("what was chosen before")
    with pytest.raises(SystemExit, match="2"):
        tune.main(["write", "--results", str(tmp_path)])
    assert "GPU tests that passed" in capsys.readouterr().err
    assert tune.TABLE.read_text() == "what was chosen before"


def test_the_runtime_s_table_is_what_the_records_that_are_here_say() -> None:
    records = [newest for newest, *_ in record.by_date(record.RESULTS, step="attention").values()]
    assert Path(tuned.__file__).read_text() == tune.source(*tune.chosen(records)), "run `python -m bench.tune write`"


def test_every_length_and_head_is_measured_and_told_as_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    words = "measure --tokens 64 --lengths 8 80 --product-tokens 16 --rounds 1 --device cpu --so-far"
    assert tune.main(words.split()) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert lines[0]["by_length"] == {} and lines[0]["sst2"]["short"] > 0 and lines[0]["partial"]
    assert (
        len(lines[-1]["by_length"]) == len(kernel_times.DTYPES) * len(kernel_times.HEADS) and "partial" not in lines[-1]
    )
    assert len(lines[-1]["by_tokens"]) == len(kernel_times.DTYPES) * len(kernel_times.HIDDEN_SIZES)
    assert {tuple(times["16"]) for times in lines[-1]["by_tokens"].values()} == {("product and pass", "one launch")}
    for times in lines[-1]["by_length"].values():
        # Elsewhere than on a GPU both are plain torch; 80 tokens fit no tile.
        assert times["8"].keys() == {"kernel", "short"} and times["80"].keys() == {"kernel"}


def test_attention_whose_answers_differ_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_times.Case, "call", lambda self, name: self._query * (name == "short"))
    monkeypatch.setattr(
        kernel_times.graphs, "sample", lambda *args, **options: pytest.fail("timed although answers differ")
    )
    with pytest.raises(SystemExit, match="differs from the reference's"):
        tune.main(
            [
                "measure",
                "--tokens",
                "64",
                "--lengths",
                "8",
                "--product-tokens",
                "16",
                "--rounds",
                "1",
                "--device",
                "cpu",
            ]
        )


def test_other_blocks_are_launched_within_the_block_and_the_usual_ones_after_it() -> None:
    from pabee_fast.kernels import short_attention
    from pabee_fast.kernels.launch_attention import Heads

    usual = short_attention.short_attention_constants
    kind = (Heads(12, 12, 64, 64, torch.bfloat16, False, False, 16), True)
    for _ in range(2):
        with kernel_times.blocks(span=8, warps=2):
            found = short_attention.short_attention_constants(*kind)
            assert found is short_attention.short_attention_constants(*kind)
    assert (found.values["SPAN"], found.options["num_warps"]) == (8 * found.values["BLOCK_TOKENS"], 2)
    assert short_attention.short_attention_constants is usual
    assert (usual(*kind).values["SPAN"], usual(*kind).options["num_warps"]) == (256, 4)
