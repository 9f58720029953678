"""Compile the products on tensor cores for real, without a GPU, and look at the machine code."""

import functools
import re
import struct
from types import SimpleNamespace

import pytest

pytest.importorskip(
    "numba_cuda", reason="numba-cuda is not installed: pip install --group cuda-compile"
)

from numba import cuda, types
from numba.cuda import dispatcher

from fastmlp_kernels.compile import cuda_kernel, simulated
from fastmlp_kernels.cuda.instructions import intrinsics
from fastmlp_kernels.cuda.instructions.index32 import index32
from fastmlp_kernels.cuda.instructions.pointers import load, pointer_to, store
from fastmlp_kernels.cuda.on_chip.offsets import SHARED_ALIGNMENT
from fastmlp_kernels.cuda.on_chip.products import TENSOR_CAPABILITY
from tests.gpu.tensor_kernels import NAMES, PRECISIONS, kernel, layer_kernel
from tests.gpu.test_kernel_compile import disassembler, double_precision, machine_code

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
REGISTER_COUNT = 0x2F


@pytest.fixture
def compiled(monkeypatch):
    """Return a function that compiles a product to PTX for a capability."""

    def ptx(name, precision, capability):
        device = SimpleNamespace(compute_capability=capability)
        monkeypatch.setattr(dispatcher, "get_current_device", lambda: device)
        return _ptx(name, precision, capability)

    return ptx


@functools.cache
def _ptx(name, precision, capability):
    function = kernel(name, THREADS, precision).py_func
    return cuda.compile_ptx(function, (FLOATS, WORDS), cc=capability)[0]


def assembled(ptx, capability, folder):
    pytest.importorskip("cuda.bindings.nvjitlink", reason="nvJitLink is not installed")
    if disassembler() is None:
        pytest.skip("nvdisasm is not installed: pip install --group cuda-compile")
    return machine_code(ptx, capability, folder)


def count(code, instruction):
    return len(re.findall(rf"\b{re.escape(instruction)}(?![.\w])", code))


def registers(cubin):
    """Return the registers a thread of each function takes, from the ELF section .nv.info."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    sections, names = struct.unpack_from("<HH", cubin, 0x3C)
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + 64 * k) for k in range(sections)]
    for name, _, _, _, start, size in headers:
        text = headers[names][4] + name
        if cubin[text : cubin.index(b"\0", text)] == b".nv.info":
            return list(attributes(cubin[start : start + size]))
    raise AssertionError("no section .nv.info")


def attributes(section):
    place = 0
    while place < len(section):
        kind, name, size = struct.unpack_from("<BBH", section, place)
        if kind == 4 and name == REGISTER_COUNT:
            yield struct.unpack_from("<II", section, place + 4)[1]
        # Kind 4 is followed by `size` bytes; of the others, the size is the value.
        place += 4 + (size if kind == 4 else 0)


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_a_product_is_tensor_instructions_without_spills(
    compiled, name, precision, capability, tmp_path
):
    ptx = compiled(name, precision, capability)
    assert double_precision(ptx) == []
    assert "__local_depot" not in ptx and "ld.local" not in ptx and "st.local" not in ptx
    code = assembled(ptx, capability, tmp_path)
    assert not re.search(r"\b(LDL|STL)\b", code)
    # A division of 64-bit numbers, for one, is a subroutine.
    assert "__cuda_sm" not in code
    assert count(code, INSTRUCTION[precision]) == MULTIPLICATIONS
    assert len(re.findall(r"\bHMMA\b", code)) == MULTIPLICATIONS
    loads = MATRIX_LOADS[precision, name]
    assert len(re.findall(r"\bLDSM\b", code)) == sum(loads.values())
    for instruction, times in loads.items():
        assert count(code, instruction) == times, instruction
    taken = registers((tmp_path / "kernel.cubin").read_bytes())
    assert len(taken) == 1 and 32 <= taken[0] <= MOST_REGISTERS


# The epilogue is the same code for both.
@pytest.mark.parametrize(
    "precision", ["bfloat16", pytest.param("tf32", marks=pytest.mark.exhaustive)]
)
def test_long_epilogues_leave_the_sums_in_registers(monkeypatch, precision, tmp_path):
    device = SimpleNamespace(compute_capability=(9, 0))
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: device)
    function = layer_kernel(precision, THREADS, ("relu", "tanh", "gelu", "identity")).py_func
    ptx = cuda.compile_ptx(function, (FLOATS, WORDS), cc=(9, 0))[0]
    assert double_precision(ptx) == []
    assert "__local_depot" not in ptx
    code = assembled(ptx, (9, 0), tmp_path)
    assert not re.search(r"\b(LDL|STL)\b", code)
    assert max(registers((tmp_path / "kernel.cubin").read_bytes())) <= MOST_REGISTERS


def test_earlier_gpus_do_not_assemble_them(compiled, tmp_path):
    """Why there is a TENSOR_CAPABILITY: below it, only the assembler would say so."""
    assert TENSOR_CAPABILITY == CAPABILITIES[0]
    nvjitlink = pytest.importorskip("cuda.bindings.nvjitlink", reason="nvJitLink is not installed")
    for precision in PRECISIONS:
        ptx = compiled("forward", precision, (7, 5))
        with pytest.raises(nvjitlink.nvJitLinkError):
            machine_code(ptx, (7, 5), tmp_path)


def instructions(x, out, bits):
    """Use every intrinsic that the products do not."""
    shared = cuda.shared.array(0, types.float32, SHARED_ALIGNMENT)
    t = cuda.threadIdx.x
    intrinsics.copy_async_16(shared, 4 * t, x, 4 * t)
    intrinsics.copy_async_commit()
    intrinsics.copy_async_wait(0)
    cuda.syncthreads()
    place = 4 * index32(t)
    a, b, c, d = load(pointer_to(shared, 124 - place), 4)
    store(pointer_to(out, place), (intrinsics.to_tf32(a), b, c, d))
    bits[t] = intrinsics.to_bfloat16_pair(a, b)
    bits[t + 32] = intrinsics.to_bfloat16(c)
    out[t + 128] = intrinsics.from_bfloat16(types.uint16(bits[t + 64]))
    bits[t + 96] = intrinsics.load_bits(shared, t)


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
def test_the_other_intrinsics(monkeypatch, capability, tmp_path):
    device = SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: device)
    bits = types.Array(types.uint32, 1, "C")
    function = cuda_kernel(instructions).py_func
    ptx = cuda.compile_ptx(function, (FLOATS, FLOATS, bits), cc=capability)[0]
    assert double_precision(ptx) == []
    for text in ("cvt.rna.tf32.f32", "cvt.rn.bf16x2.f32", "cvt.rn.bf16.f32", "cp.async.wait_group"):
        assert text in ptx, text
    code = assembled(ptx, capability, tmp_path)
    assert re.search(r"\bLDGSTS(\.\w+)*\.128\b", code)
    assert re.search(r"\bLDS\.128\b", code) and re.search(r"\bSTG\.E\.128\b", code)
    assert not re.search(r"\b(LDL|STL)\b", code)
