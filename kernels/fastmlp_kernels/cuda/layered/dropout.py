"""Dropout of a layer's outputs, or of the derivatives by them: see `algebra.dropout`."""

import numpy as np
from numba import cuda

from fastmlp_kernels.algebra import dropout as algebra
from fastmlp_kernels.algebra.optimizers import DROPOUT_KEY
from fastmlp_kernels.compile import cuda_function, cuda_kernel
from fastmlp_kernels.cuda.layered.bfloat16 import bfloat16_bits
from fastmlp_kernels.cuda.layered.gather import BATCH

_row_key = cuda_function(algebra.row_key)
_is_kept = cuda_function(algebra.is_kept)


@cuda_kernel
def dropout(source, out, rows, hyper, counter, layer, threshold, scales, rounded):
    """Leave out some numbers of a batch, and scale the others.

    Parameters
    ----------
    source : dtype[batch, units], read
    out : dtype[batch, units], written
        May be `source`.
    rows : int
        Of this batch.
    hyper : dtype[batches, HYPER_WIDTH or more], read
        The key is in the row ``counter[BATCH]``.
    counter : int64[2], read
    layer : int
        Of the outputs.
    threshold : int
        See `algebra.dropout.threshold_of`.
    scales : dtype[layers], read
        What is kept of a layer is multiplied by its scale.
    rounded : uint16[batch, stride] or uint16[0, 0], written
        Where it has elements, `out` goes there as bfloat16 too.

    Notes
    -----
    Launch: a thread an element. Cost: about 25 integer operations, a read and a write an element.
    Accuracy: one rounding; what is left out is 0, or NaN if it was not finite, so that a check of
    the gradient sees it. Source: `algebra.dropout`.
    """
    k, units = cuda.grid(1), source.shape[1]
    if k >= rows * units:
        return
    i, j, batch = k // units, k % units, counter[BATCH]
    low, high = np.int64(hyper[batch, DROPOUT_KEY]), np.int64(hyper[batch, DROPOUT_KEY + 1])
    value = source[i, j]
    kept = _is_kept(_row_key(low, high, layer, i), j, threshold)
    value = value * scales[layer] if kept else value - value
    out[i, j] = value
    if rounded.size > 0:
        rounded[i, j] = bfloat16_bits(value)
