"""Whether numbers are finite, and how large they are."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# A dot product is the cheapest pass over few elements; over many, BLAS would wake its own threads.
LARGEST_DOT = 8192


def all_finite(array: Array) -> bool:
    """Return whether all elements are finite."""
    # A sum that is finite has only finite terms: one pass, no memory. One that is not may have
    # overflowed, so the exact test decides.
    if array.size <= LARGEST_DOT:
        # Not `dot`, which warns when it overflows.
        if math.isfinite(np.vdot(array, array)):
            return True
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            if math.isfinite(np.add.reduce(array, axis=None)):
                return True
    return bool(np.isfinite(array).all())


def largest_magnitude(array: Array) -> float:
    """Return the largest absolute value; no copy is made, of an array that may fill the memory."""
    return float(max(array.max(), -array.min()))
