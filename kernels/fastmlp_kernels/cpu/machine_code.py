"""From an emitter's module to callable addresses, through object code that is kept on disk."""

import functools

import llvmlite.binding as llvm

from fastmlp_kernels.announcing import compile_always
from fastmlp_kernels.compile import CPU_KERNELS, cache_folder, how_often, stamp, uncollected
from fastmlp_kernels.cpu import direct_tiles, finishing_tiles, listed_tiles, row_copies, row_tiles
from fastmlp_kernels.cpu import microkernels as dense
from fastmlp_kernels.cpu.simd import (
    VECTORS_PER_PANEL,
    Emitter,
    InstructionSet,
    host_instruction_sets,
)
from fastmlp_kernels.shield import shield

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
        listed_tiles.emit_listed_gradient(e, vectors)
    row_tiles.emit_row_products(e)
    dense.emit_gradient(e, target.narrow_feature_tile(dtype), 1)
    dense.emit_gradient(e, target.feature_tile, VECTORS_PER_PANEL)
    dense.emit_gradient(e, 1, VECTORS_PER_PANEL)
    dense.emit_dot_rows(e)
    for rows in target.row_tiles:
        direct_tiles.emit_direct(e, rows)
    if target.masks:
        direct_tiles.emit_direct_row(e)
    dense.emit_column_sum(e)
    dense.emit_transpose(e)
    row_copies.emit_copy_rows(e)
    listed_tiles.emit_list_columns(e)
    listed_tiles.emit_list_rows(e)
    return e


def target_machine(target: InstructionSet, optimization: int = 3) -> llvm.TargetMachine:
    """Return LLVM's code generator for an instruction set, of this architecture or another."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    native = target in host_instruction_sets() or not target.triple
    triple = llvm.get_process_triple() if native else target.triple
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=target.cpu, opt=optimization, reloc="pic", codemodel="default", jit=native
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
    name = f"microkernels-{target.name}-{dtype}.o"
    identity = f"{stamp()} {llvm.get_process_triple()} {target}"
    found = folder.read(name, identity)
    if found is None:
        code, names = _object_file(target, dtype)
        folder.write(name, identity, " ".join(names).encode() + b"\n" + code)
        return code, names
    names, _, code = found.partition(b"\n")
    return code, names.decode().split()


@functools.cache
def microkernels(target: InstructionSet, dtype: str) -> dict[str, int]:
    """Return the addresses of every microkernel, by name."""
    return shield(lambda: _addresses(target, dtype))


# Kept here too: after an interrupt the work above goes on, and its result is there for the next.
@functools.cache
def _addresses(target: InstructionSet, dtype: str) -> dict[str, int]:
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
