"""Several estimators that differ in their seeds, and how far they disagree."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context, get_config
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    MetaEstimatorMixin,
    RegressorMixin,
    _fit_context,
    clone,
)
from sklearn.utils import check_random_state, get_tags
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.validation import check_is_fitted, validate_data

from fastmlp.sklearn.estimators import MLPClassifier, MLPRegressor
from fastmlp.sklearn.meeting import MOST_FITS, Meeting

Array = NDArray[Any]

LARGEST_SEED = 2**31 - 1


def fit_together(estimators: Sequence[Any], X: Any, y: Any, sample_weight: Any = None) -> None:
    """Fit estimators on the same rows, side by side where they are fastmlp's.

    Raises
    ------
    Exception
        What the first of them raises that fails.
    """
    meeting, config = Meeting(min(len(estimators), MOST_FITS)), get_config()
    more = {} if sample_weight is None else {"sample_weight": sample_weight}

    def fit(estimator: Any) -> None:
        with config_context(**config):
            estimator.fit(X, y, **more)

    meeting.expect(len(estimators))
    with ThreadPoolExecutor(meeting.places, thread_name_prefix="fastmlp-fits") as pool:
        try:
            for fitted in [pool.submit(meeting.attended(fit), each) for each in estimators]:
                fitted.result()
        finally:
            meeting.close()


class SeededEnsemble(MetaEstimatorMixin, BaseEstimator):
    """What both ensembles have in common: see `EnsembleRegressor`."""

    _default: type
    _parameter_constraints: dict[str, Any] = {
        "estimator": [HasMethods(["fit", "predict", "set_params"]), None],
        "n_estimators": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self, estimator: Any = None, *, n_estimators: int = 8, random_state: Any = None
    ) -> None:
        self.estimator, self.n_estimators = estimator, n_estimators
        self.random_state = random_state

    def _member(self) -> Any:
        return self._default() if self.estimator is None else self.estimator

    def __sklearn_tags__(self) -> Any:
        """Return the tags of a member, for rows and targets."""
        tags, own = super().__sklearn_tags__(), get_tags(self._member())
        for name in ("input_tags", "target_tags", "classifier_tags", "regressor_tags"):
            setattr(tags, name, getattr(own, name))
        return tags

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fit all estimators on the same rows, each with a seed of its own.

        Parameters
        ----------
        X : array-like or sparse matrix (rows, inputs)
        y : array-like (rows,) or (rows, outputs)
        sample_weight : array-like (rows,), optional
        """
        drawn = check_random_state(self.random_state).randint(LARGEST_SEED, size=self.n_estimators)
        seeds = drawn.tolist()
        members = [clone(self._member()).set_params(random_state=seed) for seed in seeds]
        fit_together(members, X, y, sample_weight)
        # After the members, whose words say what is wrong with X.
        validate_data(self, X, skip_check_array=True)
        self.estimators_ = members
        if hasattr(members[0], "classes_"):
            self.classes_ = members[0].classes_
        return self

    def _all(self, method: str, X: Any) -> Array:
        """Return what each member says: (members, rows) or (members, rows, outputs)."""
        check_is_fitted(self)
        # The members' words say what is wrong with anything but a matrix.
        if len(getattr(X, "shape", ())) == 2:
            validate_data(self, X, skip_check_array=True, reset=False)
        return np.stack([getattr(each, method)(X) for each in self.estimators_])


class EnsembleRegressor(RegressorMixin, SeededEnsemble):
    """Regressors that differ in their seeds, trained side by side: their mean and their spread.

    Parameters
    ----------
    estimator : object, optional
        What each member is a clone of, with a `random_state` of its own; by default
        ``MLPRegressor()``. `fastmlp.sklearn`'s own are trained side by side.
    n_estimators : int
    random_state : int, RandomState or None
        Draws the seeds of the members.

    Attributes
    ----------
    estimators_ : list
        The fitted members; each has the bits of a fit alone.

    Examples
    --------
    >>> from fastmlp.sklearn import EnsembleRegressor, MLPRegressor
    >>> member = MLPRegressor(hidden_layer_sizes=(16,), tol=0.1)
    >>> ensemble = EnsembleRegressor(member, n_estimators=4, random_state=0)
    >>> mean, spread = ensemble.fit(X, y).predict(X, return_std=True)
    >>> mean.shape, spread.shape
    ((200,), (200,))
    """

    _default = MLPRegressor

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Return the mean of the members, and with `return_std` their standard deviation too.

        Parameters
        ----------
        X : array-like or sparse matrix (rows, inputs)
        return_std : bool
        """
        found = self._all("predict", X)
        mean = found.mean(axis=0)
        return (mean, found.std(axis=0)) if return_std else mean


class EnsembleClassifier(ClassifierMixin, SeededEnsemble):
    """Classifiers that differ in their seeds, trained side by side: their mean probabilities.

    Parameters
    ----------
    estimator : object, optional
        What each member is a clone of, with a `random_state` of its own; by default
        ``MLPClassifier()``. `fastmlp.sklearn`'s own are trained side by side.
    n_estimators : int
    random_state : int, RandomState or None
        Draws the seeds of the members.

    Attributes
    ----------
    classes_ : ndarray
    estimators_ : list
        The fitted members; each has the bits of a fit alone.

    Examples
    --------
    >>> from fastmlp.sklearn import EnsembleClassifier, MLPClassifier
    >>> member = MLPClassifier((16,), tol=0.1)
    >>> ensemble = EnsembleClassifier(member, n_estimators=4, random_state=0).fit(X, labels)
    >>> probabilities, spread = ensemble.predict_proba(X, return_std=True)
    >>> probabilities.shape, spread.shape
    ((200, 2), (200, 2))
    """

    _default = MLPClassifier

    def predict_proba(self, X: Any, return_std: bool = False) -> Any:
        """Return the mean probabilities, and with `return_std` their standard deviation too.

        Parameters
        ----------
        X : array-like or sparse matrix (rows, inputs)
        return_std : bool
        """
        found = self._all("predict_proba", X)
        mean = found.mean(axis=0)
        return (mean, found.std(axis=0)) if return_std else mean

    def predict(self, X: Any) -> Array:
        """Return the class that is most probable; of several labels a row, those above one half.

        Parameters
        ----------
        X : array-like or sparse matrix (rows, inputs)
        """
        probabilities = self.predict_proba(X)
        kind = getattr(self.estimators_[0], "_label_binarizer", None)
        if kind is not None and kind.y_type_.startswith("multilabel"):
            return (probabilities > 0.5).astype(np.int64)
        return np.asarray(self.classes_[probabilities.argmax(axis=1)])
