"""Scores of predictions, in float64."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.data.admission import Data
from fastmlp.data.arrays import host_copy
from fastmlp.errors import DomainError, check_name

METRICS = ("accuracy", "r2")


class Evaluation(NamedTuple):
    """What `evaluate` returns; of an ensemble, loss and score have one number a network."""

    loss: Any
    score: Any
    metric: str


def check_metric(metric: object, loss: Any, data: Data | None = None) -> str:
    """Return the metric to use with a loss: the one asked for, or the loss's own.

    With `data`, an accuracy is refused if the targets are not classes.
    """
    if metric is None:
        return str(loss.metric)
    name = check_name("metric", metric, METRICS)
    if name == "r2" and loss.label_rule is not None:
        raise DomainError(f"metric: got 'r2' with {loss.name}, wanted 'accuracy'")
    if name == "accuracy" and loss.metric != "accuracy" and data is not None:
        # Sigmoids under a squared error classify too. Every target is then 0 or 1.
        targets = host_copy(data.y)
        numbers = (targets != 0) & (targets != 1)
        if numbers.any():
            first = targets[numbers][0]
            raise DomainError(
                f"metric: got 'accuracy' with {loss.name} and targets such as {first:g}, wanted "
                "'r2', or targets that are 0 or 1"
            )
    return name


def accuracy(predictions: NDArray[Any], targets: NDArray[Any], labels: bool) -> float:
    """Return the share of right answers.

    Where a row has one class, as a label or one-hot, it is compared with the largest output.
    Otherwise each output counts for itself: it is right on its target's side of 0.5.
    """
    if labels:
        return float(np.mean(predictions.argmax(axis=1) == targets[:, 0]))
    if predictions.shape[1] > 1 and np.allclose(targets.sum(axis=1), 1.0, atol=1e-3):
        return float(np.mean(predictions.argmax(axis=1) == targets.argmax(axis=1)))
    return float(np.mean((predictions > 0.5) == (targets > 0.5)))


def r2(predictions: NDArray[Any], targets: NDArray[Any]) -> float:
    """Return the coefficient of determination, averaged over the outputs.

    A constant target has no variance to explain: it scores 1 if it is met and 0 if not.
    """
    wanted = targets.astype(np.float64)
    residual = np.square(predictions - wanted).sum(axis=0)
    spread = np.square(wanted - wanted.mean(axis=0)).sum(axis=0)
    constant = spread == 0
    explained = 1.0 - residual / np.where(constant, 1.0, spread)
    return float(np.where(constant, residual == 0, explained).mean())


def score(metric: str, predictions: NDArray[Any], targets: NDArray[Any], labels: bool) -> float:
    """Return the score that `metric` names."""
    if not labels:
        # Of a loss that has several outputs for a target, the first are the predicted means.
        predictions = predictions[:, : targets.shape[1]]
    if metric == "accuracy":
        return accuracy(predictions, targets, labels)
    return r2(predictions, targets)
