"""`cuda.resident`: many batches in one launch, a network a block, all of it in shared memory.

A block reads a network once, trains it on batch after batch, and writes it back at the launch's
end. Blocks know nothing of one another: as many networks as there are blocks train side by side.
"""

import functools
import math
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import cuda

from fastmlp_kernels.algebra import HYPER_WIDTH, OPTIMIZERS
from fastmlp_kernels.compile import cuda_kernel, cuda_part
from fastmlp_kernels.cuda.instructions.index32 import index32, wide
from fastmlp_kernels.cuda.instructions.pointers import pointer_to
from fastmlp_kernels.cuda.on_chip import block_copies, chain
from fastmlp_kernels.cuda.on_chip.chain import Chain, Rows
from fastmlp_kernels.cuda.on_chip.dropout import tile_dropout
from fastmlp_kernels.cuda.on_chip.offsets import SHARED_ALIGNMENT, epoch_of, tile_of
from fastmlp_kernels.cuda.on_chip.placement import Form
from fastmlp_kernels.cuda.resident import block_update
from fastmlp_kernels.problem import BATCHES, CONTROL_WORDS, STATUS, STOP

# Keeps float32 arithmetic in float32.
NOT_FINITE = np.float32(np.nan)


class Choice(NamedTuple):
    """What a kernel is compiled for; shapes are in the table of words.

    `accumulate` says whether a batch has several tiles, so that gradients are added up.
    """

    form: Form
    threads: int
    rows: Rows
    optimizer: str
    accumulate: bool
    state_shared: bool
    clipping: str = "none"
    layer_rates: bool = False
    tile_columns: int = 4


def signature(form: Form) -> tuple:
    """Return the types of the kernel's arguments."""
    real, word = getattr(numba, form.number), numba.int64
    vector, matrix, indices = real[::1], real[:, ::1], word[::1]
    arrays = (vector, vector, matrix, matrix, indices, *[vector] * 5)
    return (*arrays, indices, indices, word, word, word, word, word)


@functools.cache
def build(choice: Choice) -> Any:
    """Return the kernel."""
    form, mixed = choice.form, choice.form.mixed
    operand, number = getattr(numba, form.operand), getattr(numba, form.number)
    parts = chain.build(form, choice.threads, choice.rows, choice.accumulate, choice.tile_columns)
    begin, train, end = _begin(choice, parts), _train(choice, parts), _end(choice)
    slots = OPTIMIZERS[choice.optimizer].slots

    @cuda_kernel
    def resident(
        parameters,
        state,
        X,
        y,
        order,
        hyper,
        keep_scales,
        factors,
        losses,
        squares,
        control,
        words,
        first,
        last,
        batches,
        weighted,
        penalized,
    ):
        """Train each network on its batches from `first` to before `last`.

        Parameters
        ----------
        parameters : dtype[members * P], state : dtype[members * slots * P], read and written
        X : dtype[n, inputs], y : dtype[n, target_columns], read
        order : int64[members * rows], read
            Indices into X, checked before.
        hyper : dtype[members * batches * hyper_columns], read
        keep_scales : dtype[layers], read
            What dropout keeps of a layer is multiplied by its scale.
        factors : dtype[members * rows] or dtype[2], read
            Of the rows in the order of the epoch; or of a full batch, and of the last one.
        losses, squares : dtype[members * batches], written
            The losses of the batches; the squares of the weights before them, where `penalized`.
        control : int64[members * CONTROL_WORDS], read and written
            A network that is to stop, or has failed, is left alone.
        words : int64[:], read
            The table of `tables`.
        first, last, batches : int
            Batches of this launch; those of an epoch.
        weighted, penalized : int
            1 where every row has a factor of its own, and where squares are wanted.

        Notes
        -----
        Launch: a block a network, of `threads` threads and the placement's shared memory. Aliasing:
        none of the arrays overlap. Cost: that of the batches' products, at the speed of one
        multiprocessor, and 2 L + 2 barriers a batch of one tile. Accuracy: sums in one order, that
        of rows, terms and parameters; nothing depends on the other networks. Source: `reference`.
        """
        numbers = cuda.shared.array(0, number, SHARED_ALIGNMENT)
        operands = cuda.shared.array(0, operand, SHARED_ALIGNMENT) if mixed else numbers
        t, member = index32(cuda.threadIdx.x), np.int64(cuda.blockIdx.x)
        mine = member * CONTROL_WORDS
        # The same for every thread of the block: nobody waits for one that has left.
        if control[mine + STOP] == 0 and control[mine + STATUS] == 0:
            count = wide(tile_of(words).parameters)
            own = parameters[member * count : (member + 1) * count]
            own_state = state[member * slots * count : (member + 1) * slots * count]
            begin(operands, numbers, words, own, own_state, t)
            done = train(
                *(operands, numbers, words, own_state, X, y, order, hyper, keep_scales, factors),
                *(losses, squares, control, member, first, last, batches, weighted, penalized, t),
            )
            # Between the last updates and the copy of what they wrote.
            cuda.syncthreads()
            end(numbers, words, own, own_state, t)
            if t == 0:
                control[mine + BATCHES] = done

    return resident


