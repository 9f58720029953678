"""The end of a step within a block: the check, the sum of the weights' squares, the update."""

import math
from typing import Any

from numba import cuda

from fastmlp_kernels.algebra import OPTIMIZERS
from fastmlp_kernels.algebra.constants import ZERO
from fastmlp_kernels.algebra.optimizers import (
    BIAS_DECAY,
    CLIP_NORM,
    CLIP_VALUE,
    HYPER_WIDTH,
    RULE_START,
    WEIGHT_DECAY,
    clip_scale,
)
from fastmlp_kernels.compile import cuda_function, cuda_part, cuda_switch
from fastmlp_kernels.cuda.instructions.index32 import index32, wide
from fastmlp_kernels.cuda.instructions.pointers import load, pointer_to, step_of, store
from fastmlp_kernels.cuda.on_chip.block_linear import exact
from fastmlp_kernels.cuda.on_chip.offsets import layer_of, tile_of
from fastmlp_kernels.cuda.on_chip.placement import VECTOR
from fastmlp_kernels.cuda.sums import block_sum


def finite(adds_losses: int) -> Any:
    """Return the check of a step, whose loss the thread `adds_losses` has."""

    @cuda_part
    def finite(total, seen, t):
        """Return whether the loss and every element of the gradient are finite, to every thread.

        Parameters
        ----------
        total : dtype
            The loss, in the thread that adds losses.
        seen : dtype
            0 where what the thread wrote of the gradient is finite, else NaN.
        t : int

        Notes
        -----
        Waits once: what threads wrote or read before may be read or written after it.
        """
        if t == adds_losses:
            # Of a finite number it is 0, of any other NaN.
            seen += ZERO * total
        return cuda.syncthreads_or(0 if seen == ZERO else 1) == 0

    return finite


def weight_squares(threads: int, mixed: bool) -> Any:
    """Return the sum of the squares of the weights."""

    @cuda_part
    def layer_squares(numbers, words, index, t):
        """Return a thread's share of a layer's."""
        total = numbers.dtype.type(0)
        layer = layer_of(words, index)
        fan_out = layer.fan_out
        W, stride = layer.W, layer.W_stride
        if mixed:
            W, stride = tile_of(words).master + layer.start, fan_out
        k = t
        while k < layer.weights:
            row = k // fan_out
            value = numbers[W + row * stride + k - row * fan_out]
            total += value * value
            k += threads
        return total

    @cuda_part
    def weight_squares(numbers, words, t):
        """Return the sum of the squares of all weights, no biases, in thread 0.

        Parameters
        ----------
        numbers : dtype[:], shared memory, read but for the partial sums
        words : int64[:]
        t : int

        Notes
        -----
        Waits several times, the last time after everything was read. Cost: ``2 P`` flops.
        Accuracy: a thread sums every `threads`-th weight of each layer, and a tree their sums: the
        same at every run, error at most ``(P / threads + layers + log2 threads) u`` of the sum.
        """
        total = numbers.dtype.type(0)
        tile = tile_of(words)
        index = index32(0)
        while index < tile.layers:
            total += layer_squares(numbers, words, index, t)
            index += 1
        place = wide(tile.partial)
        partial = numbers[place : place + threads]
        partial[t] = total
        block_sum(partial, wide(t), threads)
        return partial[0]

    return weight_squares


def clipped_scale(threads: int) -> Any:
    """Return the sum over a gradient that clipping by its norm takes."""
    scale_of = cuda_function(clip_scale)

    @cuda_part
    def clipped_scale(numbers, words, hyper, t):
        """Return what the gradient is multiplied by, to every thread; NaN for no finite norm.

        Parameters
        ----------
        numbers : dtype[:], shared memory, read but for the partial sums
        words : int64[:]
        hyper : int
            Where in `numbers` this step's hyper-parameters begin.
        t : int

        Notes
        -----
        Waits several times, the last time after the gradient was read. Cost: ``4 P`` flops.
        Accuracy: as `weight_squares`. Source: `algebra.optimizers.clip_scale`.
        """
        tile = tile_of(words)
        gradient, limit = tile.gradient, numbers[hyper + CLIP_VALUE]
        total = numbers.dtype.type(0)
        k = t
        while k < tile.parameters:
            slope = min(max(numbers[gradient + k], -limit), limit)
            total += slope * slope
            k += threads
        place = wide(tile.partial)
        partial = numbers[place : place + threads]
        partial[t] = total
        block_sum(partial, wide(t), threads)
        squares = partial[0]
        # Between these reads and the next partial sums.
        cuda.syncthreads()
        if not math.isfinite(squares):
            return squares - squares
        return scale_of(squares, numbers[hyper + CLIP_NORM])

    return clipped_scale


