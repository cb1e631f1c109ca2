"""Kernels compiled for GPUs that need not be there, and what the result says of itself: registers, spills, stack,
shared memory and instruction mix. NVIDIA's come from Triton's own `cuobjdump`, AMD's from the assembly.

Nothing here knows what is good or bad; `bench.static` judges.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pabee_fast.kernels.launch import Launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass(frozen=True)
class Figures:
    """What one specialisation became. Instructions are counted in the text, not as often as they run."""

    registers: int
    """32-bit registers of a thread; on AMD its vector registers, accumulation ones included."""
    spills: int
    """Accesses to local memory on NVIDIA, spilled vector registers on AMD, whose scalar ones go to lanes of those."""
    stack: int
    """Bytes of a thread's stack frame and local memory."""
    shared: int
    """Bytes of a program's shared memory, as its launch asks for them."""
    warps: int
    """Warps (wavefronts) of a program."""
    instructions: int
    mma: int
    """Matrix instructions of a warp, wgmma and mfma included."""
    wgmma: int
    """Those of them that a warp group (sm_90) or a tensor memory (sm_100) serves."""
    fma: int
    """Fused multiply-adds in floating point; a packed one counts once."""
    barriers: int
    loads: dict[str, int]
    """Bytes that a thread loads from global memory at once -> instructions, those into shared memory included."""
    stores: dict[str, int]
    """Likewise for stores."""
    remade: int = 0
    """Reductions that are made in more than one layout of the same numbers, see `count_remade`."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def compile_for(launch: Launch, target: str) -> Figures:
    """Compile what a launch would, for one of TARGETS, and read the result.

    Raises whatever Triton raises, with a note that names kernel, target and specialisation.
    """
    if not isinstance(launch.kernel, triton.JITFunction):
        raise RuntimeError("kernels are interpreted in this process; run it without TRITON_INTERPRET")
    made = launch.specialisation()
    if "enable_fp_fusion" not in made.options:
        raise ValueError(f"{made.kernel.__name__}: options lack enable_fp_fusion, whose default changes with Triton")
    try:
        source = ASTSource(made.kernel, made.signature, made.constexprs, made.attrs)
        compiled = triton.compile(source, target=TARGETS[target], options=made.options)
    except Exception as error:
        error.add_note(f"{made.kernel.__name__} for {target}, specialised to {made.signature}, {made.constexprs}")
        raise
    meta = compiled.metadata
    if "amdgcn" in compiled.asm:
        found = read_amd(compiled.asm["amdgcn"], shared=meta.shared, warps=meta.num_warps)
    else:
        found = read_nvidia(_disassemble(compiled.asm["cubin"]), shared=meta.shared, warps=meta.num_warps)
    return replace(found, remade=count_remade(compiled.asm["ttgir"]))


_REDUCTION = re.compile(r'"tt\.reduce"\(.*?\}\) : \(.*?\) -> (.*?) loc\((#loc\w*)\)', re.DOTALL)


def count_remade(ttgir: str) -> int:
    """Return how many reductions of a kernel's source Triton makes in more than one layout of the same numbers.

    What follows from such a one, the masks of two stores say, has two sources, which agree only as far as Triton moves
    numbers between layouts rightly. 3.6 does not where it packs truth values into bytes: a row's state then says that
    it has left, and its results that it has not.
    """
    layouts: dict[str, set[str]] = {}
    found = _REDUCTION.findall(ttgir)
    if len(found) != ttgir.count('"tt.reduce"('):
        raise ValueError(f"of {ttgir.count('tt.reduce')} mentions of tt.reduce {len(found)} can be read")
    for layout, place in found:
        layouts.setdefault(place, set()).add(layout)
    return sum(len(each) > 1 for each in layouts.values())


def _disassemble(cubin: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


_SASS = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
_USAGE = re.compile(r"\b(REG|STACK|LOCAL):(\d+)")
_SASS_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}


def read_nvidia(text: str, *, shared: int, warps: int) -> Figures:
    """Return figures out of what `cuobjdump -res-usage -sass` prints of a cubin with one kernel."""
    usage = {name: int(number) for name, number in _USAGE.findall(text)}
    counted = Counter(_SASS.findall(text))
    if not usage or not counted:
        raise ValueError(f"cuobjdump's output holds no kernel: {text[:200]!r}")
    del counted["NOP"]  # padding behind the code

    def count(*operations: str) -> int:
        return sum(number for name, number in counted.items() if name.split(".")[0] in operations)

    def widths(*operations: str) -> dict[str, int]:
        found: Counter[int] = Counter()
        for name, number in counted.items():
            operation, *modifiers = name.split(".")
            if operation in operations:
                found[next((_SASS_WIDTHS[m] for m in reversed(modifiers) if m in _SASS_WIDTHS), 4)] += number
        return _by_width(found)

    groups = ("HGMMA", "IGMMA", "QGMMA", "UTCHMMA", "UTCIMMA", "UTCQMMA")
    return Figures(
        registers=usage["REG"],
        spills=count("LDL", "STL"),
        stack=usage["STACK"] + usage["LOCAL"],
        shared=shared,
        warps=warps,
        instructions=sum(counted.values()),
        mma=count("HMMA", "IMMA", "QMMA", "DMMA", *groups),
        wgmma=count(*groups),
        fma=count("FFMA", "FFMA2", "HFMA2", "DFMA"),
        barriers=count("BAR", "SYNCS"),
        loads=widths("LDG", "LDGSTS"),
        stores=widths("STG"),
    )


_GCN = re.compile(r"^\s+([a-z]+_[a-z0-9_]+)", re.MULTILINE)
_GCN_WIDTHS = {"ubyte": 1, "sbyte": 1, "byte": 1, "ushort": 2, "sshort": 2, "short": 2, "dword": 4, "dwordx2": 8,
               "dwordx3": 12, "dwordx4": 16}  # fmt: skip


def read_amd(text: str, *, shared: int, warps: int) -> Figures:
    """Return figures out of Triton's `amdgcn` text of one kernel: LLVM writes the resources into its metadata."""

    def resource(name: str) -> int:
        found = re.search(rf"^\s+(?:- )?\.{name}:\s+(\d+)$", text, re.MULTILINE)
        if found is None:
            raise ValueError(f"the assembly holds no {name}: {text[:200]!r}")
        return int(found[1])

    counted = Counter(name for name in _GCN.findall(text) if name != "s_nop")

    def count(*beginnings: str) -> int:
        return sum(number for name, number in counted.items() if name.startswith(beginnings))

    def widths(what: str) -> dict[str, int]:
        found: Counter[int] = Counter()
        for name, number in counted.items():
            match = re.fullmatch(rf"(?:global|buffer|flat)_{what}_(u?s?byte|u?s?short|dword(?:x\d)?)(?:_\w+)?", name)
            if match:
                found[_GCN_WIDTHS[match[1]]] += number
        return _by_width(found)

    return Figures(
        registers=resource("vgpr_count"),
        spills=resource("vgpr_spill_count"),
        stack=resource("private_segment_fixed_size"),
        shared=shared,
        warps=warps,
        instructions=sum(counted.values()),
        mma=count("v_mfma_", "v_smfmac_"),
        wgmma=0,
        fma=count("v_fma_", "v_fmac_", "v_fmaak_", "v_fmamk_", "v_pk_fma_"),
        barriers=count("s_barrier"),
        loads=widths("load"),
        stores=widths("store"),
    )


def _by_width(found: Counter[int]) -> dict[str, int]:
    return {str(width): found[width] for width in sorted(found, reverse=True)}
