"""scikit-learn's searches, whose candidates are trained side by side where they are ours."""

import functools
import inspect
from contextvars import ContextVar
from typing import Any

from joblib import parallel_config
from joblib.parallel import ThreadingBackend, get_active_backend
from sklearn import clone, config_context
from sklearn.model_selection import GridSearchCV as PlainGridSearchCV
from sklearn.model_selection import RandomizedSearchCV as PlainRandomizedSearchCV
from sklearn.model_selection._search_successive_halving import (
    HalvingGridSearchCV as PlainHalvingGridSearchCV,
)
from sklearn.pipeline import Pipeline

from fastmlp.sklearn.acceleration import say_once
from fastmlp.sklearn.estimators import Accelerated
from fastmlp.sklearn.meeting import MOST_FITS, Meeting
from fastmlp.sklearn.queueing import Queue, handed_out, queue_for

# Of the rows of fits that wait for each other.
MOST_BYTES = 2**28
# That of the call of `fit` which this thread is in: several may fit one search at once.
MEETING: ContextVar[Meeting | Queue | None] = ContextVar("meeting", default=None)


class MeetingBackend(ThreadingBackend):
    """joblib's threads, as many as fits may wait for each other."""

    def __init__(
        self, meeting: Meeting | None = None, queue: Queue | None = None, **keywords: Any
    ) -> None:
        super().__init__(**keywords)
        self._meeting, self._queue = Meeting(1) if meeting is None else meeting, queue

    def effective_n_jobs(self, n_jobs: Any) -> int:
        """Return the places of the meeting or of the queue, whatever number `n_jobs` is."""
        super().effective_n_jobs(n_jobs)
        return (self._queue or self._meeting).places

    def submit(self, func: Any, callback: Any = None) -> Any:
        """Have a fit take part."""
        queue = self._queue
        if queue is None:
            return self._attend(func, callback)
        if not queue.take([(given, more) for _, given, more in func.items], (func, callback)):
            self._begin_again(func, callback)
        for (own, told), results in queue.run():
            if results is None:
                self._begin_again(own, told)
            else:
                told(results)
        return None

    def _begin_again(self, func: Any, callback: Any) -> None:
        """Have scikit-learn's own code fit candidates that the queue has begun."""
        func.items = [
            (each, (clone(first), *rest), more) for each, (first, *rest), more in func.items
        ]
        self._attend(func, callback)

    def _attend(self, func: Any, callback: Any) -> Any:
        func.items = [(sharing_filters(each), *rest) for each, *rest in func.items]
        return super().submit(self._meeting.attended(func), callback)


def sharing_filters(function: Any) -> Any:
    """Return a function that scikit-learn gives to a worker, for a thread of this process.

    scikit-learn's own sets the filters of warnings anew. They belong to the process, so threads
    would take each other's away.
    """
    if not hasattr(function, "warning_filters"):
        return function

    def call(*given: Any, **keywords: Any) -> Any:
        with config_context(**function.config):
            return function.function(*given, **keywords)

    return call


def refusal(estimator: Any, X: Any) -> str | None:
    """Return why a search trains its candidates one by one, or None."""
    last = estimator
    while isinstance(last, Pipeline):
        last = last.steps[-1][1] if last.steps else None
    if not isinstance(last, Accelerated):
        return "the estimator is neither fastmlp's nor a pipeline that ends with one"
    if not hasattr(ThreadingBackend, "submit"):
        return "joblib is older than 1.5"
    chosen = type(get_active_backend()[0]).__name__
    if chosen not in ("LokyBackend", "SequentialBackend"):
        return f"the active backend of joblib is {chosen}"
    return None if places_for(X) > 1 else "X is too large for copies of it"


