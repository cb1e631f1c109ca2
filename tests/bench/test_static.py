"""The static check: what it reads from a compiled kernel, what it refuses, and that no kernel can be left out of it.

`make static` compiles everything; here a few kernels stand for the rest.
"""

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed, as on macOS and Windows")

import triton.language as tl  # noqa: E402

from bench import static, traffic  # noqa: E402
from bench.compiled import TARGETS, Figures, compile_for, count_remade  # noqa: E402
from bench.occupancy import occupancy, resident_warps  # noqa: E402
from bench.specialisations import by_name  # noqa: E402
from bench.traffic import Traffic  # noqa: E402
from pabee_fast.kernels import table  # noqa: E402
from pabee_fast.kernels.launch import Launch  # noqa: E402
from pabee_fast.kernels.prepared import Constants  # noqa: E402

KERNELS = Path(table.__file__).parent
SOUND = Figures(
    registers=64, spills=0, stack=0, shared=4096, warps=4, instructions=500, mma=8, wgmma=0, fma=0, barriers=4,
    loads={"16": 4, "4": 2}, stores={"16": 4},
)  # fmt: skip


def functions_of_triton() -> dict[str, ast.FunctionDef]:
    """Every function of the kernels' room that Triton compiles, by name."""
    found = {}
    for path in KERNELS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(d) for d in node.decorator_list):
                found[node.name] = node
    return found


def test_every_function_that_triton_compiles_is_part_of_a_named_kernel() -> None:
    functions = functions_of_triton()
    waiting, seen = [launch.kernel.__name__ for launch in by_name().values()], set()
    while waiting:
        if (name := waiting.pop()) not in seen:
            seen.add(name)
            names = {node.id for node in ast.walk(functions[name]) if isinstance(node, ast.Name)}
            waiting += names & functions.keys()
    assert len(seen) > 5
    assert functions.keys() - seen == set(), "give them lines in bench/specialisations.py"


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_few_classes_are_asked_without_matrix_instructions_and_16_bytes_of_a_row_are_read_at_a_time(
    target: str,
) -> None:
    found = compile_for(by_name()["exit_step-bfloat16-label-3-first-agreement"], target)
    assert (found.mma, found.warps, found.stack) == (0, 1, 0)
    assert found.loads["16"] >= 12


@pytest.mark.parametrize("target", TARGETS)
def test_half_precision_heads_use_matrix_instructions_and_stay_in_registers(target: str) -> None:
    found = compile_for(by_name()["exit_step-bfloat16-label-9-first-divergence"], target)
    assert found.mma > 0
    assert found.stack <= static.TOLERATED_STACK
    assert 0 < occupancy(found, target) <= 1


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_a_float32_head_is_made_of_fused_multiply_adds_since_tf32_is_not_float32(target: str) -> None:
    found = compile_for(by_name()["exit_step-float32-label-9-pooled-agreement"], target)
    assert (found.mma, found.fma > 100) == (0, True)


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_attention_multiplies_halves_by_matrix_instructions_and_float32_in_float32(target: str) -> None:
    half, single = (compile_for(by_name()[f"attention-{name}-64"], target) for name in ("bfloat16", "float32"))
    assert (half.mma > 0, single.mma, single.fma > 100) == (True, 0, True)
    assert half.loads["16"] > 8 and single.loads["16"] > 8


@pytest.mark.parametrize("target", TARGETS)
def test_gather_moves_16_bytes_at_a_time(target: str) -> None:
    found = compile_for(by_name()["gather-768-bfloat16-1"], target)
    assert found.loads["16"] == found.stores["16"] == (2 if target == "gfx942" else 4)  # 64 threads a warp, not 32


@triton.jit
def too_wide_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs)
    tl.store(out_ptr + offs, x * tl.sum(x))


def wide_launch(block: int, **options: Any) -> Launch:
    x = torch.empty(1, device="meta")
    constants = Constants({"BLOCK": block}, {"num_warps": 1, **options})
    return Launch(too_wide_kernel, (1,), {"x_ptr": x, "out_ptr": x}, constants)


