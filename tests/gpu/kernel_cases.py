"""Every CUDA kernel against the float64 oracle.

Not collected by itself: `test_case_files` runs this file in a process of its own, in Numba's
simulator (which must be chosen before Numba is imported) and, where there is one, on the GPU.
"""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.cuda_compilation import double_precision, local_memory
from fastmlp_kernels.algebra import ACTIVATIONS, HYPER_WIDTH, LOSSES, OPTIMIZERS
from fastmlp_kernels.algebra.optimizers import CLIP_NORM, CLIP_VALUE, clip_scale
from fastmlp_kernels.cuda.layered import workspace
from fastmlp_kernels.cuda.layered.gradient_tiles import gradient_table
from fastmlp_kernels.cuda.layered.launching import build
from fastmlp_kernels.cuda.layered.workspace import bias_mask
from fastmlp_kernels.problem import DTYPES, Problem, parameter_layout
from fastmlp_kernels.reference import elementwise
from tests import tolerances
from tests.gpu.device import (
    MARKS,
    TILES,
    compare_rows,
    emulated_device,
    generator,
    launch,
    normal,
    over,
    padded,
    product,
    unwritten,
)
from tests.samples import EVERY_LOSS, EVERY_RULE, output_activations, sample
from tests.tolerances import Bounded, Precision, compare

pytestmark = MARKS
IDENTITY = ACTIVATIONS.code("identity")


@pytest.fixture(params=TILES, ids=str)
def tiles(request):
    return request.param


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


def shapes(tiles):
    """Return (rows, fan_in, fan_out): one, odd, and a tile, one more, and two tiles and one."""
    side, more, twice = tiles.side, tiles.side + 1, 2 * tiles.side + 1
    return [(1, 1, 1), (side, side, side), (more, twice, side), (twice, side, more), (5, 1, twice)]


# Where the pre-activation is kept, it is stored beside the activation: one shape with all borders.
@pytest.mark.parametrize(("name", "shape"), [*(("tanh", k) for k in range(5)), ("silu", 3)])
def test_linear_forward(tiles, dtype, shape, name):
    rows, fan_in, fan_out = shapes(tiles)[shape]
    A, W = normal((rows, fan_in), dtype), normal((fan_in, fan_out), dtype, 1)
    b = normal((fan_out,), dtype, 2)
    problem = Problem((fan_in, fan_out), (name,), "half_squared_error", dtype=dtype)
    oracle = tolerances.forward(problem, np.concatenate([W.ravel(), b]), A)
    out = unwritten(rows, fan_out, dtype)
    keeps_input = ACTIVATIONS[name].keeps == "input"
    Z = unwritten(rows, fan_out, dtype) if keeps_input else out
    arguments = (padded(A), W, b, ACTIVATIONS.code(name), rows, Z, out)
    product(tiles, build(tiles).linear_forward, rows, fan_out, *arguments)
    compare_rows(out, oracle.activations[1], "activation")
    if keeps_input:
        compare_rows(Z, oracle.pre_activations[0], "pre-activation")


def test_a_row_of_the_product_does_not_depend_on_the_others(tiles, dtype):
    rows, fan_in, fan_out = 2 * tiles.side + 1, tiles.side + 2, 4
    A, W = normal((rows, fan_in), dtype), normal((fan_in, fan_out), dtype, 1)
    b, kernel = normal((fan_out,), dtype, 2), build(tiles).linear_forward
    every, alone = unwritten(rows, fan_out, dtype, 0), unwritten(1, fan_out, dtype, 0)
    product(tiles, kernel, rows, fan_out, A, W, b, 0, rows, every, every)
    product(tiles, kernel, 1, fan_out, A[-1:].copy(), W, b, 0, 1, alone, alone)
    assert every[-1].tobytes() == alone[0].tobytes()


@pytest.mark.parametrize("shape", range(5))
def test_linear_backward(tiles, dtype, shape):
    rows, fan_in, fan_out = shapes(tiles)[shape]
    dZ, W = normal((rows, fan_out), dtype), normal((fan_in, fan_out), dtype, 1)
    oracle = Precision(dtype).product(Bounded.exact(dZ), Bounded.exact(W.T))
    dA = unwritten(rows, fan_in, dtype)
    kernel = build(tiles).linear_backward
    product(tiles, kernel, rows, fan_in, padded(dZ), W, rows, IDENTITY, dA, dA, dA)
    compare_rows(dA, oracle, "dA")


