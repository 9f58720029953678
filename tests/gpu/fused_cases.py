"""Epochs over tiles of rows shared out to blocks, against the float64 oracle.

Not collected by itself: `test_case_files` runs this file in a process of its own, in Numba's
simulator (which must be chosen before Numba is imported) and, where there is one, on the GPU.
"""

import dataclasses

import numpy as np
import pytest

from fastmlp_kernels.algebra.optimizers import DROPOUT_KEY, RULE_START
from fastmlp_kernels.compile import simulated
from fastmlp_kernels.cuda.fused.program import FusedProgram
from fastmlp_kernels.cuda.fused.step import Sums
from fastmlp_kernels.cuda.on_chip.placement import TENSOR_FORMS, float_form, place
from fastmlp_kernels.problem import BATCHES, DTYPES, STATUS, STOP, Problem
from tests import tolerances
from tests.gpu.device import MARKS, TILES
from tests.gpu.recording_cublas import Recorder
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


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Threads of a block, rows of a tile and of a thread's tile, and a block of the sums."""

    threads: int
    rows: int
    tile_rows: int
    sums: Sums


SIZES = [Sizes(6, 4, 2, Sums(2, 3))]
if not simulated():
    SIZES += [Sizes(64, 4, 4, Sums(4, 3)), Sizes(256, 8, 4, Sums())]


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


def build(problem, sizes, gradient_shared=True, **options):
    """Return a program with everything that it allocates poisoned."""
    form = float_form(problem.dtype, sizes.tile_rows)
    if problem.precision in TENSOR_FORMS:
        form = TENSOR_FORMS[problem.precision]
    tile = dataclasses.replace(problem, batch_size=min(sizes.rows, problem.batch_size))
    found = place(tile, form, sizes.threads, 1 << 20, gradient_shared, False, master=False)
    assert found.rows == sizes.rows or problem.batch_size < sizes.rows
    program = FusedProgram(
        problem,
        tiles=TILES[0],
        placement=found,
        threads=sizes.threads,
        sums=sizes.sums,
        **options,
    )
    for held in (program.partials, program.slice_losses, program.layered.workspace.gradient):
        held.copy_to_device(np.full(held.shape, np.nan, held.dtype))
    return program


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


def same(one, other):
    """See that two epochs came to the same, bit for bit."""
    for name in ("parameters", "state", "losses", "control", "squares"):
        if getattr(one, name) is not None:
            assert getattr(one, name).tobytes() == getattr(other, name).tobytes(), name


# Between them: every reduction, labels, fused and plain outputs, kept inputs inside and at the
# end, one layer, three layers, every number of state vectors, dropout. Beside each the slices and
# blocks: as many slices as tiles, fewer of them, one; more blocks than slices, as many, fewer.
PROBLEMS = [
    (Problem((4, 5, 3), ("tanh", "identity"), "softmax_cross_entropy", "adam", labels=True), 3, 3),
    (CLIPPED, 2, 3),
    (LIMITED, 1, 1),
    (Problem((3, 2), ("tanh",), "huber(delta=0.7)", "rmsprop", "batch_mean"), 2, 1),
    (Problem((2, 3, 1), ("tanh", "exp"), "poisson", "adamw"), 5, 2),
    (Problem((2, 5, 2, 1), ("softplus", "exp", "silu"), "squared_error", "adam"), 2, 2),
    (Problem((3, 4, 4), ("tanh", "identity"), "gaussian_nll(epsilon=0.01)", "adam"), 3, 2),
    (DROPPED, 2, 1),
    (DROPPED_AND_CLIPPED, 3, 2),
]
# Three tiles of 4 rows and, in the last batch, one that is not full.
ROWS = {"batch_size": 10, "rows": 13}


