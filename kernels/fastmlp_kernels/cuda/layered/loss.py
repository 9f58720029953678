"""The loss of a batch and its gradient, one thread a row, and what a batch is judged by."""

import functools
import math
from typing import Any, NamedTuple

from numba import cuda

from fastmlp_kernels.algebra import LOSSES, loss_rule
from fastmlp_kernels.compile import cuda_function, cuda_kernel, cuda_part
from fastmlp_kernels.cuda.layered.gather import BATCH
from fastmlp_kernels.cuda.sums import block_sum
from fastmlp_kernels.problem import STATUS


def _no_link(prediction, i):
    pass


@functools.cache
def of_rule(name: str) -> Any:
    """Return the kernel of a loss rule; see `algebra.loss_rule` for its name."""
    row_rule = cuda_function(loss_rule(name).row)

    @cuda_kernel
    def loss_and_gradient(A, y, rows, factors, counter, batch_size, row_losses, dA):
        """Write the scaled loss of each row and its gradient by the outputs.

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
        counter : int64[2], read
            The batch's number is ``counter[BATCH]``.
        batch_size : int
            Rows of a full batch: the first factor of this one is at ``batch * batch_size``.
        row_losses : dtype[batch], written
        dA : dtype[batch, outputs], C-contiguous, written
            May be `A`.

        Notes
        -----
        Launch: a thread a row. Cost: O(rows outputs). Accuracy: finite for every finite logit.
        Source: `algebra.losses`; the gradient may be written over the logits, as in Liger-Kernel.
        """
        i = cuda.grid(1)
        if i < rows:
            place = counter[BATCH] * batch_size + i
            factor = factors[place] if factors.size > 1 else factors[0]
            row_losses[i] = factor * row_rule(A, y, i, dA)
            for j in range(dA.shape[1]):
                dA[i, j] *= factor

    return loss_and_gradient


class Judgements(NamedTuple):
    """The kernels that say what a batch came to, for one size of blocks."""

    sum_losses: Any
    check_finite: Any


@functools.cache
def build(threads: int) -> Judgements:
    """Return the kernels for blocks of that many threads."""

    @cuda_part
    def write_sum(row_losses, rows, losses, batch, status, partial, t):
        """Write the sum to ``losses[batch]``, and note one that is not finite; for one block."""
        total = row_losses.dtype.type(0)
        for i in range(t, rows, threads):
            total += row_losses[i]
        partial[t] = total
        block_sum(partial, t, threads)
        if t == 0:
            losses[batch] = partial[0]
            if not math.isfinite(partial[0]) and status[STATUS] == 0:
                status[STATUS] = batch + 1

    @cuda_kernel
    def sum_losses(row_losses, rows, losses, batch, status):
        """Write the sum of `row_losses` to ``losses[batch]``; note a loss that is not finite.

        Parameters
        ----------
        row_losses : dtype[batch_size], read
        rows, batch : int
            Rows used, and the batch's number.
        losses : dtype[batches], written
        status : int64[3], read and written
            ``status[STATUS]`` becomes batch + 1 at the first sum that is not finite.

        Notes
        -----
        Launch: one block. Cost: `rows` additions. Accuracy: a thread sums every `threads`-th row,
        and a tree in shared memory their sums, in an order that depends on `rows` alone: the same
        at every run, error at most ``(rows / threads + log2 threads) u`` of the sum of
        magnitudes. Source: the mean loss of the sheet.
        """
        partial = cuda.shared.array(threads, row_losses.dtype)
        write_sum(row_losses, rows, losses, batch, status, partial, cuda.threadIdx.x)

    @cuda_kernel
    def check_finite(gradient, row_losses, rows, losses, counter, status):
        """Look for an element of `gradient` that is not finite; sum the losses as `sum_losses`.

        Parameters
        ----------
        gradient : dtype[P], read
        row_losses : dtype[batch_size], read
        rows : int
            Rows of the batch.
        losses : dtype[batches], written
        counter : int64[2], read
            The batch's number is ``counter[BATCH]``.
        status : int64[3], read and written
            ``status[STATUS]`` becomes batch + 1 when an element or the sum is not finite, unless
            it was set before.

        Notes
        -----
        Launch: a thread an element, and one block more at the end, which sums the losses. Cost:
        P reads. Threads may race for `status`, but all that write write the same value, so no
        atomic is needed. Source: as `cpu.loss.check_finite`.
        """
        partial = cuda.shared.array(threads, row_losses.dtype)
        batch = counter[BATCH]
        if cuda.blockIdx.x == cuda.gridDim.x - 1:
            write_sum(row_losses, rows, losses, batch, status, partial, cuda.threadIdx.x)
            return
        i = cuda.grid(1)
        if i < gradient.size and not math.isfinite(gradient[i]) and status[STATUS] == 0:
            status[STATUS] = batch + 1

    return Judgements(sum_losses, check_finite)


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
