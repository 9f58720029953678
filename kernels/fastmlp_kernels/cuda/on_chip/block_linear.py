"""The products of a layer in shared memory by registers and fused multiply-adds.

A thread computes tiles of ``tile_rows`` by ``tile_columns`` elements of the result in registers.
The tiles are numbered row by row and dealt out to the threads in turn, so that a block of any size
computes a result of any size, and a narrow layer leaves no thread without work that a wide one
would not.

`register_tiles` has a tile's sums, and says which elements make it up.
"""

import functools
from typing import Any, NamedTuple

from numba import cuda

from fastmlp_kernels.compile import cuda_inlined, cuda_part
from fastmlp_kernels.cuda.instructions.index32 import held, index32
from fastmlp_kernels.cuda.instructions.pointers import load, pointer_to, step_of
from fastmlp_kernels.cuda.on_chip.products import BlockProducts, Epilogue, Epilogues
from fastmlp_kernels.cuda.on_chip.register_tiles import (
    VECTOR,
    Tile,
    each,
    multiply_add,
    multiply_add_rows,
    multiply_add_transposed,
)


class SecondPass(NamedTuple):
    """What is left to do for each element of a tile once an epilogue has stored all of them.

    A sixteenfold copy of a long rule is more than the compiler unrolls, and what it does not unroll
    keeps the tile out of registers, in local memory, throughout the product. So an epilogue stores,
    and the rule comes in a loop of its own, as a second `Epilogue`, which looks at no value; None
    where the first does everything.
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
    tile = Tile(tile_rows, tile_columns)
    return BlockProducts(
        forward=_forward(threads, _finish(epilogues.forward, second_pass.forward, tile), tile),
        backward=_backward(threads, _finish(epilogues.backward, second_pass.backward, tile), tile),
        weight_gradient=_weight_gradient(threads, epilogues, tile),
        to_operand=exact,
        to_number=exact,
        pad=max(VECTOR, tile_rows),
        # 16 bytes.
        skew=4 if dtype == "float32" else 2,
        row_pad=tile_rows,
    )


def _finish(epilogue: Epilogue, second: Any, tile: Tile) -> Any:
    """Return what becomes of a finished tile."""
    first = each(epilogue, tile)
    if second is None:
        return first
    then = each(second, tile)

    @cuda_inlined
    def twice(operands, numbers, words, layer, total, row, down, column, apart, width):
        """Give the elements to both; a thread sees what it has written."""
        first(operands, numbers, words, layer, total, row, down, column, apart, width)
        then(operands, numbers, words, layer, total, row, down, column, apart, width)

    return twice


def _forward(threads: int, finish: Any, tile: Tile) -> Any:
    tile_rows, tile_columns = tile
    add_products = multiply_add(tile)

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
        across = (fan_out + tile_columns - 1) // tile_columns
        down = rows // tile_rows
        tiles, one = held(across * down), index32(1)
        total = cuda.local.array((tile_rows, tile_columns), numbers.dtype)
        q = t
        while q < tiles:
            row = q // across
            column = (q - row * across) * tile_columns
            bias = load(pointer_to(numbers, b + column), tile_columns)
            for m in range(tile_rows):
                for n in range(tile_columns):
                    total[m, n] = bias[n]
            left = pointer_to(operands, A + row * A_stride)
            right = pointer_to(operands, W + column)
            add_products(total, left, down * A_stride, right, W_stride, fan_in)
            finish(operands, numbers, words, layer, total, row, down, column, one, fan_out)
            q += threads

    return forward


def _backward(threads: int, finish: Any, tile: Tile) -> Any:
    tile_rows, tile_columns = tile
    add_products = multiply_add_transposed(tile)

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
        across = (fan_in + tile_columns - 1) // tile_columns
        down = rows // tile_rows
        tiles = held(across * down)
        total = cuda.local.array((tile_rows, tile_columns), numbers.dtype)
        q = t
        while q < tiles:
            row = q // across
            column = q - row * across
            for m in range(tile_rows):
                for n in range(tile_columns):
                    total[m, n] = numbers.dtype.type(0)
            left = pointer_to(operands, dZ + row * dZ_stride)
            right = pointer_to(operands, W + column * W_stride)
            add_products(total, left, down * dZ_stride, right, across * W_stride, fan_out)
            finish(operands, numbers, words, layer, total, row, down, column, across, fan_in)
            q += threads

    return backward


def _finish_gradient(epilogue: Any, tile: Tile) -> Any:
    """Return what gives a finished tile of a gradient to the epilogue."""
    rows, columns = tile

    @cuda_inlined
    def finish(place, stride, total, row, column, fan_in, fan_out, seen):
        """Give the elements to the epilogue, but for those beyond the last row and column.

        Returns `seen`, to which each is added, times 0.
        """
        down, zero = step_of(place, stride), total.dtype.type(0)
        # Without a branch between them, the elements of a row share an address.
        if row + rows <= fan_in and column + columns <= fan_out:
            for m in range(rows):
                for n in range(columns):
                    seen += zero * epilogue(place, n, total[m, n])
                place += down
            return seen
        for m in range(rows):
            if row + index32(m) < fan_in:
                for n in range(columns):
                    if column + index32(n) < fan_out:
                        seen += zero * epilogue(place, n, total[m, n])
            place += down
        return seen

    return finish


def _weight_gradient(threads: int, epilogues: Epilogues, tile: Tile) -> Any:
    # Also as many rows at a time.
    high, tile_columns = min(VECTOR, tile.rows), tile.columns
    tile = Tile(high, tile_columns)
    add_products, finish = multiply_add_rows(tile), _finish_gradient(epilogues.gradient, tile)

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

        Returns the sum of what the epilogue returns, times 0.

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
        across = (fan_out + tile_columns - 1) // tile_columns
        tiles = held(across * ((fan_in + high - 1) // high))
        total = cuda.local.array((high, tile_columns), gradient.dtype)
        seen = gradient.dtype.type(0)
        q = t
        while q < tiles:
            row = q // across
            column = (q - row * across) * tile_columns
            row *= high
            for m in range(high):
                for n in range(tile_columns):
                    total[m, n] = gradient.dtype.type(0)
            left, right = pointer_to(operands, A + row), pointer_to(operands, dZ + column)
            add_products(total, left, A_stride, right, dZ_stride, rows)
            place = pointer_to(gradient, start + row * gradient_stride + column)
            seen = finish(place, gradient_stride, total, row, column, fan_in, fan_out, seen)
            q += threads
        return seen

    return weight_gradient
