"""Weights of rows: given one by one or by class, and as the factors that kernels multiply by."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.arrays import Data, host_array, host_copy
from fastmlp.errors import DomainError, DTypeError, ShapeError
from fastmlp_kernels.problem import Problem

Array = NDArray[Any]
Weights = NDArray[np.float64]


def check_weights(sample_weight: Any, class_weight: Any, data: Data) -> Weights | None:
    """Return one weight a row: the product of both kinds; None where none is given."""
    by_row = check_sample_weight(sample_weight, len(data.X))
    given = [] if by_row is None else [by_row]
    if class_weight is not None:
        given.append(class_weights(class_weight, data))
    if not given:
        return None
    weights = np.prod(given, axis=0)
    if not weights.any():
        raise DomainError("sample_weight: got only zeros, wanted a positive weight")
    return weights


def check_sample_weight(value: Any, rows: int) -> Weights | None:
    """Return float64[rows], finite and none below zero; None stands for no weights."""
    if value is None:
        return None
    weights = host_array(value, "sample_weight").astype(np.float64)
    if weights.shape not in ((rows,), (rows, 1)):
        raise ShapeError(
            f"sample_weight: got shape {weights.shape}, wanted ({rows},), one for each row of X"
        )
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        first = weights[bad][0]
        raise DomainError(f"sample_weight: got {first}, wanted finite numbers >= 0")
    return weights.reshape(rows)


def class_weights(class_weight: Any, data: Data) -> Weights:
    """Return the weight of each row's class.

    `class_weight` maps classes to weights (1 where one is missing), or is "balanced": rows over
    classes times the rows of the class, so that every class has the same weight in total.
    """
    y = host_copy(data.y)
    if y.shape[1] != 1 or not (data.labels or np.isin(y, (0, 1)).all()):
        raise DomainError(
            f"class_weight: got targets of shape {y.shape} that are no classes, wanted one "
            "class a row: labels, or one column of 0 and 1"
        )
    labels = y[:, 0].astype(np.int64)
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise DomainError(
                f"class_weight: got {class_weight!r}, wanted 'balanced' or a dict of weights"
            )
        counts = np.bincount(labels)
        share = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
        return np.asarray(share[labels], dtype=np.float64)
    if not isinstance(class_weight, dict):
        raise DTypeError(
            f"class_weight: got {type(class_weight).__name__}, wanted 'balanced' or a dict"
        )
    table = np.ones(labels.max() + 1)
    for label, weight in class_weight.items():
        check_sample_weight([weight], 1)
        if not 0 <= int(label) < len(table):
            raise DomainError(
                f"class_weight: got a weight of class {label!r}, wanted classes from 0 to "
                f"{len(table) - 1}"
            )
        table[int(label)] = weight
    return np.asarray(table[labels], dtype=np.float64)


def row_factors(problem: Problem, weights: Weights, starts: NDArray[np.int64]) -> tuple[Any, Any]:
    """Return what multiplies each row's loss, and each batch's factor of a term beside the rows.

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
        dtype[rows]. Means are weighted means: the factors of a batch sum to 1 (over outputs too
        where the mean is over elements). A batch whose weights are all zero has zeros.
    of_batch : ndarray
        float64[batches]: one over the batch's weights, or 1 under "sum".
    """
    if problem.reduction == "sum":
        return weights.astype(problem.dtype), np.ones(len(starts))
    totals = np.add.reduceat(weights, starts)
    of_batch = np.divide(1.0, totals, out=np.zeros_like(totals), where=totals != 0)
    sizes = np.diff(starts, append=len(weights))
    factors = weights * np.repeat(of_batch * problem.scale(1), sizes)
    return factors.astype(problem.dtype), of_batch
