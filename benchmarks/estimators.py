"""scikit-learn: epoch by epoch in place of the kernels, and whole fits beside `fastmlp.sklearn`.

Of a whole fit, what `prepare` returns makes an estimator and fits it, once a call: nothing is kept
from the last fit. Both sides may use the same processors. scikit-learn is tried with each number of
BLAS threads, and a search also with one process for each processor, on both sides.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.baselines import Baseline, Entry
from benchmarks.cases import ADAM, LEARNING_RATE, Case, Data, Weights
from benchmarks.outcomes import Outcome, compare, outcome, scikit_learn_classes
from benchmarks.validation import flatten
from benchmarks.whole_fits import Split, WholeFit, make

SUITES = ("fits", "first_fits")


class ScikitLearn(Baseline):
    """scikit-learn: MLPRegressor.partial_fit, one epoch of mini-batches a call, no shuffling."""

    module = "sklearn"
    packages = ("scikit-learn",)
    devices = ("cpu",)
    suites = (*Baseline.suites, "shuffled")

    def load(self) -> None:
        """Import it and give its BLAS its threads."""
        from sklearn.neural_network import MLPRegressor
        from threadpoolctl import threadpool_limits

        self.regressor = MLPRegressor
        self.limits = threadpool_limits(self.entry.threads)

    def prepare(self, case: Case, data: Data, weights: list[Weights]) -> Callable[[], None]:
        """Let it initialise itself on one batch, then replace the weights."""
        # It averages over rows and adds over outputs. Its epsilon is beside the raw root of the
        # second moment, which is a tenth of the corrected one after ten steps.
        rates = {
            "sgd": {"learning_rate_init": LEARNING_RATE / case.sizes[-1]},
            "adam": {
                "learning_rate_init": ADAM["learning_rate"],
                "beta_1": ADAM["beta1"],
                "beta_2": ADAM["beta2"],
                "epsilon": ADAM["epsilon"] * case.sizes[-1] / 10,
            },
        }
        self.network = self.regressor(
            hidden_layer_sizes=case.sizes[1:-1],
            activation="relu",
            solver=case.optimizer,
            alpha=0.0,
            batch_size=case.batch,
            **rates[case.optimizer],
            momentum=0.0,
            nesterovs_momentum=False,
            shuffle=False,
            random_state=0,
            n_iter_no_change=10**9,
        )
        # It warns of a column where it wants a vector.
        y = data.y.ravel() if case.sizes[-1] == 1 else data.y
        self.network.partial_fit(data.X[: case.batch], y[: case.batch])
        self.network.coefs_ = [W.copy() for W, _ in weights[0]]
        self.network.intercepts_ = [b.copy() for _, b in weights[0]]
        # It has the moments of that batch: the next call makes another.
        del self.network._optimizer
        order = case.order()

        def epoch() -> None:
            if case.shuffled:
                self.network.partial_fit(data.X[order], y[order])
            else:
                self.network.partial_fit(data.X, y)

        return epoch

    def parameters(self) -> np.ndarray:
        """Pair its weights with its biases."""
        return flatten([list(zip(self.network.coefs_, self.network.intercepts_, strict=True))])

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Call the network."""
        return self.network.predict(rows)


class Estimator(Baseline):
    """scikit-learn's `MLPClassifier` and `MLPRegressor` with their defaults."""

    module = "sklearn"
    packages = ("scikit-learn", "numpy", "scipy", "joblib", "threadpoolctl")
    devices = ("cpu",)
    suites = SUITES

    def load(self) -> None:
        """Import the classes; that an epoch limit was reached is expected, and said by both."""
        from sklearn.exceptions import ConvergenceWarning
        from threadpoolctl import threadpool_limits

        # For good, and not around each fit: a search hands its filters on to its processes.
        warnings.simplefilter("ignore", ConvergenceWarning)
        self.limits = threadpool_limits(self.entry.threads)
        self.classes = self.load_classes()

    def load_classes(self) -> dict[str, Any]:
        """Return the classifier and the regressor."""
        return scikit_learn_classes()

    def prepare(self, case: WholeFit, data: Split, weights: list[Weights]) -> Callable[[], None]:
        """Return what makes and fits an estimator."""
        self.case, self.data = case, data

        def fit() -> None:
            self.fitted = make(case, self.classes, self.entry.jobs)
            self.fitted.fit(data.X, data.y)

        return fit

    def check(self, case: WholeFit, expected: Outcome) -> float:
        """Compare the fit with the expected one; raise `Disagreement` if it is another."""
        self.outcome = outcome(self.fitted, self.case, self.data)
        return compare(self.outcome, expected, self.case.kind == "classifier")

    def work(self, case: WholeFit) -> tuple[float, int]:
        """Return that a fit is one unit of work; its operations are not counted."""
        return 0.0, 1

    def notes(self) -> dict[str, Any]:
        """Return the score, how long the fit was, and what computed its matrix products."""
        found = {"score": self.outcome.score, "epochs": self.outcome.epochs, "blas": self.blas()}
        if not self.case.search:
            found["steps"] = self.outcome.epochs * self.case.steps_per_epoch
        return found

    def blas(self) -> str:
        """Return the BLAS with its kernel and threads; refuse another number than was asked for."""
        from threadpoolctl import threadpool_info

        found = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
        for pool in found:
            if pool["num_threads"] != self.entry.threads:
                raise RuntimeError(
                    f"BLAS threads: got {pool['num_threads']}, wanted {self.entry.threads}"
                )
        words = [
            f"{pool['internal_api']} {pool.get('version')}, kernel {pool.get('architecture')}"
            for pool in found
        ]
        return "; ".join(dict.fromkeys(words)) or "unknown"

    def end(self) -> None:
        """End a search's processes, which would wait five minutes for more work."""
        if self.entry.jobs > 1:
            from joblib.externals.loky import get_reusable_executor

            get_reusable_executor().shutdown(wait=True, kill_workers=True)

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Call the fitted estimator."""
        return self.fitted.predict(rows)


class AcceleratedEstimator(Estimator):
    """`fastmlp.sklearn`: the same estimators with fastmlp's kernels in them."""

    module = "fastmlp.sklearn"
    packages = ("fastmlp", "numba", "llvmlite", "scikit-learn")
    role = "ours"

    def available(self) -> str | None:
        """Return why it cannot run here, or None."""
        for module in (self.module, "sklearn"):
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed"
        self.load()
        return None

    def load_classes(self) -> dict[str, Any]:
        """Return fastmlp's classes of the same names."""
        from fastmlp import sklearn

        return {"classifier": sklearn.MLPClassifier, "regressor": sklearn.MLPRegressor}

    def load_what_follows(self) -> None:
        """Import the compiler."""
        import numba  # noqa: F401


def settings_of_estimators(
    name: str, case: WholeFit, device: str, threads: list[int], ours: bool
) -> list[Entry]:
    """Return the settings in which estimators are tried on a fit.

    fastmlp decides itself how many of the threads it uses. A search has a number of processes
    besides, which its user decides, so both sides are tried with one and with as many as there are
    threads to share out.
    """
    most = max(threads)
    found = [Entry(name, device, count) for count in ([most] if ours else threads)]
    if case.search and most > 1:
        found.append(Entry(name, device, threads=1, jobs=most))
    return found
