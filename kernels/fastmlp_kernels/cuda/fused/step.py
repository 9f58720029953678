"""The sums of a step of `cuda.fused`: partial gradients are added up and checked."""

import functools
import math
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import cuda

from fastmlp_kernels.compile import cuda_kernel, cuda_part
from fastmlp_kernels.cuda.instructions.index32 import index32, wide
from fastmlp_kernels.cuda.layered.gather import BATCH, UPDATED
from fastmlp_kernels.cuda.on_chip.offsets import epoch_of, tile_of
from fastmlp_kernels.cuda.sums import block_sum
from fastmlp_kernels.problem import STATUS


class Sums(NamedTuple):
    """A block of `sum_and_check`: so many parameters, and threads that share the slices of each.

    A warp reads 32 neighbours. With one thread a parameter, the launch would take as long as a
    thread needs for all slices, one load after the other.
    """

    columns: int = 32
    lanes: int = 8

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.columns * self.lanes


@cuda_part
def rows_of_batch(words, batch):
    """Return how many rows a batch of the epoch has."""
    epoch = epoch_of(words)
    size = epoch.batch_size
    return min(size, epoch.rows - batch * size)


@cuda_part
def filled_slices(words, size, slices):
    """Return how many slices have a tile, in a batch of `size` rows."""
    rows = tile_of(words).rows
    return min(slices, wide((index32(size) + rows - 1) // rows))


def sum_signature(number: str) -> tuple:
    """Return the types of the arguments of `sum_and_check`."""
    real, word = getattr(numba, number), numba.int64
    vector, indices = real[::1], word[::1]
    arrays = (vector, vector, vector, numba.uint8[::1], vector, vector, vector)
    return (*arrays, indices, indices, indices, word, word)


@cuda_part
def _note(value, batch, status):
    """Set the status when a value is not finite: all that write it write the same."""
    if not math.isfinite(value) and status[STATUS] == 0:
        status[STATUS] = batch + 1


def _sum_slices(sums: Sums) -> Any:
    columns, lanes = sums

    @cuda_part
    def sum_slices(partials, gradient, filled, batch, status, partial, t):
        """Write a block's elements of the gradient."""
        column, lane = t % columns, t // columns
        p, count = cuda.blockIdx.x * columns + column, gradient.size
        total = gradient.dtype.type(0)
        if p < count:
            for s in range(lane, filled, lanes):
                total += partials[s * count + p]
        partial[t] = total
        # Between the sums of the lanes and the threads that add them.
        cuda.syncthreads()
        if lane == 0 and p < count:
            for other in range(1, lanes):
                total += partial[other * columns + column]
            gradient[p] = total
            _note(total, batch, status)

    return sum_slices


def _sum_slice_losses(threads: int) -> Any:
    @cuda_part
    def sum_slice_losses(slice_losses, losses, filled, batch, status, partial, t):
        """Write the loss of a batch."""
        total = losses.dtype.type(0)
        for s in range(t, filled, threads):
            total += slice_losses[s]
        partial[t] = total
        block_sum(partial, t, threads)
        if t == 0:
            losses[batch] = partial[0]
            _note(partial[0], batch, status)

    return sum_slice_losses


def _sum_squares(threads: int) -> Any:
    @cuda_part
    def sum_squares(parameters, biases, squares, batch, partial, t):
        """Write the sum of the squares of all weights."""
        total = parameters.dtype.type(0)
        for i in range(t, parameters.size, threads):
            if biases[i] == 0:
                total += parameters[i] * parameters[i]
        partial[t] = total
        block_sum(partial, t, threads)
        if t == 0:
            squares[batch] = partial[0]

    return sum_squares


@functools.cache
def build_sums(sums: Sums, number: str) -> Any:
    """Return the kernel that adds up the slices of a batch."""
    threads, real = sums.threads, getattr(numba, number)
    nan = np.dtype(number).type(np.nan)
    sum_slices, sum_slice_losses = _sum_slices(sums), _sum_slice_losses(threads)
    sum_squares = _sum_squares(threads)

    @cuda_kernel
    def sum_and_check(
        parameters,
        partials,
        slice_losses,
        biases,
        gradient,
        losses,
        squares,
        counter,
        status,
        words,
        slices,
        penalized,
    ):
        """Add up the slices of a batch; note what is not finite.

        Parameters
        ----------
        parameters : dtype[P], read
        partials : dtype[slices * P], slice_losses : dtype[slices], read
            See `fused.build`.
        biases : uint8[P], read
            1 where the parameter is a bias.
        gradient : dtype[P], written
        losses, squares : dtype[batches], written
            The batch's loss; where `penalized`, the sum of the squares of all weights.
        counter : int64[2], read and written
            The batch's number is ``counter[BATCH]``; ``counter[UPDATED]`` becomes it.
        status : int64[3], read and written
            ``status[STATUS]`` becomes batch + 1 when an element of the gradient or the loss is not
            finite. When it is that of an earlier batch, loss and squares become NaN, and nothing
            but the counter is written beside.
        words : int64[:], read
            The table of `tables`.
        slices, penalized : int

        Notes
        -----
        Launch: ``columns * lanes`` threads; a block for each `columns` parameters, one for the
        loss, and where `penalized` one for the squares. Cost: ``slices P`` reads and additions.
        Accuracy: a lane adds every `lanes`-th slice in ascending order, one thread the lanes in
        ascending order: error at most ``(slices / lanes + lanes) u`` of the sum of magnitudes; the
        loss and the squares by `block_sum`. The order depends on slices and lanes alone. Source:
        `reference`, a sum over rows.
        """
        partial = cuda.shared.array(threads, real)
        t, block, batch = cuda.threadIdx.x, cuda.blockIdx.x, counter[BATCH]
        if t == 0 and block == 0:
            counter[UPDATED] = batch
        failed = status[STATUS]
        # Other blocks may just be setting it to this batch's: that counts as not yet failed, so
        # that all threads of a block go the same way.
        if failed != 0 and failed != batch + 1:
            if t == 0 and block == 0:
                losses[batch] = nan
                if penalized != 0:
                    squares[batch] = nan
            return
        filled = filled_slices(words, rows_of_batch(words, batch), slices)
        last = cuda.gridDim.x - 1 - penalized
        if block < last:
            sum_slices(partials, gradient, filled, batch, status, partial, t)
        elif block == last:
            sum_slice_losses(slice_losses, losses, filled, batch, status, partial, t)
        else:
            sum_squares(parameters, biases, squares, batch, partial, t)

    return sum_and_check
