"""What a whole fit must come to before it is timed: scikit-learn's own result."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from benchmarks.validation import Disagreement
from benchmarks.whole_fits import Split, WholeFit, make
from fastmlp.errors import MissingPackageError

TOLERANCE = 1e-9
"""Largest error of a loss, a score or an output, relative to the largest of its kind.

scikit-learn itself, on one thread or two and with another kernel of its BLAS, stays within 4e-15
over all epochs of these fits (measured 2026-11-24, scikit-learn 1.9.1); a wrong penalty, shuffle or
rate is off by 1e-3 in the first epochs.
"""


@dataclass(frozen=True)
class Outcome:
    """What a fit came to.

    Attributes
    ----------
    losses : float64[epochs]
        Each epoch's loss; of a search, those of the best candidate's last fit.
    score : float
        Accuracy or R2 of the held-out rows.
    outputs : float64[rows] or float64[rows, classes]
        Probabilities or predictions of the held-out rows.
    candidates : float64[candidates]
        Of a search, each candidate's mean score over the folds.
    """

    losses: np.ndarray
    score: float
    outputs: np.ndarray
    candidates: np.ndarray

    @property
    def epochs(self) -> int:
        """How many epochs it took."""
        return len(self.losses)


def network_of(fitted: Any, case: WholeFit) -> Any:
    """Return the fitted network inside a search's best pipeline, or the estimator itself."""
    return fitted.best_estimator_.named_steps["network"] if case.search else fitted


def outcome(fitted: Any, case: WholeFit, data: Split) -> Outcome:
    """Return what a fit came to."""
    network = network_of(fitted, case)
    outputs = fitted.predict_proba if case.kind == "classifier" else fitted.predict
    losses = np.asarray(network.loss_curve_, dtype=np.float64)
    if network.n_iter_ != len(losses):
        raise Disagreement(f"n_iter_: got {network.n_iter_} and {len(losses)} losses")
    candidates = fitted.cv_results_["mean_test_score"] if case.search else ()
    return Outcome(
        losses,
        float(fitted.score(data.X_held_out, data.y_held_out)),
        np.asarray(outputs(data.X_held_out), dtype=np.float64),
        np.asarray(candidates, dtype=np.float64),
    )


@cache
def expected_outcome(case: WholeFit) -> Outcome:
    """Return scikit-learn's outcome of a fit."""
    if importlib.util.find_spec("sklearn") is None:
        raise MissingPackageError("scikit-learn is not installed")
    data = case.data()
    fitted = make(case, scikit_learn_classes())
    fit_quietly(fitted, data)
    return outcome(fitted, case, data)


def scikit_learn_classes() -> dict[str, Any]:
    """Return scikit-learn's two classes."""
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    return {"classifier": MLPClassifier, "regressor": MLPRegressor}


def fit_quietly(estimator: Any, data: Split) -> Any:
    """Fit; that 200 epochs were not enough is what the defaults say, not a failure."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(data.X, data.y)


def compare(got: Outcome, expected: Outcome, classifier: bool) -> float:
    """Return the largest relative error of a loss; refuse a fit that came to something else."""
    if got.epochs != expected.epochs:
        raise Disagreement(f"n_iter_: got {got.epochs}, wanted {expected.epochs}")
    error = _error("loss_curve_", got.losses, expected.losses, np.abs(expected.losses))
    _error("outputs", got.outputs, expected.outputs, np.abs(expected.outputs).max())
    # Shares of rows that are right: nothing is rounded, so nothing may differ.
    tolerance = 0.0 if classifier else TOLERANCE
    if not abs(got.score - expected.score) <= tolerance * abs(expected.score):
        raise Disagreement(f"score: got {got.score!r}, wanted {expected.score!r}")
    if not np.array_equal(got.candidates, expected.candidates):
        raise Disagreement(f"candidates: got {got.candidates}, wanted {expected.candidates}")
    return error


def _error(name: str, got: np.ndarray, expected: np.ndarray, size: Any) -> float:
    if got.shape != expected.shape:
        raise Disagreement(f"{name}: got shape {got.shape}, wanted {expected.shape}")
    errors = np.abs(got - expected) / size
    # Written so that NaN is refused too.
    if not (errors <= TOLERANCE).all():
        raise Disagreement(
            f"{name}: got an error of {np.nanmax(errors):.2g}, wanted at most {TOLERANCE:g}"
        )
    return float(errors.max())
