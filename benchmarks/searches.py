"""Searches of 48 candidates on 5 folds, by scikit-learn and by fastmlp, in turn.

    python -m benchmarks.searches                     breast cancer and digits, 10 epochs
    python -m benchmarks.searches digits --epochs 20 --batch-size 200

Every search has the same candidates, folds, seeds, epochs and mini-batches, and trains no best
model at the end. Each is run with one epoch before, so that workers are there and kernels compiled.
The shortest time of `--times` runs counts.
"""

import argparse
import os
import platform
import time
import warnings
from collections.abc import Callable
from typing import Any

from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import GridSearchCV as PlainGridSearchCV
from sklearn.model_selection import StratifiedKFold
from sklearn.neural_network import MLPClassifier as PlainClassifier
from sklearn.preprocessing import StandardScaler

import fastmlp
from fastmlp.sklearn import GridSearchCV, MLPClassifier

DATA: dict[str, Callable[..., Any]] = {"breast cancer": load_breast_cancer, "digits": load_digits}
GRID = {
    "hidden_layer_sizes": [(32,), (64,)],
    "learning_rate_init": [1e-3, 3e-3, 1e-2],
    "alpha": [1e-4, 1e-2],
    "random_state": [0, 1, 2, 3],
}
# What `fastmlp.search` calls them.
NAMES = dict(zip(GRID, ("hidden_sizes", "learning_rate", "l2", "seed"), strict=True))


def grid_searches(X: Any, y: Any, batch_size: int) -> dict[str, Callable[[int], Any]]:
    """Return the searches by name: each takes a number of epochs and returns what it found."""
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(X, y))

    def by_scikit_learn(search: Any, estimator: Any, jobs: int) -> Callable[[int], Any]:
        def run(epochs: int) -> Any:
            settings = {"batch_size": batch_size, "tol": 0.0, "n_iter_no_change": epochs + 1}
            candidate = estimator(max_iter=epochs, **settings)
            found = search(candidate, GRID, cv=folds, n_jobs=jobs, refit=False).fit(X, y)
            return found.best_score_, tuple(found.best_params_[name] for name in GRID)

        return run

    def by_fastmlp(dtype: str) -> Callable[[int], Any]:
        def run(epochs: int) -> Any:
            grid = {NAMES[name]: values for name, values in GRID.items()}
            given = {"loss": "softmax_cross_entropy", "optimizer": "adam", "dtype": dtype}
            rest = {"cv": folds, "epochs": epochs, "batch_size": batch_size, "refit": False}
            found = fastmlp.search(X, y, grid, **given, **rest)
            return found.best_score, tuple(found.best_candidate[name] for name in NAMES.values())

        return run

    searches = {}
    for jobs in sorted({1, os.cpu_count() or 1}):
        of_jobs = f"n_jobs={jobs}"
        plain, ours = PlainClassifier, MLPClassifier
        searches[f"scikit-learn, {of_jobs}"] = by_scikit_learn(PlainGridSearchCV, plain, jobs)
        name = f"scikit-learn's search of fastmlp's MLPClassifier, {of_jobs}"
        searches[name] = by_scikit_learn(PlainGridSearchCV, ours, jobs)
    for jobs in sorted({1, os.cpu_count() or 1}):
        name = f"fastmlp.sklearn.GridSearchCV, n_jobs={jobs}"
        searches[name] = by_scikit_learn(GridSearchCV, MLPClassifier, jobs)
    searches["fastmlp.search, float64"] = by_fastmlp("float64")
    searches["fastmlp.search"] = by_fastmlp("float32")
    return searches


def main() -> None:
    """Run the searches and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="*", default=list(DATA), help=", ".join(DATA))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--times", type=int, default=2)
    asked = parser.parse_args()
    # None of them is to converge.
    warnings.simplefilter("ignore")
    os.environ["PYTHONWARNINGS"] = "ignore"
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors")
    for name in asked.data:
        X, y = DATA[name](return_X_y=True)
        X = StandardScaler().fit_transform(X)
        print(f"\n{name}: {X.shape}, {asked.epochs} epochs, mini-batches of {asked.batch_size}")
        for title, run in grid_searches(X, y, asked.batch_size).items():
            run(1)
            seconds, found = [], None
            # scikit-learn's own networks take long enough for one measurement.
            for _ in range(1 if title.startswith("scikit-learn, ") else asked.times):
                started = time.perf_counter()
                found = run(asked.epochs)
                seconds.append(time.perf_counter() - started)
            print(f"{title:64} {min(seconds):8.2f} s   {found}", flush=True)


if __name__ == "__main__":
    main()
