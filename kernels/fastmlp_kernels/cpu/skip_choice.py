"""Whether walking lists of what is not zero pays for a training set: a look at some of its rows."""

import numpy as np

from fastmlp_kernels.cpu.simd import InstructionSet
from fastmlp_kernels.cpu.tables import SKIPS_COLUMNS, SKIPS_ROWS
from fastmlp_kernels.problem import Problem

# What the lists of one product cost, in vectors of multiply-adds for each element of X: a sum over
# v vectors of outputs is break-even where the share that is left out times v is 0.5 (avx512), 0.6
# to 1.0 (avx2) or 0.8 to 1.9 (portable). 400 inputs, 2 to 256 outputs and shares of 0 to 1/2 of
# whole columns, batch 200, CPU time of one thread (2-core AMD EPYC, Zen 5, 2026-11-24).
LIST_COST = 1.0
# A walk is slower than a dense sum by up to 2 % whatever its lists cost (same measurement).
SMALLEST_SHARE = 0.05
# Tiles of rows and elements that are looked at: half a millisecond of a fit, and up to 80 us where
# the first tile has no zero.
SAMPLED_TILES = 16
SAMPLED_ELEMENTS = 2**18


def skipped_shares(X: np.ndarray, height: int, features: int) -> tuple[float, float]:
    """Return the shares of the terms of both products that lists leave out, from some rows.

    Parameters
    ----------
    X : np.ndarray
    height, features : int
        Rows of a tile of the forward product, features of one of the weight gradient.

    Notes
    -----
    The rows of a tile are a random choice from all of X, as a batch's are; always the same one.
    """
    rows, inputs = X.shape
    height = min(height, rows)
    # The first tile alone says that most dense data are dense.
    if X[: height * (rows // height) : rows // height].all():
        return 0.0, 0.0
    tiles = max(1, min(SAMPLED_TILES, rows // height, SAMPLED_ELEMENTS // (height * inputs)))
    chosen = np.random.default_rng(0).permutation(tiles * height) * rows // (tiles * height)
    nonzero = X[chosen] != 0
    columns = nonzero.reshape(tiles, height, inputs).any(axis=1).mean()
    starts = np.arange(0, inputs, features)
    return 1 - columns, 1 - np.logical_or.reduceat(nonzero, starts, axis=1).mean()


def choose_skips(problem: Problem, target: InstructionSet, X: np.ndarray) -> int:
    """Return what epochs over X should skip: a value of ``step.skips``.

    Parameters
    ----------
    problem : Problem
    target : InstructionSet
    X : np.ndarray

    Notes
    -----
    A layer with one output is a sum over lanes and has no tiles: it skips nothing.
    """
    outputs = problem.sizes[1]
    if outputs == 1 or not X.size:
        return 0
    vectors = -(-outputs // target.lanes(problem.dtype))
    height = min(target.row_tiles[0], problem.batch_size)
    shares = skipped_shares(X, height, target.feature_tile)
    least = max(SMALLEST_SHARE, LIST_COST / vectors)
    bits = (SKIPS_COLUMNS, SKIPS_ROWS)
    return sum(bit for bit, share in zip(bits, shares, strict=True) if share > least)
