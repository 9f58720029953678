"""Every CUDA kernel against the float64 oracle.

Not collected by itself: `test_case_files` runs this file in a process of its own, in Numba's
simulator (which must be chosen before Numba is imported) and, where there is one, on the GPU.
"""

import numpy as np
import pytest
from numba import cuda

from fastmlp_kernels.algebra import ACTIVATIONS, HYPER_WIDTH, LOSSES, OPTIMIZERS
from fastmlp_kernels.algebra.optimizers import CLIP_NORM, CLIP_VALUE, clip_scale
from fastmlp_kernels.cuda.layered.launching import Launches, build
from fastmlp_kernels.cuda.layered.workspace import bias_mask
from fastmlp_kernels.problem import DTYPES, Problem
from fastmlp_kernels.reference import elementwise
from tests import tolerances
from tests.gpu.device import (
    MARKS,
    TILES,
    compare_rows,
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


@pytest.mark.parametrize("shape", range(5))
@pytest.mark.parametrize("name", ["tanh", "silu"])
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
@pytest.mark.parametrize("shape", range(5))
def test_weight_gradient(tiles, dtype, shape, accumulate):
    rows, fan_in, fan_out = shapes(tiles)[shape]
    A, dZ = normal((rows, fan_in), dtype), normal((rows, fan_out), dtype, 1)
    precision = Precision(dtype)
    oracles = [
        precision.product(Bounded.exact(A.T), Bounded.exact(dZ)),
        precision.sum_rows(Bounded.exact(dZ)),
    ]
    results = [np.full((fan_in, fan_out), np.nan, dtype), np.full(fan_out, np.nan, dtype)]
    if accumulate:
        results = [normal(array.shape, dtype, 3) for array in results]
        held = [result.astype(np.float64) for result in results]
        oracles = [
            Bounded(o.value + h, o.error + precision.gamma(rows + 2) * (o.size + np.abs(h)))
            for o, h in zip(oracles, held, strict=True)
        ]
    arguments = (padded(A), padded(dZ), rows, accumulate, *results)
    product(tiles, build(tiles).weight_gradient, fan_in, fan_out, *arguments)
    for result, oracle, what in zip(results, oracles, ("dW", "db"), strict=True):
        compare(result, oracle, what)


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
@pytest.mark.parametrize("rows", [1, 6])
def test_loss(tiles, dtype, loss, activation, labels, rows):
    problem = Problem((2, 4), (activation,), loss, dtype=dtype, labels=labels, batch_size=rows)
    logits = normal((rows, 4), dtype, scale=1.5)
    A = logits if problem.fused_output else elementwise(ACTIVATIONS[activation].value, logits)
    y = sample(problem, spare_rows=0).y[:rows]
    expected, slope = tolerances.loss_and_gradient(problem, Bounded.exact(A), y)
    kernels, scale = build(tiles, problem.rule), np.array([problem.scale(rows)], dtype)
    for in_place in (False, True):
        given, row_losses = padded(A), np.full(rows + 2, np.nan, dtype)
        dA = given if in_place else unwritten(rows, 4, dtype)
        arguments = (given, padded(y), rows, scale, first_batch(), 0)
        arguments += (row_losses, dA)
        over(tiles, kernels.loss_and_gradient, rows, *arguments)
        losses, status = np.full(3, np.nan, dtype), np.zeros(3, np.int64)
        launch(kernels.sum_losses, 1, tiles.threads, row_losses, rows, losses, 1, status)
        compare_rows(dA, slope, "gradient")
        compare(losses[1:2], expected, "loss")
        assert np.isnan(losses[[0, 2]]).all() and not status.any()
        assert np.isnan(row_losses[rows:]).all()


@pytest.mark.parametrize("offset", [-1, 0, 1, 8])
def test_sum_losses(tiles, dtype, offset):
    rows, kernel = tiles.threads + offset, build(tiles).sum_losses
    terms, losses = np.abs(normal((rows, 1), dtype)), np.full(1, np.nan, dtype)
    given, status = padded(terms)[:, 0].copy(), np.zeros(3, np.int64)
    launch(kernel, 1, tiles.threads, given, rows, losses, 0, status)
    compare(losses, Precision(dtype).sum_rows(Bounded.exact(terms)), "sum")
    assert not status.any()
    again = np.full(1, np.nan, dtype)
    launch(kernel, 1, tiles.threads, given, rows, again, 0, status)
    assert again.tobytes() == losses.tobytes()


def first_batch(batch=0):
    """Return a counter of batches."""
    return np.array([batch, 0], np.int64)


def check(tiles, gradient, row_losses, losses, batch, status):
    """Launch `check_finite` as the program does."""
    arrays = (gradient, row_losses, losses, first_batch(batch), status)
    gradient, row_losses, held, counter, judged = map(cuda.to_device, arrays)
    arguments = (gradient, row_losses, len(row_losses), held, counter, judged)
    Launches(tiles).one_more(build(tiles).check_finite, len(gradient), *arguments)
    held.copy_to_host(losses)
    judged.copy_to_host(status)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_batch_that_is_not_finite_is_noted(tiles, dtype, bad):
    kernels, count = build(tiles), 2 * tiles.threads + 1
    fine, row_losses = np.ones(count, dtype), np.ones(7, dtype)
    losses, status = np.zeros(9, dtype), np.zeros(3, np.int64)
    check(tiles, fine, row_losses, losses, 3, status)
    assert losses.tolist() == [0, 0, 0, 7, 0, 0, 0, 0, 0]
    launch(kernels.sum_losses, 1, tiles.threads, fine, count, losses, 3, status)
    assert not status.any()
    for place in (0, tiles.threads, count - 1):
        spoilt = fine.copy()
        spoilt[place] = bad
        for earlier, noted in ((0, 7), (2, 2)):
            status = np.array([0, 0, earlier], np.int64)
            check(tiles, spoilt, row_losses, losses, 6, status)
            assert status.tolist() == [0, 0, noted]
            status = np.array([0, 0, earlier], np.int64)
            check(tiles, fine, spoilt, losses, 6, status)
            assert status.tolist() == [0, 0, noted]
            status = np.array([0, 0, earlier], np.int64)
            launch(kernels.sum_losses, 1, tiles.threads, spoilt, count, losses, 6, status)
            assert status.tolist() == [0, 0, noted]


@pytest.mark.parametrize("loss", EVERY_LOSS)
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
def test_gather_rows(tiles, dtype, columns):
    X, y, order = normal((9, columns), dtype), normal((9, 2), dtype, 1), generator(3).permutation(9)
    inputs, targets = unwritten(4, columns, dtype), unwritten(4, 2, dtype)
    counter = first_batch(1)
    arguments = (X, y, order, counter, 3, 4, inputs, targets, np.empty((0, 0), np.uint16))
    over(tiles, build(tiles).gather_rows, 4 * (columns + 2), *arguments)
    for out, source in ((inputs, X), (targets, y)):
        assert out[:4].tobytes() == source[order[3:7]].tobytes()
        assert np.isnan(out[4:]).all()
    assert counter.tolist() == [1, 1]


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
