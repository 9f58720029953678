"""From an emitter's module to callable addresses, through object code that is kept on disk."""

import functools
import hashlib
import logging
import os
import re
import tempfile
from pathlib import Path

import llvmlite.binding as llvm

from fastmlp_kernels.announcing import compile_always
from fastmlp_kernels.compile import (
    CPU_KERNELS,
    DIGEST_BYTES,
    cache_folder,
    how_often,
    stamp,
    uncollected,
)
from fastmlp_kernels.cpu import finishing_tiles, listed_tiles
from fastmlp_kernels.cpu import microkernels as dense
from fastmlp_kernels.cpu.simd import (
    VECTORS_PER_PANEL,
    Emitter,
    InstructionSet,
    host_instruction_sets,
)

logger = logging.getLogger("fastmlp")

# Execution engines own the code: dropped, they take it away from under the addresses.
_engines: list[llvm.ExecutionEngine] = []


def emit_all(target: InstructionSet, dtype: str) -> Emitter:
    """Return an emitter that holds every microkernel for an instruction set and dtype."""
    e = Emitter(target, dtype)
    for vectors in range(1, VECTORS_PER_PANEL + 1):
        for rows in target.row_tiles:
            dense.emit_product(e, rows, vectors)
            finishing_tiles.emit_finishing_products(e, rows, vectors)
            listed_tiles.emit_listed_product(e, rows, vectors)
        dense.emit_gradient(e, target.feature_tile, vectors)
        listed_tiles.emit_listed_gradient(e, vectors)
    dense.emit_gradient(e, 1, VECTORS_PER_PANEL)
    dense.emit_dot_rows(e)
    if target.masks:
        dense.emit_direct(e)
    dense.emit_column_sum(e)
    dense.emit_transpose(e)
    dense.emit_copy_rows(e)
    listed_tiles.emit_list_columns(e)
    listed_tiles.emit_list_rows(e)
    return e


def target_machine(target: InstructionSet) -> llvm.TargetMachine:
    """Return LLVM's code generator for an instruction set, of this architecture or another."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    native = target in host_instruction_sets() or not target.triple
    triple = llvm.get_process_triple() if native else target.triple
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=target.cpu, opt=3, reloc="pic", codemodel="default", jit=native
    )


def optimized_module(target: InstructionSet, dtype: str) -> tuple[llvm.ModuleRef, list[str]]:
    """Return the module of all microkernels with its stack slots turned into registers."""
    emitter = emit_all(target, dtype)
    machine = target_machine(target)
    module = llvm.parse_assembly(str(emitter.module))
    module.triple = machine.triple
    module.data_layout = str(machine.target_data)
    module.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options())
    passes = llvm.create_new_module_pass_manager()
    passes.add_sroa_pass()
    passes.add_simplify_cfg_pass()
    passes.run(module, builder)
    return module, emitter.names


def assembly(target: InstructionSet, dtype: str) -> str:
    """Return the assembly, for any architecture: what the tests search for spills."""
    module, _ = optimized_module(target, dtype)
    return target_machine(target).emit_assembly(module)


def _object_file(target: InstructionSet, dtype: str) -> tuple[bytes, list[str]]:
    def work() -> tuple[bytes, list[str]]:
        with uncollected():
            module, names = optimized_module(target, dtype)
            return target_machine(target).emit_object(module), names

    return compile_always(work, CPU_KERNELS, how_often())


def _cached_object(target: InstructionSet, dtype: str) -> tuple[bytes, list[str]]:
    folder = cache_folder()
    if folder is None:
        return _object_file(target, dtype)
    path = folder / f"microkernels-{target.name}-{dtype}-{stamp()[:16]}.o"
    found = _read(path)
    if found is None:
        found = _object_file(target, dtype)
        _store(path, *found)
    return found


def _read(path: Path) -> tuple[bytes, list[str]] | None:
    """Return what `_store` wrote, or None if it is not there, or not what was written."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, content = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        logger.warning("%s is damaged: compiling anew", path)
        return None
    names, _, code = content.partition(b"\n")
    return code, names.decode().split()


def _store(path: Path, code: bytes, names: list[str]) -> None:
    content = " ".join(names).encode() + b"\n" + code
    # Written beside and moved: another process never sees half a file.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(content).digest() + content)
        os.replace(file.name, path)
        for other in path.parent.glob(re.sub(r"-[0-9a-f]{16}\.o$", "-*.o", path.name)):
            if other != path:
                other.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("compiled microkernels could not be kept: %s", error)


@functools.cache
def microkernels(target: InstructionSet, dtype: str) -> dict[str, int]:
    """Return the addresses of every microkernel, by name."""
    code, names = _cached_object(target, dtype)
    machine = target_machine(target)
    # Code reaches its constants by 32-bit distances. In a large process (PyTorch and JAX in it) the
    # usual manager may place the two farther apart, and LLVM then ends the process; this one places
    # all sections of an object in one piece.
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine, use_lmm=True)
    engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return {name: engine.get_function_address(name) for name in names}
