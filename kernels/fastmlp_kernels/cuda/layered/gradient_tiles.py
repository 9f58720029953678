"""What `linear.weight_gradient` consists of: its table, how it loads, and how it adds up slices."""

import itertools
import math
from typing import Any

import numpy as np
from numba import cuda

from fastmlp_kernels.compile import cuda_part
from fastmlp_kernels.cuda.layered.workspace import Layer

# Columns of the table, a row a tile: where it begins in the result; its layer's sizes; where that
# layer's inputs, dZ, weights and biases begin in the flat arrays; whether it is the first layer.
TOP, LEFT, FAN_IN, FAN_OUT, ACTIVATION, DELTA, WEIGHT, BIAS, FIRST = range(9)
TABLE_COLUMNS = 9


def gradient_table(layers: list[Layer], side: int, training: bool) -> np.ndarray:
    """Return the table of `weight_gradient`: int64[tiles, TABLE_COLUMNS].

    Parameters
    ----------
    layers : list of Layer
    side : int
        Rows, and columns, of a tile.
    training : bool
        Whether layers have read what dropout leaves.
    """
    rows = []
    for index, layer in enumerate(layers):
        layout = layer.layout
        row = np.zeros(TABLE_COLUMNS, np.int64)
        if index == 0:
            row[FIRST] = 1
        else:
            below = layers[index - 1].places
            row[ACTIVATION] = below.dropped if training else below.A
        row[[FAN_IN, FAN_OUT, DELTA]] = layout.fan_in, layout.fan_out, layer.places.dZ
        row[[WEIGHT, BIAS]] = layout.weight.start, layout.bias.start
        tops, lefts = range(0, layout.fan_in, side), range(0, layout.fan_out, side)
        for row[TOP], row[LEFT] in itertools.product(tops, lefts):
            rows.append(row.copy())
    return np.array(rows)


def load_of(tile: int, registers: int, depth: int) -> Any:
    """Return what fills a slice from a matrix in a flat array."""
    side, threads = tile * registers, tile * tile
    elements = side * depth

    @cuda_part
    def load(slice_, flat, begin, stride, first, start, stop, t):
        """Fill ``slice_[k, n]`` with element (start + k, first + n) of a matrix in a flat array.

        Zeros from row `stop` and column `stride` on.
        """
        zero = flat.dtype.type(0)
        for element in range(t, elements, threads):
            k = element // side
            n = element - k * side
            inside = start + k < stop and first + n < stride
            slice_[k, n] = flat[begin + (start + k) * stride + first + n] if inside else zero

    return load


@cuda_part
def _add_slices(gradient, partial, slices, place, accumulate):
    """Write a parameter's gradient, the sum of the slices; return whether it is finite."""
    value = partial[place]
    for number in range(1, slices):
        value += partial[number * gradient.size + place]
    if accumulate != 0:
        value += gradient[place]
    gradient[place] = value
    return math.isfinite(value)


@cuda_part
def finish(gradient, partial, slices, rows, columns, table, number, accumulate, sums_columns):
    """Add up the slices of what a thread has written itself; return whether all is finite.

    It keeps no register for each element.
    """
    weight, bias, fan_out = table[number, WEIGHT], table[number, BIAS], table[number, FAN_OUT]
    finite = True
    for column in columns:
        if sums_columns:
            finite &= _add_slices(gradient, partial, slices, bias + column, accumulate)
        for row in rows:
            place = weight + row * fan_out + column
            finite &= _add_slices(gradient, partial, slices, place, accumulate)
    return finite


def column_sums_of(registers: int, depth: int) -> tuple[Any, Any]:
    """Return what sets a thread's sums to zero, and what adds to those of its columns."""

    @cuda_part
    def zero(total, column_sums):
        """Set a thread's sums to zero."""
        for c in range(registers):
            column_sums[c] = column_sums.dtype.type(0)
            for r in range(registers):
                total[r, c] = total.dtype.type(0)

    @cuda_part
    def add_rows(column_sums, right, column):
        """Add every row of a slice to a thread's sums of columns, in order."""
        for k in range(depth):
            for c in range(registers):
                column_sums[c] += right[k, column + c]

    return zero, add_rows


def keep_of(registers: int) -> Any:
    """Return what writes a thread's sums beside those of the other slices."""

    @cuda_part
    def keep(total, column_sums, partial, count, table, number, i, j, sums_columns):
        """Write a thread's sums to their places among those of its slice."""
        # Read here, so that no register holds them during the sums.
        own, fan_in, fan_out = (
            cuda.blockIdx.y * count,
            table[number, FAN_IN],
            table[number, FAN_OUT],
        )
        weight, bias = own + table[number, WEIGHT], own + table[number, BIAS]
        for c in range(registers):
            if j + c < fan_out:
                if sums_columns:
                    partial[bias + j + c] = column_sums[c]
                for r in range(registers):
                    if i + r < fan_in:
                        partial[weight + (i + r) * fan_out + j + c] = total[r, c]

    return keep
