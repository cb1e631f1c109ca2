"""How many warps of a kernel one multiprocessor holds at once, by its registers and shared memory.

An estimate from the compiler's figures: what a launch of too few programs or its tail leaves idle is not in it.
"""

from dataclasses import dataclass

from bench.compiled import Figures


@dataclass(frozen=True)
class Architecture:
    """One multiprocessor (compute unit) of a target."""

    registers: int
    """32-bit registers of all its threads."""
    register_unit: int
    """A warp is given a multiple of so many."""
    most_registers: int
    """Of one thread."""
    threads: int
    """Of a warp."""
    warps: int
    programs: int
    shared: int
    """Bytes."""
    reserved: int
    """Bytes of shared memory that the system takes of each program."""


# NVIDIA: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", and for what the system
# reserves the tuning guides of Ampere, Hopper and Blackwell, "Unified Shared Memory/L1/Texture Cache"; the unit in
# which registers are given out is the occupancy calculator's. AMD: LLVM's AMDGPU usage guide and AMD's "CDNA3
# instruction set architecture": four SIMDs of 512 vector registers of 64 lanes, at most eight wavefronts each.
ARCHITECTURES = {
    "sm_80": Architecture(65_536, 256, 255, 32, 64, 32, 164 * 1024, 1024),
    "sm_90": Architecture(65_536, 256, 255, 32, 64, 32, 228 * 1024, 1024),
    "sm_100": Architecture(65_536, 256, 255, 32, 64, 32, 228 * 1024, 1024),
    "gfx942": Architecture(4 * 512 * 64, 8 * 64, 512, 64, 32, 32, 64 * 1024, 0),
}


def resident_warps(figures: Figures, target: str) -> int:
    """Return warps that one multiprocessor of `target` holds at once; 0 for a program that fits none."""
    here = ARCHITECTURES[target]
    if figures.registers > here.most_registers:
        return 0
    a_warp = -(-figures.registers * here.threads // here.register_unit) * here.register_unit
    # Registers belong to one of four schedulers, and so does a warp.
    by_registers = 4 * (here.registers // 4 // max(a_warp, 1))
    programs = min(here.programs, min(here.warps, by_registers) // figures.warps)
    if figures.shared + here.reserved:
        programs = min(programs, here.shared // (figures.shared + here.reserved))
    return programs * figures.warps


def occupancy(figures: Figures, target: str) -> float:
    """Return resident warps as a share of the most that a multiprocessor holds."""
    return resident_warps(figures, target) / ARCHITECTURES[target].warps