@cuda_part
def _rule_numbers(numbers, hyper):
    start = hyper + RULE_START
    return (
        numbers[start],
        numbers[start + 1],
        numbers[start + 2],
        numbers[start + 3],
        numbers[start + 4],
        numbers[start + 5],
        numbers[start + 6],
        numbers[start + 7],
    )


@cuda_part
def _decays(numbers, hyper):
    return numbers[hyper + WEIGHT_DECAY], numbers[hyper + BIAS_DECAY]


def _update_biases(threads: int, step: Any, mixed: bool) -> Any:
    @cuda_part
    def update_biases(numbers, tile, layer, state, first, second, decay, h, limit, scale, t):
        """Apply a step to the biases of a layer."""
        p, j = layer.start + layer.weights + t, t
        bias = pointer_to(numbers, layer.b + t)
        own = pointer_to(numbers, tile.master + p) if mixed else bias
        slot = pointer_to(numbers, tile.gradient + p)
        m, v = pointer_to(state, first + p), pointer_to(state, second + p)
        while j < layer.fan_out:
            step(own, bias, slot, m, v, decay, h, limit, scale)
            own += threads
            bias += threads
            slot += threads
            m += threads
            v += threads
            j += threads

    return update_biases


def _update_weights(threads: int, step: Any, mixed: bool, together: int) -> Any:
    """Return the update of the weights of a layer, so many neighbours at a time."""
    next_one = threads * together

    @cuda_part
    def update_weights(
        operands, numbers, tile, layer, state, first, second, decay, h, limit, scale, t
    ):
        """Apply a step to the weights of a layer."""
        fan_out, stride, k = layer.fan_out, layer.W_stride, t * together
        i = t // layer.across
        j = k - i * fan_out
        p = layer.start + k
        copy = pointer_to(operands, layer.W + i * stride + j)
        own = pointer_to(numbers, tile.master + p) if mixed else copy
        slot = pointer_to(numbers, tile.gradient + p)
        m, v = pointer_to(state, first + p), pointer_to(state, second + p)
        far = step_of(copy, layer.down * stride + layer.along)
        wrap = step_of(copy, stride - fan_out)
        along = layer.along
        while k < layer.weights:
            step(own, copy, slot, m, v, decay, h, limit, scale)
            # On to the next ones, without a division.
            k += next_one
            slot += next_one
            m += next_one
            v += next_one
            copy += far
            j += along
            if j >= fan_out:
                j -= fan_out
                copy += wrap
            own = own + next_one if mixed else copy

    return update_weights


