"""Checks of arrays where they lie: whether all elements are finite, labels, or probabilities.

Only the answer comes to the host. Where it is bad, the caller brings the array there and says what
is wrong in the words of the checks on the host.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numba import cuda

from fastmlp_kernels.compile import cuda_kernel
from fastmlp_kernels.cuda.device.configurations import configured

THREADS = 256
# Each thread takes many elements of a large array: more blocks than this would not be faster.
LARGEST_GRID = 4096

# What `find_outside` is asked, added up.
OPEN_LOW, OPEN_HIGH, WHOLE = 1, 2, 4


@cuda_kernel
def find_outside(values, bounds, kind, found):
    """Set ``found[0]`` to 1 when an element is not finite, outside its bounds, or not whole.

    Parameters
    ----------
    values : dtype[n], read
    bounds : dtype[2], read
        The lowest and the highest value allowed; they may be infinite.
    kind : int
        `OPEN_LOW` and `OPEN_HIGH` where a bound itself is not allowed, `WHOLE` where only whole
        numbers are (both bounds must then be finite and below 2**63).
    found : int32[1], read and written

    Notes
    -----
    Launch: any number of threads; each takes every such element. Cost: n reads. Threads may race
    for `found`, but all that write write 1, so no atomic is needed. Aliasing: none. Source: the
    domains of the losses in `algebra.losses`.
    """
    low, high = bounds[0], bounds[1]
    for i in range(cuda.grid(1), values.size, cuda.gridsize(1)):
        x = values[i]
        good = math.isfinite(x) and low <= x and x <= high
        if kind & OPEN_LOW and x == low:
            good = False
        if kind & OPEN_HIGH and x == high:
            good = False
        # Only of a number within the bounds: the conversion of any other has no meaning.
        if good and kind & WHOLE:
            good = values.dtype.type(np.int64(x)) == x
        if not good:
            found[0] = 1


@cuda_kernel
def find_bad_sums(values, slack, found):
    """Set ``found[0]`` to 1 when the sum of a row is not 1.

    Parameters
    ----------
    values : dtype[rows, columns], C-contiguous, read
    slack : dtype[1], read
        How far a sum may be from 1.
    found : int32[1], read and written

    Notes
    -----
    Launch: a thread a row. Cost: ``rows * columns`` reads, not coalesced: once a fit. Accuracy: a
    sum of magnitudes s in one chain has an error of at most ``columns u s``. Source: the targets of
    a softmax cross-entropy are probabilities.
    """
    i = cuda.grid(1)
    if i < values.shape[0]:
        total = values.dtype.type(0)
        for j in range(values.shape[1]):
            total += values[i, j]
        # Written so that a NaN is bad.
        if not abs(total - values.dtype.type(1)) <= slack[0]:
            found[0] = 1


class Outside:
    """The check of arrays of one dtype against bounds; made once, asked often.

    Parameters
    ----------
    dtype : dtype
    low, high : float
        By default every finite number is inside.
    kind : int
        See `find_outside`.
    stream : numba stream, optional
        On which the arrays are written.
    threads : int, optional
        Of a block.
    """

    def __init__(
        self,
        dtype: Any,
        low: float = -math.inf,
        high: float = math.inf,
        kind: int = 0,
        stream: Any = 0,
        threads: int | None = None,
    ) -> None:
        self.kind, self.stream, self.threads = kind, stream, threads or THREADS
        self.bounds = cuda.to_device(np.array([low, high], dtype))
        self.found = cuda.to_device(np.zeros(1, np.int32))

    def any(self, arrays: Iterable[Any]) -> bool:
        """Return whether any element of the device arrays is outside."""
        for array in arrays:
            if array.size > 0:
                blocks = min(-(-array.size // self.threads), LARGEST_GRID)
                flat = array if array.ndim == 1 else array.reshape(array.size)
                arguments = (flat, self.bounds, self.kind, self.found)
                configured(find_outside, blocks, self.threads, self.stream)(*arguments)
        outside = _answer(self.found, self.stream)
        if outside:
            self.found = cuda.to_device(np.zeros(1, np.int32))
        return outside


def any_bad_sum(matrix: Any, slack: float, stream: Any = 0, threads: int | None = None) -> bool:
    """Return whether the sum of any row of a device array is further from 1 than `slack`."""
    threads = threads or THREADS
    found = cuda.to_device(np.zeros(1, np.int32))
    allowed = cuda.to_device(np.array([slack], matrix.dtype))
    blocks = -(-len(matrix) // threads)
    configured(find_bad_sums, blocks, threads, stream)(matrix, allowed, found)
    return _answer(found, stream)


def _answer(found: Any, stream: Any) -> bool:
    answer = found.copy_to_host(stream=stream)
    if stream:
        stream.synchronize()
    return bool(answer[0])
