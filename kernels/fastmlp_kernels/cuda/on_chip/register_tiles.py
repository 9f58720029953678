"""One tile of a product in registers: its sums, by one thread, and the epilogue of each.

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

from typing import Any, NamedTuple

from numba import cuda

from fastmlp_kernels.compile import cuda_inlined
from fastmlp_kernels.cuda.instructions.index32 import index32
from fastmlp_kernels.cuda.instructions.pointers import load, moved, step_of
from fastmlp_kernels.cuda.on_chip.products import Epilogue

# Terms of a sum that are taken at a time: a load of 16 bytes of float32, two of float64.
VECTOR = 4
TWICE = 2 * VECTOR
# Elements of a tile whose epilogues may be there twice.
MOST_TWICE = 16


class Tile(NamedTuple):
    """Elements of a result that a thread holds at a time; powers of two, columns up to `VECTOR`."""

    rows: int
    columns: int


def _read_rows(rows: int, ahead: int) -> Any:
    @cuda_inlined
    def read_rows(factors, row, apart):
        """Read `VECTOR` terms of each of a tile's rows, so many terms on."""
        for m in range(rows):
            found = load(row + ahead, VECTOR)
            for e in range(VECTOR):
                factors[m, e] = found[e]
            row = moved(row, apart)

    return read_rows


def multiply_add(tile: Tile) -> Any:
    """Return the sum of products over the columns of a left matrix and the rows of a right one."""
    rows, columns = tile

    def some(ahead: int) -> Any:
        read_rows = _read_rows(rows, ahead)

        @cuda_inlined
        def add_some(total, factors, left, apart, right, stride):
            """Add `VECTOR` products to each element; return where the right rows go on."""
            read_rows(factors, left, apart)
            for e in range(VECTOR):
                found = load(right, columns)
                for n in range(columns):
                    for m in range(rows):
                        total[m, n] += factors[m, e] * found[n]
                right = moved(right, stride)
            return right

        return add_some

    add_first, add_next = some(0), some(VECTOR)

    @cuda_inlined
    def add_products(total, left, left_apart, right, right_stride, terms):
        """Add `terms` products to each element of the tile `total`, in ascending order.

        The tile's rows of the left matrix are `left_apart` elements apart.
        """
        factors = cuda.local.array((rows, VECTOR), total.dtype)
        apart, stride = step_of(left, left_apart), step_of(right, right_stride)
        # The first alone, so that no loop carries what sums begin with; then two at a time, which
        # share the rows' addresses.
        right = add_first(total, factors, left, apart, right, stride)
        left += VECTOR
        k = index32(TWICE)
        while k < terms:
            right = add_first(total, factors, left, apart, right, stride)
            right = add_next(total, factors, left, apart, right, stride)
            left += TWICE
            k += TWICE
        if k < terms + VECTOR:
            add_first(total, factors, left, apart, right, stride)

    return add_products


def multiply_add_transposed(tile: Tile) -> Any:
    """Return the sum of products over the columns of two matrices."""
    rows, columns = tile

    def some(ahead: int) -> Any:
        read_rows = _read_rows(rows, ahead)

        @cuda_inlined
        def add_some(total, factors, left, left_step, right, right_step):
            """Add `VECTOR` products to each element."""
            read_rows(factors, left, left_step)
            for n in range(columns):
                found = load(right + ahead, VECTOR)
                for e in range(VECTOR):
                    for m in range(rows):
                        total[m, n] += factors[m, e] * found[e]
                right = moved(right, right_step)

        return add_some

    add_first, add_next = some(0), some(VECTOR)

    @cuda_inlined
    def add_products(total, left, left_apart, right, right_apart, terms):
        """Add `terms` products to each element of the tile `total`, in ascending order.

        The tile's rows of either matrix are so many elements apart.
        """
        factors = cuda.local.array((rows, VECTOR), total.dtype)
        left_step, right_step = step_of(left, left_apart), step_of(right, right_apart)
        add_first(total, factors, left, left_step, right, right_step)
        left += VECTOR
        right += VECTOR
        k = index32(TWICE)
        while k < terms:
            add_first(total, factors, left, left_step, right, right_step)
            add_next(total, factors, left, left_step, right, right_step)
            left += TWICE
            right += TWICE
            k += TWICE
        if k < terms + VECTOR:
            add_first(total, factors, left, left_step, right, right_step)

    return add_products


