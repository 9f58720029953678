"""The data of a search: checked once for each kind of network, and divided into folds."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastmlp.data.admission import Data, admit, admit_validation
from fastmlp.data.arrays import host_copy
from fastmlp.data.batches import check_batch_size
from fastmlp.data.chunks import Chunks
from fastmlp.data.validation import UNNAMED, Validation, check_validation, validation_of
from fastmlp.data.weighting import Weights, check_any_weight, check_sample_weight, check_weights
from fastmlp.dispatch.planning import Where
from fastmlp.errors import DomainError, DTypeError, ShapeError
from fastmlp.metrics import Metric
from fastmlp.searching.candidates import Trial
from fastmlp.searching.folds import Fold, make_folds
from fastmlp.searching.parts import check_metric
from fastmlp_kernels.algebra import LOSSES
from fastmlp_kernels.problem import Problem

DEFAULT_FOLDS = 5
# Of the streams of a seed, the one that draws rows with replacement.
BOOTSTRAP = 2


def bootstrap_counts(seed: int, rows: int) -> Weights:
    """Return float64[rows]: how often each row is drawn, of as many drawn with replacement."""
    drawn = np.random.default_rng((seed, BOOTSTRAP)).integers(0, rows, rows)
    return np.bincount(drawn, minlength=rows).astype(np.float64)


def count_inputs(X: Any) -> int:
    """Return how many columns the inputs of a search have."""
    if isinstance(X, Chunks):
        raise DTypeError("X: got Chunks, wanted arrays: a search takes folds of the rows")
    try:
        shape = tuple(X.shape) if hasattr(X, "shape") else np.shape(X)
    except ValueError as error:
        raise ShapeError(f"X: got rows of different lengths ({error}), wanted a matrix") from None
    if len(shape) != 2 or not shape[1]:
        raise ShapeError(f"X: got shape {shape}, wanted (rows, inputs)")
    return int(shape[1])


class SearchedRows:
    """What candidates are trained on, and what they are judged by.

    Parameters
    ----------
    X, y, sample_weight, validation_data
        As users give them to `search`.
    bootstrap : bool
    metric : str, callable or None
    where : Where

    Attributes
    ----------
    folds : list of Fold
        One without numbers of rows, where there is `validation_data`.
    metrics : list of Metric or None
        What each trial is judged by.
    """

    def __init__(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        validation_data: Any,
        bootstrap: bool,
        metric: Any,
        where: Where,
    ) -> None:
        self.inputs = count_inputs(X)
        self._X, self._y, self._validation_data = X, y, validation_data
        self._given_weight, self._bootstrap = sample_weight, bool(bootstrap)
        self.metric, self.where = metric, where
        self.folds: list[Fold | None] = []
        self.metrics: list[Metric | None] = []
        # By what decides how rows are checked, and by the fold.
        self._data: dict[Any, Data] = {}
        self._train: dict[Any, Data] = {}
        self._test: dict[Any, Validation] = {}

    def divide(self, trials: Sequence[Trial], cv: Any, seed: int) -> None:
        """Check everything that is known before the first step, for all candidates."""
        first = self._all(trials[0].template)
        self._weight = check_sample_weight(self._given_weight, first.rows)
        if self._validation_data is None:
            cv = DEFAULT_FOLDS if cv is None else cv
            found = make_folds(cv, self._X, self._y, first.rows, _classes(first), seed)
            self.folds = [*found]
        elif cv is not None:
            raise DomainError(f"cv: got {cv!r} beside validation_data, wanted one of the two")
        else:
            self.folds = [None]
        for trial in trials:
            template = trial.template
            judges = [check_metric(self.metric, template, self.test(template, k)) for k in self]
            self.metrics.append(judges[0])
            for k in self:
                self.batch_size(trial, k)
                self.weights(trial, k)

    def __iter__(self) -> Any:
        """Iterate over the numbers of the folds."""
        return iter(range(len(self.folds)))

    def _all(self, template: Problem) -> Data:
        key = _kind(template)
        if key not in self._data:
            rest = template.sizes, LOSSES[template.loss], np.dtype(template.dtype), self.where
            data, self.where = admit(self._X, self._y, *rest)
            self._data[key] = data._replace(X=host_copy(data.X), y=host_copy(data.y))
        return self._data[key]

    def train(self, template: Problem, fold: int) -> Data:
        """Return the rows to train on."""
        key = *_kind(template), fold
        if key not in self._train:
            rows, chosen = self._all(template), self.folds[fold]
            self._train[key] = rows if chosen is None else _take(rows, chosen.train)
        return self._train[key]

    def test(self, template: Problem, fold: int) -> Validation:
        """Return the rows to judge by, and their weights."""
        key = *_kind(template), fold
        if key not in self._test:
            chosen = self.folds[fold]
            if chosen is None:
                self._test[key] = self._validation(template)
            else:
                weight = None if self._weight is None else self._weight[chosen.test]
                data = _take(self._all(template), chosen.test)
                name = "sample_weight of the rows to judge by"
                self._test[key] = validation_of(data, weight, None, name)
        return self._test[key]

    def _validation(self, template: Problem) -> Validation:
        rest = template.sizes, LOSSES[template.loss], np.dtype(template.dtype), self.where

        def admit_set(pair: tuple[Any, Any], of: str) -> Data:
            data = admit_validation(pair, *rest, None, of)
            return data._replace(X=host_copy(data.X), y=host_copy(data.y))

        sets = check_validation(self._validation_data, admit_set, None)
        if [*sets] != [UNNAMED]:
            raise DomainError(
                f"validation_data: got the sets {', '.join(sets)}, wanted one pair (X, y)"
            )
        return sets[UNNAMED]

    def batch_size(self, trial: Trial, fold: int) -> int:
        """Return the rows of a mini-batch."""
        rows = self.train(trial.template, fold).rows
        return check_batch_size(trial.values["batch_size"], rows)

    def weights(self, trial: Trial, fold: int) -> Weights | None:
        """Return the weights of the rows to train on."""
        data, chosen = self.train(trial.template, fold), self.folds[fold]
        own = self._weight
        if own is not None and chosen is not None:
            own = own[chosen.train]
        if self._bootstrap:
            counts = bootstrap_counts(trial.seed, data.rows)
            own = counts if own is None else own * counts
        found = check_weights(own, trial.values["class_weight"], data)
        # Of arrays it is no function.
        return None if found is None or callable(found) else check_any_weight(found, "bootstrap")


def _kind(template: Problem) -> tuple[Any, ...]:
    return template.sizes[-1], template.loss, template.dtype


def _take(data: Data, rows: Any) -> Data:
    return data._replace(X=data.X[rows], y=data.y[rows])


def _classes(data: Data) -> Any:
    """Return the class of each row, or None where rows have none."""
    y = data.y
    if data.labels:
        return y[:, 0]
    if not np.isin(y, (0, 1)).all():
        return None
    if y.shape[1] == 1:
        return y[:, 0]
    return y.argmax(axis=1) if (y.sum(axis=1) == 1).all() else None
