"""The products of a layer in shared memory by registers and fused multiply-adds.

A thread computes tiles of ``tile_rows`` by ``tile_columns`` elements of the result in registers.
The tiles are numbered row by row and dealt out to the threads in turn, so that a block of any size
computes a result of any size, and a narrow layer leaves no thread without work that a wide one
would not.

Which elements make up a tile decides whether the threads of a warp meet in a bank of shared memory
(32 banks of 4 bytes; a load of 16 bytes is served for 8 threads at a time). Neighbouring threads
have neighbouring tiles of one row of tiles.

- Along an axis on which an operand is contiguous a tile is neighbours: one load of 16 bytes, and
  8 neighbouring threads read 128 bytes that lie together.
- Along an axis on which it is strided the elements of a tile are as far apart as there are tiles,
  so that neighbouring threads read neighbouring rows. A stride is an odd number of 16 bytes (see
  `placement.row_stride`), so that the 16 bytes that 8 neighbouring rows begin with lie in different
  banks.

Threads that read the same 16 bytes share one access.
"""

import functools
from typing import Any, NamedTuple

import numba
from numba import cuda

from fastmlp_kernels.compile import cuda_inlined, cuda_part
from fastmlp_kernels.cuda.on_chip.offsets import SMALL, multiple_of
from fastmlp_kernels.cuda.on_chip.products import BlockProducts, Epilogues

# Terms of a sum that are taken at a time: a load of 16 bytes of float32, two of float64.
VECTOR = 4


class Tile(NamedTuple):
    """Elements of a result that a thread holds at a time; powers of two, columns up to `VECTOR`.

    `vector` is how many elements 16 bytes are.
    """

    rows: int
    columns: int
    vector: int


class SecondPass(NamedTuple):
    """What is left to do for each element of a tile once an epilogue has stored all of them.

    A sixteenfold copy of a long rule is more than the compiler unrolls, and what it does not unroll
    keeps the tile out of registers, in local memory, throughout the product. So an epilogue stores,
    and the rule comes in a loop of its own: ``forward(operands, numbers, words, layer, i, j)``, and
    `backward` likewise; None where the epilogue does everything.
    """

    forward: Any = None
    backward: Any = None


@cuda_part
def exact(value):
    """Return a number as an operand, or an operand as a number: here they are the same."""
    return value


@functools.cache
def build(
    threads: int,
    dtype: str,
    epilogues: Epilogues,
    tile_rows: int = 4,
    tile_columns: int = 4,
    second_pass: SecondPass = SecondPass(),  # noqa: B008 (a value, never changed)
) -> BlockProducts:
    """Return the products for a block of that many threads.

    Parameters
    ----------
    threads : int
    dtype : {"float32", "float64"}
        Of operands and numbers alike.
    epilogues : Epilogues
    tile_rows, tile_columns : int
        See `Tile`.
    second_pass : SecondPass
    """
    # 16 bytes.
    vector = 4 if dtype == "float32" else 2
    tile = Tile(tile_rows, tile_columns, vector)
    return BlockProducts(
        forward=_forward(threads, _finish(epilogues.forward, second_pass.forward, tile), tile),
        backward=_backward(threads, _finish(epilogues.backward, second_pass.backward, tile), tile),
        weight_gradient=_weight_gradient(threads, epilogues, tile),
        to_operand=exact,
        to_number=exact,
        pad=max(VECTOR, tile_rows),
        skew=vector,
        row_pad=tile_rows,
    )


def _multiply_add(tile: Tile) -> Any:
    """Return the sum of products over the columns of a left matrix and the rows of a right one."""
    rows, columns, vector = tile
    aligned = multiple_of(vector)

    @cuda_inlined
    def multiply_add(operands, total, left_rows, right_rows, right_stride, terms):
        """Add `terms` products to each element of the tile `total`, in ascending order."""
        left = cuda.local.array((rows, VECTOR), total.dtype)
        for k in range(0, terms, VECTOR):
            along, down = k & aligned, (k * right_stride) & aligned
            for m in range(rows):
                for e in range(VECTOR):
                    left[m, e] = operands[left_rows[m] + along + e]
            for e in range(VECTOR):
                for n in range(columns):
                    right = operands[right_rows[e] + down + n]
                    for m in range(rows):
                        total[m, n] += left[m, e] * right

    return multiply_add


def _multiply_add_transposed(tile: Tile) -> Any:
    """Return the sum of products over the columns of two matrices."""
    rows, columns, vector = tile
    aligned = multiple_of(vector)

    @cuda_inlined
    def multiply_add_transposed(operands, total, left_rows, right_rows, terms):
        """Add `terms` products to each element of the tile `total`, in ascending order."""
        left = cuda.local.array((rows, VECTOR), total.dtype)
        for k in range(0, terms, VECTOR):
            along = k & aligned
            for m in range(rows):
                for e in range(VECTOR):
                    left[m, e] = operands[left_rows[m] + along + e]
            for n in range(columns):
                for e in range(VECTOR):
                    right = operands[right_rows[n] + along + e]
                    for m in range(rows):
                        total[m, n] += left[m, e] * right

    return multiply_add_transposed


