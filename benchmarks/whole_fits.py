"""The fits that are compared with scikit-learn's: real data, and no setting but the seed.

A fit is what a user of scikit-learn writes: ``MLPClassifier(random_state=0).fit(X, y)`` in float64,
with one hidden layer of 100, Adam, mini-batches of 200, ``alpha=1e-4`` and the stopping rule that
the class has. A quarter of the rows is held out for the score. The features are what a user would
pass: pixels from 0 to 1, measurements scaled by `StandardScaler` (once raw, since many forget to),
and one column for each grade of a diamond. A regressor's targets have mean 0 and variance 1, since
the solver's rate suits no other size. A diamond's target is the logarithm of its price.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from benchmarks.cases import Weights

BATCH = 200
"""Rows of a mini-batch: scikit-learn's own, where there are as many."""

SEED = 0
HELD_OUT = 0.25
WHITE = 16.0
"""The brightest pixel of scikit-learn's digits."""

GRID = {
    "hidden_layer_sizes": [(50,), (100,)],
    "alpha": [1e-5, 1e-4, 1e-3],
    "learning_rate_init": [1e-3, 1e-2],
}
"""Twelve candidates, which the default five folds make 60 fits; the best one's is the 61st."""


class Split(NamedTuple):
    """Rows to train on and rows to score on."""

    X: np.ndarray
    y: np.ndarray
    X_held_out: np.ndarray
    y_held_out: np.ndarray


@dataclass(frozen=True)
class WholeFit:
    """A dataset with an estimator that has its defaults, or a search over twelve of them.

    Parameters
    ----------
    name : str
        What ``--fits`` takes.
    source : str
        A key of `SOURCES`.
    kind : {"classifier", "regressor"}
    sizes : tuple of int
        Units per layer, input first; of a search, those of its widest candidate.
    rows : int
        Rows to train on.
    reason : str
        Why it is measured, and what the features are.
    target : float
        How many times as long as fastmlp scikit-learn should take, at least.
    group : {"named", "own"}
        As of a `cases.Case`.
    search : bool
        Whether it is a `GridSearchCV`, of a pipeline with a `StandardScaler`.
    """

    name: str
    source: str
    kind: str
    sizes: tuple[int, ...]
    rows: int
    reason: str
    target: float
    group: str = "named"
    search: bool = False

    dtype = "float64"
    precision = "float32"
    batch = BATCH
    devices = ("cpu",)

    @property
    def title(self) -> str:
        """The name, as a case's."""
        return self.name

    @property
    def steps_per_epoch(self) -> int:
        """Mini-batches of an epoch, the last one shorter."""
        return -(-self.rows // self.batch)

    def passes(self, passes: int) -> int:
        """Return how often each provider has its turn; a search takes long."""
        return -(-passes // 2) if self.search else passes

    def data(self) -> Split:
        """Return the rows, read-only: every fit of a process has the same."""
        return SOURCES[self.source]()

    def initial_weights(self) -> list[Weights]:
        """Return none: the estimators initialise themselves, alike where they are right."""
        return []


def split(X: np.ndarray, y: np.ndarray, scaled: bool, regression: bool = False) -> Split:
    """Hold rows out; scale the features, and a regressor's targets, by the other rows."""
    from sklearn.model_selection import train_test_split

    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=HELD_OUT, random_state=SEED, stratify=None if regression else y
    )
    if scaled:
        # Only the training rows may say what the mean is: the held-out ones are not known yet.
        mean, width = X_train.mean(axis=0), X_train.std(axis=0)
        X_train, X_test = (X_train - mean) / width, (X_test - mean) / width
    if regression:
        mean, width = y_train.mean(), y_train.std()
        y_train, y_test = (y_train - mean) / width, (y_test - mean) / width
    found = Split(*(np.ascontiguousarray(part) for part in (X_train, y_train, X_test, y_test)))
    for part in found:
        part.flags.writeable = False
    return found


def _shipped(name: str, scaled: bool, regression: bool = False, over: float = 1.0) -> Split:
    from sklearn import datasets

    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return split(X / over, y, scaled, regression)


def _mnist() -> Split:
    from fastmlp import datasets

    found = datasets.load("mnist_5k")
    return split(found.X.astype(np.float64), found.y, scaled=False)


def _diamonds() -> Split:
    from fastmlp import datasets

    found = datasets.load("diamonds")
    price = np.log(found.y.astype(np.float64))
    return split(found.X.astype(np.float64), price, scaled=True, regression=True)


SOURCES: dict[str, Callable[[], Split]] = {
    "digits": cache(lambda: _shipped("digits", scaled=False, over=WHITE)),
    "breast cancer": cache(lambda: _shipped("breast_cancer", scaled=False)),
    "breast cancer, scaled": cache(lambda: _shipped("breast_cancer", scaled=True)),
    "diabetes": cache(lambda: _shipped("diabetes", scaled=True, regression=True)),
    "MNIST-5k": cache(_mnist),
    "diamonds": cache(_diamonds),
}

SMALL, DIGITS = 5.0, 4.0
"""The two targets: of small networks, and of a hidden layer of 100 on 784 pixels."""

WHOLE_FITS = (
    WholeFit("breast-cancer", "breast cancer, scaled", "classifier", (30, 100, 1), 426,
             "two classes, 30 measurements, scaled: three steps an epoch", SMALL),
    WholeFit("breast-cancer-raw", "breast cancer", "classifier", (30, 100, 1), 426,
             "the same as it comes, from 0 to 4,000: many forget to scale", SMALL),
    WholeFit("digits", "digits", "classifier", (64, 100, 10), 1347,
             "ten classes of 8 by 8 pixels from 0 to 1", SMALL),
    WholeFit("diabetes", "diabetes", "regressor", (10, 100, 1), 331,
             "ten measurements and the target, scaled: two steps an epoch", SMALL, "own"),
    WholeFit("diamonds", "diamonds", "regressor", (26, 100, 1), 40455,
             "6 measures and 20 grades, scaled; the logarithm of the price, scaled", SMALL),
    WholeFit("MNIST-5k", "MNIST-5k", "classifier", (784, 100, 10), 3750,
             "ten classes of 28 by 28 pixels from 0 to 1", DIGITS),
    WholeFit("grid-search", "breast cancer", "classifier", (30, 100, 1), 426,
             "GridSearchCV: 12 candidates, 5 folds, a pipeline that scales the measurements",
             SMALL, search=True),
)  # fmt: skip
QUICK = ("breast-cancer-raw",)
FIRST = "digits"
"""What the first fit of a process is measured on: what scikit-learn's own pages begin with."""


def find(name: str) -> WholeFit:
    """Return the fit of that name."""
    for case in WHOLE_FITS:
        if case.name == name:
            return case
    known = ", ".join(case.name for case in WHOLE_FITS)
    raise ValueError(f"fit: got {name!r}, wanted one of {known}")


def make(case: WholeFit, classes: dict[str, Any], jobs: int = 1) -> Any:
    """Return what is to be fitted: one of `classes` with its defaults, or a search over it."""
    estimator = classes[case.kind](random_state=SEED)
    if not case.search:
        return estimator
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = Pipeline([("scale", StandardScaler()), ("network", estimator)])
    grid = {f"network__{name}": values for name, values in GRID.items()}
    return GridSearchCV(pipeline, grid, n_jobs=jobs)