def follow(problem, make, data):
    """Compare each batch, the last one smaller, from the kernel's own parameters before it."""
    before, size = data, problem.batch_size
    for batch in range(problem.batches):
        part, after = first_batches(problem, data, batch + 1)
        run(make(part), after)
        assert after.control.tolist() == [0, batch + 1, 0]
        places = slice(size * batch, size * batch + size)
        rows = data.order[places]
        factors = None if data.factors is None else data.factors[places]
        held = (before.parameters, data.X[rows], data.y[rows], factors, data.hyper[batch])
        oracle = tolerances.step(problem, *held)
        if data.squares is not None:
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


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("index", range(len(PROBLEMS)))
def test_epoch(sizes, index, plain):
    problem, slices, blocks = PROBLEMS[index]
    problem = dataclasses.replace(problem, dtype=DTYPES[(index + plain) % 2], **ROWS)
    data = sample(problem, seed=1, weighted=not plain, penalized=not plain)
    shared = bool((index + plain) % 4 < 2)
    follow(problem, lambda part: build(part, sizes, shared, slices=slices, blocks=blocks), data)


@pytest.mark.parametrize("dropout", [(), (0.4, 0.25)], ids=["whole", "dropout"])
@pytest.mark.parametrize(("precision", "slices"), [("bfloat16", 1), ("tf32", 2)])
def test_epoch_on_tensor_cores(precision, slices, dropout):
    """Two tiles, one of them not full: of one slice, or a slice each."""
    problem = Problem((3, 4, 2), ("tanh", "gelu"), "squared_error")
    if dropout:
        problem = Problem((3, 6, 8, 2), ("tanh", "gelu", "silu"), "squared_error", dropout=dropout)
    problem = dataclasses.replace(problem, precision=precision, batch_size=40, rows=45)
    data = sample(problem, seed=2, weighted=True)
    # A step of plain descent shows the gradient; of few rows, of either tile, as the terms of many
    # cancel, and their bounds do not.
    data.hyper[:, :DROPOUT_KEY], data.hyper[:, RULE_START] = 0, 1
    data.factors[2:37] = 0
    problem, data = first_batches(problem, data, 1)
    program = build(problem, Sizes(32, 32, 32, Sums(4, 3)), slices=slices, blocks=1)
    assert program.placement.form.mixed and program.plan.accumulate == (slices == 1)
    before, rows = data.copy(), data.order[:40]
    run(program, data)
    assert data.control.tolist() == [0, 1, 0]
    held = (before.parameters, data.X[rows], data.y[rows], data.factors[:40], data.hyper[0])
    oracle = tolerances.step(problem, *held)
    compare(data.losses, oracle.loss, "loss")
    moved = before.parameters.astype(np.float64) - data.parameters
    sizes = np.abs(before.parameters) + np.abs(moved)
    error = oracle.gradient.error + 2 * Precision(problem.dtype).unit * sizes
    compare(moved, Bounded(oracle.gradient.value, error), "gradient")


@pytest.mark.parametrize("base", [CLIPPED, DROPPED], ids=["clipped", "dropped"])
def test_neither_blocks_nor_the_place_of_gradients_change_a_bit(sizes, base):
    """Nor does a second run; slices do."""
    problem = dataclasses.replace(base, batch_size=18, rows=22)
    data = sample(problem, penalized=True)
    first = run(build(problem, sizes, slices=3, blocks=3), data.copy())
    for blocks, shared in ((1, True), (2, True), (7, True), (3, False), (1, False)):
        program = build(problem, sizes, shared, slices=3, blocks=blocks)
        same(run(program, data.copy()), first)
        same(run(program, data.copy()), first)
    other = run(build(problem, sizes, slices=2, blocks=3), data.copy())
    assert other.state.tobytes() != first.state.tobytes()


if simulated():
    # It alone can count what is written; elsewhere two such blocks would be a race.

    @pytest.mark.parametrize("blocks", [1, 2, 5])
    def test_a_slice_is_one_block_s(sizes, blocks, monkeypatch):
        """Two that computed the same one would both add to its gradient in global memory."""
        from numba.cuda.simulator.cudadrv.devicearray import FakeWithinKernelCUDAArray as Array

        problem = dataclasses.replace(PROBLEMS[3][0], batch_size=18, rows=18)
        program = build(problem, sizes, slices=4, blocks=blocks)
        seen, write = [], Array.__setitem__

        def count(self, place, value):
            if self._item.shape == program.slice_losses.shape:
                seen.append(place)
            write(self, place, value)

        monkeypatch.setattr(Array, "__setitem__", count)
        run(program, sample(problem))
        assert sorted(seen) == [0, 1, 2, 3]


