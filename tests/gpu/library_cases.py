"""The CUDA program with cuBLASLt's products and with recorded steps.

Not collected by itself: `test_case_files` runs this file as it does `program_cases`. In the
simulator a stand-in multiplies in place of the library, and another keeps what a graph would. On an
emulated GPU a stand-in multiplies. On a GPU they are the library, where it is there, and the
driver's graphs.
"""

import dataclasses
import gc

import numpy as np
import pytest

from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.compile import simulated
from fastmlp_kernels.cuda.costs import gradients_together, layered_launches
from fastmlp_kernels.cuda.layered.activation import ROWS_OF_A_LANE
from fastmlp_kernels.cuda.layered.launching import build
from fastmlp_kernels.problem import DTYPES, Machine, Problem
from tests import tolerances
from tests.gpu.device import (
    MARKS,
    TILES,
    emulated_device,
    generator,
    launch,
    normal,
    over,
    padded,
    unwritten,
)
from tests.gpu.emulator.library import EmulatedCublasLt
from tests.gpu.program_cases import (
    PROGRAMS,
    OnDevice,
    check_epoch,
    check_the_fused_step,
    check_the_parts,
    count_launches,
)
from tests.gpu.recording_cublas import Recorder, RecordingCublasLt, from_bfloat16
from tests.samples import DROPPED, DROPPED_AND_CLIPPED, first_batches, sample
from tests.tolerances import Bounded, Precision, compare

pytestmark = MARKS
# dtype and precision of each kind of product.
FORMS = {
    "float32": ("float32", "float32"),
    "float64": ("float64", "bfloat16"),
    "tf32": ("float32", "tf32"),
    "bfloat16": ("float32", "bfloat16"),
}
COMPUTE = {"float32": 68, "float64": 70, "tf32": 77, "bfloat16": 68}
ROUNDED = ("tf32", "bfloat16")
# Where launches take the time, and where they take none: all gradients of weights together, or one
# by one.
MACHINES = {"together": Machine(gpu_node_seconds=1.0), "apart": Machine(gpu_node_seconds=0.0)}


@pytest.fixture(params=TILES, ids=str)
def tiles(request):
    return request.param


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


@pytest.fixture(params=MACHINES)
def where(request):
    return request.param


def stand_in(**choices):
    """Return what stands in for the library where there is no GPU that it could use."""
    if simulated():
        return RecordingCublasLt(**choices)
    device = emulated_device()
    return None if device is None else EmulatedCublasLt(device, **choices)


def with_library(problem, tiles, recorder=False, library=None, where="together"):
    """Return a program with the library's products, or those of what stands in for it."""
    library, machine = library or stand_in(), MACHINES[where]
    assert gradients_together(problem, machine) == (where == "together")
    device = OnDevice(problem, tiles, library=library, recorder=recorder, machine=machine)
    device.library = library
    if library:
        assert device.program.products.name == "cuBLASLt"
    return device


def in_form(problem, form, **changes):
    dtype, precision = FORMS[form]
    if form in ROUNDED and problem.optimizer == "adam":
        # Squares of gradients whose bound is some percent would prove nothing.
        changes["optimizer"] = "sgd"
    return dataclasses.replace(problem, dtype=dtype, precision=precision, **changes)


# ReLU chains, which the library's epilogues are for; a layer of one unit, a column; a last layer
# with a slope of its own.
CHAINS = [
    Problem((3, 5, 4, 2), ("relu", "relu", "identity"), "half_squared_error", "momentum"),
    Problem((4, 6, 3), ("relu", "identity"), "softmax_cross_entropy", "sgd", labels=True),
    Problem((3, 4, 1, 3, 1), ("relu", "tanh", "relu", "identity"), "half_squared_error", "sgd"),
    Problem((4, 5, 6), ("relu", "relu"), "half_squared_error", "sgd"),
]
# Every program where our own kernels differ from `program_cases`, a few where products do.
EPOCHS = [(form, i) for form in ("float32", "bfloat16") for i in range(len(PROGRAMS))]
EPOCHS += [("float64", 1), ("tf32", 1), ("tf32", 4)]
EPOCHS += [(form, len(PROGRAMS) + i) for form in FORMS for i in range(len(CHAINS))]


