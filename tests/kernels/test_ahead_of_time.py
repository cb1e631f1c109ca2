"""The kernels compiled for GPUs that need not be there, and what the assembler says of them."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed, as on macOS and Windows")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from pabee_fast.kernels import compact, exit_step, pool  # noqa: E402
from pabee_fast.kernels.launch import Launch  # noqa: E402

# ptxas may park a register pair outside the loop to fit one more program; a tile that does not fit spills hundreds.
MAX_STACK_BYTES = 8


def launches() -> Iterator[tuple[str, Launch]]:
    yield from exit_step.specialisations()
    yield from compact.specialisations()
    yield from pool.specialisations()


def stack_bytes(cubin: bytes, folder: Path) -> int:
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    figures = dict(word.split(":") for word in usage.split() if word.startswith(("STACK:", "LOCAL:")))
    return int(figures["STACK"]) + int(figures["LOCAL"])


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("name", "launch"), [pytest.param(*each, id=each[0]) for each in launches()])
def test_a_specialisation_compiles_without_spills(name: str, launch: Launch, capability: int, tmp_path: Path) -> None:
    # In float32 every product is a fused multiply-add: TF32 would go through mma.
    assert isinstance(launch.kernel, triton.JITFunction), "run these tests without TRITON_INTERPRET"
    made = launch.specialisation()
    compiled = triton.compile(
        ASTSource(made.kernel, made.signature, made.constexprs, made.attrs),
        target=GPUTarget("cuda", capability, 32),
        options=made.options,
    )
    ptx = compiled.asm["ptx"]
    assert f".target sm_{capability}" in ptx
    assert stack_bytes(compiled.asm["cubin"], tmp_path) <= MAX_STACK_BYTES
    if name.startswith("exit_step"):
        assert ("mma" in ptx) == ("float32" not in name)
    if name.startswith("gather-768"):
        assert "ld.global.v4.b32" in ptx
        assert "st.global.v4.b32" in ptx