@pytest.mark.parametrize("name", ["tanh", "silu"])
def test_linear_backward_with_the_slope_of_the_layer_below(tiles, dtype, name):
    rows, fan_in, fan_out = tiles.side + 1, tiles.side + 2, 3
    dZ, W = normal((rows, fan_out), dtype), normal((fan_in, fan_out), dtype, 1)
    row, precision = ACTIVATIONS[name], Precision(dtype)
    Z = normal((rows, fan_in), dtype, 2)
    A = elementwise(row.value, Z.astype(np.float64)).astype(dtype)
    dA = precision.product(Bounded.exact(dZ), Bounded.exact(W.T))
    slope = tolerances.slope_bound(row, Bounded.exact(Z), Bounded.exact(A), precision)
    out, kernel = unwritten(rows, fan_in, dtype), build(tiles).linear_backward
    arguments = (padded(dZ), W, rows, ACTIVATIONS.code(name), padded(Z), padded(A), out)
    product(tiles, kernel, rows, fan_in, *arguments)
    compare_rows(out, precision.times(dA, slope), "dZ of the layer below")


@pytest.mark.parametrize("accumulate", [0, 1])
@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("shape", range(5))
def test_weight_gradient(tiles, dtype, shape, slices, accumulate):
    """Of three layers at once, the last one of a single output."""
    slice_rows, precision = shapes(tiles)[shape][0], Precision(dtype)
    rows, sizes = (
        (slices - 1) * slice_rows + max(1, slice_rows // 2),
        (*shapes(tiles)[shape][1:], 1),
    )
    problem = Problem((3, *sizes), ("relu",) * 3, "half_squared_error", dtype=dtype)
    problem = dataclasses.replace(problem, batch_size=rows + 2)
    A = [normal((rows, width), dtype, seed) for seed, width in enumerate(problem.sizes[:-1])]
    dZ = [normal((rows, width), dtype, seed) for seed, width in enumerate(sizes, 5)]
    work = workspace.allocate(problem, 1)
    layers = workspace.layers_of(problem, work)
    flat = [np.full(array.shape, np.nan, dtype) for array in (work.stored, work.deltas)]
    for layer, outputs, given in zip(layers, [*A[1:], None], dZ, strict=True):
        for array, start, values in (
            (flat[0], layer.places.A, outputs),
            (flat[1], layer.places.dZ, given),
        ):
            if values is not None:
                array[start : start + values.size] = values.ravel()
    count = problem.parameter_count
    result = normal((count,), dtype, 9) if accumulate else np.full(count, np.nan, dtype)
    before, partial = result.astype(np.float64), np.full(slices * count, np.nan, dtype)
    table = gradient_table(layers, tiles.side, True)
    blocks = len(table)
    arrivals, status = np.zeros(blocks, np.int32), np.zeros(3, np.int64)
    arguments = (padded(A[0]).ravel(), *flat, table, rows, slice_rows, accumulate, result, partial)
    grid, block = (blocks, slices), (tiles.tile, tiles.tile)
    launch(build(tiles).weight_gradient, grid, block, *arguments, arrivals, first_batch(4), status)
    assert not arrivals.any() and not status.any()
    for layer, inputs, given in zip(layers, A, dZ, strict=True):
        oracles = {
            "weight": precision.product(Bounded.exact(inputs.T), Bounded.exact(given)),
            "bias": precision.sum_rows(Bounded.exact(given)),
        }
        for what, oracle in oracles.items():
            part = getattr(layer.layout, what)
            if accumulate:
                held = before[part].reshape(oracle.value.shape)
                error = oracle.error + precision.gamma(rows + 2) * (oracle.size + np.abs(held))
                oracle = Bounded(oracle.value + held, error)
            compare(result[part].reshape(oracle.value.shape), oracle, what)


@pytest.mark.parametrize("name", ACTIVATIONS.names)
def test_activation(tiles, dtype, name):
    row, code, rows, units = ACTIVATIONS[name], ACTIVATIONS.code(name), 3, 4
    precision, kernels = Precision(dtype), build(tiles)
    Z = normal((rows, units), dtype, scale=2.0)
    A = tolerances.activation_bound(row, Bounded.exact(Z), precision)
    out = unwritten(rows, units, dtype)
    over(tiles, kernels.activation_forward, rows * units, padded(Z), code, rows, out)
    compare_rows(out, A, "activation")
    given = A.value.astype(dtype)
    slope = tolerances.slope_bound(row, Bounded.exact(Z), Bounded.exact(given), precision)
    dA = normal((rows, units), dtype, 1)
    dZ = padded(dA)
    # The argument that the activation does not keep is the other one, as in the program.
    kept = padded(Z if row.keeps == "input" else given)
    other = padded(given) if row.keeps == "input" else kept
    arguments = (kept, other, code, rows, dZ)
    over(tiles, kernels.activation_backward, rows * units, *arguments)
    compare_rows(dZ, precision.times(Bounded.exact(dA), slope), "dZ")


@pytest.mark.parametrize("name", ACTIVATIONS.names)
def test_a_nan_and_the_extremes_pass_through_an_activation(tiles, dtype, name):
    Z = np.array([[np.nan, 1e30, -1e30, 89.0, -104.0, 0.0]], dtype)
    out = np.zeros_like(Z)
    over(tiles, build(tiles).activation_forward, 6, Z, ACTIVATIONS.code(name), 1, out)
    with np.errstate(all="ignore"):
        expected = elementwise(ACTIVATIONS[name].value, Z.astype(np.float64)).astype(dtype)
    assert np.isnan(out[0, 0])
    # Subnormal results may be flushed to zero.
    tiny = 1e3 * np.finfo(dtype).tiny
    np.testing.assert_allclose(out[0, 1:], expected[0, 1:], rtol=1e-4, atol=tiny)


def loss_problems():
    """Return (loss, output activation, labels) such that every rule appears."""
    cases = []
    for loss in map(LOSSES.__getitem__, EVERY_LOSS):
        plain = [name for name in output_activations(loss.name) if name not in loss.fused]
        cases += [(loss.name, name, False) for name in plain[:1]]
        cases += [(loss.name, name, False) for name in loss.fused]
        if loss.label_rule is not None:
            cases.append((loss.name, plain[0], True))
    return cases


def test_every_loss_rule_is_a_case():
    problems = [Problem((2, 4), (a,), loss, labels=labels) for loss, a, labels in loss_problems()]
    assert [problem.rule for problem in problems] == [rule.name for rule in EVERY_RULE]


@pytest.mark.parametrize(("loss", "activation", "labels"), loss_problems())
@pytest.mark.parametrize("rows", [1, TILES[-1].row_threads + 1])
def test_loss(dtype, loss, activation, labels, rows):
    """In one block, and in two; other sizes of blocks would compile each rule once more."""
    tiles = TILES[-1]
    choices = {"dtype": dtype, "labels": labels, "batch_size": rows, "rows": 2 * tiles.row_threads}
    problem = Problem((2, 4), (activation,), loss, **choices)
    logits = normal((rows, 4), dtype, scale=1.5)
    A = logits if problem.fused_output else elementwise(ACTIVATIONS[activation].value, logits)
    y = sample(problem, spare_rows=0).y[:rows]
    expected, slope = tolerances.loss_and_gradient(problem, Bounded.exact(A), y)
    kernels, scale = build(tiles, problem.rule), np.array([problem.scale(rows)], dtype)
    for in_place in (False, True):
        given, losses = padded(A), np.full(3, np.nan, dtype)
        dA = given if in_place else unwritten(rows, 4, dtype)
        counter, status = np.array([1, 7], np.int64), np.zeros(3, np.int64)
        judge(tiles, kernels, given, padded(y), rows, scale, counter, dA, losses, status)
        compare_rows(dA, slope, "gradient")
        compare(losses[1:2], expected, "loss")
        assert np.isnan(losses[[0, 2]]).all() and not status.any()
        assert counter.tolist() == [1, 1]
    if emulated_device() and dtype == "float32":
        made = kernels.loss_and_gradient.overloads.items()
        (compiled,) = (each for given, each in made if given[0].dtype.name == dtype)
        ptx = compiled.library.get_asm_str()
        assert ".entry" in ptx and not double_precision(ptx) and not local_memory(ptx)


def judge(tiles, kernels, A, y, rows, factors, counter, dA, losses, status):
    """Launch `loss_and_gradient` as the program does."""
    threads = tiles.row_threads
    blocks = -(-rows // threads)
    sums, arrivals = np.full(blocks, np.nan, A.dtype), np.zeros(1, np.int32)
    arguments = (A, y, rows, factors, counter, 0, dA, sums, arrivals, losses, status)
    launch(kernels.loss_and_gradient, blocks, threads, *arguments)
    assert not arrivals.any()


@pytest.mark.parametrize("blocks", [1, 2, 40])
def test_the_losses_of_all_blocks_are_added_in_one_order(tiles, dtype, blocks):
    """Of more blocks than one has threads, too."""
    rows, kernels = blocks * tiles.row_threads - 1, build(tiles, "half_squared_error")
    A = normal((rows, 1), dtype)
    y, scale, found = np.zeros_like(A), np.ones(1, dtype), []
    for _ in range(2):
        losses, status = np.full(1, np.nan, dtype), np.zeros(3, np.int64)
        judge(tiles, kernels, A, y, rows, scale, first_batch(), np.zeros_like(A), losses, status)
        found.append(losses.tobytes())
    precision = Precision(dtype)
    half_squares = precision.times(Bounded.exact(A), Bounded.exact(A / 2))
    compare(losses, precision.sum_rows(half_squares), "sum")
    assert not status.any() and found[0] == found[1]


def first_batch(batch=0):
    """Return a counter of batches."""
    return np.array([batch, 0], np.int64)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_batch_that_is_not_finite_is_noted(tiles, dtype, bad):
    kernels, count = build(tiles, "half_squared_error"), 2 * tiles.threads + 1
    fine = np.ones(count, dtype)

    def checked(gradient, status):
        over(tiles, kernels.check_finite, count, gradient, first_batch(6), status)

    def judged(gradient, status):
        A, counter, losses = gradient[:, None].copy(), first_batch(6), np.zeros(9, dtype)
        arrays = (A, np.zeros_like(A), count, np.ones(1, dtype), counter, np.zeros_like(A))
        judge(tiles, kernels, *arrays, losses, status)

    for kernel in (checked, judged):
        status = np.zeros(3, np.int64)
        kernel(fine, status)
        assert not status.any()
        for place in (0, tiles.threads, count - 1):
            spoilt = fine.copy()
            spoilt[place] = bad
            for earlier, noted in ((0, 7), (2, 2)):
                status = np.array([0, 0, earlier], np.int64)
                kernel(spoilt, status)
                assert status.tolist() == [0, 0, noted]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("rows", [1, 40])
def test_weight_gradient_notes_what_is_not_finite(tiles, dtype, rows, bad):
    """In an element of a weight or of a bias alone, in any slice."""
    slice_rows = tiles.depth
    slices = -(-rows // slice_rows)
    arguments = np.ones(2 * rows, dtype), np.ones(rows, dtype), np.ones(rows, dtype)
    layers = [SimpleNamespace(layout=layout) for layout in parameter_layout((2, 1))]
    layers[0].places = workspace.Places(0, 0, 0, 0)
    table = gradient_table(layers, tiles.side, True)
    for which, place in ((0, 0), (0, 2 * rows - 1), (2, rows - 1)):
        for earlier, noted in ((0, 5), (2, 2)):
            given = [array.copy() for array in arguments]
            given[which][place] = bad
            gradient, partial = np.zeros(3, dtype), np.zeros(3 * slices, dtype)
            status = np.array([0, 0, earlier], np.int64)
            words = np.zeros(1, np.int32), first_batch(4), status
            numbers = (table, rows, slice_rows, 0, gradient, partial)
            block = (tiles.tile, tiles.tile)
            launch(build(tiles).weight_gradient, (1, slices), block, *given, *numbers, *words)
            assert status.tolist() == [0, 0, noted]


# Those without a link have the code of one kernel in common.
LINKED = [loss for loss in EVERY_LOSS if LOSSES[loss].link is not None]


@pytest.mark.parametrize("loss", ["half_squared_error", *LINKED])
def test_predict_rows(tiles, dtype, loss):
    rows, A = 3, normal((3, 4), dtype, scale=2.0)
    given = padded(A)
    over(tiles, build(tiles, link=loss).predict_rows, rows, given, rows)
    if LOSSES[loss].link is None:
        assert given[:rows].tobytes() == A.tobytes()
        return
    powers = np.exp(A.astype(np.float64))
    if loss.startswith("gaussian_nll"):
        variances = np.maximum(powers[:, 2:], LOSSES[loss].numbers["epsilon"])
        expected = np.hstack([A[:, :2], variances])
    else:
        expected = powers / powers.sum(axis=1, keepdims=True)
    error = 40 * Precision(dtype).unit * np.abs(expected)
    compare_rows(given, Bounded(expected, error), "predictions")


@pytest.mark.parametrize("loss", [loss for loss in EVERY_LOSS if LOSSES[loss].link is None])
def test_no_other_loss_changes_predictions(loss):
    """In one size of blocks and one dtype: each would be compiled once more."""
    rows, tiles, A = 3, TILES[-1], normal((3, 4), "float32", scale=2.0)
    given = padded(A)
    over(tiles, build(tiles, link=loss).predict_rows, rows, given, rows)
    assert given[:rows].tobytes() == A.tobytes()


@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_update(tiles, dtype, name):
    problem = Problem((3, 4), ("identity",), "half_squared_error", name, dtype=dtype)
    data, count = sample(problem), problem.parameter_count
    gradient = normal((count,), dtype, 1)
    state = np.abs(normal((problem.slots, count), dtype, 2))
    hyper = np.stack([np.full(HYPER_WIDTH, np.nan, dtype), data.hyper[0]])
    p, slots = tolerances.updated(
        problem, data.parameters, Bounded.exact(gradient), state, data.hyper[0]
    )
    vectors = [data.parameters.copy(), gradient, *(row.copy() for row in state)]
    vectors += [np.empty(0, dtype)] * (4 - len(vectors))
    code, kernel = OPTIMIZERS.code(name), build(tiles).update
    vectors += [bias_mask(problem), np.empty(0, np.uint16)]
    before = [vector.copy() for vector in vectors]
    stopped = np.array([0, 0, 1], np.int64)
    nothing, scale = (np.empty(0, np.int32), np.empty(0, np.uint16)), np.empty(0, dtype)
    counter = np.array([7, 1], np.int64)
    numbers = (code, hyper, scale, counter)
    over(tiles, kernel, count, *vectors, *numbers, stopped, *nothing)
    for vector, old in zip(vectors, before, strict=True):
        assert vector.tobytes() == old.tobytes()
    assert counter.tolist() == [2, 1]
    over(tiles, kernel, count, *vectors, *numbers, np.zeros(3, np.int64), *nothing)
    assert counter.tolist() == [2, 1]
    compare(vectors[0], p, "parameters")
    for vector, slot in zip(vectors[2:4], slots, strict=False):
        compare(vector, slot, "state")


@pytest.mark.parametrize("units", [1, 2, 9])
def test_sum_squares(tiles, dtype, units):
    """Of fewer elements than threads, of some blocks, and of as many as there may be and more."""
    problem = Problem((units, units), ("identity",), "half_squared_error", dtype=dtype)
    data, count = sample(problem), problem.parameter_count
    blocks = tiles.sum_blocks(count)
    sums, squares = np.full(blocks, np.nan, dtype), np.full(3, np.nan, dtype)
    arrivals, mask = np.zeros(1, np.int32), bias_mask(problem)
    arguments = (data.parameters, mask, squares, first_batch(1), sums, arrivals)
    launch(build(tiles).sum_squares, blocks, tiles.threads, *arguments)
    compare(squares[1:2], tolerances.squares(problem, data.parameters), "squares")
    assert np.isnan(squares[[0, 2]]).all() and not arrivals.any()


@pytest.mark.parametrize("columns", [1, 4])
@pytest.mark.parametrize(("batch", "rows"), [(1, 4), (2, 1), (3, 0)])
def test_gather_rows(tiles, dtype, columns, batch, rows):
    """A full batch, the last one, and what is beyond it."""
    X, y, order = normal((9, columns), dtype), normal((9, 2), dtype, 1), generator(3).permutation(9)
    inputs, targets = unwritten(4, columns, dtype), unwritten(4, 2, dtype)
    counter = first_batch(batch)
    arguments = (X, y, order, counter, 4, inputs, targets, np.empty((0, 0), np.uint16))
    over(tiles, build(tiles).gather_rows, 4 * (columns + 2), *arguments)
    for out, source in ((inputs, X), (targets, y)):
        assert out[:rows].tobytes() == source[order[4 * batch :][:rows]].tobytes()
        assert np.isnan(out[rows:]).all()
    assert counter.tolist() == [batch, 0]


@pytest.mark.parametrize("status", [0, 1])
def test_update_and_gather(tiles, dtype, status):
    """What the two kernels do, of one batch and of the next."""
    problem = Problem((3, 4), ("identity",), "half_squared_error", "adam", dtype=dtype)
    data, count, kernels = sample(problem), problem.parameter_count, build(tiles)
    vectors = [data.parameters, normal((count,), dtype, 1), *np.abs(normal((2, count), dtype, 2))]
    vectors += [bias_mask(problem), np.empty(0, np.uint16)]
    hyper = np.stack([np.full(HYPER_WIDTH, np.nan, dtype), data.hyper[0]])
    nothing = (np.empty(0, np.int32), np.empty(0, np.uint16))
    numbers = (OPTIMIZERS.code("adam"), hyper, np.empty(0, dtype))
    judged = np.array([0, 0, status], np.int64)
    X, y, order = normal((9, 3), dtype), normal((9, 4), dtype, 1), generator(3).permutation(9)
    expected = [vector.copy() for vector in vectors]
    words = (np.array([7, 1], np.int64), judged)
    over(tiles, kernels.update, count, *expected, *numbers, *words, *nothing)
    counter = np.array([1, 1], np.int64)
    inputs, targets = unwritten(4, 3, dtype), unwritten(4, 4, dtype)
    rows = (X, y, order, 4, inputs, targets, np.empty((0, 0), np.uint16))
    arguments = (*vectors, *numbers, counter, judged, *nothing, *rows)
    over(tiles, kernels.update_and_gather, count + 4 * 7, *arguments)
    assert counter.tolist() == [2, 1]
    for vector, wanted in zip(vectors, expected, strict=True):
        assert vector.tobytes() == wanted.tobytes()
    # The batch of before was the second one; the third has a single row.
    assert inputs[:1].tobytes() == X[order[8:]].tobytes() and np.isnan(inputs[1:]).all()
    assert targets[:1].tobytes() == y[order[8:]].tobytes() and np.isnan(targets[1:]).all()


@pytest.mark.parametrize("limit", [0.5, 1e9])
@pytest.mark.parametrize("units", [1, 9])
def test_clip_by_norm(tiles, dtype, units, limit):
    count = units * units + units
    gradient = normal((count,), dtype, 1)
    hyper = np.full((3, HYPER_WIDTH), np.nan, dtype)
    hyper[1, CLIP_VALUE], hyper[1, CLIP_NORM] = 0.7, limit
    blocks = tiles.sum_blocks(count)
    sums, scale = np.full(blocks, np.nan, dtype), np.full(1, np.nan, dtype)
    status, arrivals = np.zeros(3, np.int64), np.zeros(1, np.int32)
    counter = np.array([7, 1], np.int64)
    arguments = (hyper, counter, status, scale, sums, arrivals)
    launch(build(tiles).clip_by_norm, blocks, tiles.threads, gradient, *arguments)
    squares = np.sum(
        np.clip(gradient.astype(np.float64), -hyper[1, CLIP_VALUE], hyper[1, CLIP_VALUE]) ** 2
    )
    expected = np.array([clip_scale(squares, np.float64(hyper[1, CLIP_NORM]))])
    error = (count + 16) * Precision(dtype).unit * expected
    compare(scale, Bounded(expected, error), "scale")
    assert not status.any() and not arrivals.any()
    gradient[0], hyper[1, CLIP_VALUE] = np.inf, np.inf
    launch(build(tiles).clip_by_norm, blocks, tiles.threads, gradient, *arguments)
    assert np.isnan(scale).all() and status.tolist() == [0, 0, 2]
