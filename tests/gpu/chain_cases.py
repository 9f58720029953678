"""The chain in shared memory: its three products, and tiles of rows through all layers.

Not collected by itself: `test_case_files` runs this file in a process of its own, in Numba's
simulator (which must be chosen before Numba is imported) and, where there is one, on the GPU.
"""

import dataclasses
import functools

import numba
import numpy as np
import pytest
from numba import cuda

from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.compile import cuda_kernel, cuda_part, simulated
from fastmlp_kernels.cuda.instructions.index32 import index32, wide
from fastmlp_kernels.cuda.instructions.pointers import pointer_to
from fastmlp_kernels.cuda.on_chip import block_linear, chain
from fastmlp_kernels.cuda.on_chip.block_epilogues import Rows, in_passes
from fastmlp_kernels.cuda.on_chip.dropout import tile_dropout
from fastmlp_kernels.cuda.on_chip.offsets import SHARED_ALIGNMENT, tile_of
from fastmlp_kernels.cuda.on_chip.placement import float_form, padded, place, row_stride
from fastmlp_kernels.cuda.on_chip.products import Epilogue, Epilogues
from fastmlp_kernels.problem import DTYPES, Problem
from tests import tolerances
from tests.gpu.device import MARKS, normal
from tests.samples import DROPPED, DROPPED_AND_CLIPPED, sample
from tests.tolerances import Bounded, Precision, compare

pytestmark = MARKS

# Threads, and rows and columns of a thread's tile: tiny ones cross every border at tiny shapes.
SIZES = [(6, 2, 2), (5, 4, 4)]
if not simulated():
    SIZES += [(256, 4, 4), (256, 8, 4), (64, 2, 4)]


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


@pytest.fixture(params=SIZES, ids=str)
def sizes(request):
    return request.param


@pytest.mark.parametrize("name", ACTIVATIONS.names)
def test_what_is_short_needs_no_second_pass(name):
    row = ACTIVATIONS[name]
    _, (forward, backward) = in_passes(Rows(("relu", name), "squared_error"), True, float)
    assert (forward is None) == row.short
    assert (backward is None) == (row.short or row.keeps == "output")


@cuda_part
def word(words, k):
    return index32(words[k])


@cuda_part
def row(operands, numbers, words, layer, i, j):
    """Return where an element lies: from where `words` begins, in rows of `layer`."""
    return pointer_to(numbers, words + i * layer + j)


@cuda_part
def keep(row, words, layer, i, j, distance, value):
    row[distance] = value


KEEP = Epilogue(row, keep)


@cuda_part
def add(gradient, place, value):
    """Add an element, and 1: an element of the padding is 0, and to add it would not be seen."""
    gradient[place] += value + 1
    return gradient[place]


def run_product(name, dtype, sizes, memory, *numbers):
    """Return shared memory after a product; it began as `memory`."""
    held = [cuda.to_device(array) for array in (memory, memory * 0, np.array(numbers))]
    product_kernel(name, dtype, sizes)[1, sizes[0], 0, memory.nbytes](*held)
    return held[1].copy_to_host()


@functools.cache
def product_kernel(name, dtype, sizes):
    threads, *tile = sizes
    products = block_linear.build(threads, dtype, Epilogues(KEEP, KEEP, add), *tile)
    product, kind = getattr(products, name), getattr(numba, dtype)
    count = 10 if name == "forward" else 9

    @cuda_part
    def call(shared, n, t):
        # Arguments can not be counted out at run time.
        if count == 10:
            product(
                *(shared, shared, word(n, 0), word(n, 1), word(n, 2), word(n, 3)),
                *(word(n, 4), word(n, 5), word(n, 6), word(n, 7), word(n, 8)),
                *(word(n, 9), t),
            )

    @cuda_part
    def call_with_nine(shared, n, t):
        product(
            *(shared, shared, word(n, 0), word(n, 1), word(n, 2), word(n, 3)),
            *(word(n, 4), word(n, 5), word(n, 6), word(n, 7), word(n, 8), t),
        )

    chosen = call if count == 10 else call_with_nine

    @cuda_kernel
    def kernel(memory, out, n):
        shared = cuda.shared.array(0, kind, SHARED_ALIGNMENT)
        t = cuda.threadIdx.x
        for k in range(t, memory.size, threads):
            shared[k] = memory[k]
        cuda.syncthreads()
        chosen(shared, n, index32(t))
        cuda.syncthreads()
        for k in range(t, memory.size, threads):
            out[k] = shared[k]

    return kernel


