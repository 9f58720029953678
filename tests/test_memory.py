"""Every array of an epoch between guard pages: one element too far is a fault, not a number."""

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="guard pages are made with Linux's mprotect"
)

SCRIPT = """
import ctypes, mmap, sys
import numpy as np
from fastmlp_kernels.cpu.program import FusedProgram
from fastmlp_kernels.problem import Problem
from tests.samples import sample

libc = ctypes.CDLL(None, use_errno=True)
maps = []

def guarded(array, side):
    # Pages that fault when touched, on both sides; the data touches the one on `side`.
    page = mmap.PAGESIZE
    size = -(-max(array.nbytes, 1) // page) * page
    region = mmap.mmap(-1, size + 2 * page)
    maps.append(region)
    address = ctypes.addressof(ctypes.c_char.from_buffer(region))
    offset = page if side == "before" else page + size - array.nbytes
    copy = np.frombuffer(region, array.dtype, array.size, offset).reshape(array.shape)
    copy[...] = array
    for start in (address, address + page + size):
        if libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(page), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    return copy

def run(problem, side, fault):
    data = sample(problem, spare_rows=0)
    for name, array in vars(data).items():
        if array.size:
            setattr(data, name, guarded(array, side))
    program = FusedProgram(problem)
    program.workspace = program.workspace._make(guarded(a, side) for a in program.workspace)
    program.chain = guarded(program.chain, side)
    if fault == "row beyond the inputs":
        data.order[0] = len(data.X)
    if fault == "row before the inputs":
        data.order[0] = -len(data.X) - 1
    if fault == "gradient one element short":
        short = guarded(np.zeros(problem.parameter_count - 1, problem.dtype), side)
        program.workspace = program.workspace._replace(gradient=short)
    program.epoch(*data.arguments())
    assert data.control.tolist() == [0, problem.batches, 0], data.control
    rows = problem.batch_size
    X, y = guarded(data.X[:rows].copy(), side), guarded(data.y[:rows].copy(), side)
    out = guarded(np.zeros((rows, problem.sizes[-1]), problem.dtype), side)
    gradient = guarded(np.zeros_like(data.parameters), side)
    pulled = guarded(np.zeros_like(X), side)
    program.forward(data.parameters, X, out)
    program.loss(y)
    program.backward(data.parameters, None, gradient, pulled)
    program.backward(data.parameters, out, gradient, pulled)
    program.value_and_gradient(data.parameters, X, y, gradient)
    program.update(data.parameters, gradient, data.state, data.hyper[:1].copy())
    program.predict(data.parameters, X, out, True)
    assert np.isfinite(gradient).all() and np.isfinite(out).all() and np.ptp(gradient) > 0

side, fault = sys.argv[1:]
chains = [
    (("identity",), "half_squared_error", False, "sgd"),
    (("relu", "sigmoid"), "binary_cross_entropy", False, "momentum"),
    (("gelu", "silu", "exp"), "poisson", False, "adam"),
    (("tanh", "identity"), "softmax_cross_entropy", True, "adamw"),
]
epochs = 0
for dtype in ("float32", "float64"):
    for sizes in ((1, 1, 1, 1), (5, 7, 3, 9), (17, 4, 33, 2), (9, 19, 5, 13)):
        for names, loss, labels, rule in chains:
            for batch, rows in ((1, 2), (3, 8), (4, 4)):
                used = sizes[: len(names)] + sizes[-1:]
                problem = Problem(used, names, loss, rule, "mean", dtype, labels, batch, rows)
                if loss == "softmax_cross_entropy" and used[-1] == 1:
                    continue  # one class has a gradient of zero
                run(problem, side, fault)
                epochs += 1
print("epochs", epochs)
"""


def run(child_environment, side, fault="none"):
    environment = {**child_environment, "PYTHONFAULTHANDLER": ""}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, side, fault],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("side", ["after", "before"])
def test_no_access_outside_any_array(child_environment, side):
    result = run(child_environment, side)
    assert result.returncode == 0, (result.returncode, result.stderr[-2000:])
    assert int(result.stdout.split()[-1]) >= 80


@pytest.mark.parametrize(
    ("side", "fault"),
    [
        ("after", "row beyond the inputs"),
        ("before", "row before the inputs"),
        ("after", "gradient one element short"),
    ],
)
def test_planted_access_outside_is_caught(child_environment, side, fault):
    result = run(child_environment, side, fault)
    assert result.returncode == -signal.SIGSEGV, (result.returncode, result.stderr[-2000:])
    assert os.name == "posix"
