"""How rows are shared: by halving, again and again, until there are as many parts as asked for.

The parts of a number then depend on nothing else. Half of the ranks share one half of the rows,
whatever the number of ranks, so the parts of a rank are those that its own rows halve into.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_integer
from fastmlp.errors import DomainError


def shares(counts: Any, parts: int) -> NDArray[np.int64]:
    """Return int64[..., parts], how many of each number of rows each part has.

    Parameters
    ----------
    counts : int or ndarray
        Rows.
    parts : int
        A power of two. Of an odd number the second half has one more than the first.

    Notes
    -----
    Part p of n rows has ``(n + r) // parts`` of them, where r has the bits of p in reverse. So a
    larger n takes rows from no part, and the parts differ by one row at most.
    """
    reverse = np.zeros(1, dtype=np.int64)
    while len(reverse) < parts:
        reverse = np.concatenate([2 * reverse, 2 * reverse + 1])
    return (np.asarray(counts, dtype=np.int64)[..., None] + reverse) // parts


def rows_of_rank(rows: int, rank: int, size: int) -> slice:
    """Return which of all rows a rank has of its own, where each rank has a part of them.

    Parameters
    ----------
    rows : int
        Of all ranks together.
    rank, size : int
        The number of the rank, and how many ranks there are: a power of two.

    Raises
    ------
    DomainError
        If there are no such ranks, or more of them than rows.

    Examples
    --------
    >>> from fastmlp.distributed import rows_of_rank
    >>> [rows_of_rank(10, rank, 4) for rank in range(4)]
    [slice(0, 2, None), slice(2, 5, None), slice(5, 7, None), slice(7, 10, None)]
    """
    count, size = check_integer(rows, "rows", 0, 2**62), check_size(size)
    rank = check_integer(rank, "rank", 0, size - 1)
    if count < size:
        raise DomainError(f"rows: got {count} for {size} ranks, wanted one for each at least")
    sizes = shares(count, size)
    first = int(sizes[:rank].sum())
    return slice(first, first + int(sizes[rank]))


def check_size(size: Any, argument: str = "size", most: int = 2**20) -> int:
    """Return a number of ranks or parts: a power of two."""
    number = check_integer(size, argument, 1, most)
    if number & (number - 1):
        raise DomainError(f"{argument}: got {number}, wanted a power of two: 1, 2, 4, 8, ...")
    return number