class Memory:
    """Shared memory in the making: NaN wherever nothing was put."""

    def __init__(self, dtype, sizes):
        self.form = float_form(dtype, *sizes[1:])
        self.values, self.end = np.full(2000, np.nan, dtype), 8

    def room(self, values):
        """Put numbers somewhere; return their offset."""
        start = self.end
        self.values[start : start + values.size] = values.ravel()
        self.end = padded(start + values.size + 3, 8)
        return start

    def matrix(self, values, rows):
        """Put a matrix, zeros up to so many rows and its padded width; return offset and stride."""
        columns = values.shape[1]
        wide = np.full((rows, row_stride(columns, self.form)), np.nan, self.values.dtype)
        wide[:, : padded(columns, self.form.pad)] = 0
        wide[: len(values), :columns] = values
        return self.room(wide), wide.shape[1]


def check(before, after, start, stride, oracle, what):
    """Compare the matrix that a product wrote, and see that it wrote nothing else."""
    rows, columns = oracle.value.shape
    places = start + np.arange(rows)[:, None] * stride + np.arange(columns)
    compare(after[places], oracle, what)
    others = np.setdiff1d(np.arange(after.size), places)
    np.testing.assert_array_equal(after[others], before[others], err_msg=what)


# Rows, fan_in, fan_out: below a tile, across its borders, many tiles.
SHAPES = [(4, 1, 1), (8, 3, 5), (4, 9, 6), (12, 4, 13)]


@pytest.fixture(params=SHAPES, ids=str)
def shape(request, sizes):
    """Return rows of whole tiles, as the products have them, fan_in and fan_out."""
    rows, fan_in, fan_out = request.param
    return padded(rows, sizes[1]), fan_in, fan_out


def test_forward_product(dtype, sizes, shape):
    rows, fan_in, fan_out = shape
    memory, precision = Memory(dtype, sizes), Precision(dtype)
    A, W, b = (normal(s, dtype, 3) for s in ((rows, fan_in), (fan_in, fan_out), (fan_out,)))
    at_A, at_W = memory.matrix(A, rows), memory.matrix(W, padded(fan_in, memory.form.pad))
    at_b, at_Z, stride = memory.room(b), memory.end + 40, fan_out + 1
    numbers = (at_Z, stride, *at_A, *at_W, at_b, rows, fan_in, fan_out)
    out = run_product("forward", dtype, sizes, memory.values, *numbers)
    Z = precision.product(Bounded.exact(A), Bounded.exact(W))
    Z = Bounded(Z.value + b, Z.error + precision.gamma(fan_in + 2) * np.abs(b))
    check(memory.values, out, at_Z, stride, Z, "Z")


def test_backward_product(dtype, sizes, shape):
    rows, fan_in, fan_out = shape
    memory = Memory(dtype, sizes)
    dZ, W = normal((rows, fan_out), dtype, 4), normal((fan_in, fan_out), dtype, 5)
    at_dZ, at_W = memory.matrix(dZ, rows), memory.matrix(W, padded(fan_in, memory.form.pad))
    at_dA, stride = memory.end + 8, fan_in + 1
    numbers = (at_dA, stride, *at_dZ, *at_W, rows, fan_in, fan_out)
    out = run_product("backward", dtype, sizes, memory.values, *numbers)
    dA = Precision(dtype).product(Bounded.exact(dZ), Bounded.exact(W.T))
    check(memory.values, out, at_dA, stride, dA, "dA")


def test_weight_gradient_product(dtype, sizes, shape):
    rows, fan_in, fan_out = shape
    memory = Memory(dtype, sizes)
    A, dZ = normal((rows, fan_in), dtype, 6), normal((rows, fan_out), dtype, 7)
    at_A, at_dZ = memory.matrix(A, rows), memory.matrix(dZ, rows)
    start, stride = memory.end + 5, fan_out + 1
    before = normal((fan_in, stride), dtype, 8)
    memory.values[start : start + before.size] = before.ravel()
    numbers = (start, stride, *at_A, *at_dZ, rows, fan_in, fan_out)
    out = run_product("weight_gradient", dtype, sizes, memory.values, *numbers)
    dW = Precision(dtype).product(Bounded.exact(A.T), Bounded.exact(dZ))
    added = before[:, :fan_out].astype(np.float64)
    total = dW.value + 1 + added
    rounding = 2 * Precision(dtype).unit * (np.abs(dW.value) + dW.error + 1 + np.abs(added))
    dW = Bounded(total, dW.error + rounding)
    check(memory.values, out, start, stride, dW, "dW")