def compute_of(form, where):
    """Return the library's compute type; bfloat16 is more exact where launches take the time."""
    return COMPUTE["tf32" if (form, where) == ("bfloat16", "together") else form]


def columns_of(problem, form, where):
    """Return how many products of a column by a row a kernel of ours computes."""
    rounds = (form, where) == ("bfloat16", "apart")
    return 0 if rounds else sum(width == 1 for width in problem.sizes[2:])


@pytest.mark.parametrize(("form", "index"), EPOCHS)
def test_epoch(tiles, form, index, where):
    problem = in_form([*PROGRAMS, *CHAINS][index], form, batch_size=4, rows=7)
    made = []

    def make(part):
        made.append(with_library(part, tiles, where=where))
        return made[-1]

    check_epoch(problem, make, plain=index % 2 == 0)
    if made[-1].library:
        products = made[-1].library.products
        layers = len(problem.sizes) - 1
        step = 2 * layers - 1 + layers * (where == "apart") - columns_of(problem, form, where)
        assert len(products) == 2 * step
        assert {facts[3] for facts in products} == {compute_of(form, where)}


@pytest.mark.parametrize("form", ["float32", "float64"])
def test_masks_of_more_than_one_group_of_bits(tiles, form, where):
    """The bits of a row are padded to groups of 128."""
    problem = Problem((4, 130, 3), ("relu", "identity"), "softmax_cross_entropy", labels=True)
    problem, made = in_form(problem, form, batch_size=4, rows=7), []

    def make(part):
        made.append(with_library(part, tiles, where=where))
        return made[-1]

    check_epoch(problem, make, True)
    for device in made:
        # A row of too few bits is refused, and a kernel does the work.
        assert not device.library or {134, 136} <= set(device.library.epilogues)


