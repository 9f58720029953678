"""The three products of a linear layer, in square tiles of shared memory.

A block of ``tile * tile`` threads computes one tile of the result, a thread an element. Beyond the
edges the tiles hold zeros, so that any shape works and adds nothing to a sum. No atomics: every
element is one thread's sum in a fixed order, so that a result is the same at every run.
"""

import functools
from typing import Any, NamedTuple

from numba import cuda

from fastmlp_kernels.compile import cuda_kernel
from fastmlp_kernels.cuda.activation import activation_value


class Products(NamedTuple):
    """The kernels of a linear layer for one tile size."""

    linear_forward: Any
    linear_backward: Any
    weight_gradient: Any


@functools.cache
def build(tile: int) -> Products:
    """Return the products in tiles of ``tile`` by ``tile``; blocks must be (tile, tile)."""
    return Products(_forward(tile), _backward(tile), _gradient(tile))


def _forward(tile: int) -> Any:
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
        A and W are read once a tile of the other. Aliasing: A and W overlap neither output.
        Accuracy: each element is one chain of fused multiply-adds, k ascending, whatever `rows`
        is: a row's result does not depend on the rows beside it; error at most
        ``(fan_in + 1) u (|A| |W| + |b|)``. Source: the derivation sheet, ``z = W x + b``.
        """
        left = cuda.shared.array((tile, tile), A.dtype)
        right = cuda.shared.array((tile, tile), A.dtype)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        i = cuda.blockIdx.x * tile + y
        j = cuda.blockIdx.y * tile + x
        fan_in, fan_out = W.shape[0], W.shape[1]
        zero = A.dtype.type(0)
        total = b[j] if j < fan_out else zero
        for start in range(0, fan_in, tile):
            left[y, x] = A[i, start + x] if i < rows and start + x < fan_in else zero
            right[y, x] = W[start + y, j] if start + y < fan_in and j < fan_out else zero
            cuda.syncthreads()
            for k in range(tile):
                total += left[y, k] * right[k, x]
            cuda.syncthreads()
        if i < rows and j < fan_out:
            # In this order, as the two may be one array.
            Z[i, j] = total
            out[i, j] = activation_value(activation, total)

    return linear_forward


def _backward(tile: int) -> Any:
    # Threads of a warp read W's tile down a column: without a spare column, one memory bank.
    padded = tile + 1

    @cuda_kernel
    def linear_backward(dZ, W, rows, dA):
        """Compute ``dA = dZ W^T``.

        Parameters
        ----------
        dZ : dtype[batch, fan_out], C-contiguous, read
        W : dtype[fan_in, fan_out], C-contiguous, read
        rows : int
            Rows used, from the first.
        dA : dtype[batch, fan_in], C-contiguous, written
            Overlaps neither input.

        Notes
        -----
        Launch: grid (tiles of rows, tiles of fan_in). Cost: ``2 rows fan_in fan_out`` flops.
        Accuracy: one chain of fused multiply-adds an element, outputs ascending; error at most
        ``fan_out u |dZ| |W|^T``. Source: the chain rule, ``dl/da = W dl/dz``.
        """
        left = cuda.shared.array((tile, tile), dZ.dtype)
        right = cuda.shared.array((tile, padded), dZ.dtype)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        i = cuda.blockIdx.x * tile + y
        top = cuda.blockIdx.y * tile
        fan_in, fan_out = W.shape[0], W.shape[1]
        zero = dZ.dtype.type(0)
        total = zero
        for start in range(0, fan_out, tile):
            inside = start + x < fan_out
            left[y, x] = dZ[i, start + x] if i < rows and inside else zero
            right[y, x] = W[top + y, start + x] if top + y < fan_in and inside else zero
            cuda.syncthreads()
            for j in range(tile):
                total += left[y, j] * right[x, j]
            cuda.syncthreads()
        if i < rows and top + x < fan_in:
            dA[i, top + x] = total

    return linear_backward


def _gradient(tile: int) -> Any:
    @cuda_kernel
    def weight_gradient(A, dZ, rows, accumulate, dW, db):
        """Compute ``dW = A^T dZ`` and ``db = sum of the rows of dZ``, or add them.

        Parameters
        ----------
        A : dtype[batch, fan_in], C-contiguous, read
        dZ : dtype[batch, fan_out], C-contiguous, read
        rows : int
            Rows used, from the first.
        accumulate : int
            1 adds to `dW` and `db`, 0 overwrites them.
        dW : dtype[fan_in, fan_out], C-contiguous; db : dtype[fan_out]
            Written; overlap neither input.

        Notes
        -----
        Launch: grid (tiles of fan_in, tiles of fan_out); the blocks of the first tile of fan_in
        also sum the columns. Cost: ``2 rows fan_in fan_out`` flops. Accuracy: one chain of fused
        multiply-adds an element, rows ascending; error at most ``rows u |A|^T |dZ|``. Source: the
        derivation sheet, ``dl/dW = x dl/dz``.
        """
        left = cuda.shared.array((tile, tile), dZ.dtype)
        right = cuda.shared.array((tile, tile), dZ.dtype)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        top = cuda.blockIdx.x * tile
        j = cuda.blockIdx.y * tile + x
        fan_in, fan_out = dW.shape[0], dW.shape[1]
        sums_column = cuda.blockIdx.x == 0 and y == 0 and j < fan_out
        zero = dZ.dtype.type(0)
        inside = top + y < fan_in and j < fan_out
        total = dW[top + y, j] if accumulate != 0 and inside else zero
        column = db[j] if accumulate != 0 and sums_column else zero
        for start in range(0, rows, tile):
            row = start + y
            left[y, x] = A[row, top + x] if row < rows and top + x < fan_in else zero
            right[y, x] = dZ[row, j] if row < rows and j < fan_out else zero
            cuda.syncthreads()
            for i in range(tile):
                total += left[i, y] * right[i, x]
            if sums_column:
                for i in range(tile):
                    column += right[i, x]
            cuda.syncthreads()
        if inside:
            dW[top + y, j] = total
        if sums_column:
            db[j] = column

    return weight_gradient
