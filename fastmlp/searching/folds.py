"""The rows that a search trains on, and those that it judges by."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_integer
from fastmlp.errors import DomainError, DTypeError, ShapeError

Rows = NDArray[np.int64]


class Fold(NamedTuple):
    """The numbers of the rows to train on, and of those to judge by."""

    train: Rows
    test: Rows


def make_folds(cv: Any, X: Any, y: Any, rows: int, labels: Any, seed: int) -> list[Fold]:
    """Return the folds that `cv` stands for: a number of them, a splitter, or pairs.

    Parameters
    ----------
    cv : int, object with a method ``split(X, y)``, or iterable of (train, test)
    X, y
        As the user gave them.
    rows : int
    labels : ndarray or None
        The class of each row. Each class is spread evenly over the folds.
    seed : int
        Of the order in which rows are dealt out to a number of folds.
    """
    if not isinstance(cv, int | np.integer) or isinstance(cv, bool):
        pairs = cv.split(X, y) if hasattr(cv, "split") and not isinstance(cv, str) else cv
        return _check_folds(pairs, rows)
    if rows < 2:
        raise ShapeError(f"X: got {rows} row, wanted at least 2 to divide into folds")
    count = check_integer(cv, "cv", 2, rows, ", the rows of X")
    order = np.random.default_rng(seed).permutation(rows)
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    fold_of = np.empty(rows, dtype=np.int64)
    fold_of[order] = np.arange(rows) % count
    return [
        Fold(np.flatnonzero(fold_of != each), np.flatnonzero(fold_of == each))
        for each in range(count)
    ]


def _check_folds(pairs: Any, rows: int) -> list[Fold]:
    wanted = "a number of folds, a splitter, or pairs (train, test) of numbers of rows"
    if isinstance(pairs, str) or not isinstance(pairs, Iterable):
        raise DTypeError(f"cv: got {pairs!r}, wanted {wanted}")
    folds = []
    for number, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DTypeError(f"cv[{number}]: got {pair!r}, wanted {wanted}")
        names = f"cv[{number}] train", f"cv[{number}] test"
        folds.append(
            Fold(*(_check_rows(part, name, rows) for part, name in zip(pair, names, strict=True)))
        )
    if not folds:
        raise DomainError("cv: got no folds, wanted at least one pair (train, test)")
    return folds


def _check_rows(given: Any, argument: str, rows: int) -> Rows:
    try:
        numbers = np.asarray(given)
    except ValueError:
        raise ShapeError(f"{argument}: got {given!r}, wanted some numbers of rows") from None
    if numbers.dtype == bool and numbers.shape == (rows,):
        numbers = np.flatnonzero(numbers)
    if numbers.ndim != 1 or not numbers.size:
        raise ShapeError(f"{argument}: got shape {numbers.shape}, wanted some numbers of rows")
    if numbers.dtype.kind not in "iu":
        raise DTypeError(f"{argument}: got {numbers.dtype}, wanted whole numbers of rows")
    if numbers.min() < 0 or numbers.max() >= rows:
        raise DomainError(
            f"{argument}: got rows from {numbers.min()} to {numbers.max()}, wanted those from 0 to "
            f"{rows - 1}"
        )
    return numbers.astype(np.int64)
