"""What a gradient is multiplied by, so that its norm does not exceed a limit."""

import functools
import math
from typing import Any

import numpy as np
from numba import cuda

from fastmlp_kernels.algebra.optimizers import CLIP_NORM, CLIP_VALUE, clip_scale
from fastmlp_kernels.compile import cuda_function, cuda_kernel
from fastmlp_kernels.cuda.layered.gather import UPDATED
from fastmlp_kernels.cuda.sums import grid_sum
from fastmlp_kernels.problem import STATUS

_scale_of = cuda_function(clip_scale)


@functools.cache
def build(threads: int) -> Any:
    """Return `clip_by_norm` for blocks of that many threads."""

    @cuda_kernel
    def clip_by_norm(gradient, hyper, counter, status, scale, sums, arrivals):
        """Write what the gradient is multiplied by, of the norm that its limited elements have.

        Parameters
        ----------
        gradient : dtype[P], read
        hyper : dtype[batches, HYPER_WIDTH or more], read
            Both limits are those of the row ``counter[UPDATED]``.
        counter : int64[2], read
        status : int64[3], read and written
            ``status[STATUS]`` becomes batch + 1 if the norm is not finite, unless it is set.
        scale : dtype[1], written
            NaN if the norm is not finite.
        sums : dtype[blocks], written
            The sum of squares of each block.
        arrivals : int32[1], read and written
            Zero on entry and at the end: blocks that have written their sums.

        Notes
        -----
        Launch: at most `threads` blocks. Cost: P reads and ``4 P`` flops. Accuracy: as
        `update.sum_squares`. Source: `algebra.optimizers.clip_scale`.
        """
        partial = cuda.shared.array(threads, gradient.dtype)
        flag = cuda.shared.array(1, np.int32)
        t, batch = cuda.threadIdx.x, counter[UPDATED]
        limit = hyper[batch, CLIP_VALUE]
        total = gradient.dtype.type(0)
        for i in range(cuda.grid(1), gradient.size, cuda.gridsize(1)):
            slope = min(max(gradient[i], -limit), limit)
            total += slope * slope
        if grid_sum(partial, sums, arrivals, flag, total, t, threads) and t == 0:
            squares = partial[0]
            scale[0] = _scale_of(squares, hyper[batch, CLIP_NORM])
            if not math.isfinite(squares):
                scale[0] = squares - squares
                if status[STATUS] == 0:
                    status[STATUS] = batch + 1

    return clip_by_norm
