"""Matrices as bfloat16: the upper half of a float32, in uint16."""

import numpy as np
from numba import cuda

from fastmlp_kernels.compile import cuda_kernel, cuda_part

# Rows of such matrices begin at multiples of 16 bytes, which the fastest tensor-core loads need.
ALIGNMENT = 8

_HALF = np.uint32(0x7FFF)
_ONE = np.uint32(1)
_SHIFT = np.uint32(16)
_NAN = np.uint16(0x7FC0)


@cuda_part
def bfloat16_bits(value):
    """Return the bits of `value` rounded to bfloat16, to nearest, ties to even; NaN stays one.

    Error at most 2^-9 of a normal value; what rounds above the largest finite one is an infinity.
    Adding just under half a unit of the last kept bit, and one more where that bit is set, carries
    into it exactly when the value rounds up.
    """
    number = np.float32(value)
    if number != number:
        return _NAN
    word = number.view(np.uint32)
    return np.uint16((word + _HALF + ((word >> _SHIFT) & _ONE)) >> _SHIFT)


@cuda_kernel
def round_rows(A, rows, out):
    """Write `A` as bfloat16.

    Parameters
    ----------
    A : dtype[batch, columns], C-contiguous, read
    rows : int
        Rows used, from the first.
    out : uint16[batch, stride], C-contiguous, written
        Columns beyond those of A are left alone.

    Notes
    -----
    Launch: a thread an element of the rows used. Cost: one read and one write of half the size.
    Accuracy: `bfloat16_bits`. Source: IEEE 754 rounding of the upper half of a binary32.
    """
    index = cuda.grid(1)
    columns = A.shape[1]
    if index < rows * columns:
        i = index // columns
        j = index - i * columns
        out[i, j] = bfloat16_bits(A[i, j])
