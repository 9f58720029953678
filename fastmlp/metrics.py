"""Metrics of predictions, in float64: the one table for `evaluate`, `fit` and early stopping.

Where scikit-learn defines a metric, the formula is its own, sample weights included.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.data.arrays import host_copy
from fastmlp.data.validation import Validation
from fastmlp.errors import DomainError, DTypeError, check_name
from fastmlp_kernels.algebra import ACTIVATIONS, LOSSES
from fastmlp_kernels.algebra.tables import Interval
from fastmlp_kernels.problem import Problem

Array = NDArray[Any]
Numbers = NDArray[np.float64]

PROBABILITY = Interval(0.0, 1.0, True, True)
# What a column of a history is called that is no metric of a validation set.
RESERVED = ("epoch", "member", "loss", "penalty", "learning_rate", "seconds", "validation_score")


class Evaluation(NamedTuple):
    """What `evaluate` returns; of an ensemble, each number is an array with one a network.

    Attributes
    ----------
    loss : float or ndarray
    score : float or ndarray
        The number of `metric`.
    metric : str
    metrics : dict of str to float or ndarray
        All metrics by name, the score among them.
    """

    loss: Any
    score: Any
    metric: str
    metrics: Mapping[str, Any]


class Predicted(NamedTuple):
    """Rows that a network has predicted, as metrics read them.

    Attributes
    ----------
    outputs, predictions : ndarray
        dtype[rows, outputs], before and after the link of the loss.
    y : ndarray
        dtype[rows, outputs], or dtype[rows, 1] of labels.
    linked, labels, vector : bool
        Whether there is a link; whether y holds labels; whether the targets of one output were a
        vector.
    weights : ndarray or None
        float64[rows]
    """

    outputs: Array
    predictions: Array
    y: Array
    linked: bool
    labels: bool
    vector: bool
    weights: Numbers | None

    @property
    def means(self) -> Array:
        """The outputs that stand for targets: of a loss with several for each, the first ones."""
        return self.outputs if self.labels else self.outputs[:, : self.y.shape[1]]

    def mean(self, values: Array) -> Any:
        """Return the mean over the rows, which is weighted where they have weights."""
        return np.average(values, axis=0, weights=self.weights)


@dataclass(frozen=True)
class Metric:
    """One row of the table of metrics, or a function of the user's.

    Parameters
    ----------
    name : str
    compute : callable
        ``compute(predicted) -> float``, of a `Predicted`.
    higher_is_better : bool or None
        None where nobody knows.
    refusal : callable
        ``refusal(problem, data, used)`` says why it does not suit the network or the targets, or
        returns None. `used` is bool[rows]: which rows have a weight.
    of_link : bool
        Whether it reads `predictions`, which takes another pass for a loss with a link.
    takes_weights : bool
    """

    name: str
    compute: Callable[[Predicted], Any]
    higher_is_better: bool | None
    refusal: Callable[[Problem, Any, NDArray[np.bool_]], str | None]
    of_link: bool = False
    takes_weights: bool = True


def accuracy(predicted: Predicted) -> float:
    """Return the share of right answers.

    Where a row has one class, as a label or one-hot, it is compared with the largest output.
    Otherwise each output counts for itself: it is right on its target's side of 0.5.
    """
    outputs, y = predicted.means, predicted.y
    if predicted.labels:
        right = outputs.argmax(axis=1) == y[:, 0]
    elif outputs.shape[1] > 1 and np.allclose(y.sum(axis=1), 1.0, atol=1e-3):
        right = outputs.argmax(axis=1) == y.argmax(axis=1)
    else:
        right = (outputs > 0.5) == (y > 0.5)
    if predicted.weights is None:
        return float(np.mean(right))
    return float(np.mean(predicted.mean(right)))


def r2(predicted: Predicted) -> float:
    """Return the coefficient of determination, averaged over the outputs.

    A constant target has no variance to explain: it scores 1 if it is met and 0 if not.
    """
    wanted, weights = predicted.y.astype(np.float64), predicted.weights
    share = 1.0 if weights is None else weights[:, None]
    residual = (share * np.square(predicted.means - wanted)).sum(axis=0)
    spread = (share * np.square(wanted - predicted.mean(wanted))).sum(axis=0)
    constant = spread == 0
    explained = 1.0 - residual / np.where(constant, 1.0, spread)
    return float(np.where(constant, residual == 0, explained).mean())


def mae(predicted: Predicted) -> float:
    """Return the mean absolute error, averaged over the outputs."""
    return float(predicted.mean(np.abs(_errors(predicted))).mean())


def rmse(predicted: Predicted) -> float:
    """Return the root of the mean squared error of each output, averaged over the outputs."""
    return float(np.sqrt(predicted.mean(np.square(_errors(predicted)))).mean())


def _errors(predicted: Predicted) -> Numbers:
    return predicted.means.astype(np.float64) - predicted.y


def log_loss(predicted: Predicted) -> float:
    """Return the mean of -log p of the right class, for p kept in [eps, 1 - eps] of its dtype.

    Outputs that are no classes of one row (sigmoids) count each for itself.
    """
    epsilon, y = np.finfo(predicted.predictions.dtype).eps, predicted.y
    kept = np.clip(predicted.predictions, epsilon, 1 - epsilon)
    if predicted.labels:
        there = np.take_along_axis(kept, y.astype(np.int64), axis=1)
        losses = -np.log(there.astype(np.float64))
    elif not predicted.linked:
        # 1 - p in the dtype of p, as scikit-learn has it.
        logarithms = [np.log(each.astype(np.float64)) for each in (kept, 1 - kept)]
        losses = -(y * logarithms[0] + (1 - y) * logarithms[1]).mean(axis=1)
    else:
        losses = -(y * np.log(kept.astype(np.float64))).sum(axis=1)
    return float(np.mean(predicted.mean(losses)))


def roc_auc(predicted: Predicted) -> float:
    """Return the area under the ROC curve; of several outputs the mean of each against the rest."""
    scores = predicted.predictions
    if np.isnan(scores).any():
        return float("nan")
    members = _members(predicted.y, predicted.labels, scores.shape[1])
    weights = np.ones(len(scores)) if predicted.weights is None else predicted.weights
    areas = [_area(*each, weights) for each in zip(members.T, scores.T, strict=True)]
    return float(np.mean(areas))


def _area(positive: NDArray[np.bool_], scores: Array, weights: Numbers) -> float:
    """Return how often a positive row has a larger score than a negative one; ties are half."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    # Rows of equal scores count together, at the last of them.
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    above, below = (
        np.diff(np.cumsum(np.where(chosen, weights, 0.0)[order])[last], prepend=0.0)
        for chosen in (positive, ~positive)
    )
    smaller = np.cumsum(below) - below / 2
    return float((above * smaller).sum() / (above.sum() * below.sum()))


