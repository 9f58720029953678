"""A candidate of a search on one fold, whose rows are taken and checked once for all candidates."""

import time
from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import clone, config_context, get_config
from sklearn.model_selection._validation import _safe_split, _score
from sklearn.utils.validation import validate_data

from fastmlp.sklearn.dispatch import make_engine
from fastmlp.sklearn.estimators import MLPClassifier
from fastmlp.sklearn.meeting import Seat

Array = NDArray[Any]

# Kinds of labels that are plain numbers or strings: equal ones are the same class.
PLAIN_LABELS = "biuU"


class Fold:
    """The rows of a fold.

    Parameters
    ----------
    estimator
        Any candidate.
    X, y : ndarray
        All rows.
    train, test : array-like of int or bool
        As scikit-learn's splitter returns them.
    """

    def __init__(self, estimator: Any, X: Array, y: Array, train: Any, test: Any) -> None:
        # As long as they are here, no other object has their addresses.
        self.kept = train, test
        train, test = np.asarray(train), np.asarray(test)
        self.train = _safe_split(estimator, X, y, train)
        self.test = _safe_split(estimator, X, y, test, train)
        self._checked: tuple[Any, dict[str, Any]] | None = None
        self._read: dict[int, Array] = {}

    def checked(self, estimator: Any, check: Callable[[], Any]) -> Any:
        """Return the rows to train on as `check` returns them, and leave its attributes."""
        if self._checked is None:
            before = set(vars(estimator))
            arrays = check()
            made = {name: each for name, each in vars(estimator).items() if name not in before}
            self._checked = arrays, made
        arrays, made = self._checked
        vars(estimator).update(made)
        return arrays

    def read(self, estimator: Any, X: Array) -> Array:
        """Return rows of this fold as scikit-learn's `predict` checks them."""
        if id(X) not in self._read:
            rest: dict[str, Any] = {"accept_sparse": ["csr", "csc"], "reset": False}
            self._read[id(X)] = validate_data(estimator, X, **rest)
        return self._read[id(X)]


class Candidate:
    """A candidate on a fold, from its parameters to its scores.

    Parameters
    ----------
    estimator
        scikit-learn's clone for it.
    fold : Fold
    keywords : dict
        What scikit-learn's function is given.
    accuracy : bool
        Whether its score is that of a classifier.

    Attributes
    ----------
    seat : Seat or None
        The fit that waits; None if it has been trained.
    """

    def __init__(
        self, estimator: Any, fold: Fold, keywords: dict[str, Any], accuracy: bool
    ) -> None:
        self.estimator, self.fold, self._keywords = estimator, fold, keywords
        self._accuracy = accuracy and isinstance(estimator, MLPClassifier)
        self.seat: Seat | None = None
        self._started = time.time()

    @property
    def size(self) -> int:
        """The bytes of the parameters."""
        return sum(each.nbytes for each in self._arrays())

    def _arrays(self) -> list[Array]:
        return [*self.estimator.coefs_, *self.estimator.intercepts_]

    def begin(self, check_parameters: bool) -> bool:
        """Fit up to the first epoch; return whether this candidate is an ordinary one."""
        estimator = self.estimator
        estimator.set_params(**clone(self._keywords["parameters"], safe=False))
        # Whatever changes by being used could not be begun again.
        used = estimator.callbacks or estimator.verbose
        if used or not isinstance(estimator.random_state, Integral | None):
            return False
        if check_parameters and not get_config()["skip_parameter_validation"]:
            estimator._validate_params()
        with config_context(skip_parameter_validation=True):
            estimator._fit(*self.fold.train)
        return True

    def finish(self) -> dict[str, Any]:
        """Return what scikit-learn's function returns of a fit without an error."""
        if self.seat is not None:
            if self.seat.error is not None:
                raise self.seat.error
            fit = self.seat.fit
            if not fit.done:
                fit.run(make_engine(fit.training))
        if not all(np.isfinite(each).all() for each in self._arrays()):
            raise ValueError("fit: got parameters that are not finite")
        trained, fold = time.time(), self.fold
        found = {"fit_error": None, "test_scores": self._score(*fold.test)}
        scored = time.time()
        if self._keywords["return_train_score"]:
            found["train_scores"] = self._score(*fold.train)
        found["n_test_samples"] = len(fold.test[0])
        found["fit_time"], found["score_time"] = trained - self._started, scored - trained
        return found

    def _score(self, X: Array, y: Array) -> Any:
        scorer, estimator = self._keywords["scorer"], self.estimator
        if not self._accuracy or y.ndim > 1 or y.dtype.kind not in PLAIN_LABELS or not len(y):
            return _score(estimator, X, y, scorer, {}, self._keywords["error_score"])
        predicted = estimator._predict(self.fold.read(estimator, X), check_input=False)
        return float(np.count_nonzero(predicted == y) / len(y))
