"""Compile every CUDA kernel for real, without a GPU: types, code generation and assembly.

Where nvJitLink is there as well, the machine code must be free of spills: it comes with the
dependency group cuda-compile.
"""

import re

import pytest

pytest.importorskip(
    "numba_cuda", reason="numba-cuda is not installed: pip install --group cuda-compile"
)

from benchmarks.cuda_compilation import (
    CAPABILITIES,
    assemble,
    assembler_missing,
    compile_ptx,
    disassembler,
    disassembler_missing,
    double_precision,
    listing,
    local_memory,
    resources,
)
from benchmarks.cuda_kernels import layered_signature
from fastmlp_kernels.compile import simulated
from fastmlp_kernels.cuda.layered.launching import Kernels, Tiles, build
from fastmlp_kernels.problem import DTYPES

pytestmark = [
    pytest.mark.cuda_compile,
    pytest.mark.skipif(simulated(), reason="the simulator compiles nothing"),
]


def machine_code(ptx, capability, folder):
    """Assemble PTX, leave the machine code in a folder, and return its listing."""
    cubin = assemble(ptx, capability).cubin
    (folder / "kernel.cubin").write_bytes(cubin)
    return listing(cubin)


def compiled(name, dtype, capability):
    """Return the PTX of a kernel."""
    function = getattr(build(Tiles()), name).py_func
    return compile_ptx(function, layered_signature(name, dtype), capability)


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", Kernels._fields)
def test_kernel_compiles_without_spills(name, dtype, capability):
    ptx = compiled(name, dtype, capability)
    major, minor = capability
    assert re.search(rf"^\.target sm_{major}{minor}\b", ptx, re.MULTILINE)
    assert ".visible .entry" in ptx
    if dtype == "float32":
        assert double_precision(ptx) == []
    # An array that the compiler could not keep in registers.
    assert local_memory(ptx) == []
    reason = assembler_missing()
    if reason is not None:
        pytest.skip(reason)
    found = resources(assemble(ptx, capability).log)
    # Two blocks of 256 threads a multiprocessor; in float64, whose units are few, one is enough.
    assert 0 < found.registers <= (128 if dtype == "float32" else 255)
    assert found.local_bytes == 0


def test_a_product_in_float64_is_seen_to_be_one():
    """The search above can fail: the float64 kernels have what it looks for."""
    for name in ("linear_forward", "loss_and_gradient", "update", "weight_gradient"):
        assert double_precision(compiled(name, "float64", (9, 0))), name


def test_the_products_are_fused_multiply_adds_on_shared_tiles():
    for name in ("linear_forward", "linear_backward", "weight_gradient"):
        ptx = compiled(name, "float32", (9, 0))
        # One an unrolled step of the tile at least, from shared memory, with barriers around.
        assert ptx.count("fma.rn.f32") >= Tiles().tile, name
        assert "ld.shared" in ptx and "st.shared" in ptx and "bar.sync" in ptx, name


def test_a_nan_passes_through_the_hard_sigmoid():
    """min.f32 and max.f32 return the other operand: Numba's own `max` would drop a NaN."""
    for name in ("activation_forward", "linear_forward"):
        ptx = compiled(name, "float32", (9, 0))
        assert not re.search(r"\b(min|max)(\.ftz)?\.f32", ptx), name


@pytest.mark.parametrize("name", ["linear_forward", "linear_backward", "weight_gradient"])
def test_a_thread_of_a_product_reads_its_neighbours_as_vectors(name, tmp_path):
    """Four terms at a time: two vectors and 16 multiply-adds each."""
    reason = assembler_missing() or disassembler_missing()
    if reason is not None:
        pytest.skip(reason)
    code = machine_code(compiled(name, "float32", (9, 0)), (9, 0), tmp_path)
    assert len(re.findall(r"\bLDS\.128\b", code)) >= 8
    assert len(re.findall(r"\bFFMA\b", code)) >= 4 * Tiles().registers ** 2
    # One by one they would be as many as the multiply-adds of two terms. The last block of a tile
    # reads a flag; a fence is followed by loads to nowhere that never run.
    single = re.findall(r"\bLDS\b(?!\.128| RZ)", code)
    assert len(single) == (1 if name == "weight_gradient" else 0)


def test_the_listing_is_of_what_was_assembled(tmp_path):
    reason = assembler_missing() or disassembler_missing()
    if reason is not None:
        pytest.skip(reason)
    assert disassembler() is not None
    code = machine_code(compiled("gather_rows", "float32", (9, 0)), (9, 0), tmp_path)
    assert "EXIT" in code and "sm_90" in code
    assert (tmp_path / "kernel.cubin").read_bytes()[:4] == b"\x7fELF"
