"""The three products of a linear layer, in tiles of shared memory and of registers.

A block of ``tile`` by ``tile`` threads computes ``registers * tile`` rows by as many columns of the
result, a thread ``registers`` squared neighbours of it: each number that a thread reads from
shared memory goes into `registers` multiply-adds. The sum goes over slices of ``depth`` terms.
Beyond the edges the slices hold zeros, so that any shape works and adds nothing to a sum. No
atomics: every element is one thread's sum in a fixed order, so that a result is the same at every
run. The gradients of all layers' weights and biases are one launch: a layer is independent of the
others once every dZ is there, and slices of rows keep more blocks busy than a network has tiles.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from fastmlp_kernels.compile import cuda_kernel, cuda_part, simulated
from fastmlp_kernels.cuda.layered.activation import IDENTITY, activation_slope, activation_value
from fastmlp_kernels.cuda.layered.gather import BATCH
from fastmlp_kernels.cuda.layered.gradient_tiles import (
    ACTIVATION,
    DELTA,
    FAN_IN,
    FAN_OUT,
    FIRST,
    LEFT,
    TOP,
    column_sums_of,
    finish,
    keep_of,
    load_of,
)
from fastmlp_kernels.cuda.sums import is_last
from fastmlp_kernels.problem import STATUS

# Four words: a row of a slice begins where four of them can be read at once, and a column that is
# written down does not fall into one memory bank.
PAD = 4
# So that a thread's neighbours are read as one vector; the simulator knows no alignment.
VECTOR_BYTES = None if simulated() else 16


class Products(NamedTuple):
    """The kernels of a linear layer for one choice of tiles."""

    linear_forward: Any
    linear_backward: Any
    weight_gradient: Any


@functools.cache
def build(tile: int, registers: int = 4, depth: int = 16) -> Products:
    """Return the products for blocks of (tile, tile) threads; see the module's docstring."""
    parts = _parts(tile, registers, depth)
    shape = (tile, registers, depth)
    return Products(_forward(parts, *shape), _backward(parts, *shape), _gradient(*shape))


class _Parts(NamedTuple):
    """What the kernels share: two ways to fill a slice, its sums, and where they go."""

    along: Any
    across: Any
    add: Any
    store: Any


def _parts(tile: int, registers: int, depth: int) -> _Parts:
    return _Parts(*_loads(tile, registers, depth), *_sums(registers, depth))


def _loads(tile: int, registers: int, depth: int) -> tuple[Any, Any]:
    side, threads = tile * registers, tile * tile
    elements = side * depth

    @cuda_part
    def along(slice_, M, first, end, start, stop, t):
        """Fill ``slice_[k, n] = M[start + k, first + n]``, zeros from `stop` and `end` on."""
        zero = M.dtype.type(0)
        for element in range(t, elements, threads):
            k = element // side
            n = element - k * side
            inside = start + k < stop and first + n < end
            slice_[k, n] = M[start + k, first + n] if inside else zero

    @cuda_part
    def across(slice_, M, first, end, start, stop, t):
        """Fill ``slice_[k, n] = M[first + n, start + k]``, zeros from `end` and `stop` on."""
        zero = M.dtype.type(0)
        for element in range(t, elements, threads):
            n = element // depth
            k = element - n * depth
            inside = start + k < stop and first + n < end
            slice_[k, n] = M[first + n, start + k] if inside else zero

    return along, across


def _term(registers: int) -> Any:
    @cuda_part
    def add_term(total, left, right, k, row, column):
        """Add term k of every element of a thread."""
        for r in range(registers):
            for c in range(registers):
                total[r, c] += left[k, row + r] * right[k, column + c]

    return add_term


def _sums(registers: int, depth: int) -> tuple[Any, Any]:
    add_term = _term(registers)
    # Written out by fours: a loop's own instructions are as many as the multiply-adds of one term.
    by_fours = depth - depth % 4

    @cuda_part
    def add(total, left, right, row, column):
        """Add every term of a slice to a thread's elements, in order."""
        for k in range(0, by_fours, 4):
            add_term(total, left, right, k, row, column)
            add_term(total, left, right, k + 1, row, column)
            add_term(total, left, right, k + 2, row, column)
            add_term(total, left, right, k + 3, row, column)
        for k in range(by_fours, depth):
            add_term(total, left, right, k, row, column)

    @cuda_part
    def store(total, out, i, j, rows, columns):
        """Write a thread's elements to `out` from (i, j) on, where it has such rows and columns."""
        for r in range(registers):
            for c in range(registers):
                if i + r < rows and j + c < columns:
                    out[i + r, j + c] = total[r, c]

    return add, store