@pytest.mark.parametrize(("target", "too_wide"), [("sm_90", 16 * 1024), ("gfx942", 32 * 1024)])
def test_a_tile_that_does_not_fit_is_seen_to_spill(target: str, too_wide: int) -> None:
    small = compile_for(wide_launch(256, enable_fp_fusion=True), target)
    assert (small.stack, small.spills, static.judge(small, None)) == (0, 0, [])
    large = compile_for(wide_launch(too_wide, enable_fp_fusion=True), target)
    assert large.stack > static.TOLERATED_STACK
    assert large.spills > static.TOLERATED_SPILLS
    assert static.judge(large, None) == [f"{large.stack} bytes of stack, {large.spills} spills"]
    assert static.judge(replace(small, stack=64, spills=24), None, is_capped=True) == []
    assert static.judge(replace(small, stack=64, spills=25), None, is_capped=True) == ["64 bytes of stack, 25 spills"]


def test_a_launch_that_leaves_fp_fusion_to_triton_is_refused() -> None:
    with pytest.raises(ValueError, match="too_wide_kernel: options lack enable_fp_fusion"):
        compile_for(wide_launch(256), "sm_90")
    assert all("enable_fp_fusion" in launch.constants.options for launch in by_name().values())


def test_a_kernel_that_cannot_be_compiled_is_named() -> None:
    with pytest.raises(Exception, match=r".") as caught:
        compile_for(wide_launch(255, enable_fp_fusion=True), "sm_90")
    assert caught.value.__notes__[-1].startswith("too_wide_kernel for sm_90, specialised to {'x_ptr': '*fp32'")


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"registers": 70}, []),
        ({"registers": 71}, ["registers 64 -> 71"]),
        ({"shared": 8192}, ["shared 4096 -> 8192"]),
        ({"instructions": 551}, ["instructions 500 -> 551"]),
        ({"instructions": 100, "registers": 16, "shared": 0}, []),
        ({"stack": 8}, ["stack 0 -> 8"]),
        ({"stack": 8, "spills": 2}, ["stack 0 -> 8", "spills 0 -> 2"]),
        ({"stack": 24, "spills": 2}, ["24 bytes of stack, 2 spills", "stack 0 -> 24", "spills 0 -> 2"]),
        ({"mma": 0, "fma": 9}, ["no mma any more, of 8"]),
        ({"loads": {"4": 6}}, ["loads of 16 bytes -> 4"]),
        ({"stores": {}}, ["stores of 16 bytes -> 0"]),
    ],
)
def test_growth_and_narrower_accesses_are_refused(change: dict[str, Any], wrong: list[str]) -> None:
    assert static.judge(replace(SOUND, **change), SOUND) == wrong


REDUCED = """
    %0 = "tt.reduce"(%a) <{axis = 1 : i32}> ({
    ^bb0(%x: i32, %y: i32):
      %z = arith.maxsi %x, %y : i32
      tt.reduce.return %z : i32
    }) : (tensor<16x4xi32, #mma>) -> tensor<16xi32, #ttg.slice<{dim = 1, parent = #mma}>> loc(#loc7)
"""


@pytest.mark.parametrize(
    ("again", "remade"),
    [
        ("", 0),
        (REDUCED, 0),  # the same once more, as a loop that is pipelined has it
        (REDUCED.replace("#mma", "#linear"), 1),
        (REDUCED.replace("#mma", "#linear").replace("loc7", "loc8"), 0),
    ],
)
def test_a_reduction_that_is_made_in_two_layouts_is_counted(again: str, remade: int) -> None:
    assert count_remade(REDUCED + again) == remade
    assert static.judge(replace(SOUND, remade=remade), None) == ["1 reductions made in two layouts"] * remade


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"stack": 16, "spills": 2}, []),
        ({"stack": 16, "spills": 3}, ["16 bytes of stack, 3 spills"]),
        ({"stack": 24, "spills": 2}, ["24 bytes of stack, 2 spills"]),
        ({"registers": 255}, []),
    ],
)
def test_without_a_baseline_only_stack_and_spills_are_refused(change: dict[str, Any], wrong: list[str]) -> None:
    assert static.judge(replace(SOUND, **change), None) == wrong


