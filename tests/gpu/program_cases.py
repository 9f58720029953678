"""The CUDA program against the float64 oracle, and its names and methods against the CPU's.

Not collected by itself: `test_case_files` runs this file in a process of its own, in Numba's
simulator (which must be chosen before Numba is imported) and, where there is one, on the GPU.
"""

import dataclasses
import inspect

import numpy as np
import pytest

from fastmlp_kernels import problem as contract
from fastmlp_kernels.compile import simulated
from fastmlp_kernels.cpu import activation, clipping, dropout, gather, linear, loss, update
from fastmlp_kernels.cpu.program import FusedProgram
from fastmlp_kernels.cuda import KERNELS
from fastmlp_kernels.cuda.costs import layered_launches
from fastmlp_kernels.cuda.layered.launching import Kernels, build
from fastmlp_kernels.cuda.layered.program import LayeredProgram
from fastmlp_kernels.problem import BATCHES, DTYPES, STATUS, STOP, Problem
from tests import tolerances
from tests.gpu.device import MARKS, TILES, normal
from tests.samples import (
    CLIPPED,
    DROPPED,
    DROPPED_AND_CLIPPED,
    LIMITED,
    first_batches,
    overflowing,
    sample,
)
from tests.tolerances import Bounded, Precision, compare

pytestmark = MARKS


@pytest.fixture(params=TILES, ids=str)
def tiles(request):
    return request.param


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


CPU_MODULES = (activation, clipping, dropout, gather, linear, loss, update)
# On the CPU, whatever makes or copies numbers also looks for one that is not finite.
ON_CUDA_ONLY = {"check_finite", "sum_squares", "update_and_gather"}
# Nor does it call a library, or round.
BESIDE_A_LIBRARY = {"bias_and_activation", "slope_and_sums", "round_rows"}


def test_each_kernel_has_a_cpu_twin_of_the_same_name():
    for name in set(Kernels._fields) - ON_CUDA_ONLY - BESIDE_A_LIBRARY:
        twins = [getattr(module, name, None) for module in CPU_MODULES]
        assert sum(twin is not None for twin in twins) == 1, name
        assert callable(getattr(build(TILES[0]), name).py_func)


def test_the_programs_have_the_methods_of_the_contract():
    methods = {
        name: method
        for name, method in vars(contract.Program).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }
    assert len(methods) >= 9
    for name, method in methods.items():
        for program in (FusedProgram, LayeredProgram):
            here = inspect.signature(getattr(program, name))
            assert list(here.parameters) == list(inspect.signature(method).parameters), name


def arrays_of(products):
    """Return what a library's products write for themselves."""
    held = [getattr(products, "partial", None), products.rounded_weights]
    held += [products.together.partial] if products.together else []
    held += [mask for mask in getattr(products, "masks", []) if mask is not None]
    if getattr(products, "roundings", None):
        held += [*products.roundings.activations, *products.roundings.deltas]
    return [array for array in held if array is not None and array.size > 0]


class OnDevice:
    """A program whose arguments come from the host and go back there, its workspace poisoned."""

    def __init__(self, problem, tiles, **choices):
        self.program = LayeredProgram(problem, tiles, **choices)
        own = [getattr(self.program, name) for name in ("losses", "one_loss", "squares")]
        for array in (*self.program.workspace, *own, *arrays_of(self.program.products)):
            # As bfloat16, 0x7fc0 is a NaN; 0x6b is a mask of some bits.
            value = {2: 0x7FC0, 1: 0x6B}.get(array.dtype.itemsize, np.nan)
            array.copy_to_device(np.full(array.shape, value, array.dtype))

    def call(self, name, *arrays, **others):
        device = [None if array is None else self.program.to_device(array) for array in arrays]
        result = getattr(self.program, name)(*device, **others)
        for array, held in zip(arrays, device, strict=True):
            if array is not None:
                self.program.to_host(held, array)
        return result

    def epoch(self, data):
        held = {
            name: self.program.to_device(getattr(data, name))
            for name in ("parameters", "state", "X", "y")
        }
        self.program.epoch(*held.values(), *data.arguments()[4:])
        for name, array in held.items():
            self.program.to_host(array, getattr(data, name))
        return data


# Every kind of layer: kept output and kept input, fused and plain output, labels, one layer.
PROGRAMS = [
    Problem((4, 5, 3), ("tanh", "identity"), "softmax_cross_entropy", "adam", labels=True),
    CLIPPED,
    LIMITED,
    Problem((3, 2), ("tanh",), "huber(delta=0.7)", "rmsprop", "batch_mean"),
    Problem((2, 3, 1), ("tanh", "exp"), "poisson", "adamw"),
    Problem((3, 4, 4), ("tanh", "identity"), "gaussian_nll(epsilon=0.01)", "adam"),
]


