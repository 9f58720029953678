"""The arrays of a program of `cpu.fused`, and how many rows of panels they have room for."""

from typing import NamedTuple

import numpy as np

from fastmlp_kernels.cpu.simd import InstructionSet


class Workspace(NamedTuple):
    """Every array that a step writes, beside parameters, state, losses and copies of weights."""

    inputs: np.ndarray
    targets: np.ndarray
    row_losses: np.ndarray
    stored: np.ndarray
    deltas: np.ndarray
    input_delta: np.ndarray
    predictions: np.ndarray
    slopes: np.ndarray
    upstream: np.ndarray
    scratch: np.ndarray
    unit_squares: np.ndarray
    dropped: np.ndarray
    gradients: np.ndarray
    gradient_squares: np.ndarray
    column_lists: np.ndarray
    row_lists: np.ndarray
    weight_blocks: np.ndarray


class Copies(NamedTuple):
    """The parameters in panels. What lies beyond the last row or column is zero, and stays so."""

    weights: np.ndarray
    transposed: np.ndarray
    biases: np.ndarray


def padded(count: int, panel: int) -> int:
    """Return the next multiple of a panel's columns."""
    return -(-count // panel) * panel


def row_capacity(batch_size: int, target: InstructionSet) -> int:
    """Return the rows that a panel has room for.

    Panels of a power of two of rows would lie on top of each other in the sets of the caches. A
    remainder of the tallest tile modulo 32 rows makes those of one tile follow each other.
    """
    if batch_size == 1:
        # A row's panels then follow each other: `units.finish_columns` reads them as one run.
        return 1
    tallest = target.row_tiles[0]
    return tallest + -(-max(0, batch_size - tallest) // 32) * 32


def most_tiles(rows: int, target: InstructionSet) -> int:
    """Return the most tiles that any block of up to some rows takes."""

    def tiles(count: int) -> int:
        found = 0
        for height in target.row_tiles:
            found, count = found + count // height, count % height
        return found

    # One tallest tile less, and the most that the rest can take.
    tallest = target.row_tiles[0]
    return max(tiles(count) for count in range(max(0, rows - tallest), rows + 1))
