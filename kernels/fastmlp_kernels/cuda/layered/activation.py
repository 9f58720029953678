"""Activations over device arrays: one thread an element, the algebra's rows selected by code.

`linear` fuses them into its products. Where a library computes the products, one kernel a direction
does what is left of a layer: `bias_and_activation` forward, `slope_and_sums` backward.
"""

import functools
from typing import Any

import numpy as np
from numba import cuda

from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.compile import cuda_kernel, cuda_part, cuda_switch
from fastmlp_kernels.cuda.layered.bfloat16 import bfloat16_bits
from fastmlp_kernels.cuda.sums import is_last

# Every thread of a launch takes the same branch.
activation_value = cuda_switch([row.value for row in ACTIVATIONS])
activation_slope = cuda_switch([row.slope for row in ACTIVATIONS])

IDENTITY = ACTIVATIONS.code("identity")
# Rows that a thread of `slope_and_sums` takes: a block's share of the sums is this times its lanes.
ROWS_OF_A_LANE = 16


@cuda_kernel
def activation_forward(Z, activation, rows, out):
    """Write f(Z) to `out`.

    Parameters
    ----------
    Z, out : dtype[batch, units], C-contiguous
        Read and written; may be the same array.
    activation : int
        Code of the row of ACTIVATIONS.
    rows : int
        Rows used, from the first.

    Notes
    -----
    Launch: a thread an element of the rows used. Cost: one read and one write of ``rows * units``
    elements. Accuracy: that of CUDA's library, 2 units in the last place for the exponential
    family. Source: `algebra.activations`.
    """
    index = cuda.grid(1)
    units = out.shape[1]
    if index < rows * units:
        i = index // units
        j = index - i * units
        out[i, j] = activation_value(activation, Z[i, j])


@cuda_kernel
def activation_backward(Z, A, activation, rows, dZ):
    """Multiply dZ, which holds dA on entry, by the slope of the activation, in place.

    Parameters
    ----------
    Z, A : dtype[batch, units], C-contiguous
        Pre-activation and activation, of which the one that the activation keeps counts; may be
        the same array.
    activation, rows : int
        Code of the row of ACTIVATIONS, and the rows used, from the first.
    dZ : dtype[batch, units], C-contiguous
        Read and written; distinct from Z and A.

    Notes
    -----
    Launch: a thread an element of the rows used. Cost: three reads and a write of
    ``rows * units`` elements. Source: ``dZ = dA * f'(Z)``, with f' from `algebra.activations`.
    """
    index = cuda.grid(1)
    units = dZ.shape[1]
    if index < rows * units:
        i = index // units
        j = index - i * units
        dZ[i, j] *= activation_slope(activation, Z[i, j], A[i, j])


@cuda_kernel
def bias_and_activation(Z, b, activation, rows, out, rounded):
    """Compute ``Z += b`` and ``out = f(Z)``, and round the result for the next product.

    Parameters
    ----------
    Z : dtype[batch, units], C-contiguous, read and written
    b : dtype[units] or dtype[0], read
        Empty where the product has added it.
    activation, rows : int
        Code of the row of ACTIVATIONS, and the rows used, from the first.
    out : dtype[batch, units], C-contiguous, written
        `Z` itself exactly when the activation keeps its output.
    rounded : uint16[batch, stride] or uint16[0, 0], written
        Where it has elements, `out` goes there as bfloat16 too.

    Notes
    -----
    Launch: a thread an element of the rows used. Cost: one read and two or three writes of
    ``rows * units`` elements. Accuracy: one more rounding than a sum that begins with the bias.
    Source: the derivation sheet, ``z = W x + b``.
    """
    index = cuda.grid(1)
    units = out.shape[1]
    if index < rows * units:
        i = index // units
        j = index - i * units
        z = Z[i, j] + b[j] if b.size > 0 else Z[i, j]
        # In this order, as the two may be one array.
        Z[i, j] = z
        a = activation_value(activation, z)
        out[i, j] = a
        if rounded.size > 0:
            rounded[i, j] = bfloat16_bits(a)