@pytest.fixture(params=range(len(PROGRAMS)), ids=lambda index: PROGRAMS[index].loss)
def problem(request):
    """Each problem in one dtype: the kernels themselves have had both."""
    index = request.param
    return dataclasses.replace(PROGRAMS[index], dtype=DTYPES[index % 2], batch_size=4, rows=7)


@pytest.mark.parametrize("plain", [True, False])
def test_epoch(tiles, problem, plain):
    check_epoch(problem, lambda part: OnDevice(part, tiles), plain)


@pytest.mark.parametrize("dropped", [DROPPED, DROPPED_AND_CLIPPED], ids=["adam", "clipped"])
def test_epoch_with_dropout(tiles, dtype, dropped):
    problem = dataclasses.replace(dropped, dtype=dtype, batch_size=4, rows=7)
    check_epoch(problem, lambda part: OnDevice(part, tiles), True)


def test_what_is_left_out_and_not_finite_is_noticed(tiles):
    problem, data = overflowing()
    before = data.parameters.copy()
    OnDevice(problem, tiles).epoch(data)
    assert data.control.tolist() == [0, 0, 1]
    assert data.parameters.tobytes() == before.tobytes()


def check_epoch(problem, make, plain):
    """Each batch, the last one smaller, from the kernel's own parameters before it."""
    data = before = sample(problem, seed=1, weighted=not plain, penalized=not plain)
    assert problem.batches == 2
    for batch in range(problem.batches):
        part, after = first_batches(problem, data, batch + 1)
        make(part).epoch(after)
        assert after.control.tolist() == [0, batch + 1, 0]
        places = slice(4 * batch, 4 * batch + 4)
        rows, factors = data.order[places], None if plain else data.factors[places]
        hyper = data.hyper[batch]
        held = (before.parameters, data.X[rows], data.y[rows], factors, hyper)
        oracle = tolerances.step(problem, *held)
        if not plain:
            expected = tolerances.squares(problem, before.parameters)
            compare(after.squares[batch : batch + 1], expected, "squares")
        parameters, state = tolerances.updated(
            problem, before.parameters, oracle.gradient, before.state, hyper
        )
        compare(after.losses[batch:], oracle.loss, "loss")
        compare(after.parameters, parameters, "parameters")
        for actual, expected in zip(after.state, state, strict=True):
            compare(actual, expected, "state")
        before = after
    for name in ("X", "y", "order", "hyper"):
        assert getattr(before, name).tobytes() == getattr(data, name).tobytes(), name


def test_the_separate_parts(tiles, problem):
    check_the_parts(problem, OnDevice(problem, tiles))


def check_the_parts(problem, device):
    """Every single call, against the oracle."""
    data, rows = sample(problem, seed=2), 3
    X, y, parameters = data.X[:rows], data.y[:rows], data.parameters
    oracle = tolerances.step(problem, parameters, X, y)
    outputs = problem.sizes[-1]
    out, dX = np.full((rows, outputs), np.nan, problem.dtype), np.full_like(X, np.nan)
    # One program keeps what `backward` needs between the calls.
    device.call("forward", parameters, X, out)
    compare(out, oracle.outputs, "outputs")
    loss = device.call("loss", y)
    compare(loss, oracle.loss, "loss")
    gradient = np.zeros_like(parameters)
    device.call("backward", parameters, None, gradient, dX)
    compare(gradient, oracle.gradient, "gradient")
    compare(dX, oracle.input_gradient, "gradient by the inputs")
    added = gradient.copy()
    device.call("backward", parameters, None, added, X[:0])
    twice = Bounded(2 * oracle.gradient.value, 2.1 * oracle.gradient.error)
    compare(added, twice, "accumulated gradient")
    upstream = normal((rows, outputs), problem.dtype, 5)
    expected, expected_inputs = tolerances.pulled_back(problem, parameters, X, upstream)
    gradient[:] = 0
    device.call("backward", parameters, upstream, gradient, dX)
    compare(gradient, expected, "gradient from above")
    compare(dX, expected_inputs, "gradient by the inputs from above")


def test_the_fused_step_equals_the_parts_and_the_epoch(tiles, problem):
    problem = dataclasses.replace(problem, rows=4)
    check_the_fused_step(problem, OnDevice(problem, tiles))


