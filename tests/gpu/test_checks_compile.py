"""Compile the checks of device arrays for real, as `test_kernel_compile` does all others."""

import re

import pytest

pytest.importorskip(
    "numba_cuda", reason="numba-cuda is not installed: pip install --group cuda-compile"
)

from types import SimpleNamespace

from numba import cuda, types
from numba.cuda import dispatcher

from fastmlp_kernels.compile import simulated
from fastmlp_kernels.cuda.device import checks
from fastmlp_kernels.problem import DTYPES
from tests.gpu.test_kernel_compile import CAPABILITIES, disassembler, double_precision, machine_code

pytestmark = [
    pytest.mark.cuda_compile,
    pytest.mark.skipif(simulated(), reason="the simulator compiles nothing"),
]


def signature(name, dtype):
    real, flag = getattr(types, dtype), types.Array(types.int32, 1, "C")
    vector, matrix = types.Array(real, 1, "C"), types.Array(real, 2, "C")
    return {
        "find_outside": (vector, vector, types.int64, flag),
        "find_bad_sums": (matrix, vector, flag),
    }[name]


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["find_outside", "find_bad_sums"])
def test_check_compiles(monkeypatch, tmp_path, name, dtype, capability):
    device = SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: device)
    kernel = getattr(checks, name).py_func
    ptx, _ = cuda.compile_ptx(kernel, signature(name, dtype), cc=capability)
    assert bool(double_precision(ptx)) == (dtype == "float64")
    assert "__local_depot" not in ptx and "ld.local" not in ptx and "st.local" not in ptx
    if disassembler() is not None:
        pytest.importorskip("cuda.bindings.nvjitlink", reason="nvJitLink is not installed")
        code = machine_code(ptx, capability, tmp_path)
        assert "EXIT" in code and not re.search(r"\b(LDL|STL)\b", code)
