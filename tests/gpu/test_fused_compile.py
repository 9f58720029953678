"""Compile `cuda.fused` for real, without a GPU: types, code generation and machine code."""

import functools
import re
from types import SimpleNamespace

import pytest

pytest.importorskip(
    "numba_cuda", reason="numba-cuda is not installed: pip install --group cuda-compile"
)

from numba import cuda
from numba.cuda import dispatcher

from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.compile import simulated
from fastmlp_kernels.cuda.fused import kernel as fused
from fastmlp_kernels.cuda.fused import step as fused_step
from fastmlp_kernels.cuda.fused.cost import THREADS
from fastmlp_kernels.cuda.fused.step import Sums
from fastmlp_kernels.cuda.on_chip.chain import Rows
from fastmlp_kernels.cuda.on_chip.placement import TENSOR_FORMS, float_form
from fastmlp_kernels.problem import DTYPES
from tests.gpu.test_kernel_compile import disassembler, double_precision, machine_code
from tests.gpu.test_tensor_compile import registers

pytestmark = [
    pytest.mark.cuda_compile,
    pytest.mark.skipif(simulated(), reason="the simulator compiles nothing"),
]

LABELS, FUSED = "softmax_cross_entropy/labels", "binary_cross_entropy/sigmoid"
EVERY = tuple(row.name for row in ACTIVATIONS)
# By form: activations, loss rule, whether gradients are added up, and in shared memory.
TILES = {
    "float32": (("relu", "identity"), LABELS, True, True),
    "float32 every activation": (EVERY, LABELS, True, False),
    "float64": (("tanh", "silu", "identity"), "huber", False, False),
    "bfloat16": (("relu", "tanh", "gelu", "identity"), LABELS, True, True),
    "tf32": (("silu", "identity"), FUSED, False, False),
    "float32 dropout": (("relu", "tanh", "gelu", "identity"), LABELS, True, True),
    "bfloat16 dropout": (EVERY, LABELS, False, False),
}
# Turing, Ampere, Hopper, Blackwell.
CAPABILITIES = [(7, 5), (8, 0), (9, 0), (10, 0)]
INSTRUCTION = {"bfloat16": "HMMA.16816.F32.BF16", "tf32": "HMMA.1688.F32.TF32"}
# Each product has tall tiles and low ones, 8 + 4 instructions; loops may be unrolled.
MULTIPLICATIONS = 3 * 12


def form_of(name):
    precision = name.split()[0]
    return TENSOR_FORMS.get(precision) or float_form(precision)


def compiled_kernels():
    """Yield (name, Python function, signature, threads, dynamic shared bytes) of each kernel."""
    for name, (activations, rule, accumulate, gradient_shared) in TILES.items():
        form, rows = form_of(name), Rows(activations, rule, name.endswith("dropout"))
        kernel = fused.build(fused.Choice(form, THREADS, rows, accumulate, gradient_shared))
        yield f"tile_gradients {name}", kernel.py_func, fused.signature(form), THREADS, 64 * 1024
    for dtype in DTYPES:
        kernel = fused_step.build_sums(Sums(), dtype)
        signature = fused_step.sum_signature(dtype)
        yield f"sum_and_check {dtype}", kernel.py_func, signature, Sums().threads, 0


KERNELS = {name: others for name, *others in compiled_kernels()}


def capabilities(name):
    """Return the GPUs to compile for: all for one kernel of each kind, else Hopper."""
    if name.endswith("tf32"):
        return CAPABILITIES[1:]
    every = ("tile_gradients float32", "sum_and_check float32")
    return CAPABILITIES if name in every else [(9, 0)]


# Shorter code of a form whose longest code is there, too.
SHORTER = ("tile_gradients bfloat16", "tile_gradients float32 dropout")
CASES = [
    pytest.param(
        (name, capability),
        id=str((name, capability)),
        marks=[pytest.mark.exhaustive] if name in SHORTER else [],
    )
    for name in KERNELS
    for capability in capabilities(name)
]


@pytest.fixture
def compiled(monkeypatch):
    """Return a function that compiles a kernel to PTX for a capability."""

    def ptx(name, capability):
        # Device functions ask the current device, not the caller, for a capability.
        device = SimpleNamespace(compute_capability=capability)
        monkeypatch.setattr(dispatcher, "get_current_device", lambda: device)
        return _ptx(name, capability)

    return ptx


@functools.cache
def _ptx(name, capability):
    function, signature, *_ = KERNELS[name]
    return cuda.compile_ptx(function, signature, cc=capability)[0]


def most_registers(name):
    """Return how many registers of a multiprocessor's 65536 a thread of 256 may have."""
    if not name.startswith("tile"):
        return 64
    return 208


@pytest.mark.parametrize("case", CASES)
def test_a_kernel_compiles_without_spills(compiled, case, tmp_path):
    name, capability = case
    ptx = compiled(*case)
    assert re.search(rf"^\.target sm_{capability[0]}{capability[1]}\b", ptx, re.MULTILINE)
    assert (double_precision(ptx) == []) == ("float64" not in name)
    assert "__local_depot" not in ptx and "ld.local" not in ptx and "st.local" not in ptx
    if name.startswith("tile"):
        # A part that was called would take its arrays through memory.
        assert ptx.count(".visible .entry") == 1 and ".func" not in ptx
        assert re.search(r"\.extern \.shared \.align 16 ", ptx)
    pytest.importorskip("cuda.bindings.nvjitlink", reason="nvJitLink is not installed")
    if disassembler() is None:
        pytest.skip("nvdisasm is not installed: pip install --group cuda-compile")
    code = machine_code(ptx, capability, tmp_path)
    assert "EXIT" in code and not re.search(r"\b(LDL|STL)\b", code)
    taken = registers((tmp_path / "kernel.cubin").read_bytes())
    assert 8 <= max(taken) <= most_registers(name)
    # A division of 64-bit numbers, where 32 or none would do.
    assert not re.search(r"__cuda_sm\w*div_[us]64", code)
    precision = name.split()[1]
    if precision in TENSOR_FORMS:
        found = re.findall(rf"\b{re.escape(INSTRUCTION[precision])}(?![.\w])", code)
        assert len(found) >= MULTIPLICATIONS
        assert len(found) == len(re.findall(r"\bHMMA\b", code))
    elif name.startswith("tile"):
        # The operands of the three products, 16 bytes at a time.
        assert len(re.findall(r"\bLDS(?:\.U)?\.128\b", code)) >= 24
    if name.startswith("sum"):
        # Several slices at a time: one load after the other would be as slow as memory is far.
        waiting = re.findall(r"\b(LDG|FADD|DADD|STG)\b", code)
        assert re.search(r"(LDG ){4}(FADD |DADD ){4}", " ".join(waiting) + " ")