def test_training_stops_at_a_nan(sizes):
    problem = dataclasses.replace(PROBLEMS[1][0], batch_size=6, rows=24)
    data = sample(problem, seed=4, penalized=True)
    part, healthy = first_batches(problem, data, 2)
    run(build(part, sizes, slices=2, blocks=2), healthy)
    program = build(problem, sizes, slices=2, blocks=2)
    data.X[data.order[14]] = np.nan
    run(program, data)
    assert data.control.tolist() == [0, 2, 3]
    assert data.losses[:2].tobytes() == healthy.losses.tobytes()
    assert np.isnan(data.losses[2:]).all() and np.isnan(data.squares[3:]).all()
    expected = tolerances.squares(problem, data.parameters)
    compare(data.squares[2:3], expected, "squares before the batch that failed")
    # The batch after it, which is sound, was not even computed.
    assert np.isnan(program.partials.copy_to_host()).any()
    assert data.parameters.tobytes() == healthy.parameters.tobytes()
    assert data.state.tobytes() == healthy.state.tobytes()


def test_a_gradient_that_is_not_finite_ends_training_though_the_loss_is(sizes):
    problem = Problem((2, 1), ("identity",), "squared_error", batch_size=8, rows=16)
    data = sample(problem)
    # Of one element: 1e30 times the error is too large for float32, the error's square is not.
    data.X[data.order[5]] = [1e30, 0]
    data.y[:] = 1e10
    data.parameters[:] = [0, 0.5, 0]
    before = data.parameters.copy()
    run(build(problem, sizes, slices=2, blocks=1), data)
    assert np.isfinite(data.losses[0]) and np.isnan(data.losses[1])
    assert data.control.tolist() == [0, 0, 1]
    assert data.parameters.tobytes() == before.tobytes()


def test_a_loss_that_is_not_finite_ends_training_though_the_gradient_is(sizes):
    """The square of 1e25 is beyond float32, twice 1e25 is not."""
    problem = Problem((1, 1), ("identity",), "squared_error", batch_size=8, rows=8)
    data = sample(problem)
    data.y[:] = 1e25
    before = data.parameters.copy()
    run(build(problem, sizes, slices=2, blocks=2), data)
    assert np.isinf(data.losses[0])
    assert data.control.tolist() == [0, 0, 1]
    assert data.parameters.tobytes() == before.tobytes()


def test_what_is_left_out_and_not_finite_is_noticed(sizes):
    problem, data = overflowing()
    before = data.parameters.copy()
    run(build(problem, sizes, slices=2, blocks=1), data)
    assert data.control.tolist() == [0, 0, 1]
    assert data.parameters.tobytes() == before.tobytes()


def test_a_stop_ends_the_epoch_between_batches(sizes, monkeypatch):
    problem = dataclasses.replace(PROBLEMS[3][0], batch_size=6, rows=18)
    data = sample(problem)
    program = build(problem, sizes, slices=2, blocks=2)
    batch, calls = program._batch, []

    def batch_that_stops_after_two(*arguments):
        batch(*arguments)
        calls.append(1)
        data.control[STOP] = int(len(calls) == 2)

    before = data.copy()
    monkeypatch.setattr(program, "_batch", batch_that_stops_after_two)
    run(program, data)
    assert data.control.tolist() == [1, 2, 0]
    assert np.isfinite(data.losses).tolist() == [True, True, False]
    part, alone = first_batches(problem, before, 2)
    run(build(part, sizes, slices=2, blocks=2), alone)
    assert data.parameters.tobytes() == alone.parameters.tobytes()
    stopped = before.copy()
    stopped.control[STOP] = 1
    run(build(problem, sizes, slices=2, blocks=2), stopped)
    assert stopped.control[BATCHES] == 0 and np.isnan(stopped.losses).all()
    assert stopped.parameters.tobytes() == before.parameters.tobytes()