@pytest.mark.parametrize("form", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropped", [DROPPED, DROPPED_AND_CLIPPED], ids=["adam", "clipped"])
def test_epoch_with_dropout(tiles, form, dropped, where):
    problem = in_form(dropped, form, batch_size=4, rows=7)
    check_epoch(problem, lambda part: with_library(part, tiles, where=where), True)


@pytest.mark.parametrize("keeps_nan", [False, True])
def test_training_stops_at_a_nan(tiles, where, keeps_nan):
    """Whatever the library's ReLU makes of one."""
    problem = dataclasses.replace(CHAINS[0], batch_size=2, rows=8)
    data = sample(problem, seed=4)
    part, healthy = first_batches(problem, data, 2)
    with_library(part, tiles, where=where).epoch(healthy)
    data.X[data.order[5]] = np.nan
    library = stand_in(keeps_nan=keeps_nan)
    with_library(problem, tiles, library=library, where=where).epoch(data)
    assert data.control.tolist() == [0, 2, 3]
    assert data.parameters.tobytes() == healthy.parameters.tobytes()


def steps_of(problem, tiles, where):
    """Return the kernels and the products of a step: of a second batch, beside the first."""
    counts = []
    for batches in (1, 2):
        part = dataclasses.replace(problem, batch_size=2, rows=2 * batches)
        device = with_library(part, tiles, where=where)
        held = count_launches(device)
        device.epoch(sample(part))
        products = len(device.library.products) if device.library else 0
        counts.append((len(held), products))
        counted = layered_launches(part, MACHINES[where], library=True)
        assert not device.library or sum(counts[-1]) == counted
    return tuple(more - less for less, more in zip(*counts, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layers", [2, 3, 4])
def test_a_step_of_a_relu_chain_has_half_the_launches_that_it_had(tiles, form, layers):
    """It had five a layer and three: product, bias; slope, two products; and around them."""
    before = 5 * layers + 3
    problem = in_form(relu_chain(layers), form)
    kernels, products = steps_of(problem, tiles, "together")
    # The loss, the gradients of weights, the update.
    assert kernels == 3
    if emulated_device() or simulated():
        assert products == 2 * layers - 1 and 2 * (kernels + products) <= before


@pytest.mark.parametrize(
    ("form", "kernels"), [("float32", 3), ("tf32", 3), ("float64", 3), ("bfloat16", 8)]
)
def test_a_step_of_a_wide_relu_chain(tiles, form, kernels):
    """The gradients of weights are the library's: only what rounds to bfloat16 has kernels."""
    found = steps_of(in_form(relu_chain(3), form), tiles, "apart")
    assert found[0] == kernels
    if emulated_device() or simulated():
        assert found[1] == 8


@pytest.mark.parametrize("index", range(len(CHAINS)))
def test_an_epoch_makes_the_launches_that_are_counted(tiles, form, index, where):
    steps_of(in_form(CHAINS[index], form), tiles, where)


@pytest.mark.parametrize("index", range(len(PROGRAMS)))
def test_other_activations_make_the_launches_that_are_counted(tiles, index, where):
    steps_of(in_form(PROGRAMS[index], "bfloat16"), tiles, where)


def relu_chain(layers):
    sizes, activations = (3, *[4] * (layers - 1), 2), ("relu",) * (layers - 1)
    return Problem(sizes, (*activations, "identity"), "half_squared_error", "momentum")


@pytest.mark.parametrize("refused", [134, 136, 4, 256], ids=["relu", "drelu", "bias", "bgrada"])
def test_where_an_epilogue_is_refused_kernels_do_its_work(tiles, refused, where):
    problem, made = dataclasses.replace(CHAINS[0], batch_size=4, rows=7), []

    def make(part):
        library = stand_in(refusing={refused})
        made.append(with_library(part, tiles, library=library, where=where))
        return made[-1]

    check_epoch(problem, make, plain=False)
    check_the_parts(problem, make(problem))
    for device in made:
        assert not device.library or refused not in device.library.epilogues


# Where factors are rounded, bounds of a deep chain with kinks would prove nothing.
PARTS = [(form, i) for form in FORMS for i in (2, len(PROGRAMS) + 1)]
PARTS += [(form, len(PROGRAMS) + i) for form in ("float32", "float64") for i in (2, 3)]


@pytest.mark.parametrize(("form", "index"), PARTS)
def test_the_separate_parts(tiles, form, index, where):
    problem = in_form([*PROGRAMS, *CHAINS][index], form, batch_size=4, rows=7)
    check_the_parts(problem, with_library(problem, tiles, where=where))


@pytest.mark.parametrize("index", [1, len(PROGRAMS)])
def test_the_fused_step_equals_the_parts_and_the_epoch(tiles, form, index):
    """Where all gradients are computed together, in whatever way they are added."""
    problem = in_form([*PROGRAMS, *CHAINS][index], form, batch_size=4, rows=4)
    check_the_fused_step(problem, with_library(problem, tiles))


def test_the_weights_of_the_next_batch_are_rounded_by_the_update(tiles):
    """In the epoch no other kernel writes them, so a place left out would be an old weight."""
    problem = in_form(PROGRAMS[1], "bfloat16", batch_size=2, rows=6)
    device, data = with_library(problem, tiles, where="apart"), sample(problem, seed=5)
    before = data.parameters.copy()
    device.epoch(data)
    products, weights = device.program.products, device.program.updating.biases.copy_to_host() == 0
    if not device.library and products.places.size == 0:
        return
    places = products.places.copy_to_host()[weights]
    assert len(set(places.tolist())) == weights.sum()
    rounded = from_bfloat16(products.rounded_weights.copy_to_host()[places])
    new = data.parameters[weights]
    np.testing.assert_allclose(rounded, new, rtol=2.0**-8, atol=0)
    assert np.abs(rounded - before[weights]).max() > np.abs(rounded - new).max()
    # From the host's side: a program that was stopped takes up the caller's weights again.
    changed = sample(problem, seed=6)
    again = with_library(problem, tiles, where="apart")
    again.epoch(expected := changed.copy())
    device.epoch(changed)
    assert changed.parameters.tobytes() == expected.parameters.tobytes()


def recorded(problem, tiles, where="together"):
    """Return a program whose full batches are replayed, and what records them."""
    library = stand_in()
    recorder = Recorder(library) if simulated() else None
    return with_library(problem, tiles, recorder, library, where), recorder


@pytest.mark.parametrize("index", [4, len(PROGRAMS)])
def test_a_replayed_epoch_has_the_bits_of_a_launched_one(tiles, index, where):
    problem = in_form([*PROGRAMS, *CHAINS][index], "bfloat16", batch_size=2, rows=7)
    device, recorder = recorded(problem, tiles, where)
    for weighted, penalized in ((False, False), (True, True)):
        data = sample(problem, seed=7, weighted=weighted, penalized=penalized)
        plain = with_library(problem, tiles, where=where).epoch(data.copy())
        replayed = device.epoch(data.copy())
        for actual, expected in zip(replayed.arguments(), plain.arguments(), strict=True):
            assert actual is expected is None or actual.tobytes() == expected.tobytes()
        assert not np.isnan(replayed.losses).any()
        assert device.program.steps.reason == ""
    if recorder:
        # The first full batch of each kind is launched, the other two of three are replayed.
        assert (recorder.recorded, recorder.launched) == (2, 4)


def test_a_recording_is_for_the_arrays_that_it_was_made_with(tiles):
    problem = dataclasses.replace(PROGRAMS[3], batch_size=2, rows=6)
    device, recorder = recorded(problem, tiles)
    held = [sample(problem, seed=seed) for seed in (8, 9)]
    program = device.program
    arrays = [[program.to_device(a) for a in data.arguments()[:4]] for data in held]
    expected = [with_library(problem, tiles).epoch(data.copy()) for data in held]
    for epoch in range(2):
        for data, ours, wanted in zip(held, arrays, expected, strict=True):
            program.epoch(*ours, *data.arguments()[4:])
            assert (data.losses.tobytes() == wanted.losses.tobytes()) == (epoch == 0)
    if recorder:
        assert (recorder.recorded, recorder.launched) == (2, 11)


def test_prepare_reads_no_row(tiles):
    """They may not be there yet: memory that nobody has written."""
    for loss, activation in (("softmax_cross_entropy", "identity"), ("half_squared_error", "relu")):
        problem = dataclasses.replace(
            PROGRAMS[3],
            activations=("relu", activation),
            loss=loss,
            rows=4,
            batch_size=2,
            labels=loss.startswith("softmax"),
            sizes=(3, 4, 3),
        )
        device, _ = recorded(problem, tiles)
        data, program = sample(problem, seed=12), device.program
        nothing = np.full_like(data.X, 7e8), np.full_like(data.y, 7e8)
        held = [program.to_device(each) for each in (data.parameters, data.state, *nothing)]
        program.prepare(*held)
        for own in (program.workspace.inputs, program.workspace.targets):
            assert not (own.copy_to_host() == 7e8).any()


@pytest.mark.parametrize("more", [False, True])
def test_after_prepare_nothing_is_changed_and_a_step_is_recorded(tiles, more):
    problem = in_form(PROGRAMS[4], "bfloat16", batch_size=2, rows=6)
    device, recorder = recorded(problem, tiles)
    data = sample(problem, seed=10, weighted=more, penalized=more)
    program = device.program
    expected = with_library(problem, tiles).epoch(data.copy())
    held = [program.to_device(array) for array in data.arguments()[:4]]
    program.prepare(*held, weighted=more, penalized=more)
    for array, original in zip(held, data.arguments(), strict=False):
        program.to_host(array, seen := original.copy())
        assert seen.tobytes() == original.tobytes()
    program.epoch(*held, *data.arguments()[4:])
    assert data.losses.tobytes() == expected.losses.tobytes()
    if recorder:
        assert (recorder.recorded, recorder.launched) == (1, 3)


def test_where_a_recording_fails_the_steps_are_launched(tiles, monkeypatch):
    problem = dataclasses.replace(PROGRAMS[3], batch_size=2, rows=6)
    device, _ = recorded(problem, tiles)

    def fail(*_):
        raise RuntimeError("no capture today")

    monkeypatch.setattr(device.program.steps.recorder, "record", fail)
    data = sample(problem, seed=11)
    expected = with_library(problem, tiles).epoch(data.copy())
    assert device.epoch(data).parameters.tobytes() == expected.parameters.tobytes()
    assert device.program.steps.recorder is None
    assert "no capture today" in device.program.steps.reason


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ({"algorithms": 0}, "got no algorithm, wanted one for Product(rows=4"),
        ({"failing": {"cublasLtCreate": 1}}, "cublasLtCreate: got status 1 (NOT_INITIALIZED)"),
        ({"failing": {"cublasLtMatmulAlgoGetHeuristic": 15}}, "got status 15 (NOT_SUPPORTED)"),
    ],
)
def test_where_the_library_fails_our_own_tiles_multiply(tiles, choices, reason):
    problem = dataclasses.replace(PROGRAMS[3], batch_size=4, rows=4)
    library = RecordingCublasLt(**choices)
    device = OnDevice(problem, tiles, library=library)
    assert device.program.products.name == "own tiles"
    assert reason in device.program.products.reason
    data = sample(problem)
    expected = OnDevice(problem, tiles, library=False).epoch(data.copy())
    assert device.epoch(data).parameters.tobytes() == expected.parameters.tobytes()
    gc.collect()
    assert library.alive == {}


def test_everything_that_was_created_is_destroyed(tiles):
    problem = dataclasses.replace(PROGRAMS[1], batch_size=4, rows=7)
    library = RecordingCublasLt()
    device = OnDevice(problem, tiles, library=library)
    made = [name for name in library.calls if name.endswith("Create")]
    # A description and three layouts for each product of both sizes of batches; preferences, which
    # are gone already; a handle.
    assert len(made) == 1 + 2 * 5 * 5 and len(library.alive) == 1 + 2 * 5 * 4
    del device
    gc.collect()
    assert library.alive == {}
    assert library.calls.count("cublasLtDestroy") == 1


@pytest.mark.parametrize("name", ["identity", "tanh", "silu"])
@pytest.mark.parametrize("biased", [True, False])
def test_bias_and_activation(tiles, dtype, name, biased):
    rows, units, row = 3, 5, ACTIVATIONS[name]
    Z, b, precision = normal((rows, units), dtype), normal((units,), dtype, 1), Precision(dtype)
    total = Z.astype(np.float64) + (b if biased else 0)
    oracle = Bounded(total, precision.gamma(2) * np.abs(total))
    keeps_input = row.keeps == "input"
    given = padded(Z)
    out = unwritten(rows, units, dtype) if keeps_input else given
    rounded = np.full((rows + 2, 8), 0x7FC0, np.uint16)
    added = b if biased else np.empty(0, dtype)
    arguments = (given, added, ACTIVATIONS.code(name), rows, out, rounded)
    over(tiles, build(tiles).bias_and_activation, rows * units, *arguments)
    bound = tolerances.activation_bound(row, oracle, precision)
    compare(out[:rows], bound, "activation")
    if keeps_input:
        compare(given[:rows], oracle, "pre-activation")
    halves = from_bfloat16(rounded)
    np.testing.assert_allclose(halves[:rows, :units], out[:rows], rtol=2.0**-8)
    for left in (halves[rows:], halves[:, units:], out[rows:]):
        assert np.isnan(left).all()


@pytest.mark.parametrize("name", ["identity", "tanh", "silu"])
@pytest.mark.parametrize(("blocks", "accumulate"), [(1, 0), (3, 0), (3, 1)])
def test_slope_and_sums(tiles, dtype, name, blocks, accumulate):
    row, precision = ACTIVATIONS[name], Precision(dtype)
    rows, units = (blocks - 1) * tiles.lanes * ROWS_OF_A_LANE + 3, tiles.columns + 1
    Z, dA = normal((rows, units), dtype), normal((rows, units), dtype, 1)
    A = tolerances.activation_bound(row, Bounded.exact(Z), precision).value.astype(dtype)
    slope = tolerances.slope_bound(row, Bounded.exact(Z), Bounded.exact(A), precision)
    expected = precision.times(Bounded.exact(dA), slope)
    sums = precision.sum_rows(expected)
    held = normal((units,), dtype, 2)
    if accumulate:
        error = sums.error + precision.gamma(2) * (sums.size + np.abs(held))
        sums = Bounded(sums.value + held, error)
    db = held.copy() if accumulate else np.full(units, np.nan, dtype)
    dZ, partial = padded(dA), np.full(blocks * units, np.nan, dtype)
    arrivals, rounded = np.zeros(2, np.int32), np.full((rows + 2, units), 0x7FC0, np.uint16)
    kept = padded(Z if row.keeps == "input" else A)
    arguments = (kept, padded(A), ACTIVATIONS.code(name), rows, accumulate, dZ, partial, arrivals)
    grid, block = (tiles.row_blocks(rows), 2), (tiles.columns, tiles.lanes)
    assert grid[0] == blocks
    launch(build(tiles).slope_and_sums, grid, block, *arguments, db, rounded)
    compare(dZ[:rows], expected, "dZ")
    compare(db, sums, "db")
    assert np.isnan(dZ[rows:]).all() and not arrivals.any()
    halves = from_bfloat16(rounded)
    np.testing.assert_allclose(halves[:rows], dZ[:rows], rtol=2.0**-8)
    assert np.isnan(halves[rows:]).all()


def nearest_even(values):
    """Return the bits of float32 `values` as bfloat16: nearest, ties to even, by their distance."""
    words = values.view(np.uint32)
    down = (words >> 16).astype(np.uint16)
    low, high = from_bfloat16(down), from_bfloat16(down + np.uint16(1))
    value = values.astype(np.float64)
    below, above = np.abs(value - low), np.abs(high.astype(np.float64) - value)
    up = (above < below) | ((above == below) & (down % 2 == 1))
    return np.where(up, down + np.uint16(1), down)


def test_bfloat16_is_the_nearest_ties_to_even(tiles):
    words = generator(12).integers(0, 0x7F7F, 40).astype(np.uint32) << 16
    tails = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    words = (words[:, None] | tails).ravel()
    words = np.concatenate([words, words | np.uint32(0x80000000)])
    A = words.view(np.float32).reshape(12, -1)
    out = np.zeros((13, A.shape[1] + 1), np.uint16)
    over(tiles, build(tiles).round_rows, A.size, A, len(A), out)
    assert (out[:12, :-1] == nearest_even(A.ravel()).reshape(A.shape)).all()
    assert not out[12].any() and not out[:, -1].any()


def test_bfloat16_of_what_is_not_finite(tiles):
    A = np.array([[np.inf, -np.inf, np.nan, -np.nan, 3.4e38, 0.0]], np.float32)
    A = np.concatenate([A, np.array([[0x7F800001, 0xFFFFFFFF] * 3], np.uint32).view(np.float32)])
    out = np.zeros(A.shape, np.uint16)
    over(tiles, build(tiles).round_rows, A.size, A, 2, out)
    values = from_bfloat16(out)
    assert values[0, [0, 1, 4]].tolist() == [np.inf, -np.inf, np.inf]
    assert np.isnan(values[0, 2:4]).all() and np.isnan(values[1]).all() and out[0, 5] == 0


def test_an_epoch_runs_on_one_stream_and_single_calls_on_the_default_one(tiles):
    """Products too: beside the kernels' stream they would read what is not yet written."""
    problem = dataclasses.replace(PROGRAMS[3], batch_size=4, rows=4)
    device = with_library(problem, tiles)
    program, seen = device.program, []
    launches, default = program.launches, program.launches.stream

    class Kernel:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, configuration):
            seen.append(configuration[2])
            return self.kernel[configuration]

    named = {name: Kernel(kernel) for name, kernel in program.kernels._asdict().items()}
    watched = program.kernels._replace(**named)
    program.kernels = program.products.kernels = program.updating.kernels = watched
    program.products.together.kernels = watched
    if program.products.name != "cuBLASLt":
        return
    multiply, streams = program.products._multiply, []
    program.products._multiply = lambda *a, **b: (
        streams.append(launches.stream),
        multiply(*a, **b),
    )
    data = sample(problem)
    device.epoch(data)
    assert default is not program.stream and launches.stream is default
    assert len(seen) >= 5 and all(each is program.stream for each in (*seen, *streams))
    seen.clear()
    device.call("value_and_gradient", data.parameters, data.X[:4], data.y[:4], data.parameters * 0)
    assert len(seen) >= 4 and all(each is default for each in seen)
