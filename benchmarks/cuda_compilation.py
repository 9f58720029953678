"""CUDA kernels compiled for real on a machine without a GPU or a driver: PTX, machine code, facts.

Needs numba-cuda with nvJitLink and NVVM, and nvdisasm for the listing: the dependency group
cuda-compile. What is read off is what the assembler said, not what a GPU measured.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

Capability = tuple[int, int]

# Turing, Ampere, Hopper, Blackwell.
CAPABILITIES: tuple[Capability, ...] = ((7, 5), (8, 0), (9, 0), (10, 0))


class Assembled(NamedTuple):
    """Machine code of one kernel, and what the assembler said of it."""

    cubin: bytes
    log: str


class Resources(NamedTuple):
    """What a kernel takes of a multiprocessor: of each thread, except the shared memory.

    Attributes
    ----------
    registers, stack_bytes, spilled_bytes : int
        Spilled: stored to and loaded from local memory because registers ran out.
    shared_bytes : int
        Static shared memory of a block.
    """

    registers: int
    shared_bytes: int
    stack_bytes: int
    spilled_bytes: int

    @property
    def local_bytes(self) -> int:
        """What a thread has in local memory for any reason; of our kernels none has."""
        return self.stack_bytes + self.spilled_bytes


class Limits(NamedTuple):
    """Limits of a multiprocessor of a capability.

    Attributes
    ----------
    threads, blocks, registers, shared_bytes : int
        That are resident at a time.
    block_shared_bytes : int
        The most that one block may have.
    reserved_bytes, shared_unit : int
        What the system takes of each block's, and what it is rounded up to.
    """

    threads: int
    blocks: int
    registers: int
    shared_bytes: int
    block_shared_bytes: int
    reserved_bytes: int
    shared_unit: int


# CUDA C++ Programming Guide 13, "Compute Capabilities", table of technical specifications; units
# and reserved memory: the occupancy calculator's (Nsight Compute) data for each capability.
KIB = 1024
LIMITS: dict[Capability, Limits] = {
    (7, 5): Limits(1024, 16, 65536, 64 * KIB, 64 * KIB, 0, 256),
    (8, 0): Limits(2048, 32, 65536, 164 * KIB, 163 * KIB, KIB, 128),
    (9, 0): Limits(2048, 32, 65536, 228 * KIB, 227 * KIB, KIB, 128),
    (10, 0): Limits(2048, 32, 65536, 228 * KIB, 227 * KIB, KIB, 128),
}
WARP = 32
# Registers are dealt to warps, 8 of each thread at a time, by each quarter of a multiprocessor.
REGISTER_UNIT = 8
QUARTERS = 4


@contextlib.contextmanager
def compiling_for(capability: Capability) -> Iterator[None]:
    """Let device functions be compiled for a capability: they ask the current device, not us."""
    from numba.cuda import dispatcher

    device = SimpleNamespace(compute_capability=capability)
    asked = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: device
    try:
        yield
    finally:
        dispatcher.get_current_device = asked


@functools.cache
def compile_ptx(function: Callable[..., Any], signature: Any, capability: Capability) -> str:
    """Return the PTX of a kernel's Python function; with the house's flags, which are Numba's."""
    from numba import cuda

    with compiling_for(capability):
        text, _ = cuda.compile_ptx(function, signature, cc=capability)
    return text


def assembler_missing() -> str | None:
    """Return why there is no machine code to be had here, or None."""
    try:
        from cuda.bindings import nvjitlink  # noqa: F401
    except ImportError as error:
        return f"nvJitLink is not installed ({error}): pip install --group cuda-compile"
    return None


def disassembler_missing() -> str | None:
    """Return why there is no listing to be had here, or None."""
    found = disassembler()
    return None if found else "nvdisasm is not installed: pip install --group cuda-compile"


def disassembler() -> str | None:
    """Return nvdisasm: from the path, or from its wheel."""
    found = shutil.which("nvdisasm")
    wheels = sorted(Path(sys.prefix).glob("lib/python*/site-packages/nvidia/*/bin/nvdisasm"))
    return found or (str(wheels[0]) if wheels else None)


@functools.cache
def assemble(ptx: str, capability: Capability) -> Assembled:
    """Assemble PTX by nvJitLink, which needs no driver."""
    from cuda.bindings import nvjitlink

    major, minor = capability
    options = [f"-arch=sm_{major}{minor}", "-verbose"]
    handle = nvjitlink.create(len(options), options)
    try:
        source = ptx.encode()
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, source, len(source), "kernel")
        nvjitlink.complete(handle)
        cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, cubin)
        log = bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_info_log(handle, log)
    finally:
        nvjitlink.destroy(handle)
    return Assembled(bytes(cubin), log.decode(errors="replace").rstrip("\0"))


def listing(cubin: bytes) -> str:
    """Return the disassembly of machine code."""
    program = disassembler()
    assert program is not None, disassembler_missing()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [program, "-c", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def resources(log: str) -> Resources:
    """Return what the assembler's log says of its one kernel."""
    spills = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", log
    )
    used = re.findall(r"used (\d+) registers", log, re.IGNORECASE)
    if not spills or not used:
        raise ValueError(f"the assembler's log: got {log!r}, wanted its lines on registers")
    shared = max(map(int, re.findall(r"(\d+) bytes smem", log)), default=0)
    if shared and "sm_90'" in log:
        # nvJitLink 13.5 counts in what the system takes of a block's, for this capability alone.
        shared -= LIMITS[(9, 0)].reserved_bytes
    return Resources(
        registers=max(map(int, used)),
        shared_bytes=shared,
        stack_bytes=max(int(stack) for stack, _, _ in spills),
        spilled_bytes=max(int(stores) + int(loads) for _, stores, loads in spills),
    )


def instruction_counts(code: str) -> dict[str, int]:
    """Return how often each instruction stands in a listing, by its name without modifiers."""
    counts: dict[str, int] = {}
    for name in re.findall(
        r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", code, re.M
    ):
        counts[name] = counts.get(name, 0) + 1
    return counts


def double_precision(ptx: str) -> list[str]:
    """Return the instructions that compute in float64."""
    return [line.strip() for line in ptx.splitlines() if re.search(r"\.f64\b", line)]


def local_memory(ptx: str) -> list[str]:
    """Return the lines about an array that the compiler could not keep in registers."""
    marks = r"__local_depot|\b(ld|st)\.local\b"
    return [line.strip() for line in ptx.splitlines() if re.search(marks, line)]


def blocks_at_a_time(
    capability: Capability, registers: int, threads: int, shared_bytes: int
) -> int:
    """Return how many blocks of a kernel a multiprocessor holds; 0 if not even one."""
    limits = LIMITS[capability]
    warps = -(-threads // WARP)
    of_warp = max(1, -(-registers // REGISTER_UNIT)) * REGISTER_UNIT * WARP
    resident = limits.registers // of_warp // QUARTERS * QUARTERS
    unit = limits.shared_unit
    shared = -(-(shared_bytes + limits.reserved_bytes) // unit) * unit
    if shared_bytes > limits.block_shared_bytes:
        return 0
    most = [limits.blocks, limits.threads // (warps * WARP), resident // warps]
    if shared:
        most.append(limits.shared_bytes // shared)
    return min(most)


def occupancy(capability: Capability, registers: int, threads: int, shared_bytes: int) -> float:
    """Return the part of a multiprocessor's threads that blocks of a kernel can fill."""
    warps = -(-threads // WARP)
    blocks = blocks_at_a_time(capability, registers, threads, shared_bytes)
    return blocks * warps * WARP / LIMITS[capability].threads