def _finish(epilogue: Any, second: Any, tile: Tile) -> Any:
    """Return what becomes of a finished tile."""
    rows, columns, _ = tile

    @cuda_inlined
    def each(operands, numbers, words, layer, total, row, down, column, apart, width):
        """Give the elements of a tile to the epilogue, but for those beyond the last column."""
        for n in range(columns):
            j = column + n * apart
            if j < width:
                for m in range(rows):
                    epilogue(operands, numbers, words, layer, row + m * down, j, total[m, n])

    if second is None:
        return each

    @cuda_inlined
    def each_twice(operands, numbers, words, layer, total, row, down, column, apart, width):
        """Give them to both; a thread sees what it has written."""
        each(operands, numbers, words, layer, total, row, down, column, apart, width)
        for n in range(columns):
            j = column + n * apart
            if j < width:
                for m in range(rows):
                    second(operands, numbers, words, layer, row + m * down, j)

    return each_twice


def _forward(threads: int, finish: Any, tile: Tile) -> Any:
    tile_rows, tile_columns, vector = tile
    aligned, grouped = multiple_of(vector), multiple_of(min(vector, tile_columns))
    multiply_add = _multiply_add(tile)

    @cuda_part
    def forward(
        operands, numbers, words, layer, A, A_stride, W, W_stride, b, rows, fan_in, fan_out, t
    ):
        """Give each element of ``A W + b`` to the epilogue.

        Parameters
        ----------
        operands, numbers : dtype[:], shared memory
            The same memory.
        words, layer : any
            Passed on.
        A, A_stride, W, W_stride, b : int
            Offsets and strides of ``A[rows, fan_in]``, ``W[fan_in, fan_out]``, ``b[fan_out]``.
        rows, fan_in, fan_out : int
            `rows` is a multiple of `tile_rows`; operands reach up to the next multiple of `pad`.
        t : int
            The thread's number.

        Notes
        -----
        Launch: every thread of the block; waits for none. Cost: ``2 rows fan_in fan_out`` flops,
        and, in tiles of 4 by 4, a load of 16 bytes for 8 multiply-adds. Aliasing: the epilogue
        writes to neither operand. Accuracy: each element is one chain of fused multiply-adds from
        its bias on, k ascending: error at most ``(fan_in + 1) u (|A| |W| + |b|)``. Source:
        ``z = W x + b``.
        """
        across = ((fan_out + tile_columns - 1) // tile_columns) & SMALL
        down = (rows // tile_rows) & SMALL
        total = cuda.local.array((tile_rows, tile_columns), numbers.dtype)
        A_rows = cuda.local.array(tile_rows, numba.int64)
        W_rows = cuda.local.array(VECTOR, numba.int64)
        for q in range(t, across * down, threads):
            row = (q & SMALL) // across
            column = (q - row * across) * tile_columns
            for e in range(VECTOR):
                W_rows[e] = (W + e * W_stride + column) & grouped
            for m in range(tile_rows):
                A_rows[m] = (A + (row + m * down) * A_stride) & aligned
                for n in range(tile_columns):
                    total[m, n] = numbers[(b + column + n) & SMALL]
            multiply_add(operands, total, A_rows, W_rows, W_stride, fan_in)
            finish(operands, numbers, words, layer, total, row, down, column, 1, fan_out)

    return forward


def _backward(threads: int, finish: Any, tile: Tile) -> Any:
    tile_rows, tile_columns, vector = tile
    aligned = multiple_of(vector)
    multiply_add = _multiply_add_transposed(tile)

    @cuda_part
    def backward(
        operands, numbers, words, layer, dZ, dZ_stride, W, W_stride, rows, fan_in, fan_out, t
    ):
        """Give each element of ``dA = dZ W^T`` to the epilogue.

        Parameters
        ----------
        operands, numbers : dtype[:], shared memory
            The same memory.
        words, layer : any
            Passed on.
        dZ, dZ_stride, W, W_stride : int
            Offsets and strides of ``dZ[rows, fan_out]`` and ``W[fan_in, fan_out]``.
        rows, fan_in, fan_out : int
            `rows` is a multiple of `tile_rows`; operands reach up to the next multiple of `pad`.
        t : int
            The thread's number.

        Notes
        -----
        Launch: every thread of the block; waits for none. Cost: ``2 rows fan_in fan_out`` flops;
        both operands are contiguous along the sum, so a tile's columns are rows of W, as far apart
        as there are tiles. Aliasing: the epilogue writes to neither operand. Accuracy: one chain
        of fused multiply-adds an element, outputs ascending: error at most
        ``fan_out u |dZ| |W|^T``. Source: the chain rule, ``dl/da = W dl/dz``.
        """
        across = ((fan_in + tile_columns - 1) // tile_columns) & SMALL
        down = (rows // tile_rows) & SMALL
        total = cuda.local.array((tile_rows, tile_columns), numbers.dtype)
        dZ_rows = cuda.local.array(tile_rows, numba.int64)
        W_rows = cuda.local.array(tile_columns, numba.int64)
        for q in range(t, across * down, threads):
            row = (q & SMALL) // across
            column = q - row * across
            for m in range(tile_rows):
                dZ_rows[m] = (dZ + (row + m * down) * dZ_stride) & aligned
                for n in range(tile_columns):
                    total[m, n] = numbers.dtype.type(0)
            for n in range(tile_columns):
                W_rows[n] = (W + (column + n * across) * W_stride) & aligned
            multiply_add(operands, total, dZ_rows, W_rows, fan_out)
            finish(operands, numbers, words, layer, total, row, down, column, across, fan_in)

    return backward


def _multiply_add_rows(tile: Tile) -> Any:
    """Return the sum over the rows of two matrices."""
    high, columns, vector = tile
    heightened, grouped = multiple_of(min(vector, high)), multiple_of(min(vector, columns))

    @cuda_inlined
    def multiply_add_rows(operands, total, A_rows, A_stride, dZ_rows, dZ_stride, rows):
        """Add `rows` products to each element of the tile `total`, in ascending order."""
        right = cuda.local.array(columns, total.dtype)
        for i in range(0, rows, high):
            down_A, down_dZ = (i * A_stride) & heightened, (i * dZ_stride) & grouped
            for e in range(high):
                for n in range(columns):
                    right[n] = operands[dZ_rows[e] + down_dZ + n]
                for m in range(high):
                    left = operands[A_rows[e] + down_A + m]
                    for n in range(columns):
                        total[m, n] += left * right[n]

    return multiply_add_rows


def _weight_gradient(threads: int, epilogues: Epilogues, tile: Tile) -> Any:
    # Also as many rows at a time.
    high, tile_columns = min(VECTOR, tile.rows), tile.columns
    heightened = multiple_of(min(tile.vector, high))
    grouped = multiple_of(min(tile.vector, tile_columns))
    tile = Tile(high, tile_columns, tile.vector)
    multiply_add, finish = _multiply_add_rows(tile), epilogues.gradient

    @cuda_part
    def weight_gradient(
        operands,
        gradient,
        start,
        gradient_stride,
        A,
        A_stride,
        dZ,
        dZ_stride,
        rows,
        fan_in,
        fan_out,
        t,
    ):
        """Give each element of ``dW = A^T dZ`` to the epilogue.

        Parameters
        ----------
        operands : dtype[:], shared memory
        gradient : dtype[:], shared or global memory
        start, gradient_stride : int
            ``dW[k, j]`` belongs at ``start + k * gradient_stride + j``.
        A, A_stride, dZ, dZ_stride : int
            Offsets and strides of ``A[rows, fan_in]`` and ``dZ[rows, fan_out]``.
        rows, fan_in, fan_out : int
            `rows` is a multiple of `tile_rows`; operands reach up to the next multiple of `pad`.
        t : int
            The thread's number.

        Notes
        -----
        Launch: every thread of the block; waits for none. Cost: ``2 rows fan_in fan_out`` flops;
        both operands are contiguous along the result, so a tile is neighbours on both axes.
        Aliasing: the epilogue writes to neither operand. Accuracy: one chain of fused
        multiply-adds an element, rows ascending: error at most ``rows u |A|^T |dZ|``. Source:
        ``dl/dW = x dl/dz``.
        """
        across = ((fan_out + tile_columns - 1) // tile_columns) & SMALL
        down = ((fan_in + high - 1) // high) & SMALL
        total = cuda.local.array((high, tile_columns), gradient.dtype)
        A_rows = cuda.local.array(high, numba.int64)
        dZ_rows = cuda.local.array(high, numba.int64)
        for q in range(t, across * down, threads):
            row = (q & SMALL) // across
            column = (q - row * across) * tile_columns
            row *= high
            for e in range(high):
                A_rows[e] = (A + e * A_stride + row) & heightened
                dZ_rows[e] = (dZ + e * dZ_stride + column) & grouped
                for n in range(tile_columns):
                    total[e, n] = gradient.dtype.type(0)
            multiply_add(operands, total, A_rows, A_stride, dZ_rows, dZ_stride, rows)
            for m in range(high):
                place = start + (row + m) * gradient_stride + column
                for n in range(tile_columns):
                    if row + m < fan_in and column + n < fan_out:
                        finish(gradient, place + n, total[m, n])

    return weight_gradient
