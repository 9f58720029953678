"""The launch of `weight_gradient`: its tables, and the slices that it sums."""

from typing import Any

import numpy as np
from numba import cuda

from fastmlp_kernels.cuda.layered.gradient_tiles import gradient_table
from fastmlp_kernels.cuda.layered.launching import Kernels, Launches
from fastmlp_kernels.cuda.layered.workspace import Layer, Workspace
from fastmlp_kernels.problem import Problem

# Blocks that a launch should have, which the multiprocessors of a large GPU share.
BLOCKS = 128
# A slice of rows is summed by this many loads of a tile's rows at least.
DEPTHS_OF_A_SLICE = 4


class Gradients:
    """The gradients of all layers' parameters by one launch.

    Parameters
    ----------
    problem, layers, workspace, launches, kernels
    """

    def __init__(
        self,
        problem: Problem,
        layers: list[Layer],
        workspace: Workspace,
        launches: Launches,
        kernels: Kernels,
    ) -> None:
        self.launches, self.kernels, self.workspace = launches, kernels, workspace
        side, depth = launches.tiles.side, launches.tiles.depth
        tables = [gradient_table(layers, side, training) for training in (False, True)]
        self.tables = [cuda.to_device(table) for table in tables]
        self.tiles = len(tables[0])
        # It depends on the problem alone, so that a result does not depend on the GPU.
        slices = max(1, BLOCKS // self.tiles)
        rows = max(DEPTHS_OF_A_SLICE * depth, -(-problem.batch_size // slices))
        self.slice_rows = -(-rows // depth) * depth
        slices = -(-problem.batch_size // self.slice_rows)
        self.partial = cuda.device_array(slices * problem.parameter_count, problem.dtype)
        self.arrivals = cuda.to_device(np.zeros(self.tiles, np.int32))

    def enqueue(
        self, X: Any, rows: int, accumulate: int, gradient: Any, training: bool, words: tuple
    ) -> None:
        """Enqueue the launch; see `matrix_products.LayerProducts.gradients`."""
        tiles, work = self.launches.tiles, self.workspace
        grid = (self.tiles, -(-rows // self.slice_rows))
        arrays = (X.reshape(X.size), work.stored, work.deltas, self.tables[training])
        arguments = (rows, self.slice_rows, accumulate, gradient, self.partial, self.arrivals)
        block = (tiles.tile, tiles.tile)
        self.launches.grid(self.kernels.weight_gradient, grid, block, *arrays, *arguments, *words)
