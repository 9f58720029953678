"""Candidates of a search that are fitted and scored together, a step of all at a time.

scikit-learn takes a fold's rows, checks them, encodes their labels and checks them again to score,
for each candidate anew. With small networks that takes several times as long as training. Here it
is done once a fold, by scikit-learn's own functions. Whatever is out of the ordinary, as an error
is, is left to scikit-learn's code, which begins that candidate again.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from joblib import effective_n_jobs, parallel_config
from sklearn import get_config
from sklearn.utils.parallel import Parallel, delayed

from fastmlp.sklearn.candidates import Candidate, Fold
from fastmlp.sklearn.engine import Fit
from fastmlp.sklearn.estimators import MLPClassifier, MLPRegressor
from fastmlp.sklearn.kernels import KernelEngine
from fastmlp.sklearn.meeting import Seat, alike, taking_part, train_together
from fastmlp.sklearn.prediction import Network

# The most candidates that wait for each other, and the most bytes of their arrays.
MOST_CANDIDATES = 256
MOST_BYTES = 2**28
# The most bytes of the rows of all folds, which are kept until all candidates have used them.
MOST_BYTES_OF_FOLDS = 2**30
# A candidate has about so many arrays of the size of its parameters: theirs, the best ones,
# gradients, the optimizer's state, and what kernels train.
ARRAYS_OF_A_FIT = 10
# What scikit-learn's function is given. Another release may ask for something else.
NEEDED = {
    *("scorer", "train", "test", "verbose", "parameters", "fit_params", "score_params"),
    *("return_train_score", "return_parameters", "return_n_test_samples", "return_times"),
    *("error_score",),
}
PASSED_OVER = {"split_progress", "candidate_progress", "caller", "callback_ctx"}


def handed_out(pre_dispatch: Any, places: int) -> int:
    """Return how many of so many fits may wait for each other, by what joblib hands out at once."""
    if isinstance(pre_dispatch, Integral):
        return max(1, min(places, int(pre_dispatch)))
    # Any other expression may be less than the number of threads.
    several = r"\s*([1-9]\d*\s*\*\s*)?n_jobs\s*|all"
    return places if re.fullmatch(several, str(pre_dispatch)) else 1


def queue_for(search: Any, X: Any, y: Any) -> "Queue | None":
    """Return a queue for the candidates of a search, or None if they need scikit-learn's code."""
    estimator, scoring = search.estimator, search.scoring
    names = scoring if isinstance(scoring, list | tuple | set) else [scoring or ""]
    plain = (
        type(estimator) in (MLPClassifier, MLPRegressor)
        and type(X) is type(y) is np.ndarray
        and X.ndim == 2
        and all(isinstance(name, str) for name in names)
        and isinstance(search.verbose, Integral)
        and search.verbose <= 1
        and isinstance(search.n_jobs, Integral | None)
        and search.n_jobs != 0
        and not any(hasattr(each, "_skl_callbacks") for each in (search, estimator))
        and not get_config()["array_api_dispatch"]
    )
    if not plain:
        return None
    processes = effective_n_jobs(search.n_jobs)
    places = handed_out(search.pre_dispatch, MOST_CANDIDATES * processes)
    rest = places, scoring is None, X.nbytes
    return SpreadQueue(*rest, processes) if processes > 1 else Queue(*rest)


# The positional arguments of scikit-learn's function, and those by keyword.
Item = tuple[Any, dict[str, Any]]


class Job(NamedTuple):
    """Candidates that joblib has handed out as one.

    Attributes
    ----------
    items : list of Item
    origin
        What the caller of the queue knows the job by.
    candidates : list of Candidate
        Those that have begun.
    """

    items: list[Item]
    origin: Any
    candidates: list[Candidate]


# Results of jobs; None stands for those that scikit-learn's own code has to find.
Results = Iterator[tuple[Job, list[Any] | None]]


def is_known(given: Any, keywords: dict[str, Any]) -> bool:
    """Return whether a candidate is as this file expects it."""
    if not NEEDED <= keywords.keys() <= NEEDED | PASSED_OVER or len(given) != 3:
        return False
    return not any(keywords[name] for name in ("fit_params", "score_params", "return_parameters"))


