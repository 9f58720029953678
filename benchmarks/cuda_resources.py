"""The table of what each CUDA kernel takes of a GPU: ``python -m benchmarks.cuda_resources``.

Compiles every kernel for each capability without a driver, and writes docs/cuda-resources.md.
Nothing in it was measured on a GPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from pathlib import Path
from typing import NamedTuple

from benchmarks.cuda_compilation import (
    CAPABILITIES,
    Capability,
    Resources,
    assemble,
    assembler_missing,
    compile_ptx,
    disassembler_missing,
    instruction_counts,
    listing,
    occupancy,
    resources,
)
from benchmarks.cuda_kernels import Compiled, compiled_kernels, missing
from benchmarks.tables import NONE, table

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "cuda-resources.md"
COMPILERS = ("numba-cuda", "nvidia-nvvm", "nvidia-nvjitlink", "nvidia-cuda-nvdisasm")
COUNTED = ("HMMA", "LDSM", "LDS", "STS", "FFMA", "DFMA", "BAR")


class Row(NamedTuple):
    """A kernel compiled for a capability."""

    kernel: Compiled
    capability: Capability
    resources: Resources
    counts: dict[str, int]

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block, static and dynamic."""
        return self.resources.shared_bytes + self.kernel.dynamic_shared_bytes

    @property
    def occupancy(self) -> float:
        """The part of a multiprocessor's threads that its blocks can fill."""
        kernel, registers = self.kernel, self.resources.registers
        return occupancy(self.capability, registers, kernel.threads, self.shared_bytes)


def measure(kernel: Compiled, capability: Capability) -> Row:
    """Compile a kernel for a capability."""
    assembled = assemble(compile_ptx(kernel.function, kernel.signature, capability), capability)
    counts = instruction_counts(listing(assembled.cubin))
    return Row(kernel, capability, resources(assembled.log), counts)


def every_row() -> list[Row]:
    """Compile every kernel for each capability that it is for."""
    return [
        measure(kernel, capability)
        for kernel in compiled_kernels()
        for capability in CAPABILITIES
        if capability >= kernel.capability
    ]


def compilers() -> str:
    """Return the versions that the table holds for."""
    found = []
    for name in COMPILERS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} of the CUDA folder")
    return ", ".join(found)


def cells(row: Row) -> list[str]:
    """Return a row's cells."""
    kernel, found = row.kernel, row.resources
    counts = [str(row.counts[name]) if row.counts.get(name) else NONE for name in COUNTED]
    return [
        kernel.name,
        kernel.variant,
        f"{row.capability[0]}.{row.capability[1]}",
        str(kernel.threads),
        str(found.registers),
        str(found.local_bytes),
        str(row.shared_bytes),
        f"{row.occupancy:.0%}",
        *counts,
    ]


def markdown(rows: list[Row]) -> str:
    """Return the page."""
    head = ["kernel", "variant", "capability", "threads", "registers", "local bytes"]
    head += ["shared bytes", "occupancy", *COUNTED]
    left_out = [f"- {name} was left out: {reason}" for name, reason in missing().items()]
    return "\n".join(
        [
            "# What the CUDA kernels take of a GPU",
            "",
            "Read off the assembler by `python -m benchmarks.cuda_resources`; nothing here was",
            "measured on a GPU. Registers are those of a thread, shared memory is that of a block.",
            "Occupancy is the part of a multiprocessor's threads that its blocks can fill, by the",
            "limits of the CUDA C++ Programming Guide's table of compute capabilities; 0% where a",
            "block needs more shared memory than it may have there, so that a smaller network or",
            "tile runs. The last columns count instructions in the machine code, not how often",
            "they run.",
            "",
            f"Compilers: {compilers()}",
            "",
            table(head, [cells(row) for row in rows]),
            *(["", *left_out] if left_out else []),
            "",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Write the table, or with ``--check`` compare the one that is there."""
    parser = argparse.ArgumentParser(prog="benchmarks.cuda_resources", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the committed table")
    parser.add_argument("--out", type=Path, default=TARGET, help="the file")
    options = parser.parse_args(arguments)
    reason = assembler_missing() or disassembler_missing()
    if reason is not None:
        print(f"cuda_resources: {reason}", file=sys.stderr)
        return 2
    text = markdown(every_row())
    if options.check:
        same = options.out.exists() and options.out.read_text(encoding="utf-8") == text
        print("current" if same else f"{options.out} is not of the current kernels")
        return 0 if same else 1
    options.out.write_text(text, encoding="utf-8")
    print(f"Table: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