def update_network(
    threads: int,
    optimizer: str,
    to_operand: Any,
    mixed: bool,
    accumulate: bool,
    clips: bool,
    layer_rates: bool,
    state_shared: bool,
) -> Any:
    """Return the update of a network in shared memory."""
    changed = _changed(optimizer, clips)
    one = _step_of_one(optimizer, changed, to_operand, mixed, accumulate)
    several = _step_of_several(optimizer, changed, to_operand, mixed, accumulate)
    update_singly = _update_weights(threads, one, mixed, 1)
    update_together = _update_weights(threads, several, mixed, VECTOR)
    step_of_bias = _step_of_one(optimizer, changed, exact, mixed, accumulate)
    update_biases = _update_biases(threads, step_of_bias, mixed)

    @cuda_part
    def update_network(operands, numbers, words, state, first, second, hyper, scale, t):
        """Apply one optimizer step to every parameter.

        Parameters
        ----------
        operands, numbers : dtype[:], shared memory, read and written
            Where gradients accumulate, theirs becomes 0.
        words : int64[:]
        state : dtype[:], read and written
            Shared memory or global.
        first, second : int
            Where in `state` the two vectors of the network begin.
        hyper : int
            Where in `numbers` this step's hyper-parameters begin.
        scale : dtype
            What the gradient is multiplied by, where it is clipped.
        t : int

        Notes
        -----
        Waits for nobody. Cost: about 10 flops and 4 to 8 accesses a parameter, 16 bytes each where
        a layer's width allows. The padding of the weights stays 0, as no thread comes there.
        Source: `algebra.optimizers`.
        """
        h = _rule_numbers(numbers, hyper)
        limit = numbers[hyper + CLIP_VALUE]
        weight_decay, bias_decay = _decays(numbers, hyper)
        tile = tile_of(words)
        index = index32(0)
        while index < tile.layers:
            if layer_rates and index > 0:
                hyper += HYPER_WIDTH
                h = _rule_numbers(numbers, hyper)
                weight_decay, bias_decay = _decays(numbers, hyper)
            layer = layer_of(words, index)
            vectors = (state, first, second)
            if state_shared and layer.together == VECTOR:
                update_together(
                    *(operands, numbers, tile, layer, *vectors),
                    *(weight_decay, h, limit, scale, t),
                )
            else:
                update_singly(
                    *(operands, numbers, tile, layer, *vectors),
                    *(weight_decay, h, limit, scale, t),
                )
            update_biases(numbers, tile, layer, *vectors, bias_decay, h, limit, scale, t)
            index += 1

    return update_network


def _changed(optimizer: str, clips: bool) -> Any:
    rule = cuda_switch([OPTIMIZERS[optimizer].update])

    @cuda_part
    def changed(value, slope, m, v, decay, h, limit, scale):
        """Return a parameter after a step, and its state."""
        if clips:
            slope = scale * min(max(slope, -limit), limit)
        slope += decay * value
        return rule(0, value, slope, m, v, h)

    return changed


def _step_of_one(
    optimizer: str, changed: Any, to_operand: Any, mixed: bool, accumulate: bool
) -> Any:
    slots = OPTIMIZERS[optimizer].slots

    @cuda_part
    def step(own, copy, slot, m_slot, v_slot, decay, h, limit, scale):
        """Update a parameter, and the copy that products read, by its gradient in `slot`."""
        value = own[0]
        # Where there is no slot, the rule looks at neither.
        m = m_slot[0] if slots > 0 else value
        v = v_slot[0] if slots > 1 else value
        value, m, v = changed(value, slot[0], m, v, decay, h, limit, scale)
        own[0] = value
        if mixed:
            copy[0] = to_operand(value)
        if slots > 0:
            m_slot[0] = m
        if slots > 1:
            v_slot[0] = v
        if accumulate:
            slot[0] = 0

    return step


def _step_of_several(
    optimizer: str, changed: Any, to_operand: Any, mixed: bool, accumulate: bool
) -> Any:
    slots = OPTIMIZERS[optimizer].slots

    @cuda_part
    def step(own, copy, slot, m_slot, v_slot, decay, h, limit, scale):
        """Do as the step of one, for `VECTOR` neighbours."""
        values, slopes = load(own, VECTOR), load(slot, VECTOR)
        m = load(m_slot, VECTOR) if slots > 0 else values
        v = load(v_slot, VECTOR) if slots > 1 else values
        a = changed(values[0], slopes[0], m[0], v[0], decay, h, limit, scale)
        b = changed(values[1], slopes[1], m[1], v[1], decay, h, limit, scale)
        c = changed(values[2], slopes[2], m[2], v[2], decay, h, limit, scale)
        d = changed(values[3], slopes[3], m[3], v[3], decay, h, limit, scale)
        store(own, (a[0], b[0], c[0], d[0]))
        if mixed:
            halves = (to_operand(a[0]), to_operand(b[0]), to_operand(c[0]), to_operand(d[0]))
            store(copy, halves)
        if slots > 0:
            store(m_slot, (a[1], b[1], c[1], d[1]))
        if slots > 1:
            store(v_slot, (a[2], b[2], c[2], d[2]))
        if accumulate:
            store(slot, (0, 0, 0, 0))

    return step
