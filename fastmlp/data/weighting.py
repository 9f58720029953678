"""Weights of rows: as users give them, by row or by class, and as the factors of kernels."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_number
from fastmlp.data.admission import ChunkedData, Data, OwnRows, Rows
from fastmlp.data.arrays import host_array, host_copy
from fastmlp.errors import DomainError, DTypeError, ShapeError
from fastmlp_kernels.problem import Problem

Array = NDArray[Any]
Weights = NDArray[np.float64]

LARGEST_SUM = float(np.finfo(np.float32).max)
RATIOS = "; a mean depends on their ratios alone: divide them by the largest"
SMALLEST_TOTAL = float(np.finfo(np.float64).tiny)


class BatchWeights(NamedTuple):
    """Weights of the rows of a single batch.

    Attributes
    ----------
    values : ndarray
        float64[rows]
    of_losses : bool
        Whether a mean divides by the rows, and not by the weights, which may then have any sign.
    """

    values: Weights
    of_losses: bool


def check_weights(
    sample_weight: Any, class_weight: Any, data: Rows, members: int | None = None
) -> Weights | Callable[[Data], Weights] | None:
    """Return one weight a row: the product of both kinds; None where none is given.

    With `members`, rows may have weights of their own for each network. Of data in chunks, return
    a function that gives the weights of a chunk.
    """
    if isinstance(data, ChunkedData):
        return _weights_of_chunks(sample_weight, class_weight, data)
    by_row = check_sample_weight(sample_weight, len(data.X), members)
    if class_weight is None:
        weights = by_row
    else:
        of_classes = class_weights(class_weight, data)
        with np.errstate(over="ignore"):
            weights = of_classes if by_row is None else by_row * of_classes
        _check_sum(weights, "class_weight")
    return check_any_weight(weights, "sample_weight")


def check_any_weight(weights: Weights | None, argument: str) -> Weights | None:
    """Return the weights, or refuse them if all of a network's are 0."""
    if weights is not None and not weights.any(axis=-1).all():
        raise DomainError(f"{argument}: got only zeros, wanted a positive weight")
    return weights


def _weights_of_chunks(
    sample_weight: Any, class_weight: Any, data: ChunkedData
) -> Callable[[Data], Weights] | None:
    if sample_weight is not None:
        raise DomainError(
            f"sample_weight: got {type(sample_weight).__name__} with Chunks, wanted none; weights "
            "by class are given as class_weight={class: weight}"
        )
    if class_weight is None:
        return None
    if isinstance(class_weight, str):
        raise DomainError(
            f"class_weight: got {class_weight!r} with Chunks, wanted a dict of weights: how many "
            "rows a class has would be known after an epoch"
        )
    classes = data.outputs if data.labels else 2

    def weigh(chunk: Data) -> Weights:
        return class_weights(class_weight, chunk, classes)

    if data.first is not None:
        weigh(data.first)
    return weigh


def check_sample_weight(
    value: Any, rows: int, members: int | None = None, argument: str = "sample_weight"
) -> Weights | None:
    """Return float64[rows], finite and none below zero; None stands for no weights.

    With `members` also float64[members, rows].
    """
    if value is None:
        return None
    weights = _as_weights(value, argument, rows, members)
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        first = weights[bad][0]
        hint = "; those of either sign are given to step as loss_weight" if first < 0 else ""
        raise DomainError(f"{argument}: got {first}, wanted finite numbers >= 0{hint}")
    _check_sum(weights, argument)
    return weights if weights.shape == (members, rows) else weights.reshape(rows)


def check_batch_weights(sample_weight: Any, loss_weight: Any, rows: int) -> BatchWeights | None:
    """Return the weights of a batch, of the one kind or the other; None stands for no weights."""
    if loss_weight is None:
        values = check_sample_weight(sample_weight, rows)
        return None if values is None else BatchWeights(values, of_losses=False)
    if sample_weight is not None:
        raise DomainError("loss_weight: got it beside sample_weight, wanted one of the two")
    values = _as_weights(loss_weight, "loss_weight", rows)
    if not np.isfinite(values).all():
        first = values[~np.isfinite(values)][0]
        raise DomainError(f"loss_weight: got {first}, wanted finite numbers")
    _check_sum(np.abs(values), "loss_weight", " of their sizes")
    return BatchWeights(values.reshape(rows), of_losses=True)


