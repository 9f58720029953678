"""Activations over blocks of a panel: each row of the algebra as two leaves."""

import functools

from numba.core import types

from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.compile import leaf
from fastmlp_kernels.cpu.intrinsics import anew, magnitude, read, write

NUMBERS = {"float32": types.float32, "float64": types.float64}


@functools.cache
def activation_forward(name: str, dtype: str) -> int:
    """Return the address of the leaf that writes f(Z) over a block.

    Parameters
    ----------
    name : str
        Row of ACTIVATIONS.
    dtype : str

    Notes
    -----
    The leaf is ``activate(Z, A, count) -> largest magnitude of Z as bits``. A row that keeps its
    output works in place on A and ignores Z; one that keeps its input reads Z and writes A, which
    do not overlap. Cost: a read and a write an element. Accuracy: 2 units in the last place for
    the exponential family. Source: `algebra.activations`.
    """
    row = ACTIVATIONS[name]
    value, apart = row.value, row.keeps == "input"
    pointer = types.CPointer(NUMBERS[dtype])

    def activate(Z, A, count):
        seen = magnitude(read(Z, 0, 0) if apart else read(A, 0, 1))
        for i in range(count):
            z = read(Z, i, 0) if apart else read(A, i, 1)
            seen = max(seen, magnitude(z))
            write(A, i, anew(value(z)), 1)
        return types.int64(seen)

    signature = types.int64(pointer, pointer, types.int64)
    return leaf(activate, f"activation_forward-{name}-{dtype}", signature).address


@functools.cache
def activation_backward(name: str, dtype: str) -> int:
    """Return the address of the leaf that turns dA into dZ over a block, in place.

    Parameters
    ----------
    name : str
        Row of ACTIVATIONS.
    dtype : str

    Notes
    -----
    The leaf is ``multiply(kept, dZ, count) -> largest magnitude of dZ as bits``; `kept` holds Z or
    A, whichever the row keeps, and does not overlap dZ. Cost: two reads and a write an element.
    Source: ``dZ = dA * f'(Z)``, with f' from `algebra.activations`.
    """
    slope = ACTIVATIONS[name].slope
    pointer = types.CPointer(NUMBERS[dtype])

    def multiply(kept, dZ, count):
        seen = magnitude(read(dZ, 0, 1))
        for i in range(count):
            each = read(kept, i, 0)
            product = read(dZ, i, 1) * slope(each, each)
            seen = max(seen, magnitude(product))
            write(dZ, i, product, 1)
        return types.int64(seen)

    signature = types.int64(pointer, pointer, types.int64)
    return leaf(multiply, f"activation_backward-{name}-{dtype}", signature).address