def _forward(parts: _Parts, tile: int, registers: int, depth: int) -> Any:
    side, padded = tile * registers, tile * registers + PAD
    load_along, load_across, add_slices, store = parts

    @cuda_kernel
    def linear_forward(A, W, b, activation, rows, Z, out):
        """Compute ``Z = A W + b`` and ``out = f(Z)``.

        Parameters
        ----------
        A : dtype[batch, fan_in], C-contiguous, read
        W : dtype[fan_in, fan_out], C-contiguous, read
        b : dtype[fan_out], read
        activation : int
            Code of the row of ACTIVATIONS.
        rows : int
            Rows used, from the first; the others of `Z` and `out` are left alone.
        Z, out : dtype[batch, fan_out], C-contiguous, written
            The same array exactly when the activation keeps its output.

        Notes
        -----
        Launch: grid (tiles of rows, tiles of fan_out). Cost: ``2 rows fan_in fan_out`` flops;
        A and W are read once a tile of the other, Z once more where there is an activation.
        Aliasing: A and W overlap neither output. Accuracy: each element is one chain of fused
        multiply-adds that begins with the bias, k ascending, whatever `rows` is: a row's result
        does not depend on the rows beside it; error at most
        ``(fan_in + 1) u (|A| |W| + |b|)``. Source: the derivation sheet, ``z = W x + b``.
        """
        left = cuda.shared.array((depth, padded), A.dtype, VECTOR_BYTES)
        right = cuda.shared.array((depth, padded), A.dtype, VECTOR_BYTES)
        total = cuda.local.array((registers, registers), A.dtype)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        t = y * tile + x
        top, start_column = cuda.blockIdx.x * side, cuda.blockIdx.y * side
        i, j = top + y * registers, start_column + x * registers
        fan_in, fan_out = W.shape[0], W.shape[1]
        for c in range(registers):
            first = b[j + c] if j + c < fan_out else A.dtype.type(0)
            for r in range(registers):
                total[r, c] = first
        for start in range(0, fan_in, depth):
            load_across(left, A, top, rows, start, fan_in, t)
            load_along(right, W, start_column, fan_out, start, fan_in, t)
            cuda.syncthreads()
            add_slices(total, left, right, y * registers, x * registers)
            cuda.syncthreads()
        store(total, Z, i, j, rows, fan_out)
        if activation != IDENTITY:
            # Each thread reads what it has just written: an activation in the loops above would
            # be in the code `registers` squared times.
            for row in range(i, min(i + registers, rows)):
                for column in range(j, min(j + registers, fan_out)):
                    out[row, column] = activation_value(activation, Z[row, column])

    return linear_forward


def _backward(parts: _Parts, tile: int, registers: int, depth: int) -> Any:
    side, padded = tile * registers, tile * registers + PAD
    load_across, add_slices, store = parts.across, parts.add, parts.store

    @cuda_kernel
    def linear_backward(dZ, W, rows, activation, Z, A, dA):
        """Compute ``dA = dZ W^T``, times the slope of the layer below.

        Parameters
        ----------
        dZ : dtype[batch, fan_out], C-contiguous, read
        W : dtype[fan_in, fan_out], C-contiguous, read
        rows : int
            Rows used, from the first.
        activation : int
            Code of the activation of the layer below; the identity leaves dA as it is.
        Z, A : dtype[batch, fan_in], C-contiguous, read
            That layer's pre-activation and activation; may be the same array, and with the
            identity any.
        dA : dtype[batch, fan_in], C-contiguous, written
            Overlaps no input; with the identity it may be Z and A.

        Notes
        -----
        Launch: grid (tiles of rows, tiles of fan_in). Cost: ``2 rows fan_in fan_out`` flops.
        Accuracy: one chain of fused multiply-adds an element, outputs ascending; error at most
        ``fan_out u |dZ| |W|^T``, and that of the slope. Source: the chain rule,
        ``dl/da = W dl/dz`` and ``dl/dz = dl/da f'(z)``.
        """
        left = cuda.shared.array((depth, padded), dZ.dtype, VECTOR_BYTES)
        right = cuda.shared.array((depth, padded), dZ.dtype, VECTOR_BYTES)
        total = cuda.local.array((registers, registers), dZ.dtype)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        t = y * tile + x
        top, start_column = cuda.blockIdx.x * side, cuda.blockIdx.y * side
        i, j = top + y * registers, start_column + x * registers
        fan_in, fan_out = W.shape[0], W.shape[1]
        for r in range(registers):
            for c in range(registers):
                total[r, c] = dZ.dtype.type(0)
        for start in range(0, fan_out, depth):
            load_across(left, dZ, top, rows, start, fan_out, t)
            load_across(right, W, start_column, fan_in, start, fan_out, t)
            cuda.syncthreads()
            add_slices(total, left, right, y * registers, x * registers)
            cuda.syncthreads()
        store(total, dA, i, j, rows, fan_in)
        if activation != IDENTITY:
            for row in range(i, min(i + registers, rows)):
                for column in range(j, min(j + registers, fan_in)):
                    slope = activation_slope(activation, Z[row, column], A[row, column])
                    dA[row, column] *= slope

    return linear_backward


