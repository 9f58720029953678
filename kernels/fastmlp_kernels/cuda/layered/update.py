"""The optimizer's step over the flat parameter vector, and the sum of squares of its weights."""

import functools
from typing import Any

import numpy as np
from numba import cuda

from fastmlp_kernels.algebra import OPTIMIZERS
from fastmlp_kernels.algebra.optimizers import (
    BIAS_DECAY,
    CLIP_VALUE,
    HYPER_WIDTH,
    RULE_START,
    WEIGHT_DECAY,
)
from fastmlp_kernels.compile import cuda_kernel, cuda_part, cuda_switch
from fastmlp_kernels.cuda.layered.bfloat16 import bfloat16_bits
from fastmlp_kernels.cuda.layered.gather import BATCH, UPDATED, gather_element
from fastmlp_kernels.cuda.sums import grid_sum
from fastmlp_kernels.problem import STATUS

_rule = cuda_switch([row.update for row in OPTIMIZERS])


@cuda_part
def _update_element(
    i,
    batch,
    parameters,
    gradient,
    first,
    second,
    biases,
    layers,
    rule,
    hyper,
    scale,
    places,
    rounded,
):
    """Apply the step of a batch to parameter `i`."""
    own = HYPER_WIDTH * layers[i] if layers.size > 0 else 0
    start = own + RULE_START
    h = (
        hyper[batch, start],
        hyper[batch, start + 1],
        hyper[batch, start + 2],
        hyper[batch, start + 3],
        hyper[batch, start + 4],
        hyper[batch, start + 5],
        hyper[batch, start + 6],
        hyper[batch, start + 7],
    )
    decay = hyper[batch, own + (BIAS_DECAY if biases[i] != 0 else WEIGHT_DECAY)]
    slope = gradient[i]
    if scale.size > 0:
        limit = hyper[batch, own + CLIP_VALUE]
        slope = scale[0] * min(max(slope, -limit), limit)
    slope += decay * parameters[i]
    m = first[i] if i < first.size else slope
    v = second[i] if i < second.size else slope
    parameters[i], m, v = _rule(rule, parameters[i], slope, m, v, h)
    if i < first.size:
        first[i] = m
    if i < second.size:
        second[i] = v
    if rounded.size > 0 and biases[i] == 0:
        rounded[places[i]] = bfloat16_bits(parameters[i])


@cuda_kernel
def update(
    parameters,
    gradient,
    first,
    second,
    biases,
    layers,
    rule,
    hyper,
    scale,
    counter,
    status,
    places,
    rounded,
):
    """Apply one optimizer step to every parameter, unless training has stopped being finite.

    Parameters
    ----------
    parameters : dtype[P], read and written
    gradient : dtype[P], read
    first, second : dtype[P], read and written
        The optimizer's state; what the rule does not use stays, and may be empty.
    biases : uint8[P], read
        1 where the parameter is a bias.
    layers : uint16[P] or uint16[0], read
        Of each parameter, where layers have hyper-parameters of their own.
    rule : int
        Code of the row of OPTIMIZERS.
    hyper : dtype[batches, HYPER_WIDTH] or dtype[batches, layers * HYPER_WIDTH], read
        One row a step.
    scale : dtype[1] or dtype[0], read
        Where it has an element, the gradient is limited, and multiplied by it.
    counter : int64[2], read and written
        The row of `hyper` is ``counter[UPDATED]``; ``counter[BATCH]`` becomes one more.
    status : int64[3], read
        Nothing but the counter is written when ``status[STATUS]`` is not 0.
    places : int32[P] or int32[0], read
        Where in `rounded` each weight lies.
    rounded : uint16[n] or uint16[0], written
        Where it has elements, the new weights go there as bfloat16 too.

    Notes
    -----
    Launch: a thread a parameter. Aliasing: none of the arrays overlap. Cost: about 10 flops and
    4 to 8 memory accesses a parameter. Source: `algebra.optimizers`.
    """
    i = cuda.grid(1)
    batch = counter[UPDATED]
    if i == 0:
        counter[BATCH] = batch + 1
    if i < parameters.size and status[STATUS] == 0:
        vectors = (parameters, gradient, first, second, biases, layers)
        _update_element(i, batch, *vectors, rule, hyper, scale, places, rounded)


@cuda_kernel
def update_and_gather(
    parameters,
    gradient,
    first,
    second,
    biases,
    layers,
    rule,
    hyper,
    scale,
    counter,
    status,
    places,
    rounded,
    X,
    y,
    order,
    batch_size,
    inputs,
    targets,
    rounded_inputs,
):
    """Do what `update` does, and collect the rows of the next batch as `gather_rows` does.

    Parameters
    ----------
    parameters, gradient, first, second, biases, layers, rule, hyper, scale, counter : see `update`
    status, places, rounded : see `update`
    X, y, order, batch_size, inputs, targets : see `gather_rows`
    rounded_inputs : as the `rounded` of `gather_rows`

    Notes
    -----
    Launch: a thread a parameter, and behind those a thread an element of a full batch. After the
    last batch nothing is collected. Cost: that of both. Aliasing: nobody reads this batch's rows
    any more. Source: two kernels that have nothing to do with each other, in one launch.
    """
    i = cuda.grid(1)
    batch = counter[UPDATED]
    if i == 0:
        counter[BATCH] = batch + 1
    if i >= parameters.size:
        index, arrays = i - parameters.size, (inputs, targets, rounded_inputs)
        gather_element(index, X, y, order, batch + 1, batch_size, *arrays)
    elif status[STATUS] == 0:
        vectors = (parameters, gradient, first, second, biases, layers)
        _update_element(i, batch, *vectors, rule, hyper, scale, places, rounded)


@functools.cache
def build(threads: int) -> Any:
    """Return `sum_squares` for blocks of that many threads."""

    @cuda_kernel
    def sum_squares(parameters, biases, squares, counter, sums, arrivals):
        """Write the sum of the squares of all weights to ``squares[counter[BATCH]]``.

        Parameters
        ----------
        parameters : dtype[P], read
        biases : uint8[P], read
            1 where the parameter is a bias, which is left out.
        squares : dtype[batches], written
        counter : int64[2], read
        sums : dtype[blocks], written
            The sum of each block.
        arrivals : int32[1], read and written
            Zero on entry and at the end: blocks that have written their sums.

        Notes
        -----
        Launch: at most `threads` blocks. Cost: P reads and ``2 P`` flops. Accuracy: a thread sums
        the elements that are a whole grid apart, a tree those of a block, and the last block to
        arrive those of all blocks: which one that is changes no bit; error at most
        ``(P / all threads + 2 log2 threads) u`` of the sum. Source: the L2 penalty ``|W|^2``.
        """
        partial = cuda.shared.array(threads, parameters.dtype)
        flag = cuda.shared.array(1, np.int32)
        t = cuda.threadIdx.x
        total = parameters.dtype.type(0)
        for i in range(cuda.grid(1), parameters.size, cuda.gridsize(1)):
            if biases[i] == 0:
                total += parameters[i] * parameters[i]
        if grid_sum(partial, sums, arrivals, flag, total, t, threads) and t == 0:
            squares[counter[BATCH]] = partial[0]

    return sum_squares
