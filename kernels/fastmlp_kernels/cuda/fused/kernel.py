"""`cuda.fused`: tiles of a batch's rows shared out to blocks, each tile through all layers.

A step is three launches: `tile_gradients` here, then `sum_and_check` of
`fused_step`. The tiles of a batch belong to *slices*, and each slice has a partial gradient in
global memory: which tiles are whose, and in what order anything is added, depends on the problem
and the rows of a tile, and not on how many blocks there are. So GPUs that have room for the same
tiles come to the same bits (of the products on tensor cores, those of one generation).
"""

import functools
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import cuda

from fastmlp_kernels.compile import cuda_kernel, cuda_part
from fastmlp_kernels.cuda.fused.step import filled_slices, rows_of_batch
from fastmlp_kernels.cuda.instructions.index32 import index32, wide
from fastmlp_kernels.cuda.layered.gather import BATCH
from fastmlp_kernels.cuda.on_chip import block_copies, chain
from fastmlp_kernels.cuda.on_chip.chain import Chain, Rows
from fastmlp_kernels.cuda.on_chip.dropout import tile_dropout
from fastmlp_kernels.cuda.on_chip.offsets import SHARED_ALIGNMENT, epoch_of, tile_of
from fastmlp_kernels.cuda.on_chip.placement import Form
from fastmlp_kernels.problem import STATUS


class Choice(NamedTuple):
    """What a kernel is compiled for; shapes are in the table of words.

    `accumulate` says whether a slice has several tiles, so that gradients are added up;
    `gradient_shared` whether they are in shared memory, or in the slice's place in global memory.
    """

    form: Form
    threads: int
    rows: Rows
    accumulate: bool
    gradient_shared: bool
    tile_columns: int = 4


def signature(form: Form) -> tuple:
    """Return the types of the kernel's arguments."""
    real, word = getattr(numba, form.number), numba.int64
    vector, matrix, indices = real[::1], real[:, ::1], word[::1]
    arrays = (vector, matrix, matrix, indices, matrix, vector, vector, vector, vector)
    return (*arrays, indices, indices, indices, word, word)


@functools.cache
def build(choice: Choice) -> Any:
    """Return the kernel."""
    form, mixed, threads = choice.form, choice.form.mixed, choice.threads
    operand, number = getattr(numba, form.operand), getattr(numba, form.number)
    parts = chain.build(form, threads, choice.rows, choice.accumulate, choice.tile_columns)
    # As numbers the parameters stay in global memory, where `update` writes them.
    load = block_copies.load(threads, parts.products.to_operand, False)
    gradients, adds_losses = _gradients(choice, parts), chain.loss_thread(threads)

    @cuda_kernel
    def tile_gradients(
        parameters,
        X,
        y,
        order,
        hyper,
        keep_scales,
        factors,
        partials,
        slice_losses,
        counter,
        status,
        words,
        slices,
        weighted,
    ):
        """Write the gradient and the loss of each slice of a batch.

        Parameters
        ----------
        parameters : dtype[P], read
        X : dtype[n, inputs], y : dtype[n, target_columns], read
        order : int64[rows], read
            Indices into X, checked before.
        hyper : dtype[batches, hyper_columns], keep_scales : dtype[layers], read
            Of dropout: the key is in the batch's row; what is kept of a layer is multiplied.
        factors : dtype[rows] or dtype[1], read
            Of the rows in the order of the epoch; or of all rows of this batch.
        partials : dtype[slices * P], written
            Slice s's gradient by parameter p is ``partials[s * P + p]``; those of slices that have
            no tile are left alone.
        slice_losses : dtype[slices], written
        counter : int64[2], read
            The batch's number is ``counter[BATCH]``.
        status : int64[3], read
            Nothing is written when ``status[STATUS]`` is not 0.
        words : int64[:], read
            The table of `tables`.
        slices, weighted : int
            `weighted` is 1 where every row has a factor of its own.

        Notes
        -----
        Launch: any number of blocks, of `threads` threads and the placement's shared memory; block
        b computes slices b, b + blocks, ... Aliasing: none of the arrays overlap. Cost: ``6 rows
        P`` flops less those of the first layer's inputs, a read of P numbers a block and a write of
        as many a slice; 2 L + 4 barriers a tile. Accuracy: sums in one order, that of rows and
        tiles, whatever the number of blocks. Source: `reference`.
        """
        numbers = cuda.shared.array(0, number, SHARED_ALIGNMENT)
        operands = cuda.shared.array(0, operand, SHARED_ALIGNMENT) if mixed else numbers
        t, batch = index32(cuda.threadIdx.x), counter[BATCH]
        # The same for every thread: no launch that writes it runs beside this one.
        if status[STATUS] != 0:
            return
        load(operands, numbers, words, parameters, t)
        start, size = batch * epoch_of(words).batch_size, rows_of_batch(words, batch)
        filled = filled_slices(words, size, slices)
        s = np.int64(cuda.blockIdx.x)
        # Numba counts the rounds of a `range` beforehand, by a division of 64 bits.
        while s < filled:
            total = gradients(
                *(operands, numbers, words, X, y, order, hyper[batch], keep_scales, factors),
                *(partials, start, size, s, slices, weighted, t),
            )
            if t == adds_losses:
                slice_losses[s] = total
            s += cuda.gridDim.x

    return tile_gradients