def _as_weights(value: Any, argument: str, rows: int, members: int | None = None) -> Weights:
    weights = host_array(value, argument).astype(np.float64)
    if weights.shape not in ((rows,), (rows, 1), (members, rows)):
        each = "" if members is None else f", or ({members}, {rows}), for each network too"
        raise ShapeError(
            f"{argument}: got shape {weights.shape}, wanted ({rows},), one for each row of X{each}"
        )
    return weights


def _check_sum(weights: Weights, argument: str, hint: str = RATIOS) -> None:
    """Refuse weights whose sum would overflow, since losses and their mean would then be NaN.

    The bound is float32's for every dtype. So losses times weights, in float64, cannot overflow
    themselves.
    """
    with np.errstate(over="ignore"):
        total = float(weights.sum(axis=-1).max())
    if total > LARGEST_SUM:
        raise DomainError(
            f"{argument}: got weights that sum to {total:.3g}, wanted a sum of at most "
            f"{LARGEST_SUM:.3g}{hint}"
        )


def class_weights(class_weight: Any, data: Data | OwnRows, classes: int = 0) -> Weights:
    """Return the weight of each row's class.

    `class_weight` maps each class of the rows to its weight, or is "balanced". The weight of a
    class is then ``rows / (classes * rows of the class)``: every class has the same total weight.
    `classes` are those that there are at least, also where these rows have fewer.
    """
    y = host_copy(data.y)
    if y.shape[1] != 1 or not (data.labels or np.isin(y, (0, 1)).all()):
        raise DomainError(
            f"class_weight: got targets of shape {y.shape} that are no classes, wanted one "
            "class a row: labels, or one column of 0 and 1"
        )
    labels = y[:, 0].astype(np.int64)
    counts = np.bincount(labels, minlength=classes)
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise DomainError(
                f"class_weight: got {class_weight!r}, wanted 'balanced' or a dict of weights"
            )
        share = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
        return np.asarray(share[labels], dtype=np.float64)
    if not isinstance(class_weight, Mapping):
        raise DTypeError(
            f"class_weight: got {type(class_weight).__name__}, wanted 'balanced' or a dict"
        )
    table = np.full(len(counts), np.nan)
    for label, weight in class_weight.items():
        if label not in range(len(table)):
            raise DomainError(
                f"class_weight: got a weight of class {label!r}, wanted classes from 0 to "
                f"{len(table) - 1}, as in y"
            )
        table[int(label)] = check_number(weight, f"class_weight[{label}]")
    missing = np.flatnonzero((counts > 0) & np.isnan(table))
    if missing.size:
        raise DomainError(
            f"class_weight: got no weight of class {missing[0]}, which {counts[missing[0]]} rows "
            f"of y have, wanted one for each class; 1 leaves a class as it is: {missing[0]}: 1.0"
        )
    return np.asarray(table[labels], dtype=np.float64)


def row_factors(problem: Problem, weights: Weights, starts: NDArray[np.int64]) -> tuple[Any, Any]:
    """Return the factor of each row's loss, and each batch's factor of a term beside the rows.

    Parameters
    ----------
    problem : Problem
    weights : ndarray
        float64[rows], in the order of the epoch.
    starts : ndarray
        int64[batches], where each mini-batch begins.

    Returns
    -------
    factors : ndarray
        dtype[rows]. Means are weighted means, so the factors of a batch sum to 1. Where the mean
        is over elements, they do so over the outputs too. The factors are zero in a batch whose
        weights sum to less than the smallest normal number.
    of_batch : ndarray
        float64[batches]: one over the batch's weights, or 1 under "sum".
    """
    if problem.reduction == "sum":
        return weights.astype(problem.dtype), np.ones(len(starts))
    totals = np.add.reduceat(weights, starts)
    # The inverse of a subnormal total is infinite.
    usable = totals >= SMALLEST_TOTAL
    of_batch = np.divide(1.0, totals, out=np.zeros_like(totals), where=usable)
    sizes = np.diff(starts, append=len(weights))
    factors = weights * np.repeat(of_batch * problem.scale(1), sizes)
    return factors.astype(problem.dtype), of_batch


def batch_factors(problem: Problem, weights: BatchWeights | None) -> Array | None:
    """Return what multiplies the loss of each row of a single batch; None without weights."""
    if weights is None:
        return None
    if weights.of_losses:
        factors: Array = weights.values * problem.scale(len(weights.values))
        return factors.astype(problem.dtype)
    return row_factors(problem, weights.values, np.zeros(1, dtype=np.int64))[0]
