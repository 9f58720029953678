"""Epochs in one launch against the float64 oracle, and many networks side by side.

Not collected by itself: `test_case_files` runs this file in a process of its own, in Numba's
simulator (which must be chosen before Numba is imported) and, where there is one, on the GPU.
"""

import dataclasses

import numpy as np
import pytest

from fastmlp_kernels.algebra.optimizers import DROPOUT_KEY, RULE_START
from fastmlp_kernels.compile import simulated
from fastmlp_kernels.cuda.on_chip.placement import TENSOR_FORMS, float_form, place
from fastmlp_kernels.cuda.resident.program import ResidentProgram
from fastmlp_kernels.problem import BATCHES, CONTROL_WORDS, DTYPES, STATUS, STOP, Problem
from tests import tolerances
from tests.gpu.device import MARKS, TILES
from tests.samples import (
    CLIPPED,
    DROPPED,
    DROPPED_AND_CLIPPED,
    LIMITED,
    Sample,
    first_batches,
    hyper_of,
    overflowing,
    sample,
)
from tests.tolerances import Bounded, Precision, compare

pytestmark = MARKS

# Threads, and rows of a thread's tile.
SIZES = [(6, 2)] if simulated() else [(6, 2), (64, 2), (256, 2)]


@pytest.fixture(params=SIZES, ids=str)
def sizes(request):
    return request.param


@pytest.fixture(autouse=True)
def poisoned_shared_memory(monkeypatch):
    """Have the simulator's shared memory begin as NaN: on a GPU it is whatever was there."""
    if not simulated():
        return
    from numba.cuda.simulator import kernelapi

    begin = kernelapi.FakeCUDAShared.__init__

    def poisoned(self, dynshared_size):
        begin(self, dynshared_size)
        self._dynshared.fill(-1)

    monkeypatch.setattr(kernelapi.FakeCUDAShared, "__init__", poisoned)