def places_for(X: Any) -> int:
    """Return how many fits may wait for each other: each has a copy of its rows."""
    size = max(1, int(getattr(X, "nbytes", 0)))
    return max(1, min(MOST_FITS, MOST_BYTES // size))


class SideBySide:
    """What a search does otherwise than scikit-learn's, the next in the order of methods."""

    def fit(self, X: Any, y: Any = None, **params: Any) -> Any:
        """Run the search; see scikit-learn's class of this name."""
        own: Any = super()
        reason = refusal(self.estimator, X)  # type: ignore[attr-defined]
        if reason is not None:
            say_once(f"a search trains its candidates one by one, as {reason}")
            return own.fit(X, y, **params)
        places = handed_out(self.pre_dispatch, places_for(X))  # type: ignore[attr-defined]
        queue = queue_for(self, X, y)
        # What a queue cannot fit waits for nobody.
        meeting = Meeting(places if queue is None else 1)
        token = MEETING.set(queue or meeting)
        # Of the fit before.
        vars(self).pop("n_splits_", None)
        try:
            with parallel_config(backend=MeetingBackend(meeting, queue)):
                return own.fit(X, y, **params)
        finally:
            meeting.close()
            MEETING.reset(token)


def announced(run_search: Any) -> Any:
    """Return a search's `_run_search` that tells the meeting how many fits there will be.

    scikit-learn looks at its signature, which differs between releases and searches.
    """

    @functools.wraps(run_search)
    def run(self: Any, evaluate_candidates: Any, **more: Any) -> Any:
        meeting, folds = MEETING.get(), count_folds(self, evaluate_candidates)
        if meeting is None:
            return run_search(self, evaluate_candidates, **more)

        def evaluate(candidates: Any, *rest: Any, **keywords: Any) -> Any:
            listed = list(candidates)
            if folds is None:
                # Nobody waits for fits of which nobody knows whether they come.
                meeting.places = 1
            else:
                meeting.expect(len(listed), folds)
            return evaluate_candidates(listed, *rest, **keywords)

        return run_search(self, evaluate, **more)

    return run


def count_folds(search: Any, evaluate_candidates: Any) -> int | None:
    """Return how many folds a search has; scikit-learn has known it since its `fit` began."""
    # Until scikit-learn 1.7 a local variable, and then an attribute.
    local = inspect.getclosurevars(evaluate_candidates).nonlocals.get("n_splits")
    return vars(search).get("n_splits_") if local is None else int(local)


class GridSearchCV(SideBySide, PlainGridSearchCV):
    """scikit-learn's `GridSearchCV`, whose candidates are trained side by side.

    Fits of fastmlp's estimators, alone or at the end of a `Pipeline`, wait for each other, and
    those of one shape on the same rows are trained together. Each has the bits that it has alone,
    so `cv_results_` are scikit-learn's but for the times, which overlap. Other estimators are
    searched by scikit-learn's own code. Fits with `early_stopping`, `callbacks`, `verbose` or
    weights of rows are trained alone.

    Arrays are checked once a fold, and no more for each candidate, where the estimator is
    fastmlp's own class, `scoring` is scikit-learn's by name or by default, and rows have no
    weights. `n_jobs` then says how many processes train a part of the candidates each.
    Otherwise it counts only where scikit-learn's own code runs, and the estimators' `threads` says
    how many threads train.

    All parameters, attributes and methods are scikit-learn's. With ``random_state=None`` the order
    in which candidates draw random numbers is not known.

    See Also
    --------
    sklearn.model_selection.GridSearchCV : For all parameters, attributes and methods.
    fastmlp.search : A search without scikit-learn, which is faster.

    Examples
    --------
    >>> from fastmlp.sklearn import GridSearchCV, MLPRegressor
    >>> grid = {"alpha": [1e-4, 1e-2], "random_state": [0, 1]}
    >>> search = GridSearchCV(MLPRegressor(hidden_layer_sizes=(8,), tol=0.1), grid, cv=2).fit(X, y)
    >>> search.best_params_["alpha"] in grid["alpha"]
    True
    """

    _run_search = announced(PlainGridSearchCV._run_search)


class RandomizedSearchCV(SideBySide, PlainRandomizedSearchCV):
    """scikit-learn's `RandomizedSearchCV`, whose candidates are trained side by side.

    See Also
    --------
    GridSearchCV : What is done otherwise than in scikit-learn, and what is not.
    sklearn.model_selection.RandomizedSearchCV : For all parameters, attributes and methods.

    Examples
    --------
    >>> from fastmlp.sklearn import MLPRegressor, RandomizedSearchCV
    >>> drawn = {"alpha": [1e-4, 1e-3, 1e-2], "random_state": [0, 1]}
    >>> regressor = MLPRegressor(hidden_layer_sizes=(8,), tol=0.1)
    >>> search = RandomizedSearchCV(regressor, drawn, n_iter=3, cv=2, random_state=0).fit(X, y)
    >>> len(search.cv_results_["params"])
    3
    """

    _run_search = announced(PlainRandomizedSearchCV._run_search)


class HalvingGridSearchCV(SideBySide, PlainHalvingGridSearchCV):
    """scikit-learn's `HalvingGridSearchCV`, whose candidates are trained side by side.

    scikit-learn calls its own experimental. This one needs no import of
    ``sklearn.experimental.enable_halving_search_cv``.

    See Also
    --------
    GridSearchCV : What is done otherwise than in scikit-learn, and what is not.
    sklearn.model_selection.HalvingGridSearchCV : For all parameters, attributes and methods.

    Examples
    --------
    >>> from fastmlp.sklearn import HalvingGridSearchCV, MLPRegressor
    >>> grid = {"alpha": [1e-4, 1e-3, 1e-2], "random_state": [0, 1]}
    >>> regressor = MLPRegressor(hidden_layer_sizes=(8,), tol=0.1)
    >>> search = HalvingGridSearchCV(regressor, grid, cv=2, random_state=0).fit(X, y)
    >>> search.n_candidates_[0]
    6
    """

    _run_search = announced(PlainHalvingGridSearchCV._run_search)
