"""How the rows of an epoch are cut into mini-batches, and what their losses are together."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_integer

# Rows of a mini-batch where the user names none.
DEFAULT_BATCH_ROWS = 32


def check_batch_size(value: Any, limit: int | None) -> int:
    """Return the rows of a mini-batch: by default 32, or all where there are fewer.

    `limit` is how many it may have, if that is known.
    """
    if value is None:
        return DEFAULT_BATCH_ROWS if limit is None else min(DEFAULT_BATCH_ROWS, limit)
    return check_integer(value, "batch_size", 1, limit, "" if limit is None else ", the rows of X")


def batch_rows(rows: int, batch_size: int) -> NDArray[np.int64]:
    """Return the number of rows of each mini-batch; only the last one may be smaller."""
    sizes = np.full(-(-rows // batch_size), batch_size, dtype=np.int64)
    sizes[-1] = rows - batch_size * (len(sizes) - 1)
    return sizes


def combine_losses(losses: NDArray[np.float64], sizes: NDArray[Any], reduction: str) -> Any:
    """Return the loss of all rows from those of batches of these sizes, the last axis.

    `sizes` are the rows of each batch, or the sums of their weights.
    """
    if reduction == "sum":
        return losses.sum(axis=-1)
    # Means over rows (and over as many outputs in every row) weigh by the rows.
    return (losses * sizes).sum(axis=-1) / sizes.sum(axis=-1)