def build(problem, sizes, shared_state=None, tiles=1, **options):
    """Return a program whose batches have that many tiles."""
    threads, tile_rows = sizes
    form = float_form(problem.dtype, tile_rows)
    found = place(problem, form, threads, 1 << 20, state_shared=shared_state)
    if tiles > 1:
        rows = -(-problem.batch_size // tiles)
        smaller = dataclasses.replace(problem, batch_size=rows)
        capacity = place(smaller, form, threads, 1 << 20, state_shared=found.state_shared)
        found = place(
            problem, form, threads, capacity.shared_bytes, state_shared=found.state_shared
        )
        assert found.rows < problem.batch_size
    return ResidentProgram(problem, tiles=TILES[0], placement=found, threads=threads, **options)


def run(program, data):
    """Run an epoch from and to host arrays; nothing else may change."""
    untouched = {name: getattr(data, name).tobytes() for name in ("X", "y", "order", "hyper")}
    held = {
        name: program.to_device(getattr(data, name)) for name in ("parameters", "state", "X", "y")
    }
    program.epoch(
        *held.values(),
        *(data.order, data.hyper, data.losses, data.control, data.factors, data.squares),
    )
    program.to_host(held["parameters"], data.parameters)
    program.to_host(held["state"], data.state)
    for name, before in untouched.items():
        assert getattr(data, name).tobytes() == before, name
    return data


# Between them: every reduction, labels, fused and plain outputs, kept inputs inside and at the
# end, one layer, three layers, every number of state vectors, dropout; with the tiles of a batch.
PROBLEMS = [
    (Problem((4, 5, 3), ("tanh", "identity"), "softmax_cross_entropy", "adam", labels=True), 1),
    (CLIPPED, 2),
    (LIMITED, 1),
    (Problem((3, 2), ("tanh",), "huber(delta=0.7)", "rmsprop", "batch_mean"), 2),
    (Problem((2, 3, 1), ("tanh", "exp"), "poisson", "adamw"), 1),
    (Problem((2, 5, 2, 1), ("softplus", "exp", "silu"), "squared_error", "adam"), 2),
    (Problem((3, 4, 4), ("tanh", "identity"), "gaussian_nll(epsilon=0.01)", "adam"), 2),
    (DROPPED, 2),
    (DROPPED_AND_CLIPPED, 1),
]


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("index", range(len(PROBLEMS)))
def test_epoch(sizes, index, plain):
    """Each batch, the last one smaller, from the kernel's own parameters before it."""
    problem, tiles = PROBLEMS[index]
    dtype = DTYPES[(index + plain) % 2]
    problem = dataclasses.replace(problem, dtype=dtype, batch_size=5, rows=8)
    data = before = sample(problem, seed=1, weighted=not plain, penalized=not plain)
    for batch in range(problem.batches):
        part, after = first_batches(problem, data, batch + 1)
        run(build(part, sizes, shared_state=bool(plain), tiles=tiles), after)
        assert after.control.tolist() == [0, batch + 1, 0]
        places = slice(5 * batch, 5 * batch + 5)
        rows, factors = data.order[places], None if plain else data.factors[places]
        held = (before.parameters, data.X[rows], data.y[rows], factors, data.hyper[batch])
        oracle = tolerances.step(problem, *held)
        if not plain:
            expected = tolerances.squares(problem, before.parameters)
            compare(after.squares[batch : batch + 1], expected, "squares")
        parameters, state = tolerances.updated(
            problem, before.parameters, oracle.gradient, before.state, data.hyper[batch]
        )
        compare(after.losses[batch:], oracle.loss, "loss")
        compare(after.parameters, parameters, "parameters")
        for actual, expected in zip(after.state, state, strict=True):
            compare(actual, expected, "state")
        before = after


# Kept outputs and inputs, also of the last layer; the second and the last in two tiles.
TENSOR_PROBLEMS = [
    Problem((4, 5, 3), ("tanh", "identity"), "squared_error"),
    Problem((3, 4, 3, 2), ("silu", "relu", "sigmoid"), "binary_cross_entropy"),
    Problem((5, 2), ("gelu",), "squared_error"),
    Problem((3, 6, 4, 2), ("tanh", "gelu", "identity"), "squared_error", dropout=(0.4, 0.25)),
]


@pytest.mark.parametrize("precision", list(TENSOR_FORMS))
@pytest.mark.parametrize("index", range(len(TENSOR_PROBLEMS)))
def test_batches_on_tensor_cores(precision, index):
    """A step of plain descent shows the gradient."""
    problem = TENSOR_PROBLEMS[index]
    problem = dataclasses.replace(problem, precision=precision, batch_size=40, rows=44)
    threads = 32
    data = sample(problem, seed=1, weighted=True, penalized=True)
    data.hyper[:, :DROPOUT_KEY], data.hyper[:, RULE_START] = 0, 1
    # Of few rows, of either tile: the terms of many cancel, and their bounds do not.
    data.factors[2:37] = 0
    form = TENSOR_FORMS[precision]
    found = place(problem, form, threads, 1 << 20)
    if index in (1, 3):
        found = place(problem, form, threads, found.shared_bytes - 1)
        assert found.rows == 32
    program = ResidentProgram(problem, tiles=TILES[0], placement=found, threads=threads)
    before = data.copy()
    part, data = first_batches(problem, data, 1)
    run(ResidentProgram(part, tiles=TILES[0], placement=found, threads=threads), data)
    assert data.control.tolist() == [0, 1, 0]
    rows = data.order[:40]
    held = (before.parameters, data.X[rows], data.y[rows], data.factors[:40], data.hyper[0])
    oracle = tolerances.step(problem, *held)
    compare(data.losses, oracle.loss, "loss")
    compare(data.squares[:1], tolerances.squares(problem, before.parameters), "squares")
    moved = before.parameters.astype(np.float64) - data.parameters
    sizes = np.abs(before.parameters) + np.abs(moved)
    error = oracle.gradient.error + 2 * Precision(problem.dtype).unit * sizes
    compare(moved, Bounded(oracle.gradient.value, error), "gradient")
    # The second batch multiplies by what the first one has made of the weights.
    both, rows = run(program, before.copy()), before.order[40:]
    held = (data.parameters, data.X[rows], data.y[rows], before.factors[40:], before.hyper[1])
    oracle = tolerances.step(problem, *held)
    compare(both.losses[1:], oracle.loss, "loss of the second batch")


def stack(samples):
    """Return the arguments of an epoch of several members on the first one's rows."""
    shared = ("X", "y")
    together = {
        name: getattr(samples[0], name)
        if name in shared or getattr(samples[0], name) is None
        else np.stack([getattr(each, name) for each in samples])
        for name in vars(samples[0])
    }
    return Sample(**together)


@pytest.mark.parametrize(
    ("index", "plain"),
    [(0, True), (1, False), (7, True)],
    ids=["plain", "weighted", "dropout"],
)
def test_members_are_as_if_each_were_alone(sizes, index, plain):
    """Each with its own parameters, order, rates, weights and dropout, bit for bit; one fails."""
    problem, tiles = PROBLEMS[index]
    problem = dataclasses.replace(problem, batch_size=3, rows=7)
    samples = [sample(problem, seed, 3, not plain, not plain) for seed in range(4)]
    for index, each in enumerate(samples):
        each.X, each.y = samples[0].X, samples[0].y
        each.hyper = hyper_of(problem, 0.01 * (index + 1), dropout_seed=index)
    # Not in the other orders: 7 of 10 rows are visited.
    bad = next(r for r in samples[2].order if r not in samples[0].order)
    samples[0].X[bad] = np.nan
    together = stack(samples)
    many = build(dataclasses.replace(problem, members=4), sizes, tiles=tiles)
    run(many, together)
    assert together.control[2, STATUS] > 0 and together.control[0].tolist() == [0, 3, 0]
    alone = build(problem, sizes, tiles=tiles)
    for index, each in enumerate(samples):
        run(alone, each)
        for name in ("parameters", "state", "losses", "control", "squares"):
            if getattr(each, name) is not None:
                expected = getattr(each, name)
                assert getattr(together, name)[index].tobytes() == expected.tobytes(), (index, name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_stops_at_a_nan(sizes, dtype):
    problem = dataclasses.replace(PROBLEMS[1][0], dtype=dtype, batch_size=2, rows=8)
    data = sample(problem, seed=4)
    part, healthy = first_batches(problem, data, 2)
    run(build(part, sizes, batches_a_launch=1), healthy)
    program = build(problem, sizes, batches_a_launch=1)
    data.X[data.order[5]] = np.nan
    run(program, data)
    assert data.control.tolist() == [0, 2, 3]
    # The launches after the failed one have nothing to do.
    assert program.resident_launches == 3
    assert data.losses[:2].tobytes() == healthy.losses.tobytes()
    assert np.isnan(data.losses[2]) and np.isnan(data.losses[3])
    assert data.parameters.tobytes() == healthy.parameters.tobytes()
    assert data.state.tobytes() == healthy.state.tobytes()


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_either_of_loss_and_gradient_that_is_not_finite_ends_training(sizes, what):
    problem = Problem((2, 1), ("identity",), "squared_error", batch_size=4, rows=4)
    data = sample(problem)
    # float32 ends at 3e38: the square of an error is beyond it, or its product with an input.
    data.y[:] = 1e25 if what == "loss" else 1e10
    if what == "gradient":
        data.X[data.order[0]] = [1e30, 0]
    data.parameters[:] = [0, 0.5, 0]
    before = data.parameters.copy()
    run(build(problem, sizes), data)
    assert np.isfinite(data.losses[0]) == (what == "gradient")
    assert data.control.tolist() == [0, 0, 1]
    assert data.parameters.tobytes() == before.tobytes()


@pytest.mark.parametrize("precision", ["float32", *TENSOR_FORMS])
def test_each_element_of_the_gradient_is_looked_at(precision):
    """Of whole tiles and of parts, in every corner; the loss itself is finite."""
    problem = Problem((9, 6), ("identity",), "squared_error", batch_size=4, rows=4)
    problem = dataclasses.replace(problem, precision=precision)
    form = TENSOR_FORMS.get(precision) or float_form("float32", 4)
    found = place(problem, form, 32, 1 << 20)
    program = ResidentProgram(problem, tiles=TILES[0], placement=found, threads=32)
    for k, j in ((0, 0), (3, 3), (4, 2), (7, 5), (8, 0), (8, 5)):
        data = sample(problem)
        data.parameters[:], data.X[:], data.y[:] = 0, 0, 0
        data.X[data.order[3], k], data.y[data.order[3], j] = 1e30, 1e12
        run(program, data)
        assert np.isfinite(data.losses[0]), (k, j)
        assert data.control.tolist() == [0, 0, 1], (k, j)
        assert not data.parameters.any(), (k, j)


def test_what_is_left_out_and_not_finite_is_noticed(sizes):
    problem, data = overflowing()
    before = data.parameters.copy()
    run(build(problem, sizes, tiles=2), data)
    assert data.control.tolist() == [0, 0, 1]
    assert data.parameters.tobytes() == before.tobytes()


def test_launches_of_any_length_are_one_epoch(sizes):
    problem = dataclasses.replace(PROBLEMS[3][0], batch_size=2, rows=9)
    whole = run(build(problem, sizes), sample(problem, penalized=True))
    for batches_a_launch, launches in ((1, 5), (2, 3), (9, 1)):
        program = build(problem, sizes, batches_a_launch=batches_a_launch)
        parts = run(program, sample(problem, penalized=True))
        assert program.resident_launches == launches
        for name in ("parameters", "state", "losses", "control", "squares"):
            assert getattr(parts, name).tobytes() == getattr(whole, name).tobytes(), name


def test_a_stop_ends_the_epoch_between_launches(sizes, monkeypatch):
    """Each member for itself; what is not trained has no loss."""
    problem = dataclasses.replace(PROBLEMS[3][0], batch_size=2, rows=6, members=2)
    single = dataclasses.replace(problem, members=1)
    together = stack([sample(single, seed) for seed in range(2)])
    program = build(problem, sizes, batches_a_launch=1)
    launch = program._launch

    def stop_the_second(*arguments):
        launch(*arguments)
        together.control[1, STOP] = 1

    monkeypatch.setattr(program, "_launch", stop_the_second)
    before = together.copy()
    run(program, together)
    assert together.control.tolist() == [[0, 3, 0], [1, 1, 0]]
    assert np.isfinite(together.losses).tolist() == [[True] * 3, [True, False, False]]
    part, alone = first_batches(single, sample(single, 1), 1)
    alone.X, alone.y = together.X, together.y
    run(build(part, sizes), alone)
    assert together.parameters[1].tobytes() == alone.parameters.tobytes()
    stopped = before.copy()
    stopped.control[:] = [1, 7, 7]
    run(program, stopped)
    assert stopped.control.tolist() == [[1, 0, 0]] * 2 and np.isnan(stopped.losses).all()
    assert stopped.parameters.tobytes() == before.parameters.tobytes()


def test_a_program_is_used_again_after_a_failure(sizes):
    problem = dataclasses.replace(PROBLEMS[3][0], batch_size=2, rows=4)
    data, program = sample(problem), build(problem, sizes)
    spoilt = data.copy()
    spoilt.X[:] = np.nan
    assert run(program, spoilt).control[STATUS] == 1
    fresh = run(build(problem, sizes), data.copy())
    again = data.copy()
    again.control[BATCHES:] = 7
    run(program, again)
    assert again.control.tolist() == [0, 2, 0]
    assert again.parameters.tobytes() == fresh.parameters.tobytes()


def test_nothing_is_written_around_the_arrays(sizes):
    problem, tiles = PROBLEMS[1]
    problem = dataclasses.replace(problem, batch_size=5, rows=8, members=2)
    single = dataclasses.replace(problem, members=1)
    data = stack([sample(single, seed, penalized=True) for seed in range(2)])
    program = build(problem, sizes, shared_state=False, tiles=tiles)
    names = ("parameters", "state", "losses", "squares", "control")
    larger = {}
    for name in names:
        values = getattr(data, name).reshape(-1)
        kind = np.int64 if name == "control" else problem.dtype
        larger[name] = np.full(values.size + 10, 77, kind)
        larger[name][5:-5] = values
    held = {name: program.to_device(values) for name, values in larger.items()}
    program.all_losses, program.all_squares = held["losses"][5:-5], held["squares"][5:-5]
    program.all_controls = held["control"][5:-5]
    vectors = [
        held[name][5:-5].reshape(getattr(data, name).shape) for name in ("parameters", "state")
    ]
    X, y = program.to_device(data.X), program.to_device(data.y)
    program.epoch(
        *vectors, X, y, data.order, data.hyper, data.losses, data.control, None, data.squares
    )
    assert data.control.tolist() == [[0, 2, 0]] * 2
    for name in names:
        values = np.empty_like(larger[name])
        program.to_host(held[name], values)
        assert (values[:5] == 77).all() and (values[-5:] == 77).all(), name
        assert (values[5:-5] != larger[name][5:-5]).any(), name
    assert len(data.control[0]) == CONTROL_WORDS


def test_single_calls_are_those_of_the_layered_program(sizes):
    problem = dataclasses.replace(PROBLEMS[0][0], batch_size=4, rows=4)
    data, program = sample(problem), build(problem, sizes)
    X, y = data.X[data.order], data.y[data.order]
    gradient = program.to_device(np.full_like(data.parameters, np.nan))
    arrays = [program.to_device(a) for a in (data.parameters, X, y)]
    loss = program.value_and_gradient(*arrays, gradient)
    oracle = tolerances.step(problem, data.parameters, X, y)
    compare(loss, oracle.loss, "loss")
    out = np.empty_like(data.parameters)
    program.to_host(gradient, out)
    compare(out, oracle.gradient, "gradient")


def test_a_network_that_does_not_fit_is_refused():
    problem = Problem((300, 300, 2), ("tanh", "identity"), "squared_error")
    with pytest.raises(ValueError, match=r"problem: needs \d+ KB of shared memory a block"):
        ResidentProgram(problem, tiles=TILES[0])
