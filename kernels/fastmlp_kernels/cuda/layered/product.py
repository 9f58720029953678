"""A matrix product as it is asked of cuBLASLt, and what that does to the result before storing it.

A matrix of ours is row-major, and cuBLASLt takes columns first: the memory of a row-major C is that
of C^T, and ``C = A B`` is ``C^T = B^T A^T``, so the right factor is passed first. A row of ours is
a column there: the bias of `EPILOGUES`, one number for each of our columns, has the length that the
library asks for, and a row of the mask is a row of ours.
"""

import math
from dataclasses import dataclass

# cublasLtEpilogue_t of cublasLt.h, CUDA 12 and 13. "relu_aux_bias" adds a bias, applies ReLU and
# writes a bit for each element, 1 where it was positive; "drelu" keeps what such bits say, and sets
# the rest to zero; "bgrada" also sums the first matrix passed, our right factor, over the terms.
EPILOGUES = {"none": 1, "bias": 4, "relu_aux_bias": 134, "drelu": 136, "bgrada": 256}
# Epilogues that read or write a vector, and those that read or write a mask.
WITH_VECTOR = {"bias", "relu_aux_bias", "bgrada"}
WITH_MASK = {"relu_aux_bias", "drelu"}
# A row of a mask begins at a multiple of so many bits (CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD).
MASK_BITS = 128
# No algorithm asks for more than this of a pointer.
LARGEST_ALIGNMENT = 256


@dataclass(frozen=True)
class Product:
    """A row-major product of rows by columns, summed over `terms`; a plan is made once for each.

    Parameters
    ----------
    rows, columns, terms : int
    left_transposed, right_transposed : bool
        Whether the factor lies in memory as its transpose: ``[terms, rows]``, ``[columns, terms]``.
    strides : tuple of int
        Elements from a row to the next as they lie in memory, of left, right and result.
    operands, result : str
        Types of the factors and of the result, of `cublas.REAL_TYPES`.
    compute : str
        A key of `cublas.COMPUTE_TYPES`.
    alignments : tuple of int
        Bytes that divide the addresses of left, right and result.
    epilogue : str
        A key of `EPILOGUES`. A vector has the type of the result and as many elements as that has
        columns.
    vector_alignment : int
        Bytes that divide the vector's address.
    mask_stride : int
        Bits from a row of the mask to the next, a multiple of `MASK_BITS`.
    """

    rows: int
    columns: int
    terms: int
    left_transposed: bool
    right_transposed: bool
    strides: tuple[int, int, int]
    operands: str
    result: str
    compute: str
    alignments: tuple[int, int, int]
    epilogue: str = "none"
    vector_alignment: int = LARGEST_ALIGNMENT
    mask_stride: int = 0


def alignment(address: int) -> int:
    """Return the largest power of two, up to `LARGEST_ALIGNMENT`, that divides an address."""
    return math.gcd(address, LARGEST_ALIGNMENT)


def mask_stride(columns: int) -> int:
    """Return the bits from a row of a mask of so many columns to the next."""
    return -(-columns // MASK_BITS) * MASK_BITS