def _copy(threads: int) -> Any:
    @cuda_part
    def copy(target, source, count, t):
        """Copy so many numbers, a block of threads at a time."""
        k = t
        while k < count:
            target[k] = source[k]
            k += threads

    return copy


def _begin(choice: Choice, parts: Chain) -> Any:
    load, state_shared, copy = parts.load, choice.state_shared, _copy(choice.threads)
    slots = OPTIMIZERS[choice.optimizer].slots

    @cuda_part
    def begin(operands, numbers, words, parameters, state, t):
        """Read a network and, where it lies in shared memory, its state."""
        load(operands, numbers, words, parameters, t)
        if state_shared:
            tile = tile_of(words)
            for slot in range(slots):
                target = pointer_to(numbers, tile.first if slot == 0 else tile.second)
                source = pointer_to(state, index32(slot) * tile.parameters)
                copy(target, source, tile.parameters, t)

    return begin


def _end(choice: Choice) -> Any:
    state_shared, copy = choice.state_shared, _copy(choice.threads)
    slots = OPTIMIZERS[choice.optimizer].slots
    store = block_copies.store(choice.threads, choice.form.mixed)

    @cuda_part
    def end(numbers, words, parameters, state, t):
        """Write back what `begin` read."""
        store(numbers, words, parameters, t)
        if state_shared:
            tile = tile_of(words)
            for slot in range(slots):
                source = pointer_to(numbers, tile.first if slot == 0 else tile.second)
                target = pointer_to(state, index32(slot) * tile.parameters)
                copy(target, source, tile.parameters, t)

    return end


def _train(choice: Choice, parts: Chain) -> Any:
    threads, form, state_shared = choice.threads, choice.form, choice.state_shared
    adds_losses = chain.loss_thread(threads)
    weight_squares = block_update.weight_squares(threads, form.mixed)
    to_operand = parts.products.to_operand
    update = block_update.update_network(
        *(threads, choice.optimizer, to_operand, form.mixed, choice.accumulate),
        *(choice.clipping != "none", choice.layer_rates, state_shared),
    )
    judge, hyper_width = _judge(choice), _hyper_width(choice)
    fetch, gradients = _fetch(choice, parts), _gradients(choice, parts)

    @cuda_part
    def train(
        operands,
        numbers,
        words,
        state,
        X,
        y,
        order,
        hyper,
        keep_scales,
        factors,
        losses,
        squares,
        control,
        member,
        first,
        last,
        batches,
        weighted,
        penalized,
        t,
    ):
        """Train one network; return how many batches of the epoch are done, to every thread."""
        tile, mine = tile_of(words), member * batches
        fetch(operands, numbers, words, X, y, order, hyper, member, batches, first, t)
        done = first
        while done < last:
            # Between what the fetch and the update before wrote, and all that reads it.
            cuda.syncthreads()
            place = tile.hyper + index32(done & 1) * hyper_width(tile)
            total, seen = gradients(
                *(operands, numbers, words, X, y, order, place, keep_scales, factors),
                *(member, done, weighted, t),
            )
            if t == adds_losses:
                losses[mine + done] = total
            # Waits: between the gradient's elements and the threads that apply them.
            scale = judge(numbers, words, total, seen, place, t)
            if not math.isfinite(scale):
                if t == 0:
                    control[member * CONTROL_WORDS + STATUS] = done + 1
                break
            if penalized != 0:
                value = weight_squares(numbers, words, t)
                if t == 0:
                    squares[mine + done] = value
            if state_shared:
                update(operands, numbers, words, numbers, tile.first, tile.second, place, scale, t)
            else:
                at_first, at_second = index32(0), tile.parameters
                update(operands, numbers, words, state, at_first, at_second, place, scale, t)
            done += 1
            # Beside the update: no other thread reads a tile's rows now, nor the other step's
            # numbers.
            if done < last:
                fetch(operands, numbers, words, X, y, order, hyper, member, batches, done, t)
        return done

    return train


