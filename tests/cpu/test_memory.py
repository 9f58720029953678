"""Every array of an epoch between guard pages: one element too far is a fault, not a number.

And what lies around and between the numbers: padding that must stay zero, and memory that must not
be read before it is written.
"""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from fastmlp_kernels.cpu.program import FusedProgram
from fastmlp_kernels.problem import DTYPES, Problem, parameter_layout
from tests.machines import HOST, team
from tests.samples import poison, sample

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="guard pages are made with Linux's mprotect"
)

SCRIPT = """
import ctypes, json, mmap, os, resource, sys
import numpy as np
from fastmlp_kernels.cpu import layout, program as module, tables
from fastmlp_kernels.problem import Problem
from tests.machines import team
from tests.samples import sample

libc = ctypes.CDLL(None, use_errno=True)
side, instruction_set, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
# No spare rows: panels end where the batch does.
layout.row_capacity = lambda batch_size, target: batch_size

def guarded(array, short=0):
    # Pages that fault when touched, on both sides; the data touches the one on `side`.
    page = mmap.PAGESIZE
    flat = array.ravel()[: array.size - short]
    size = -(-max(flat.nbytes, 1) // page) * page
    region = mmap.mmap(-1, size + 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(region))
    offset = page if side == "before" else page + size - flat.nbytes
    copy = np.frombuffer(region, flat.dtype, flat.size, offset)
    copy[...] = flat
    for start in (address, address + page + size):
        if libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(page), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    return copy if short else copy.reshape(array.shape)

def build(problem, fault, skips):
    program = module.FusedProgram(problem, team(threads, instruction_set))
    assert program.threads == threads and program.capacity == problem.batch_size
    for name in ("workspace", "copies"):
        group = getattr(program, name)
        names = zip(group._fields, group)
        setattr(program, name, group._make(guarded(a, field == fault) for field, a in names))
    program.constants = {
        name: guarded(array, name == fault) for name, array in program.constants.items()
    }
    program.tiles = guarded(program.tiles.view(np.int64), fault == "tiles")
    for name in ("step", "chain", "one_loss", "control"):
        setattr(program, name, guarded(getattr(program, name)))
    program.connect()
    program.skips = skips
    program.step["row_block"] = problem.batch_size
    if fault == "chain":
        program.short = guarded(program.chain.view(np.int64), 1)
        program.step["chain"] = tables.address(program.short)
    return program

def run(problem, fault=None, skips=0):
    data = sample(problem, spare_rows=0, weighted=True, penalized=True)
    for name, array in vars(data).items():
        if array.size:
            short = name == fault
            setattr(data, name, guarded(array, short))
            if short:
                # In its old shape, of which the last element is beyond the end.
                held = getattr(data, name)
                view = np.lib.stride_tricks.as_strided(held, array.shape, array.strides)
                setattr(data, name, view)
    if fault == "row beyond the inputs":
        data.order[0] = len(data.X)
    if fault == "row before the inputs":
        data.order[0] = -1
    program = build(problem, fault, skips)
    program.epoch(*data.arguments())
    assert data.control.tolist() == [0, problem.batches, 0], data.control
    rows = problem.batch_size
    X, y = guarded(data.X[:rows]), guarded(data.y[:rows])
    out = guarded(np.zeros((rows, problem.sizes[-1]), problem.dtype))
    gradient, pulled = guarded(np.zeros_like(data.parameters)), guarded(np.zeros_like(X))
    program.forward(data.parameters, X, out)
    program.loss(y)
    factors = guarded(data.factors[:rows])
    program.loss(y, factors)
    program.backward(data.parameters, None, gradient, pulled)
    program.backward(data.parameters, out, gradient, pulled)
    program.value_and_gradient(data.parameters, X, y, gradient, factors)
    program.value_and_gradient(data.parameters, X, y, gradient)
    program.update(data.parameters, gradient, data.state, guarded(data.hyper[:1]))
    program.predict(data.parameters, X, out, True)
    # Each way to read the weights: on one thread, and on three. Blocks of rows are as they were.
    program.step["row_block"] = 78
    for count in (70, 100) if rows > 10 else ():
        X = guarded(np.resize(data.X, (count, X.shape[1])))
        outputs = guarded(np.zeros((count, out.shape[1]), problem.dtype))
        program.predict(data.parameters, X, outputs, True)
        assert np.isfinite(outputs).all()
    assert np.isfinite(gradient).all() and np.isfinite(out).all() and np.ptp(gradient) > 0
"""

EVERYWHERE = """
chains = [
    (("identity",), "half_squared_error", False, "sgd"),
    (("relu", "sigmoid"), "binary_cross_entropy", False, "momentum"),
    (("gelu", "silu", "exp"), "poisson", False, "adam"),
    (("tanh", "identity"), "softmax_cross_entropy", True, "adamw"),
]
shapes = [(1, 1, 1, 1), (5, 7, 3, 9), (17, 4, 33, 2), (9, 19, 5, 13), (16, 32, 8, 64),
          (40, 96, 3, 1)]
# Without and with lists; where not all is asked for, the one or the other in turn. Twelve problems
# have a shape: each of them meets both ways in the next one.
every, number, epochs = sys.argv[4] == "all", 0, 0
for dtype in ("float32", "float64"):
    for sizes in shapes:
        number += 1
        for names, loss, labels, rule in chains:
            for batch, rows in ((1, 2), (3, 8), (15, 29)):
                used = sizes[: len(names)] + sizes[-1:]
                problem = Problem(used, names, loss, rule, "mean", dtype, labels, batch, rows)
                if loss == "softmax_cross_entropy" and used[-1] == 1:
                    continue  # one class has a gradient of zero
                # No zeros in X: lists are as long as they can be.
                number += 1
                for skips in (0, 3) if every else ((0, 3)[number % 2],):
                    run(problem, None, skips)
                    epochs += 1
print(json.dumps(epochs))
"""

