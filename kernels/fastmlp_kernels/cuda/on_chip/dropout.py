"""Dropout of a tile's outputs, and of the derivatives by them: see `algebra.dropout`.

It is a part of the products' epilogues, so no thread waits for another. What it leaves out depends
on a row's place in its batch, so not on the rows of a tile. A part that leaves nothing out returns
what it is given.
"""

from typing import Any, NamedTuple

import numpy as np

from fastmlp_kernels.algebra import dropout as algebra
from fastmlp_kernels.algebra.dropout import LAYER_STEP, MASK, ROW_STEP
from fastmlp_kernels.algebra.optimizers import DROPOUT_KEY
from fastmlp_kernels.compile import cuda_function, cuda_part
from fastmlp_kernels.cuda.instructions.index32 import wide
from fastmlp_kernels.cuda.instructions.pointers import pointer_to
from fastmlp_kernels.cuda.on_chip.offsets import keep_threshold_of


class TileDropout(NamedTuple):
    """What decides about the rows of a tile.

    `low` and `high` are the step's key for rows that are counted from the tile's first one. What
    is kept of a layer is multiplied by its number of `scales`, dtype[layers].
    """

    low: int
    high: int
    scales: Any


class LayerDropout(NamedTuple):
    """What decides about a layer of a tile, in registers: each element's epilogue reads it.

    `low` and `high` are the key for layers that are counted from this one.
    """

    low: int
    high: int
    threshold: int
    scale: Any


@cuda_part
def tile_dropout(hyper, place, row, scales):
    """Return the `TileDropout` of a tile that begins with a row of its batch.

    `place` is where in `hyper` the hyper-parameters of the step begin.
    """
    key = pointer_to(hyper, place + DROPOUT_KEY)
    low, high = np.int64(key[0]), np.int64(key[1])
    return TileDropout((low + row * ROW_STEP) & MASK, high, scales)


class Parts(NamedTuple):
    """Device functions: ``of_layer(words, tile, index)`` and ``leave_out(layer, i, j, value)``."""

    of_layer: Any
    leave_out: Any


def build(drops: bool) -> Parts:
    """Return the parts of a chain in which some layer has dropout, or none."""
    return Parts(_of_layer(drops), _leave_out(drops))


def _of_layer(drops: bool) -> Any:
    @cuda_part
    def nothing(words, tile, index):
        """Return what `leave_out` will not read."""
        return tile

    @cuda_part
    def of_layer(words, tile, index):
        """Return the `LayerDropout` of a layer."""
        threshold = keep_threshold_of(words, index)
        # The last layer keeps all, and has no scale.
        scale = tile.scales[wide(index) if threshold != 0 else 0]
        high = (tile.high + wide(index) * LAYER_STEP) & MASK
        return LayerDropout(tile.low, high, threshold, scale)

    return of_layer if drops else nothing


def _leave_out(drops: bool) -> Any:
    row_key, is_kept = cuda_function(algebra.row_key), cuda_function(algebra.is_kept)

    @cuda_part
    def all_of_it(layer, i, j, value):
        """Return the value."""
        return value

    @cuda_part
    def leave_out(layer, i, j, value):
        """Return what dropout leaves of an output, or of the derivative by it.

        Parameters
        ----------
        layer : LayerDropout
        i, j : int
            The row of the tile, and the unit.
        value : dtype

        Notes
        -----
        Cost: about 25 integer operations. Accuracy: one rounding; what is left out is 0, or NaN if
        it was not finite, so that a check of the gradient sees it. Source: `algebra.dropout`.
        """
        if layer.threshold == 0:
            return value
        key = row_key(layer.low, layer.high, 0, wide(i))
        return value * layer.scale if is_kept(key, wide(j), layer.threshold) else value - value

    return leave_out if drops else all_of_it
