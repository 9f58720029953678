"""Compile every CUDA kernel for real, without a GPU: types, code generation and assembly.

Where nvJitLink and nvdisasm are there as well, the machine code must be free of spills: both come
with the dependency group cuda-compile.
"""

import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip(
    "numba_cuda", reason="numba-cuda is not installed: pip install --group cuda-compile"
)

from numba import cuda, types
from numba.cuda import dispatcher

from fastmlp_kernels.compile import simulated
from fastmlp_kernels.cuda.launching import Kernels, Tiles, build
from fastmlp_kernels.problem import DTYPES

pytestmark = [
    pytest.mark.cuda_compile,
    pytest.mark.skipif(simulated(), reason="the simulator compiles nothing"),
]

# Turing, Ampere, Hopper, Blackwell.
CAPABILITIES = [(7, 5), (8, 0), (9, 0), (10, 0)]


def signature(name, dtype):
    real = getattr(types, dtype)
    vector, matrix = types.Array(real, 1, "C"), types.Array(real, 2, "C")
    number, indices = types.int64, types.Array(types.int64, 1, "C")
    mask, places = types.Array(types.uint8, 1, "C"), types.Array(types.int32, 1, "C")
    halves, half_rows = types.Array(types.uint16, 1, "C"), types.Array(types.uint16, 2, "C")
    return {
        "activation_forward": (matrix, number, number, matrix),
        "activation_backward": (matrix, matrix, number, number, matrix),
        "linear_forward": (matrix, matrix, vector, number, number, matrix, matrix),
        "linear_backward": (matrix, matrix, number, number, matrix, matrix, matrix),
        "weight_gradient": (matrix, matrix, number, number, matrix, vector),
        "bias_and_activation": (matrix, vector, number, number, matrix, half_rows),
        "slope_and_sums": (
            *(matrix, matrix, number, number, number, matrix),
            *(vector, places, vector, half_rows),
        ),
        "loss_and_gradient": (
            *(matrix, matrix, number, number, vector),
            *(indices, number, vector, matrix),
        ),
        "sum_losses": (vector, number, vector, number, indices),
        "check_finite": (vector, vector, number, vector, indices, indices),
        "predict_rows": (matrix, number, number),
        "update": (*[vector] * 4, mask, number, matrix, indices, indices, places, halves),
        "sum_squares": (vector, mask, vector, indices, vector, places),
        "gather_rows": (
            *(matrix, matrix, indices, indices, number, number),
            *(matrix, matrix, half_rows),
        ),
        "round_rows": (matrix, number, half_rows),
    }[name]


@pytest.fixture
def compiled(monkeypatch):
    """Return a function that compiles a kernel to PTX for a capability."""

    def ptx(name, dtype, capability):
        # Device functions ask the current device, not the caller, for a capability.
        device = SimpleNamespace(compute_capability=capability)
        monkeypatch.setattr(dispatcher, "get_current_device", lambda: device)
        return _ptx(name, dtype, capability)

    return ptx


@functools.cache
def _ptx(name, dtype, capability):
    kernel = getattr(build(Tiles()), name).py_func
    text, _ = cuda.compile_ptx(kernel, signature(name, dtype), cc=capability)
    return text


def double_precision(ptx):
    """Return the instructions that compute in float64."""
    return [line.strip() for line in ptx.splitlines() if re.search(r"\.f64\b", line)]


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", Kernels._fields)
def test_kernel_compiles(compiled, name, dtype, capability):
    ptx = compiled(name, dtype, capability)
    major, minor = capability
    assert re.search(rf"^\.target sm_{major}{minor}\b", ptx, re.MULTILINE)
    assert ".visible .entry" in ptx
    if dtype == "float32":
        assert double_precision(ptx) == []
    # An array that the compiler could not keep in registers.
    assert "__local_depot" not in ptx and "ld.local" not in ptx and "st.local" not in ptx


def test_a_product_in_float64_is_seen_to_be_one(compiled):
    """The search above can fail: the float64 kernels have what it looks for."""
    for name in ("linear_forward", "loss_and_gradient", "update", "sum_losses"):
        assert double_precision(compiled(name, "float64", (9, 0))), name


def test_the_products_are_fused_multiply_adds_on_shared_tiles(compiled):
    for name in ("linear_forward", "linear_backward", "weight_gradient"):
        ptx = compiled(name, "float32", (9, 0))
        # One an unrolled step of the tile at least, from shared memory, with barriers around.
        assert ptx.count("fma.rn.f32") >= Tiles().tile, name
        assert "ld.shared" in ptx and "st.shared" in ptx and "bar.sync" in ptx, name


def test_a_nan_passes_through_the_hard_sigmoid(compiled):
    """min.f32 and max.f32 return the other operand: Numba's own `max` would drop a NaN."""
    for name in ("activation_forward", "linear_forward"):
        ptx = compiled(name, "float32", (9, 0))
        assert not re.search(r"\b(min|max)(\.ftz)?\.f32", ptx), name


def disassembler():
    """Return nvdisasm: from the path, or from its wheel."""
    found = shutil.which("nvdisasm")
    wheels = sorted(Path(sys.prefix).glob("lib/python*/site-packages/nvidia/*/bin/nvdisasm"))
    return found or (str(wheels[0]) if wheels else None)


def machine_code(ptx, capability, folder):
    """Assemble PTX by nvJitLink, and return the disassembly."""
    from cuda.bindings import nvjitlink

    major, minor = capability
    options = [f"-arch=sm_{major}{minor}"]
    handle = nvjitlink.create(len(options), options)
    source = ptx.encode()
    nvjitlink.add_data(handle, nvjitlink.InputType.PTX, source, len(source), "kernel")
    nvjitlink.complete(handle)
    cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
    nvjitlink.get_linked_cubin(handle, cubin)
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    listing = subprocess.run(
        [disassembler(), "-c", str(path)], capture_output=True, text=True, check=True
    )
    return listing.stdout


@pytest.mark.parametrize("capability", [(7, 5), (9, 0)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", Kernels._fields)
def test_machine_code_has_no_spills(compiled, name, dtype, capability, tmp_path):
    pytest.importorskip("cuda.bindings.nvjitlink", reason="nvJitLink is not installed")
    if disassembler() is None:
        pytest.skip("nvdisasm is not installed: pip install --group cuda-compile")
    code = machine_code(compiled(name, dtype, capability), capability, tmp_path)
    assert "EXIT" in code
    assert not re.search(r"\b(LDL|STL)\b", code)
