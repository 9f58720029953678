"""The limits of a gradient: of its elements, tile by tile, and of its norm."""

import functools
import math

from numba.core import types

from fastmlp_kernels.algebra.elementary import plus
from fastmlp_kernels.algebra.optimizers import clip_scale
from fastmlp_kernels.compile import leaf
from fastmlp_kernels.cpu.activation import NUMBERS
from fastmlp_kernels.cpu.intrinsics import magnitude, read, write

WORD = types.int64
# A stream of memory that overlaps no other: see `intrinsics.read`.
GRADIENT = 3


@functools.cache
def clip(dtype: str) -> int:
    """Return the address of the leaf that limits the elements of a tile of a gradient.

    Parameters
    ----------
    dtype : str

    Notes
    -----
    The leaf is ``(g, rows, columns, width, limit, total)``: rows `width` apart, in place; the sum
    of the squares of what is then there goes to `total` (float64, summed in `dtype`). None of the
    arrays overlap. Cost: 4 flops, a read and a write an element. Source: `algebra.optimizers`.
    """
    number = NUMBERS[dtype]
    pointer = types.CPointer(number)
    add = plus

    def limited(g, rows, columns, width, limit, total):
        most, squares = limit[0], number(0.0)
        # One long run: runs as short as a panel's width would mostly be scalar code.
        length = rows * width if columns == width else columns
        for start in range(0, rows * width, length if columns == width else width):
            for k in range(start, start + length):
                slope = min(max(read(g, k, GRADIENT), -most), most)
                write(g, k, slope, GRADIENT)
                squares = add(squares, slope * slope)
        total[0] = squares
        return 0

    signature = WORD(pointer, WORD, WORD, WORD, pointer, types.CPointer(types.float64))
    return leaf(limited, f"clip-{dtype}", signature).address


@functools.cache
def clip_by_norm(dtype: str) -> int:
    """Return the address of the leaf that finds what a gradient is multiplied by.

    Parameters
    ----------
    dtype : str

    Notes
    -----
    The leaf is ``(squares, count, limit, out) -> magnitude of the norm as bits``: float64 sums of
    squares, added in their order; `out` is the scale. Cost: `count` additions. Source:
    `algebra.optimizers.clip_scale`.
    """
    number = NUMBERS[dtype]
    pointer = types.CPointer(number)
    scale_of = clip_scale

    def scale(squares, count, limit, out):
        total = 0.0
        for k in range(count):
            total += squares[k]
        out[0] = number(scale_of(total, types.float64(limit[0])))
        return WORD(magnitude(number(math.sqrt(total))))

    signature = WORD(types.CPointer(types.float64), WORD, pointer, pointer)
    return leaf(scale, f"clip_by_norm-{dtype}", signature).address