def _members(y: Array, labels: bool, classes: int) -> NDArray[np.bool_]:
    """Return bool[rows, outputs]: whether a row is of the class of each output."""
    return (y == np.arange(classes)) if labels else (y == 1)


def _suits_numbers(problem: Problem, data: Any, used: NDArray[np.bool_]) -> str | None:
    if LOSSES[problem.loss].label_rule is None:
        return None
    return f" with {problem.loss}, wanted 'accuracy', 'log_loss' or 'roc_auc'"


def _suits_sides(problem: Problem, data: Any, used: NDArray[np.bool_]) -> str | None:
    """Targets of an accuracy are classes: sigmoids under a squared error classify too."""
    if LOSSES[problem.loss].metric == "accuracy":
        return None
    return _classes(problem, data, "'r2', or targets that are 0 or 1")


def _classes(problem: Problem, data: Any, wanted: str) -> str | None:
    targets = host_copy(data.y)
    numbers = (targets != 0) & (targets != 1)
    if data.labels or not numbers.any():
        return None
    return f" with {problem.loss} and targets such as {targets[numbers][0]:g}, wanted {wanted}"


def _suits_probabilities(problem: Problem, data: Any, used: NDArray[np.bool_]) -> str | None:
    output = ACTIVATIONS[problem.activations[-1]]
    if LOSSES[problem.loss].label_rule is None and not PROBABILITY.contains(output.range):
        wanted = "wanted probabilities: 'sigmoid' there, or loss='softmax_cross_entropy'"
        return f" with {output.name!r} at the output, {wanted}"
    targets = host_copy(data.y)
    outside = (targets < 0) | (targets > 1)
    if data.labels or not outside.any():
        return None
    return f" and targets such as {targets[outside][0]:g}, wanted targets from 0 to 1"


def _suits_ranks(problem: Problem, data: Any, used: NDArray[np.bool_]) -> str | None:
    refusal = _classes(problem, data, "classes: labels, or columns of 0 and 1")
    if refusal is not None:
        return refusal
    members = _members(host_copy(data.y), data.labels, problem.sizes[-1])[used]
    for number, column in enumerate(members.T):
        if column.all() or not column.any():
            of = f"class {number}" if len(members.T) > 1 else "one class"
            which = "nothing but" if column.all() else "no"
            rows = "rows of one class" if len(members.T) == 1 else f"{which} rows of {of}"
            return f" and {rows}, wanted rows of each class and of others, with a weight above 0"
    return None


def _suits_all(problem: Problem, data: Any, used: NDArray[np.bool_]) -> str | None:
    return None


METRICS: Mapping[str, Metric] = {
    each.name: each
    for each in (
        Metric("accuracy", accuracy, True, _suits_sides),
        Metric("r2", r2, True, _suits_numbers),
        Metric("mae", mae, False, _suits_numbers),
        Metric("rmse", rmse, False, _suits_numbers),
        Metric("log_loss", log_loss, False, _suits_probabilities, of_link=True),
        Metric("roc_auc", roc_auc, True, _suits_ranks, of_link=True),
    )
}