def _gradients(choice: Choice, parts: Chain) -> Any:
    threads, row_pad = choice.threads, choice.form.row_pad
    gather, forward, backward = parts.gather, parts.forward, parts.backward
    loss, add_losses = parts.loss, parts.add_losses
    accumulate = choice.accumulate
    shared = choice.gradient_shared and accumulate

    @cuda_part
    def gradients(
        operands,
        numbers,
        words,
        X,
        y,
        order,
        hyper,
        keep_scales,
        factors,
        partials,
        start,
        size,
        s,
        slices,
        weighted,
        t,
    ):
        """Write the gradient of a slice's tiles; return its loss to `loss_thread`.

        Waits first, for what the block wrote to shared memory before.
        """
        tile = tile_of(words)
        count = tile.parameters
        own = partials[s * wide(count) : (s + 1) * wide(count)]
        if accumulate and not shared:
            k = t
            while k < count:
                own[k] = own.dtype.type(0)
                k += threads
        total = numbers.dtype.type(0)
        tile_rows = wide(tile.rows)
        first = s * tile_rows
        while first < size:
            held = index32(min(tile_rows, size - first))
            rows = (held + row_pad - 1) // row_pad * row_pad
            # Between the tile before, whose rows are read until its gradients are there (or the
            # weights and zeros), and this one's rows; then between those and the forward pass.
            cuda.syncthreads()
            gather(operands, numbers, words, X, y, order, start + first, held, rows, t)
            cuda.syncthreads()
            dropping = tile_dropout(hyper, index32(0), first, keep_scales)
            forward(operands, numbers, words, dropping, rows, t)
            factor = (start + first) * weighted
            loss(operands, numbers, words, factors, factor, weighted, held, rows, t)
            # Between the last layer's dZ, and the row losses, and what reads them.
            cuda.syncthreads()
            total = add_losses(numbers, words, rows, total, t)
            if shared:
                backward(operands, numbers, words, dropping, numbers, tile.gradient, rows, t)
            else:
                backward(operands, numbers, words, dropping, own, index32(0), rows, t)
            first += slices * tile_rows
        if shared:
            place = tile.gradient
            # Between the gradient's elements and the threads that copy them.
            cuda.syncthreads()
            k = t
            while k < count:
                own[k] = numbers[place + k]
                # For the next slice.
                numbers[place + k] = numbers.dtype.type(0)
                k += threads
        return total

    return gradients
