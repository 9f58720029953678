"""Which rows a mini-batch holds. The functions are pure, so training can be resumed bit by bit."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.arrays import check_integer

# Rows of a mini-batch where the user names none.
DEFAULT_BATCH_ROWS = 32
# Rows of a chunk where no gradient is wanted. They fill any kernel and take little memory.
CHUNK_ROWS = 1024


def epoch_order(seed: int, epoch: int, rows: int, shuffle: bool) -> NDArray[np.int64]:
    """Return the order of the rows in an epoch. It depends on the arguments alone."""
    if not shuffle:
        return np.arange(rows, dtype=np.int64)
    # A counter-based generator: every (seed, epoch) is a stream of its own.
    key = np.array([seed, epoch], dtype=np.uint64)
    order = np.random.Generator(np.random.Philox(key=key)).permutation(rows)
    return order.astype(np.int64, copy=False)


def check_batch_size(value: Any, rows: int) -> int:
    """Return the rows of a mini-batch: by default 32, or all where there are fewer."""
    if value is None:
        return min(DEFAULT_BATCH_ROWS, rows)
    return check_integer(value, "batch_size", 1, rows, ", the rows of X")


def batch_rows(rows: int, batch_size: int) -> NDArray[np.int64]:
    """Return the number of rows of each mini-batch; only the last one may be smaller."""
    sizes = np.full(-(-rows // batch_size), batch_size, dtype=np.int64)
    sizes[-1] = rows - batch_size * (len(sizes) - 1)
    return sizes


def combine_losses(losses: Any, sizes: NDArray[Any], reduction: str) -> float:
    """Return the loss of all rows from those of batches of these sizes, in float64.

    `sizes` are the rows of each batch, or the sums of their weights.
    """
    values = np.asarray(losses, dtype=np.float64)
    if reduction == "sum":
        return float(values.sum())
    # Means over rows (and over as many outputs in every row) weigh by the rows.
    return float((values * sizes).sum() / sizes.sum())
