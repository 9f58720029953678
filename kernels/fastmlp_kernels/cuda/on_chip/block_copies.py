"""Copies between global memory and the shared memory of a block: a network, and rows of X and y."""

import math
from typing import Any

from numba import cuda

from fastmlp_kernels.compile import cuda_part
from fastmlp_kernels.cuda.instructions.index32 import index32, wide
from fastmlp_kernels.cuda.instructions.pointers import pointer_to
from fastmlp_kernels.cuda.on_chip.offsets import layer_of, tile_of

# Threads that copy a row together: of float32 their neighbours are a sector of global memory.
ROW_LANES = 8


def load(threads: int, to_operand: Any, mixed: bool) -> Any:
    """Return the copy of a network to shared memory."""

    @cuda_part
    def load(operands, numbers, words, parameters, t):
        """Copy a network's parameters to shared memory; anything else there becomes 0.

        Parameters
        ----------
        operands, numbers : dtype[:], shared memory
            All of it is written: what pads rows and columns must be finite, and the padding of the
            weights 0, as the products run on over it.
        words : int64[:]
        parameters : dtype[:], read
            Global memory: the network's own.
        t : int

        Notes
        -----
        Waits once, between clearing and copying; the caller waits before what is there is used.
        Cost: a read of each parameter.
        """
        tile = tile_of(words)
        k = t
        while k < tile.numbers_used:
            numbers[k] = numbers.dtype.type(0)
            k += threads
        # Between the zeros and what the threads write over them.
        cuda.syncthreads()
        index = index32(0)
        while index < tile.layers:
            layer = layer_of(words, index)
            fan_out = layer.fan_out
            W, stride, b = layer.W, layer.W_stride, layer.b
            source, k = pointer_to(parameters, layer.start), t
            while k < layer.weights:
                row = k // fan_out
                operands[W + row * stride + k - row * fan_out] = to_operand(source[k])
                k += threads
            source += layer.weights
            j = t
            while j < fan_out:
                numbers[b + j] = source[j]
                j += threads
            index += 1
        if mixed:
            k = t
            while k < tile.parameters:
                numbers[tile.master + k] = parameters[k]
                k += threads

    return load


def gather(threads: int, to_operand: Any) -> Any:
    """Return the copy of a tile's rows to shared memory."""
    lanes = math.gcd(threads, ROW_LANES)
    groups = threads // lanes

    @cuda_part
    def gather(operands, numbers, words, X, y, order, start, count, rows, t):
        """Copy rows ``order[start : start + count]`` of X and y to shared memory.

        Parameters
        ----------
        operands, numbers : dtype[:], shared memory, written
        words : int64[:]
        X : dtype[n, inputs], y : dtype[n, target_columns], order : int64[:]
            Global memory, read.
        start, count, rows, t : int
            The rows of the tile beyond `count` repeat its first one: what is computed of them is
            finite whenever that of the first is, and their derivatives are 0.

        Notes
        -----
        Cost: one read of the rows, `ROW_LANES` neighbours at a time.
        """
        tile, lane, i = tile_of(words), t % lanes, t // lanes
        places = pointer_to(order, index32(0)) + start
        from_X, from_y = pointer_to(X, lane), pointer_to(y, lane)
        to_X = pointer_to(operands, tile.X + i * tile.X_stride + lane)
        to_y = pointer_to(numbers, tile.targets + i * tile.target_stride + lane)
        while i < rows:
            row = places[i if i < count else index32(0)]
            source, target, j = from_X + row * wide(tile.inputs), to_X, lane
            while j < tile.inputs:
                target[0] = to_operand(source[0])
                source += lanes
                target += lanes
                j += lanes
            if i < count:
                source, target, j = from_y + row * wide(tile.target_columns), to_y, lane
                while j < tile.target_columns:
                    target[0] = source[0]
                    source += lanes
                    target += lanes
                    j += lanes
            to_X += groups * tile.X_stride
            to_y += groups * tile.target_stride
            i += groups

    return gather


def store(threads: int, mixed: bool) -> Any:
    """Return the copy of a network back to global memory."""

    @cuda_part
    def store(numbers, words, parameters, t):
        """Copy a network's parameters back, as `load` took them.

        Parameters
        ----------
        numbers : dtype[:], shared memory, read
        words : int64[:]
        parameters : dtype[:], written
            Global memory: the network's own.
        t : int

        Notes
        -----
        Cost: a write of each parameter.
        """
        tile = tile_of(words)
        if mixed:
            k = t
            while k < tile.parameters:
                parameters[k] = numbers[tile.master + k]
                k += threads
            return
        index = index32(0)
        while index < tile.layers:
            layer = layer_of(words, index)
            fan_out = layer.fan_out
            W, stride, b = layer.W, layer.W_stride, layer.b
            target, k = pointer_to(parameters, layer.start), t
            while k < layer.weights:
                row = k // fan_out
                target[k] = numbers[W + row * stride + k - row * fan_out]
                k += threads
            target += layer.weights
            j = t
            while j < fan_out:
                target[j] = numbers[b + j]
                j += threads
            index += 1

    return store