def test_a_baseline_must_name_what_is_compiled_and_nothing_else() -> None:
    assert static.compare({"a": SOUND, "b": SOUND}, {"b": SOUND, "c": SOUND}) == {
        "a": ["not in the baseline"],
        "c": ["in the baseline, and compiled no more"],
    }


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of its own for baselines, and figures that are not compiled."""
    monkeypatch.setattr(static, "BASELINES", tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _no_bytes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "count", lambda: {})


def results(monkeypatch: pytest.MonkeyPatch, figures: Figures) -> None:
    monkeypatch.setattr(static, "measure", lambda targets, *_, **options: {t: {"a kernel": figures} for t in targets})
    monkeypatch.setattr(static, "made_of", lambda name: "its source")


def test_the_command_fails_on_growth_and_prints_the_table(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results(monkeypatch, SOUND)
    assert static.main(["--update", "--targets", "sm_90"]) == 0
    assert [path.name for path in elsewhere.rglob("*.json")] == ["sm_90.json"]
    assert static.main(["--targets", "sm_90"]) == 0
    assert "instructions" not in capsys.readouterr().out
    results(monkeypatch, replace(SOUND, registers=96))
    assert static.main(["--targets", "sm_90"]) == 1
    out = capsys.readouterr().out
    assert "a kernel: registers 64 -> 96" in out
    assert "instructions" in out


def test_what_is_made_of_what_its_baseline_was_made_of_is_not_compiled_again(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, other = "gather-768-bfloat16-1", "plan"
    monkeypatch.setattr(static, "names", lambda target, **options: [kept, other])
    compiled: list[str] = []

    def compile_here(targets: Any, known: Any, **options: Any) -> Any:
        wanted = {target: static.names(target) for target in targets}
        compiled.extend(name for target in targets for name in wanted[target] if name not in known.get(target, {}))
        return {target: dict.fromkeys(names, SOUND) for target, names in wanted.items()}

    monkeypatch.setattr(static, "measure", compile_here)
    assert static.main(["--update", "--targets", "sm_90"]) == 0
    assert compiled == [kept, other], "a baseline is of what was compiled for it"
    compiled.clear()
    assert static.main(["--changed", "--targets", "sm_90"]) == 0
    assert compiled == []
    assert "2 as they were and not compiled" in capsys.readouterr().out
    real = static.made_of
    monkeypatch.setattr(static, "made_of", lambda name: "something else" if name == other else real(name))
    assert static.main(["--changed", "--targets", "sm_90"]) == 0
    assert compiled == [other]
    compiled.clear()
    assert static.main(["--targets", "sm_90"]) == 0
    assert compiled == [kept, other]


def test_what_is_known_is_taken_and_the_rest_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "names", lambda target, **options: ["plan"])
    known = {"sm_90": {"plan": SOUND}, "sm_80": {}}
    assert static.measure(["sm_90"], known) == {"sm_90": {"plan": SOUND}}
    found = static.measure(["sm_90", "sm_80"], known, jobs=1)
    assert found["sm_90"]["plan"] is SOUND and found["sm_80"]["plan"].registers > 0


def test_another_source_kernel_signature_or_option_is_made_of_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    every = [static.made_of(name) for name in by_name()]
    assert len(set(every)) == len(every)
    monkeypatch.setattr(triton.JITFunction, "cache_key", "another source")
    assert not {static.made_of(name) for name in by_name()} & set(every)


def test_bytes_are_counted_again_once_a_source_has_changed(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts: list[dict[str, Traffic]] = [{"a case": Traffic(20, 10, 10)}, {"a case": Traffic(99, 10, 10)}]
    monkeypatch.setattr(static, "count", lambda: counts.pop(0))
    monkeypatch.setattr(static, "TARGETS", {})
    assert static.main(["--update"]) == 0
    assert static.main(["--changed"]) == 0 and len(counts) == 1
    monkeypatch.setattr(traffic, "made_of", lambda: "another source")
    assert static.main(["--changed"]) == 1 and not counts
    assert "moves 9.90 times the least, 2.00 before" in capsys.readouterr().out


def test_under_another_triton_there_is_no_baseline_and_only_spills_fail(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results(monkeypatch, SOUND)
    assert static.main(["--update"]) == 0
    monkeypatch.setattr(triton, "__version__", "0.0.1")
    results(monkeypatch, replace(SOUND, registers=200))
    assert static.main([]) == 0
    assert "no baseline for Triton 0.0.1" in capsys.readouterr().out
    results(monkeypatch, replace(SOUND, stack=400))
    assert static.main([]) == 1


def test_the_committed_baselines_hold_every_specialisation() -> None:
    folders = [folder for folder in static.BASELINES.iterdir() if folder.is_dir()]
    assert len(folders) == 1, "one pinned Triton"
    for target in TARGETS:
        lines = static.read_figures(folders[0] / f"{target}.json")
        assert list(lines) == static.names(target)
        assert {"mma", "registers"} <= set(next(iter(lines.values())).as_json())


@pytest.mark.parametrize(
    ("target", "change", "warps"),
    [
        # 65,536 registers: 32 a thread fill 64 warps, 64 fill 32; 255 are rounded to 256, which leaves 8.
        ("sm_90", {"registers": 32, "shared": 0}, 64),
        ("sm_90", {"registers": 64, "shared": 0}, 32),
        ("sm_90", {"registers": 255, "shared": 0}, 8),
        # 228 KiB: two programs of 100 KiB, of four warps.
        ("sm_90", {"registers": 32, "shared": 100 * 1024}, 8),
        ("sm_80", {"registers": 32, "shared": 100 * 1024}, 4),
        # At most 32 programs, here of one warp.
        ("sm_90", {"registers": 16, "shared": 0, "warps": 1}, 32),
        ("sm_90", {"registers": 300}, 0),
        # LLVM says 7 wavefronts a SIMD for 66 registers, 8 for 64.
        ("gfx942", {"registers": 66, "shared": 0}, 28),
        ("gfx942", {"registers": 64, "shared": 0}, 32),
        ("gfx942", {"registers": 66, "shared": 32 * 1024}, 8),
    ],
)
def test_occupancy_is_bounded_by_registers_shared_memory_and_programs(
    target: str, change: dict[str, int], warps: int
) -> None:
    assert resident_warps(replace(SOUND, **change), target) == warps


MOVED = Traffic(moved=150, least=100, expected=100)


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        (MOVED, []),
        (Traffic(moved=165, least=100, expected=100), []),
        (Traffic(moved=100, least=100, expected=100), []),
        (Traffic(moved=166, least=100, expected=100), ["moves 1.66 times the least, 1.50 before"]),
        (Traffic(150, 100, 90), ["touches 100 bytes, and its microbenchmark takes 90 for the least"]),
    ],
)
def test_a_kernel_that_moves_more_than_before_is_refused(found: Traffic, wrong: list[str]) -> None:
    assert static.judge_traffic(found, MOVED) == wrong


def test_bytes_are_counted_as_they_are_touched() -> None:
    found = traffic.count("plan 64 rows")["plan 64 rows"]
    rows, survivors = 64, 32
    # Flags and ends in; ids and streaks of survivors in and out, with ends, sources and starts; the first end; counts.
    assert found.least == rows + 4 * (rows + 1) + survivors * (12 + 4 + 8 + 4 + 4 + 4) + 4 + 12
    assert found.least < found.moved < 2 * found.least