def check_the_fused_step(problem, device):
    """One batch, in three ways: the same bits."""
    data = sample(problem, seed=3)
    X, y = data.X[data.order], data.y[data.order]
    gradient = np.full_like(data.parameters, np.nan)
    loss = device.call("value_and_gradient", data.parameters, X, y, gradient)
    again = np.zeros_like(gradient)
    device.call("forward", data.parameters, X, np.empty((4, problem.sizes[-1]), problem.dtype))
    assert device.call("loss", y) == loss
    device.call("backward", data.parameters, None, again, X[:0])
    assert again.tobytes() == gradient.tobytes()
    epoch = device.epoch(data.copy())
    assert epoch.losses[0] == loss
    device.call("update", data.parameters, gradient, data.state, data.hyper)
    assert data.parameters.tobytes() == epoch.parameters.tobytes()
    assert data.state.tobytes() == epoch.state.tobytes()


def count_launches(device):
    """Return a list that grows by one at each launch of the program."""
    held, plain = [], device.program.launches.grid

    def grid(kernel, *arguments):
        held.append(kernel)
        plain(kernel, *arguments)

    device.program.launches.grid = grid
    return held


def test_an_epoch_makes_as_many_launches_as_are_counted(tiles, problem):
    device = OnDevice(problem, tiles, library=False, recorder=False)
    held = count_launches(device)
    device.epoch(sample(problem))
    assert len(held) == layered_launches(problem, contract.Machine())


def test_several_networks_are_refused(problem):
    kernel = next(kernel for kernel in KERNELS if kernel.name == "cuda.layered")
    machine = contract.Machine(cuda_missing=None)
    assert kernel.supports(problem, machine) is None
    several = dataclasses.replace(problem, members=2)
    assert "one network at a time" in kernel.supports(several, machine)


@pytest.mark.parametrize("link", [False, True])
def test_predict(tiles, dtype, link):
    problem = dataclasses.replace(PROGRAMS[0], dtype=dtype, batch_size=4, rows=10)
    data, out = sample(problem), np.full((9, 3), np.nan, dtype)
    device = OnDevice(problem, tiles)
    device.call("predict", data.parameters, data.X[:9], out, link=link)
    oracle = tolerances.forward(problem, data.parameters, data.X[:9]).outputs
    if link:
        powers = np.exp(oracle.value)
        expected = powers / powers.sum(axis=1, keepdims=True)
        oracle = Bounded(expected, 40 * Precision(dtype).unit + 3 * oracle.error)
    compare(out, oracle, "predictions")


def test_training_stops_at_a_nan(tiles, dtype):
    problem = dataclasses.replace(PROGRAMS[1], dtype=dtype, batch_size=2, rows=8)
    data = sample(problem, seed=4)
    part, healthy = first_batches(problem, data, 2)
    OnDevice(part, tiles).epoch(healthy)
    data.X[data.order[5]] = np.nan
    OnDevice(problem, tiles).epoch(data)
    assert data.control.tolist() == [0, 2, 3]
    assert data.losses[:2].tobytes() == healthy.losses.tobytes()
    assert data.parameters.tobytes() == healthy.parameters.tobytes()
    assert data.state.tobytes() == healthy.state.tobytes()


def test_a_stop_ends_the_epoch_before_its_next_batch(tiles):
    problem = dataclasses.replace(PROGRAMS[3], batch_size=2, rows=6)
    data = sample(problem)
    data.control[STOP] = 1
    stopped = OnDevice(problem, tiles).epoch(data.copy())
    assert stopped.control[BATCHES] == 0 and stopped.control[STATUS] == 0
    assert stopped.parameters.tobytes() == data.parameters.tobytes()
    assert np.isnan(stopped.losses).all()


def test_a_program_is_used_again_after_a_failure(tiles):
    problem = dataclasses.replace(PROGRAMS[3], batch_size=2, rows=4)
    data, device = sample(problem), OnDevice(problem, tiles)
    spoilt = data.copy()
    spoilt.X[:] = np.nan
    device.epoch(spoilt)
    assert spoilt.control[STATUS] == 1
    fresh = OnDevice(problem, tiles).epoch(data.copy())
    again = device.epoch(data.copy())
    assert again.control.tolist() == [0, 2, 0]
    assert again.parameters.tobytes() == fresh.parameters.tobytes()


if not simulated():

    def test_an_array_on_the_device_is_taken_as_it_is():
        """As PyTorch's and CuPy's are; the simulator has no such arrays."""
        program = LayeredProgram(PROGRAMS[0])
        held = program.to_device(np.ones(3, np.float32))
        assert program.to_device(held) is held

        class Foreign:
            __cuda_array_interface__ = held.__cuda_array_interface__

        seen = program.to_device(Foreign())
        assert seen.device_ctypes_pointer.value == held.device_ctypes_pointer.value