FAULTS = """
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
# Whole panels, so that every array is used to its last element; a last tile of one row; and of 105
# rows in one block, or of 35, as many tiles as any block of up to as many can have.
problem = Problem((64, 64, 64), ("silu", "tanh"), "half_squared_error", "adam",
                  batch_size=105, rows=315)
run(problem, None, 3)
found = {}
for fault in json.loads(sys.argv[4]):
    pid = os.fork()
    if pid == 0:
        os.close(2)
        try:
            run(problem, fault, 3)
        finally:
            os._exit(0)
    status = os.waitpid(pid, 0)[1]
    found[fault] = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
print(json.dumps(found))
"""


def run(child_environment, script, *arguments):
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT + script, *arguments],
        env={**child_environment, "PYTHONFAULTHANDLER": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, (result.returncode, result.stderr[-2000:])
    return json.loads(result.stdout.splitlines()[-1])


@linux
@pytest.mark.parametrize(
    ("share", "epochs"), [("half", 100), pytest.param("all", 200, marks=pytest.mark.exhaustive)]
)
@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("instruction_set", HOST)
@pytest.mark.parametrize("side", ["after", "before"])
def test_no_access_outside_any_array(
    child_environment, side, instruction_set, threads, share, epochs
):
    assert run(child_environment, EVERYWHERE, side, instruction_set, threads, share) >= epochs


SHORT = [
    *("inputs", "targets", "row_losses", "stored", "deltas", "input_delta", "predictions"),
    *(
        "slopes",
        "upstream",
        "scratch",
        "unit_squares",
        "unused",
        "column_lists",
        "row_lists",
        "weights",
        "transposed",
        "biases",
        "identity",
        "zeros",
    ),
    *("tiles", "chain", "parameters", "state", "X", "y", "order", "factors"),
    "row beyond the inputs",
]


@linux
@pytest.mark.parametrize("instruction_set", HOST)
def test_planted_access_outside_is_caught(child_environment, instruction_set):
    """Each array made one element too short in turn."""
    for threads in ("1", "3"):
        arguments = ("after", instruction_set, threads, json.dumps(SHORT))
        found = run(child_environment, FAULTS, *arguments)
        assert found == dict.fromkeys(SHORT, signal.SIGSEGV), threads
        arguments = ("before", instruction_set, threads, '["row before the inputs"]')
        found = run(child_environment, FAULTS, *arguments)
        assert found == {"row before the inputs": signal.SIGSEGV}


PADDED = Problem(
    (5, 37, 9, 3),
    ("softplus", "sigmoid", "identity"),
    "half_squared_error",
    "adam",
    batch_size=7,
    rows=33,
)


def padding(program):
    """Return what the copies of the parameters hold beyond the last rows and columns."""
    problem, panel = program.problem, program.panel
    found = []
    start, bias = 0, 0
    for layer in parameter_layout(problem.sizes):
        rows, columns = (-(-n // panel) * panel for n in (layer.fan_in, layer.fan_out))
        for name, height, width, inner in (
            ("weights", rows, columns, (layer.fan_in, layer.fan_out)),
            ("transposed", columns, rows, (layer.fan_out, layer.fan_in)),
        ):
            flat = getattr(program.copies, name)[start : start + rows * columns]
            matrix = flat.reshape(width // panel, height, panel).transpose(1, 0, 2)
            matrix = matrix.reshape(height, width)
            found += [matrix[inner[0] :], matrix[:, inner[1] :]]
        found.append(program.copies.biases[bias + layer.fan_out : bias + columns])
        start, bias = start + rows * columns, bias + columns
    assert start == program.copies.weights.size and bias == program.copies.biases.size
    return np.concatenate([each.ravel() for each in found])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("instruction_set", HOST)
def test_the_padding_of_the_weights_stays_zero(instruction_set, threads, dtype):
    """An activation turns a zero into something else: it must not get into a gradient."""
    problem = Problem(**{**vars(PADDED), "dtype": dtype})
    program = FusedProgram(problem, team(threads, instruction_set))
    poison(program)
    data = sample(problem)
    for _ in range(2):
        data.control[:] = 0
        program.epoch(*data.arguments())
        assert data.control.tolist() == [0, problem.batches, 0]
        X, y = data.X[:7], data.y[:7]
        gradient = np.zeros_like(data.parameters)
        program.value_and_gradient(data.parameters, X, y, gradient)
        program.backward(data.parameters, y, gradient, np.empty_like(X))
    zeros = padding(program)
    assert zeros.size > 100 and not zeros.any()
    # What is not padding is used: the copies hold every parameter.
    used = np.count_nonzero(program.copies.weights) + np.count_nonzero(program.copies.biases)
    assert used == np.count_nonzero(data.parameters)


@pytest.mark.parametrize("instruction_set", HOST)
def test_old_contents_of_the_workspace_are_never_used(instruction_set):
    """Not only NaN: any number that was there before, found in the result, would change it."""
    found = set()
    for contents in (np.nan, 0.0, 1.0, 1e30):
        program = FusedProgram(PADDED, team(3, instruction_set))
        for array in program.workspace:
            array.fill(contents)
        data = sample(PADDED)
        program.epoch(*data.arguments())
        assert data.control.tolist() == [0, PADDED.batches, 0]
        found.add(data.parameters.tobytes() + data.state.tobytes() + data.losses.tobytes())
    assert len(found) == 1