def _judge(choice: Choice) -> Any:
    threads, by_norm = choice.threads, choice.clipping == "norm"
    finite = block_update.finite(chain.loss_thread(threads))
    clipped_scale = block_update.clipped_scale(threads)

    @cuda_part
    def judge(numbers, words, total, seen, hyper, t):
        """Return what the gradient is multiplied by, to every thread; NaN to leave it.

        It is left where the loss, the gradient or a norm that is limited is not finite.
        """
        one = numbers.dtype.type(1)
        if not finite(total, seen, t):
            return one * NOT_FINITE
        return clipped_scale(numbers, words, hyper, t) if by_norm else one

    return judge


def _hyper_width(choice: Choice) -> Any:
    layer_rates = choice.layer_rates

    @cuda_part
    def hyper_width(tile):
        """Return how many hyper-parameters a step has."""
        return HYPER_WIDTH * tile.layers if layer_rates else index32(HYPER_WIDTH)

    return hyper_width


def _fetch(choice: Choice, parts: Chain) -> Any:
    threads, row_pad, gather = choice.threads, choice.form.row_pad, parts.gather
    hyper_width = _hyper_width(choice)

    @cuda_part
    def fetch(operands, numbers, words, X, y, order, hyper, member, batches, batch, t):
        """Read a batch's hyper-parameters and the rows of its first tile; wait for nobody."""
        tile, epoch = tile_of(words), epoch_of(words)
        width = hyper_width(tile)
        place = tile.hyper + index32(batch & 1) * width
        source = (member * batches + batch) * wide(width)
        k = t
        while k < width:
            numbers[place + k] = hyper[source + wide(k)]
            k += threads
        begin = batch * epoch.batch_size
        count = index32(min(wide(tile.rows), epoch.batch_size, epoch.rows - begin))
        rows = (count + row_pad - 1) // row_pad * row_pad
        start = member * epoch.rows + begin
        gather(operands, numbers, words, X, y, order, start, count, rows, t)

    return fetch


def _gradients(choice: Choice, parts: Chain) -> Any:
    row_pad = choice.form.row_pad
    gather, forward, backward = parts.gather, parts.forward, parts.backward
    loss, add_losses = parts.loss, parts.add_losses

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
        member,
        batch,
        weighted,
        t,
    ):
        """Compute a batch's gradient; return its loss to `loss_thread`, and what `backward` does.

        `hyper` is where in `numbers` the batch's hyper-parameters begin. The first tile's rows are
        there. The caller waits before it reads a gradient.
        """
        tile, epoch = tile_of(words), epoch_of(words)
        begin = batch * epoch.batch_size
        size = min(epoch.batch_size, epoch.rows - begin)
        place = member * epoch.rows + begin
        # Without weights: the factor of a full batch, or of the smaller last one.
        shared_factor = 0 if size == epoch.batch_size else 1
        total = seen = numbers.dtype.type(0)
        start = np.int64(0)
        while start < size:
            count = index32(min(wide(tile.rows), size - start))
            rows = (count + row_pad - 1) // row_pad * row_pad
            if start > 0:
                # Between the tile before, whose rows are read until its gradients are there, and
                # this one's rows; then between those and the forward pass.
                cuda.syncthreads()
                gather(operands, numbers, words, X, y, order, place + start, count, rows, t)
                cuda.syncthreads()
            dropping = tile_dropout(numbers, hyper, start, keep_scales)
            forward(operands, numbers, words, dropping, rows, t)
            factor = place + start if weighted != 0 else shared_factor
            loss(operands, numbers, words, factors, factor, weighted, count, rows, t)
            # Between the last layer's dZ, and the row losses, and what reads them.
            cuda.syncthreads()
            total = add_losses(numbers, words, rows, total, t)
            # Those of the last tile are there with all that was added before.
            seen = backward(operands, numbers, words, dropping, numbers, tile.gradient, rows, t)
            start += wide(count)
        return total, seen

    return gradients