class Queue:
    """Candidates that wait until all have come to their first epoch.

    Parameters
    ----------
    places : int
        How many candidates may wait.
    accuracy : bool
        Whether the score of a candidate is that of its estimator.
    size : int
        Bytes of all rows.
    """

    def __init__(self, places: int, accuracy: bool, size: int) -> None:
        self.places, self._accuracy, self._size = places, accuracy, size
        self._fit_in_memory = True
        self._left = self._bytes = 0
        self._waiting: list[Job] = []
        self._running = False
        self._folds: dict[Any, Fold] = {}
        self._sound: dict[int, Any] = {}
        self._current: Candidate | None = None
        self._network = Network()

    def expect(self, candidates: int, folds: int) -> None:
        """Wait for so many candidates more on so many folds, which are others than before."""
        self._left += candidates * folds
        self._folds, self._sound = {}, {}
        self._fit_in_memory = folds * self._size <= MOST_BYTES_OF_FOLDS

    def take(self, items: list[Item], origin: Any) -> bool:
        """Take the candidates of a job; return whether all are ordinary ones, as far as known."""
        job = Job(items, origin, [])
        known = self._fit_in_memory and all(is_known(*item) for item in items)
        ordinary = known and self._begun(job)
        if ordinary:
            self._waiting.append(job)
        else:
            self._left -= len(items)
        return ordinary

    def _begun(self, job: Job) -> bool:
        """Begin the candidates of a job; return whether all are ordinary ones."""
        try:
            ordinary = all(self._begin(job, *item) for item in job.items)
        except Exception:
            return False
        self._bytes += sum(each.size for each in job.candidates) * ARRAYS_OF_A_FIT
        return ordinary

    def _begin(self, job: Job, given: Any, keywords: dict[str, Any]) -> bool:
        train, test, parameters = (keywords[name] for name in ("train", "test", "parameters"))
        key = id(train), id(test)
        estimator, X, y = given
        if key not in self._folds:
            self._folds[key] = Fold(estimator, X, y, train, test)
        # One after another predicts, by the same programs.
        estimator._network = self._network
        candidate = Candidate(estimator, self._folds[key], keywords, self._accuracy)
        self._current = candidate
        with taking_part(self):
            if not candidate.begin(id(parameters) not in self._sound):
                return False
        self._sound[id(parameters)] = parameters
        job.candidates.append(candidate)
        return True

    def checked(self, estimator: Any, check: Callable[[], Any]) -> Any:
        """Return the rows of the candidate that begins, checked."""
        assert self._current is not None
        return self._current.fold.checked(estimator, check)

    def train(self, fit: Fit) -> bool:
        """Note the fit of the candidate that begins; return that it is trained later."""
        assert self._current is not None
        self._current.seat = Seat(fit, KernelEngine(fit.training, alone=False))
        return True

    def run(self) -> Iterator[tuple[Any, list[Any] | None]]:
        """Train and score all that wait, once nobody else can come; yield origins and results.

        None stands for results that scikit-learn's own code has to find.
        """
        if self._running:
            # The caller is told of results, and brings new candidates.
            return
        with self._alone():
            while self._waiting and self._complete():
                jobs, self._waiting, self._bytes = self._waiting, [], 0
                for job, results in self._results(jobs):
                    self._left -= len(job.items)
                    yield job.origin, results

    def _complete(self) -> bool:
        count = sum(len(job.items) for job in self._waiting)
        return count >= min(self.places, self._left) or self._bytes >= MOST_BYTES

    def _results(self, jobs: Sequence[Job]) -> Results:
        everybody = [each for job in jobs for each in job.candidates]
        train_all([each.seat for each in everybody if each.seat is not None])
        for job in jobs:
            try:
                yield job, [each.finish() for each in job.candidates]
            except Exception:
                yield job, None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._running = True
        try:
            yield
        finally:
            self._running = False


class SpreadQueue(Queue):
    """Candidates of which each of several processes gets a part.

    Parameters
    ----------
    places, accuracy, size
        As for `Queue`.
    processes : int
    """

    def __init__(self, places: int, accuracy: bool, size: int, processes: int) -> None:
        super().__init__(places, accuracy, size)
        self._processes = processes

    def _begun(self, job: Job) -> bool:
        # Elsewhere.
        return True

    def _results(self, jobs: Sequence[Job]) -> Results:
        # Candidates of a fold are trained together.
        place: dict[int, int] = {}
        for job in jobs:
            place.setdefault(_fold_of(job), len(place))
        jobs = sorted(jobs, key=lambda job: place[_fold_of(job)])
        count = -(-len(jobs) // self._processes)
        parts = [jobs[start : start + count] for start in range(0, len(jobs), count)]
        with parallel_config(backend="loky"):
            call = delayed(results_of_part)
            found = Parallel(n_jobs=self._processes)(
                call([_sent(job) for job in part], self._accuracy) for part in parts
            )
        for part, results in zip(parts, found, strict=True):
            yield from zip(part, results, strict=True)


def _fold_of(job: Job) -> int:
    return id(job.items[0][1]["test"])


def _sent(job: Job) -> list[Item]:
    """Return what another process has to know of a job."""
    return [(given, {name: keywords[name] for name in NEEDED}) for given, keywords in job.items]


def results_of_part(jobs: Sequence[list[Item]], accuracy: bool) -> list[Any]:
    """Return the results of jobs, found in this process; None for those of which it has none."""
    # Whether all folds fit in memory has been asked.
    queue, found = Queue(MOST_CANDIDATES, accuracy, 0), dict[int, Any]()
    queue.expect(sum(map(len, jobs)), 1)
    for number, items in enumerate(jobs):
        queue.take(items, number)
        found.update(queue.run())
    return [found.get(number) for number in range(len(jobs))]


def train_all(seats: Sequence[Seat]) -> None:
    """Train fits, those of one kind together; an error of theirs is noted in all of a kind."""
    for group in alike(seats):
        try:
            train_together(group, lambda: None)
        except Exception as error:
            for seat in group:
                seat.error = error