def _row(given: Any) -> Metric:
    if isinstance(given, str):
        return METRICS[check_name("metrics", given, METRICS, "metric")]
    return _of_user(given)


def _read_only(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view


def _of_user(function: Any) -> Metric:
    """Return the row of a function ``f(y, prediction)``, maybe with a `sample_weight`."""
    name = getattr(function, "__name__", None)
    if not callable(function) or not isinstance(name, str):
        raise DTypeError(
            f"metrics: got {function!r}, wanted names ({', '.join(METRICS)}) or functions "
            "f(y, prediction) that have a __name__"
        )
    try:
        parameters = [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        # Some functions of other languages do not tell.
        parameters = []
    takes = any(
        each.name == "sample_weight" or each.kind == each.VAR_KEYWORD for each in parameters
    )

    def compute(predicted: Predicted) -> float:
        y, prediction = predicted.y, predicted.predictions
        y = y[:, 0].astype(np.int64) if predicted.labels else y[:, 0] if predicted.vector else y
        prediction = prediction[:, 0] if predicted.vector else prediction
        weights = predicted.weights
        more = {} if weights is None else {"sample_weight": _read_only(weights)}
        found = function(_read_only(y), _read_only(prediction), **more)
        try:
            return float(found)
        except (TypeError, ValueError):
            raise DTypeError(f"metrics: got {found!r} from {name}, wanted a number") from None

    return Metric(name, compute, None, _suits_all, True, takes)


def check_metrics(
    metrics: Any, problem: Problem, sets: Mapping[str, Validation], metric: object = None
) -> tuple[Metric, ...]:
    """Return the metrics to compute of some sets of rows: the score first, each one once.

    Parameters
    ----------
    metrics : str, callable, or a sequence of them, or None
    problem : Problem
        What describes the network.
    sets : mapping of str to Validation
    metric : str, optional
        The score; by default the one that suits the loss.

    Raises
    ------
    DomainError, DTypeError, UnknownNameError
        If there is no such metric, or it does not suit the network, the targets or the weights.
    """
    score = METRICS[LOSSES[problem.loss].metric]
    if metric is not None:
        score = METRICS[check_name("metric", metric, METRICS)]
        _check_suits("metric", score, problem, sets)
    given = metrics if isinstance(metrics, list | tuple) else (metrics,)
    if metrics is None or not given:
        return (score,)
    if not sets:
        raise DomainError(
            f"metrics: got {metrics!r} without validation data, wanted validation_data= or "
            "validation_split=; a dict of sets may hold the training rows too: "
            "validation_data={'training': (X, y), ...}"
        )
    found = {score.name: score}
    for each in given:
        row = _row(each)
        if found.setdefault(row.name, row).compute is not row.compute:
            raise DomainError(f"metrics: got two that are called {row.name!r}, wanted other names")
        _check_suits("metrics", row, problem, sets)
    return tuple(found.values())


def _check_suits(
    argument: str, metric: Metric, problem: Problem, sets: Mapping[str, Validation]
) -> None:
    for name, (data, weights) in sets.items():
        where = f" for {name!r}" if len(sets) > 1 else ""
        if weights is not None and not metric.takes_weights:
            raise DomainError(
                f"{argument}: got {metric.name!r} without a parameter sample_weight{where}, whose "
                "rows have weights, wanted f(y, prediction, sample_weight=None)"
            )
        every = np.ones((1, len(data.X)), bool) if weights is None else np.atleast_2d(weights > 0)
        for used in every:
            refusal = metric.refusal(problem, data, used)
            if refusal is not None:
                raise DomainError(f"{argument}: got {metric.name!r}{where}{refusal}")


def columns(sets: Iterable[str], metrics: Sequence[Metric]) -> dict[str, bool | None]:
    """Return the names of what a fit finds of its validation sets, such as "validation_rmse".

    Each is beside whether a higher number is better.

    Raises
    ------
    DomainError
        If a name would stand for two things.
    """
    found: dict[str, bool | None] = {}
    for of_set in sets:
        for name, higher in (("loss", False), *((m.name, m.higher_is_better) for m in metrics)):
            column = f"{of_set}_{name}"
            if column in found or column in RESERVED:
                raise DomainError(
                    f"metrics: got {name!r} of the validation data {of_set!r}, wanted names of "
                    f"which {column!r} stands for one thing"
                )
            found[column] = higher
    return found


def monitors(sets: Iterable[str], metrics: Sequence[Metric]) -> dict[str, bool | None]:
    """Return what early stopping can watch in a fit, and whether a higher number is better."""
    found = columns(sets, metrics)
    if found:
        # Of the first set: see `History`.
        found |= {"validation_loss": False, "validation_score": metrics[0].higher_is_better}
    return {"loss": False, **found}