def _gradient(tile: int, registers: int, depth: int) -> Any:
    padded, shape = tile * registers + PAD, (registers, registers)
    load, add_slices = load_of(tile, registers, depth), _sums(registers, depth)[0]
    (zero, add_rows), keep = column_sums_of(registers, depth), keep_of(registers)

    @cuda_kernel
    def weight_gradient(
        inputs,
        activations,
        deltas,
        table,
        rows,
        slice_rows,
        accumulate,
        gradient,
        partial,
        arrivals,
        counter,
        status,
    ):
        """Compute ``dW = A^T dZ`` and ``db = sum of the rows of dZ`` of every layer, or add them.

        Parameters
        ----------
        inputs, activations, deltas : dtype[n], read
            The first layer's A, those of the others, and each layer's dZ: matrices, one after
            the other, of `rows` rows and more.
        table : int64[tiles, TABLE_COLUMNS], read
            See `gradient_tiles`.
        rows, slice_rows : int
            Rows used, from the first, and those of a slice.
        accumulate : int
            1 adds to `gradient`, 0 overwrites it.
        gradient : dtype[P]; partial : dtype[slices * P]
            Written, the second with the sums of each slice.
        arrivals : int32[tiles], read and written
            Zeros on entry and at the end: slices of a tile that have written their sums.
        counter : int64[2]; status : int64[3]
            As those of `check_finite`, which notes in them what is not finite.

        Notes
        -----
        Launch: grid (tiles, slices). The blocks of the first tile of fan_in also sum the columns.
        Cost: ``2 rows fan_in fan_out`` flops a layer, and two passes over `partial`. Accuracy: a
        chain of fused multiply-adds, rows ascending; the last block to arrive adds the slices in
        their order, so that which one that is changes no bit. Error at most
        ``(slice_rows + slices) u |A|^T |dZ|``. Threads may race for `status`, as in
        `check_finite`. Source: the derivation sheet, ``dl/dW = x dl/dz``.
        """
        left = cuda.shared.array((depth, padded), gradient.dtype, VECTOR_BYTES)
        right = cuda.shared.array((depth, padded), gradient.dtype, VECTOR_BYTES)
        flag, total = cuda.shared.array(1, np.int32), cuda.local.array(shape, gradient.dtype)
        column_sums = cuda.local.array(registers, gradient.dtype)
        x, y, number = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockIdx.x
        t, slices = y * tile + x, cuda.gridDim.y
        fan_in, fan_out = table[number, FAN_IN], table[number, FAN_OUT]
        top, start_column = table[number, TOP], table[number, LEFT]
        begin, delta = table[number, ACTIVATION], table[number, DELTA]
        A = inputs if table[number, FIRST] != 0 else activations
        zero(total, column_sums)
        first = cuda.blockIdx.y * slice_rows
        stop, sums_columns = min(first + slice_rows, rows), top == 0 and y == 0
        for start in range(first, stop, depth):
            load(left, A, begin, fan_in, top, start, stop, t)
            load(right, deltas, delta, fan_out, start_column, start, stop, t)
            cuda.syncthreads()
            add_slices(total, left, right, y * registers, x * registers)
            if sums_columns:
                add_rows(column_sums, right, x * registers)
            cuda.syncthreads()
        i, j = top + y * registers, start_column + x * registers
        keep(total, column_sums, partial, gradient.size, table, number, i, j, sums_columns)
        if slices == 1 or is_last(arrivals, number, slices, flag, t):
            mine = range(i, min(i + registers, fan_in)), range(j, min(j + registers, fan_out))
            others = (table, number, accumulate, sums_columns)
            finite = finish(gradient, partial, slices, *mine, *others)
            if not finite and status[STATUS] == 0:
                status[STATUS] = counter[BATCH] + 1

    return weight_gradient