def each(epilogue: Epilogue, tile: Tile) -> Any:
    """Return what gives each element of a tile to an epilogue, but for those beyond the width."""
    take = _by_columns(epilogue, tile)
    # Twice the code of a larger tile is more than the compiler unrolls: see `SecondPass`.
    return _by_rows(epilogue, tile, take) if tile.rows * tile.columns <= MOST_TWICE else take


def _by_columns(epilogue: Epilogue, tile: Tile) -> Any:
    rows, columns = tile
    row_of, element = epilogue

    @cuda_inlined
    def take(operands, numbers, words, layer, total, row, down, column, apart, width):
        """Look at each column once."""
        j, here = column, index32(0)
        for n in range(columns):
            if j < width:
                i = row
                for m in range(rows):
                    pointers = row_of(operands, numbers, words, layer, i, j)
                    element(pointers, words, layer, i, j, here, total[m, n])
                    i += down
            j += apart

    return take


def _by_rows(epilogue: Epilogue, tile: Tile, partly: Any) -> Any:
    rows, columns = tile
    row_of, element = epilogue

    @cuda_inlined
    def take(operands, numbers, words, layer, total, row, down, column, apart, width):
        """Take a whole tile without a branch: the elements of a column share a distance."""
        if column + index32(columns - 1) * apart < width:
            i = row
            for m in range(rows):
                pointers = row_of(operands, numbers, words, layer, i, column)
                for n in range(columns):
                    distance = index32(n) * apart
                    element(pointers, words, layer, i, column + distance, distance, total[m, n])
                i += down
        else:
            partly(operands, numbers, words, layer, total, row, down, column, apart, width)

    return take


def multiply_add_rows(tile: Tile) -> Any:
    """Return the sum over the rows of two matrices."""
    high, columns = tile
    twice = 2 * high

    @cuda_inlined
    def add_row(total, A, dZ):
        left, right = load(A, high), load(dZ, columns)
        for m in range(high):
            for n in range(columns):
                total[m, n] += left[m] * right[n]

    @cuda_inlined
    def add_rows(total, A, A_step, dZ, dZ_step):
        """Add `high` products to each element; return where the rows go on."""
        # The compiler unrolls no loop of pointers.
        add_row(total, A, dZ)
        A = moved(A, A_step)
        dZ = moved(dZ, dZ_step)
        add_row(total, A, dZ)
        A = moved(A, A_step)
        dZ = moved(dZ, dZ_step)
        if high == VECTOR:
            add_row(total, A, dZ)
            A = moved(A, A_step)
            dZ = moved(dZ, dZ_step)
            add_row(total, A, dZ)
            A = moved(A, A_step)
            dZ = moved(dZ, dZ_step)
        return A, dZ

    @cuda_inlined
    def add_products(total, A, A_stride, dZ, dZ_stride, rows):
        """Add `rows` products, a multiple of `high`, to each element of `total`, ascending."""
        A_step, dZ_step, i = step_of(A, A_stride), step_of(dZ, dZ_stride), index32(twice)
        A, dZ = add_rows(total, A, A_step, dZ, dZ_step)
        while i < rows:
            A, dZ = add_rows(total, A, A_step, dZ, dZ_step)
            A, dZ = add_rows(total, A, A_step, dZ, dZ_step)
            i += twice
        if i == rows:
            add_rows(total, A, A_step, dZ, dZ_step)

    return add_products
