"""Compile the products on tensor cores for real, without a GPU, and look at the machine code."""

import re

import pytest

pytest.importorskip(
    "numba_cuda", reason="numba-cuda is not installed: pip install --group cuda-compile"
)

from numba import cuda, types

from benchmarks.cuda_compilation import (
    assemble,
    assembler_missing,
    compile_ptx,
    disassembler_missing,
    double_precision,
    listing,
    local_memory,
    resources,
)
from fastmlp_kernels.compile import cuda_kernel, simulated
from fastmlp_kernels.cuda import intrinsics
from fastmlp_kernels.cuda.products import TENSOR_CAPABILITY
from tests.cuda_tensor_kernels import NAMES, PRECISIONS, kernel

pytestmark = [
    pytest.mark.cuda_compile,
    pytest.mark.skipif(simulated(), reason="the simulator compiles nothing"),
]

# Ampere, Hopper, Blackwell.
CAPABILITIES = [(8, 0), (9, 0), (10, 0)]
THREADS = 256
# 65536 registers hold two blocks of 256 threads with so many each.
MOST_REGISTERS = 128
# A tall tile and a low one: 8 + 4 instructions, and the loads of their fragments.
MULTIPLICATIONS = 12
MATRIX_LOADS = {
    ("bfloat16", "forward"): {"LDSM.16.M88.4": 3, "LDSM.16.MT88.4": 4},
    ("bfloat16", "backward"): {"LDSM.16.M88.4": 7},
    ("bfloat16", "weight_gradient"): {"LDSM.16.MT88.4": 7},
    ("tf32", "forward"): {"LDSM.16.M88.4": 3},
    ("tf32", "backward"): {"LDSM.16.M88.4": 7},
    ("tf32", "weight_gradient"): {},
}
INSTRUCTION = {"bfloat16": "HMMA.16816.F32.BF16", "tf32": "HMMA.1688.F32.TF32"}
FLOATS, WORDS = types.Array(types.float32, 1, "C"), types.Array(types.int64, 1, "C")


def compiled(name, precision, capability):
    """Return the PTX of a product."""
    return compile_ptx(kernel(name, THREADS, precision).py_func, (FLOATS, WORDS), capability)


def assembled(ptx, capability):
    """Return the listing of the machine code, and what the assembler said of it."""
    reason = assembler_missing() or disassembler_missing()
    if reason is not None:
        pytest.skip(reason)
    found = assemble(ptx, capability)
    return listing(found.cubin), resources(found.log)


def count(code, instruction):
    return len(re.findall(rf"\b{re.escape(instruction)}(?![.\w])", code))


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_a_product_is_tensor_instructions_without_spills(name, precision, capability):
    ptx = compiled(name, precision, capability)
    assert double_precision(ptx) == []
    assert local_memory(ptx) == []
    code, taken = assembled(ptx, capability)
    assert taken.local_bytes == 0
    # A division of 64-bit numbers, for one, is a subroutine.
    assert "__cuda_sm" not in code
    assert count(code, INSTRUCTION[precision]) == MULTIPLICATIONS
    assert len(re.findall(r"\bHMMA\b", code)) == MULTIPLICATIONS
    loads = MATRIX_LOADS[precision, name]
    assert len(re.findall(r"\bLDSM\b", code)) == sum(loads.values())
    for instruction, times in loads.items():
        assert count(code, instruction) == times, instruction
    assert 32 <= taken.registers <= MOST_REGISTERS


def test_earlier_gpus_do_not_assemble_them():
    """Why there is a TENSOR_CAPABILITY: below it, only the assembler would say so."""
    assert TENSOR_CAPABILITY == CAPABILITIES[0]
    nvjitlink = pytest.importorskip("cuda.bindings.nvjitlink", reason="nvJitLink is not installed")
    for precision in PRECISIONS:
        ptx = compiled("forward", precision, (7, 5))
        with pytest.raises(nvjitlink.nvJitLinkError):
            assemble(ptx, (7, 5))


def instructions(x, out, bits):
    """Use every intrinsic that the products do not."""
    shared = cuda.shared.array(0, types.float32)
    t = cuda.threadIdx.x
    intrinsics.copy_async_16(shared, 4 * t, x, 4 * t)
    intrinsics.copy_async_commit()
    intrinsics.copy_async_wait(0)
    cuda.syncthreads()
    a, b, c, d = intrinsics.load4(shared, 124 - 4 * t)
    intrinsics.store4(out, 4 * t, (intrinsics.to_tf32(a), b, c, d))
    bits[t] = intrinsics.to_bfloat16_pair(a, b)
    bits[t + 32] = intrinsics.to_bfloat16(c)
    out[t + 128] = intrinsics.from_bfloat16(types.uint16(bits[t + 64]))
    bits[t + 96] = intrinsics.load_bits(shared, t)


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
def test_the_other_intrinsics(capability):
    bits = types.Array(types.uint32, 1, "C")
    function = cuda_kernel(instructions).py_func
    ptx = compile_ptx(function, (FLOATS, FLOATS, bits), capability)
    assert double_precision(ptx) == []
    for text in ("cvt.rna.tf32.f32", "cvt.rn.bf16x2.f32", "cvt.rn.bf16.f32", "cp.async.wait_group"):
        assert text in ptx, text
    code, taken = assembled(ptx, capability)
    assert re.search(r"\bLDGSTS(\.\w+)*\.128\b", code)
    assert re.search(r"\bLDS\.128\b", code) and re.search(r"\bSTG\.E\.128\b", code)
    assert taken.local_bytes == 0