@cuda_part
def _slopes(Z, A, activation, rows, j, dZ, rounded):
    """Turn dA into dZ in column `j` of `rows`, a range; return the sum."""
    total = dZ.dtype.type(0)
    for i in rows:
        value = dZ[i, j]
        if activation != IDENTITY:
            value *= activation_slope(activation, Z[i, j], A[i, j])
            dZ[i, j] = value
        if rounded.size > 0:
            rounded[i, j] = bfloat16_bits(value)
        total += value
    return total


@cuda_part
def _over_lanes(sums, total, x, y, lanes):
    """Return to thread (x, 0) the sum of the totals of column x, in the order of the lanes."""
    sums[y, x] = total
    cuda.syncthreads()
    if y == 0:
        for lane in range(1, lanes):
            total += sums[lane, x]
    return total


@functools.cache
def build(columns: int, lanes: int) -> Any:
    """Return `slope_and_sums` for blocks of (columns, lanes) threads."""
    rows_of_a_block = lanes * ROWS_OF_A_LANE

    @cuda_kernel
    def slope_and_sums(Z, A, activation, rows, accumulate, dZ, partial, arrivals, db, rounded):
        """Turn dA into dZ in place, round it for the next products, and sum its columns into db.

        Parameters
        ----------
        Z, A : dtype[batch, units], C-contiguous, read
            Pre-activation and activation; may be the same array.
        activation, rows : int
            Code of the row of ACTIVATIONS, and the rows used, from the first.
        accumulate : int
            1 adds to `db`, 0 overwrites it.
        dZ : dtype[batch, units], C-contiguous, read and written
            dA on entry; distinct from Z and A.
        partial : dtype[blocks of rows * units], written
            The sums of each block.
        arrivals : int32[blocks of columns], read and written
            Zeros on entry and at the end: blocks that have written their sums.
        db : dtype[units], written
        rounded : uint16[batch, stride] or uint16[0, 0], written
            Where it has elements, dZ goes there as bfloat16 too.

        Notes
        -----
        Launch: grid (blocks of ``lanes * ROWS_OF_A_LANE`` rows, blocks of columns). Cost: three
        reads and a write of ``rows * units`` elements. The last block of some columns to arrive
        adds up what the others have written, block by block: which one that is changes no bit, as
        the order is that of the blocks' numbers. The counts are integers; no float is added by an
        atomic. Accuracy: error of a sum at most ``(ROWS_OF_A_LANE + lanes + blocks) u`` of the sum
        of magnitudes. Source: ``dZ = dA * f'(Z)``, ``dl/db = dl/dz``; a last block that adds up is
        the scheme of the CUDA samples' threadFenceReduction.
        """
        sums = cuda.shared.array((lanes, columns), dZ.dtype)
        flag = cuda.shared.array(1, np.int32)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        units, blocks = dZ.shape[1], cuda.gridDim.x
        j = cuda.blockIdx.y * columns + x
        top = cuda.blockIdx.x * rows_of_a_block
        total = dZ.dtype.type(0)
        if j < units:
            mine = range(top + y, min(top + rows_of_a_block, rows), lanes)
            total = _slopes(Z, A, activation, mine, j, dZ, rounded)
        total = _over_lanes(sums, total, x, y, lanes)
        if y == 0 and j < units:
            partial[cuda.blockIdx.x * units + j] = total
        if not is_last(arrivals, cuda.blockIdx.y, blocks, flag, y * columns + x):
            return
        total = dZ.dtype.type(0)
        if j < units:
            for block in range(y, blocks, lanes):
                total += partial[block * units + j]
        total = _over_lanes(sums, total, x, y, lanes)
        if y == 0 and j < units:
            db[j] = db[j] + total if accumulate != 0 else total

    return slope_and_sums
