"""Copies between global memory and the shared memory of a block: a network, and rows of X and y."""

from typing import Any

from numba import cuda

from fastmlp_kernels.compile import cuda_part
from fastmlp_kernels.cuda.on_chip.offsets import SMALL, layer_of, tile_of


def load(threads: int, to_operand: Any, mixed: bool) -> Any:
    """Return the copy of a network to shared memory."""

    @cuda_part
    def load(operands, numbers, words, parameters, base, t):
        """Copy a network's parameters to shared memory; anything else there becomes 0.

        Parameters
        ----------
        operands, numbers : dtype[:], shared memory
            All of it is written: what pads rows and columns must be finite, and the padding of the
            weights 0, as the products run on over it.
        words : int64[:]
        parameters : dtype[:], read
            Global memory; the network's begin at `base`.
        base, t : int

        Notes
        -----
        Waits once, between clearing and copying; the caller waits before what is there is used.
        Cost: a read of each parameter.
        """
        tile = tile_of(words)
        for k in range(t, tile.numbers_used, threads):
            numbers[k] = numbers.dtype.type(0)
        # Between the zeros and what the threads write over them.
        cuda.syncthreads()
        for index in range(tile.layers):
            layer = layer_of(words, index)
            fan_in, fan_out = layer.fan_in, layer.fan_out
            W, stride = layer.W, layer.W_stride
            start, b = base + layer.start, layer.b
            for k in range(t, fan_in * fan_out, threads):
                row = (k & SMALL) // fan_out
                operands[W + row * stride + k - row * fan_out] = to_operand(parameters[start + k])
            for j in range(t, fan_out, threads):
                numbers[b + j] = parameters[start + fan_in * fan_out + j]
        if mixed:
            for k in range(t, tile.parameters, threads):
                numbers[tile.master + k] = parameters[base + k]

    return load


def gather(threads: int, to_operand: Any) -> Any:
    """Return the copy of a tile's rows to shared memory."""

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
        Cost: one read of the rows, neighbours by neighbours.
        """
        tile = tile_of(words)
        down, along, columns = tile.X_down, tile.X_along, tile.inputs
        place, stride = tile.X, tile.X_stride
        i = (t & SMALL) // columns
        j = t - i * columns
        while i < rows:
            source = order[start + i] if i < count else order[start]
            operands[(place + i * stride + j) & SMALL] = to_operand(X[source, j])
            # `threads` elements on, without a division.
            i += down
            j += along
            if j >= columns:
                i += 1
                j -= columns
        down, along, columns = tile.target_down, tile.target_along, tile.target_columns
        place, stride = tile.targets, tile.target_stride
        i = (t & SMALL) // columns
        j = t - i * columns
        while i < count:
            numbers[(place + i * stride + j) & SMALL] = y[order[start + i], j]
            i += down
            j += along
            if j >= columns:
                i += 1
                j -= columns

    return gather


def store(threads: int, mixed: bool) -> Any:
    """Return the copy of a network back to global memory."""

    @cuda_part
    def store(numbers, words, parameters, base, t):
        """Copy a network's parameters to ``parameters[base:]``, as `load` took them.

        Parameters
        ----------
        numbers : dtype[:], shared memory, read
        words : int64[:]
        parameters : dtype[:], written
            Global memory.
        base, t : int

        Notes
        -----
        Cost: a write of each parameter.
        """
        tile = tile_of(words)
        if mixed:
            for k in range(t, tile.parameters, threads):
                parameters[base + k] = numbers[tile.master + k]
        else:
            for index in range(tile.layers):
                layer = layer_of(words, index)
                fan_in, fan_out = layer.fan_in, layer.fan_out
                W, stride = layer.W, layer.W_stride
                start, b = base + layer.start, layer.b
                for k in range(t, fan_in * fan_out, threads):
                    row = (k & SMALL) // fan_out
                    parameters[start + k] = numbers[W + row * stride + k - row * fan_out]
                for j in range(t, fan_out, threads):
                    parameters[start + fan_in * fan_out + j] = numbers[b + j]

    return store