def test_a_program_is_used_again_after_a_failure(sizes):
    problem = dataclasses.replace(PROBLEMS[3][0], batch_size=6, rows=9)
    data, program = sample(problem), build(problem, sizes, slices=2)
    spoilt = data.copy()
    spoilt.X[:] = np.nan
    assert run(program, spoilt).control[STATUS] == 1
    fresh = run(build(problem, sizes, slices=2), data.copy())
    again = data.copy()
    again.control[BATCHES:] = 7
    same(run(program, again), fresh)


def test_recorded_batches_are_those_of_launches(sizes):
    """Of two epochs the first batch is launched, the last of each, and a full one replayed."""
    problem = dataclasses.replace(PROBLEMS[1][0], batch_size=6, rows=20)
    plain = build(problem, sizes, slices=2, blocks=2, recorder=False)
    # The simulator has no graphs: a stand-in keeps what they would.
    recorder = Recorder() if simulated() else None
    program = build(problem, sizes, slices=2, blocks=2, recorder=recorder)
    held = [program.to_device(getattr(sample(problem), name)) for name in ("X", "y")]
    for weighted in (False, True):
        data = sample(problem, weighted=weighted, penalized=weighted)
        other = run(plain, data.copy())
        vectors = program.to_device(data.parameters), program.to_device(data.state)
        program.prepare(*vectors, *held, weighted, weighted)
        assert not recorder or recorder.launched == (3 if weighted else 0)
        rest = (data.order, data.hyper, data.losses, data.control, data.factors, data.squares)
        program.epoch(*vectors, *held, *rest)
        program.to_host(vectors[0], data.parameters)
        program.to_host(vectors[1], data.state)
        same(data, other)
    assert program.layered.steps.reason == "" and len(program.layered.steps.graphs) == 2
    assert not recorder or (recorder.recorded, recorder.launched) == (2, 6)


def test_nothing_is_written_around_the_arrays(sizes):
    problem = dataclasses.replace(PROBLEMS[1][0], **ROWS)
    data = sample(problem, penalized=True)
    for shared in (True, False):
        program = build(problem, sizes, shared, slices=2, blocks=3)
        inner = {"parameters": data.parameters, "state": data.state.reshape(-1)}
        homes = dict.fromkeys(("partials", "slice_losses"), program)
        homes |= dict.fromkeys(("losses", "squares"), program.layered)
        for name, home in homes.items():
            inner[name] = np.full(getattr(home, name).size, -1, problem.dtype)
        held = {}
        for name, values in inner.items():
            larger = np.full(values.size + 10, 77, problem.dtype)
            larger[5:-5] = values
            held[name] = program.to_device(larger)
            if name in homes:
                setattr(homes[name], name, held[name][5:-5])
        vectors = held["parameters"][5:-5], held["state"][5:-5].reshape(data.state.shape)
        X, y = program.to_device(data.X), program.to_device(data.y)
        control = data.control.copy()
        program.epoch(
            *(*vectors, X, y, data.order, data.hyper, data.losses, control, None, data.squares)
        )
        assert control.tolist() == [0, 2, 0]
        for name, values in inner.items():
            after = np.empty(values.size + 10, problem.dtype)
            program.to_host(held[name], after)
            assert (after[:5] == 77).all() and (after[-5:] == 77).all(), name
            assert (after[5:-5] != values).any(), name


def test_what_does_not_fit_or_has_many_members_is_refused():
    problem = Problem((300, 300, 2), ("tanh", "identity"), "squared_error")
    with pytest.raises(ValueError, match=r"problem: needs \d+ KB .* tiles of 32 rows, the GPU has"):
        FusedProgram(problem, tiles=TILES[0])
    with pytest.raises(ValueError, match=r"problem\.members: got 2, wanted 1"):
        FusedProgram(dataclasses.replace(PROBLEMS[3][0], members=2), tiles=TILES[0])
