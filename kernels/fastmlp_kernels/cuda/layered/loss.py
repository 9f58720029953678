"""The loss of a batch and its gradient, one thread a row; the search for what is not finite."""

import functools
import math
from typing import Any

import numpy as np
from numba import cuda

from fastmlp_kernels.algebra import LOSSES, loss_rule
from fastmlp_kernels.compile import cuda_function, cuda_kernel
from fastmlp_kernels.cuda.layered.gather import BATCH, UPDATED
from fastmlp_kernels.cuda.sums import grid_sum
from fastmlp_kernels.problem import STATUS


def _no_link(prediction, i):
    pass


@functools.cache
def of_rule(name: str, threads: int) -> Any:
    """Return the kernel of a loss rule, for blocks of so many threads; see `algebra.loss_rule`."""
    row_rule = cuda_function(loss_rule(name).row)

    @cuda_kernel
    def loss_and_gradient(
        A, y, rows, factors, counter, batch_size, dA, sums, arrivals, losses, status
    ):
        """Write the batch's loss and its gradient by the outputs; note a loss that is not finite.

        Parameters
        ----------
        A : dtype[batch, outputs], C-contiguous, read
            Predictions, or pre-activations where the rule is a fused one.
        y : dtype[batch, targets] or dtype[batch, 1], C-contiguous, read
            Targets, or class indices; what names no class is taken as the nearest one.
        rows : int
            Rows used, from the first.
        factors : dtype[1] or dtype[rows of the epoch], read
            Of loss and gradient: the reduction alone, or with a weight for each row.
        counter : int64[2], read and written
            The batch's number is ``counter[BATCH]``; ``counter[UPDATED]`` becomes it.
        batch_size : int
            Rows of a full batch: the first factor of this one is at ``batch * batch_size``.
        dA : dtype[batch, outputs], C-contiguous, written
            May be `A`.
        sums : dtype[blocks], written
            The sum of each block's losses.
        arrivals : int32[1], read and written
            Zero on entry and at the end: blocks that have written their sums.
        losses : dtype[batches], written
            The batch's is ``losses[batch]``.
        status : int64[3], read and written
            ``status[STATUS]`` becomes batch + 1 at the first loss that is not finite.

        Notes
        -----
        Launch: a thread a row. Cost: O(rows outputs). Accuracy: finite for every finite logit. The
        losses are added by `grid_sum`, in an order that depends on `rows` alone: the same at every
        run. Source: `algebra.losses`; the gradient may be written over the logits, as in
        Liger-Kernel.
        """
        partial = cuda.shared.array(threads, A.dtype)
        flag = cuda.shared.array(1, np.int32)
        i, t, batch = cuda.grid(1), cuda.threadIdx.x, counter[BATCH]
        total = A.dtype.type(0)
        if i == 0:
            counter[UPDATED] = batch
        if i < rows:
            place = batch * batch_size + i
            factor = factors[place] if factors.size > 1 else factors[0]
            total += factor * row_rule(A, y, i, dA)
            for j in range(dA.shape[1]):
                dA[i, j] *= factor
        if grid_sum(partial, sums, arrivals, flag, total, t, threads) and t == 0:
            losses[batch] = partial[0]
            if not math.isfinite(partial[0]) and status[STATUS] == 0:
                status[STATUS] = batch + 1

    return loss_and_gradient


@cuda_kernel
def check_finite(gradient, counter, status):
    """Look for an element of `gradient` that is not finite.

    Parameters
    ----------
    gradient : dtype[P], read
    counter : int64[2], read
        The batch's number is ``counter[BATCH]``.
    status : int64[3], read and written
        ``status[STATUS]`` becomes batch + 1 when an element is not finite, unless it was set
        before.

    Notes
    -----
    Launch: a thread an element. Cost: P reads. Threads may race for `status`, but all that write
    write the same value, so no atomic is needed. Source: as `cpu.loss.check_finite`.
    """
    i = cuda.grid(1)
    if i < gradient.size and not math.isfinite(gradient[i]) and status[STATUS] == 0:
        status[STATUS] = counter[BATCH] + 1


@functools.cache
def of_link(loss: str) -> Any:
    """Return the kernel of the link of a loss, which does nothing where there is none."""
    link = cuda_function(LOSSES[loss].link or _no_link)

    @cuda_kernel
    def predict_rows(A, rows):
        """Apply the loss's link to each row in place: softmax for its cross-entropy, else nothing.

        Parameters
        ----------
        A : dtype[batch, outputs], C-contiguous, read and written
        rows : int
            Rows used, from the first.

        Notes
        -----
        Launch: a thread a row. Cost: O(rows outputs). Source: the inverse of the loss's link
        function.
        """
        i = cuda.grid(1)
        if i < rows:
            link(A, i)

    return predict_rows
