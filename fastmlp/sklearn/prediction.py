"""Predictions on the kernels: a network that follows the parameters of an estimator."""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp import steps
from fastmlp.arrays import writable
from fastmlp.errors import DomainError
from fastmlp.parameters import aligned_zeros, bias_views, weight_views
from fastmlp.planning import Programs, Where
from fastmlp.problems import make_problem
from fastmlp.sklearn.acceleration import (
    OUTPUTS,
    hidden_activations,
    is_scikit_learns,
    prediction_refusal,
    say_once,
    threads_of,
)
from fastmlp_kernels.problem import Problem, parameter_layout

Array = NDArray[Any]


# Below so many rows, scikit-learn's own product is as fast, and needs no copy of the parameters:
# 64-100-10 in float64, 64 rows 24 and 26 us, 128 rows 40 and 39, 1,000 rows 238 and 205
# (2-core AMD EPYC, OpenBLAS on 2 threads, 2026-11-24).
FEW_ROWS = 128


class Network:
    """The programs that predict for an estimator, made when they are first needed.

    It belongs to one estimator and is never saved. Users may edit `coefs_` in place at any time,
    so the parameters are copied anew for each prediction: that costs less than to look whether
    they have changed.
    """

    def __init__(self) -> None:
        # Estimators are asked from several threads, and a program is one thread's at a time.
        self._lock = threading.Lock()
        self._made_for: tuple[Any, ...] | None = None
        self._trains: Problem | None = None

    def outputs(self, estimator: Any, X: Array) -> Array | None:
        """Return the outputs (rows, outputs), or None if they are left to scikit-learn."""
        coefs, intercepts = estimator.coefs_, estimator.intercepts_
        dtype = np.result_type(X, *coefs)
        sizes = (X.shape[1], *(each.shape[-1] for each in coefs))
        inputs = X
        if X.dtype != dtype or not X.flags.carray:
            # Read-only inputs would be another type to compiled code.
            inputs = np.require(X, dtype, ["C", "A"])
            inputs = inputs if inputs.flags.writeable else writable(inputs)
        where = Where(device=estimator.device, threads=threads_of(estimator))
        activation = estimator.activation
        must = not is_scikit_learns(activation)
        if not isinstance(activation, str):
            activation = tuple(activation)
        wanted = (sizes, activation, estimator.out_activation_, dtype)
        with self._lock:
            if self._made_for != wanted:
                self._make(*wanted)
            for view, values in zip(self._views, [*coefs, *intercepts], strict=True):
                view[...] = values
            result = steps.predict(self._parameters, self._programs, inputs, sizes[-1], where)
        # Of parameters that are not finite, or with an overflow: scikit-learn's own numbers and
        # warnings.
        return result if must or np.isfinite(result).all() else None

    def programs_to_train(self, problem: Problem) -> Programs:
        """Return the programs of a network to train: those of the last time if it is the same."""
        if self._trains != problem:
            self._trains, self._training_programs = problem, Programs(problem)
        return self._training_programs

    def _make(self, sizes: tuple[int, ...], activation: Any, output: str, dtype: Any) -> None:
        loss, last = OUTPUTS[output]
        hidden = hidden_activations(activation, len(sizes) - 2)
        problem = make_problem(sizes, [*hidden, last], loss, dtype, "mean")
        layout = parameter_layout(sizes)
        self._made_for = None
        self._parameters = aligned_zeros((problem.parameter_count,), dtype)
        self._views = [
            *weight_views(self._parameters, layout),
            *bias_views(self._parameters, layout),
        ]
        self._programs = Programs(problem)
        self._made_for = (sizes, activation, output, dtype)


def predict(estimator: Any, X: Any) -> Array | None:
    """Return what the kernels predict, or None if they do not.

    The reason is logged, but for a few rows, which are not worth a word.
    """
    if X.shape[0] < FEW_ROWS and is_scikit_learns(estimator.activation):
        return None
    reason = prediction_refusal(estimator, X)
    if reason is not None:
        if not is_scikit_learns(estimator.activation):
            got = f"activation: got {estimator.activation!r}"
            raise DomainError(f"{got}, wanted one that scikit-learn has, as {reason}")
        say_once(reason)
        return None
    network = vars(estimator).get("_network")
    if network is None:
        # Parameters that were put into an estimator which was never fitted.
        network = estimator._network = Network()
    return network.outputs(estimator, X)