# Between them: labels, fused and plain outputs, kept inputs inside and at the end, one layer,
# weights of rows, dropout; the second has a tile for all of its batch, the others several.
PROBLEMS = [
    Problem((4, 5, 3), ("tanh", "identity"), "softmax_cross_entropy", labels=True),
    Problem((3, 4, 3, 2), ("silu", "relu", "sigmoid"), "binary_cross_entropy"),
    Problem((2, 4, 3), ("gelu", "softplus"), "poisson", reduction="sum"),
    Problem((3, 2), ("tanh",), "huber(delta=0.7)", reduction="batch_mean"),
    Problem((2, 5, 2, 1), ("softplus", "exp", "silu"), "squared_error"),
    Problem((3, 4, 4), ("tanh", "identity"), "gaussian_nll(epsilon=0.01)"),
    DROPPED,
    DROPPED_AND_CLIPPED,
]
SPARE = 5


@functools.cache
def tile_kernel(form, threads, rows, tile_columns):
    """Return a kernel that adds a batch's gradient to one in global memory, tile by tile."""
    parts = chain.build(form, threads, rows, True, tile_columns)
    kind, row_pad = getattr(numba, form.number), form.row_pad
    nothing, adds_losses = np.float32(np.nan), chain.loss_thread(threads)

    @cuda_kernel
    def kernel(
        parameters,
        X,
        y,
        order,
        factors,
        hyper,
        keep_scales,
        weighted,
        losses,
        gradient,
        words,
        count,
    ):
        numbers = cuda.shared.array(0, kind, SHARED_ALIGNMENT)
        t, tile = index32(cuda.threadIdx.x), wide(tile_of(words).rows)
        for k in range(wide(t), wide(tile_of(words).numbers_used), threads):
            numbers[k] = nothing
        cuda.syncthreads()
        parts.load(numbers, numbers, words, parameters[SPARE:], t)
        total = losses.dtype.type(0)
        for start in range(0, count, tile):
            size = index32(min(tile, count - start))
            rows = (size + row_pad - 1) // row_pad * row_pad
            parts.gather(numbers, numbers, words, X, y, order, start, size, rows, t)
            cuda.syncthreads()
            dropping = tile_dropout(hyper, index32(0), start, keep_scales)
            parts.forward(numbers, numbers, words, dropping, rows, t)
            parts.loss(numbers, numbers, words, factors, start * weighted, weighted, size, rows, t)
            cuda.syncthreads()
            total = parts.add_losses(numbers, words, rows, total, t)
            parts.backward(numbers, numbers, words, dropping, gradient, index32(SPARE), rows, t)
            cuda.syncthreads()
        if t == adds_losses:
            losses[0] = total

    return kernel


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("index", range(len(PROBLEMS)))
def test_tiles_of_a_batch(index, weighted, sizes):
    dtype, batch = DTYPES[(index + weighted) % 2], max(8, 2 * sizes[1])
    count = batch - 1
    problem = dataclasses.replace(PROBLEMS[index], dtype=dtype, batch_size=batch, rows=batch)
    # Without a state, which would leave shared memory before any row did.
    problem = dataclasses.replace(problem, optimizer="sgd")
    data = sample(problem, seed=index, weighted=weighted)
    form = float_form(dtype, *sizes[1:])
    whole = place(problem, form, sizes[0], 1 << 20, gradient_shared=False)
    assert whole.rows == batch
    # Room for half of it.
    half = whole if index == 1 else place(problem, form, sizes[0], whole.shared_bytes - 1, False)
    assert index == 1 or half.rows == batch // 2
    factors = data.factors if weighted else np.array([problem.scale(count)], dtype)
    around = np.full(SPARE, np.nan, dtype)
    parameters = np.concatenate([around, data.parameters, around])
    before = normal(data.parameters.shape, dtype, 9, 0.01)
    gradient = np.concatenate([around, before, around])
    losses = np.zeros(1, dtype)
    scales = np.array([1 / (1 - share) for share in problem.dropout], dtype)
    arrays = (data.X, data.y, data.order, factors, data.hyper[0], scales)
    held = [cuda.to_device(array) for array in (parameters, *arrays, losses, gradient)]
    kernel = tile_kernel(form, sizes[0], chain.rows_in_use(problem), sizes[2])
    words = cuda.to_device(half.table(problem))
    kernel[1, sizes[0], 0, half.shared_bytes](*held[:7], int(weighted), *held[7:], words, count)
    rows = data.order[:count]
    own = factors[:count] if weighted else None
    batch = (data.parameters, data.X[rows], data.y[rows], own, data.hyper[0])
    oracle = tolerances.step(problem, *batch)
    compare(held[7].copy_to_host(), oracle.loss, "loss")
    actual, value = held[8].copy_to_host(), oracle.gradient.value + before
    assert np.isnan(actual[:SPARE]).all() and np.isnan(actual[-SPARE:]).all()
    error = oracle.gradient.error + 3 * Precision(dtype).unit * (np.abs(value) + np.abs(before))
    compare(actual[SPARE:-SPARE], Bounded(value, error), "gradient")
