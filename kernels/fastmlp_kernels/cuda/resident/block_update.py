"""The end of a step within a block: the check, the sum of the weights' squares, the update."""

import math
from typing import Any

from numba import cuda

from fastmlp_kernels.algebra import OPTIMIZERS
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
from fastmlp_kernels.cuda.on_chip.offsets import SMALL, layer_of, tile_of
from fastmlp_kernels.cuda.sums import block_sum


def finite(threads: int, adds_losses: int) -> Any:
    """Return the check of a step, whose loss the thread `adds_losses` has."""

    @cuda_part
    def finite(numbers, words, total, t):
        """Return whether the loss and every element of the gradient are finite, to every thread.

        Parameters
        ----------
        numbers : dtype[:], shared memory, read
        words : int64[:]
        total : dtype
            The loss, in the thread that adds losses.
        t : int

        Notes
        -----
        Waits once, at its end: what other threads read before it may be written after it. Cost:
        P reads.
        """
        tile = tile_of(words)
        gradient = tile.gradient
        found = 1 if t == adds_losses and not math.isfinite(total) else 0
        k = t & SMALL
        while k < tile.parameters:
            if not math.isfinite(numbers[(gradient + k) & SMALL]):
                found = 1
            k += threads
        return cuda.syncthreads_or(found) == 0

    return finite


def weight_squares(threads: int, mixed: bool) -> Any:
    """Return the sum of the squares of the weights."""

    @cuda_part
    def layer_squares(numbers, words, index, t):
        """Return a thread's share of a layer's."""
        total = numbers.dtype.type(0)
        layer = layer_of(words, index)
        fan_in, fan_out = layer.fan_in, layer.fan_out
        W, stride = layer.W, layer.W_stride
        if mixed:
            W, stride = tile_of(words).master + layer.start, fan_out
        for k in range(t, fan_in * fan_out, threads):
            row = (k & SMALL) // fan_out
            value = numbers[(W + row * stride + k - row * fan_out) & SMALL]
            total += value * value
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
        for index in range(tile.layers):
            total += layer_squares(numbers, words, index, t)
        place = tile.partial
        partial = numbers[place : place + threads]
        partial[t] = total
        block_sum(partial, t, threads)
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
        k = t & SMALL
        while k < tile.parameters:
            slope = min(max(numbers[(gradient + k) & SMALL], -limit), limit)
            total += slope * slope
            k += threads
        place = tile.partial
        partial = numbers[place : place + threads]
        partial[t] = total
        block_sum(partial, t, threads)
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


def update_network(
    threads: int,
    optimizer: str,
    to_operand: Any,
    mixed: bool,
    accumulate: bool,
    clips: bool,
    layer_rates: bool,
) -> Any:
    """Return the update of a network in shared memory."""
    step = _step(optimizer, to_operand, mixed, accumulate, clips)

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
        Waits for nobody. Cost: about 10 flops and 4 to 8 accesses a parameter. The padding of the
        weights stays 0, as no thread comes there. Source: `algebra.optimizers`.
        """
        h = _rule_numbers(numbers, hyper)
        limit = numbers[hyper + CLIP_VALUE]
        weight_decay, bias_decay = numbers[hyper + WEIGHT_DECAY], numbers[hyper + BIAS_DECAY]
        tile = tile_of(words)
        for index in range(tile.layers):
            if layer_rates and index > 0:
                hyper += HYPER_WIDTH
                h = _rule_numbers(numbers, hyper)
                weight_decay, bias_decay = (
                    numbers[hyper + WEIGHT_DECAY],
                    numbers[hyper + BIAS_DECAY],
                )
            layer = layer_of(words, index)
            fan_in, fan_out = layer.fan_in, layer.fan_out
            W, stride = layer.W, layer.W_stride
            down, along = layer.down, layer.along
            b, start = layer.b, layer.start
            memory = (operands, numbers, tile, state, first, second)
            i = (t & SMALL) // fan_out
            j = t - i * fan_out
            while i < fan_in:
                place, p = W + i * stride + j, start + i * fan_out + j
                step(*memory, place & SMALL, p & SMALL, 1, weight_decay, h, limit, scale)
                # `threads` elements on, without a division.
                i += down
                j += along
                if j >= fan_out:
                    i += 1
                    j -= fan_out
            for j in range(t, fan_out, threads):
                p = start + fan_in * fan_out + j
                step(*memory, b + j, p & SMALL, 0, bias_decay, h, limit, scale)

    return update_network


def _step(optimizer: str, to_operand: Any, mixed: bool, accumulate: bool, clips: bool) -> Any:
    row = OPTIMIZERS[optimizer]
    slots, rule = row.slots, cuda_switch([row.update])

    @cuda_part
    def step(
        operands,
        numbers,
        tile,
        state,
        first,
        second,
        place,
        p,
        is_weight,
        decay,
        h,
        limit,
        scale,
    ):
        """Update parameter `p`, which the products read at `place`."""
        slot = tile.gradient + p
        own = tile.master + p if mixed else place
        value = numbers[own]
        slope = numbers[slot]
        if clips:
            slope = scale * min(max(slope, -limit), limit)
        slope += decay * value
        m = state[first + p] if slots > 0 else numbers.dtype.type(0)
        v = state[second + p] if slots > 1 else numbers.dtype.type(0)
        value, m, v = rule(0, value, slope, m, v, h)
        numbers[own] = value
        if mixed:
            if is_weight == 1:
                operands[place] = to_operand(value)
            else:
                numbers[place] = value
        if slots > 0:
            state[first + p] = m
        if slots > 1:
            state[second + p] = v
        if accumulate:
            numbers[slot] = numbers.dtype.type(0)

    return step
