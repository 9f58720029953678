"""Predictions on the kernels: a network that follows the parameters of an estimator."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp import inference
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
from fastmlp_kernels.problem import parameter_layout

Array = NDArray[Any]


# Below so many rows, scikit-learn's own product is as fast, and needs no copy of the parameters:
# 64-100-10 in float64, 64 rows 24 and 26 us, 128 rows 40 and 39, 1,000 rows 238 and 205
# (2-core AMD EPYC, OpenBLAS on 2 threads, 2026-11-24).
FEW_ROWS = 128
# What a prediction reads. A fit that has failed early leaves only some of it.
FITTED = ("n_layers_", "coefs_", "intercepts_", "out_activation_")
# Of each kind; as many calls at once find one that is ready.
SPARES_KEPT = 8


class Spares:
    """Things that one call at a time uses, kept for the next one.

    A call takes one out, so that no other sees it, and gives it back after a clean end. After an
    exception it may be half set up: it is not given back, and nobody believes it again. There is no
    lock that a forked child could inherit in a locked state: to take the last one off a list, and
    to append one, are each a single operation of the interpreter.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Any, Any]] = []

    def take(self, made_for: Any, make: Callable[[], Any]) -> Any:
        """Return one that was made for this, or a new one; those for anything else are dropped."""
        while self._kept:
            try:
                found, spare = self._kept.pop()
            except IndexError:
                # Another thread has taken the last one.
                break
            if found == made_for:
                return spare
        return make()

    def give(self, made_for: Any, spare: Any) -> None:
        """Keep one for the next call."""
        if len(self._kept) < SPARES_KEPT:
            self._kept.append((made_for, spare))


class Network:
    """What an estimator keeps to compute with, made when it is first needed.

    It belongs to one estimator and is never saved.

    Attributes
    ----------
    predicting : Spares
        `Copy`s of the network.
    training : Spares
        `Programs`, by their problem.
    """

    def __init__(self) -> None:
        self.predicting, self.training = Spares(), Spares()


class Copy:
    """A copy of an estimator's parameters as one flat vector, and the programs that predict by it.

    Users may edit `coefs_` in place at any time, so the parameters are copied anew for each
    prediction: that costs less than to look whether they have changed.
    """

    def __init__(self, sizes: tuple[int, ...], activation: Any, output: str, dtype: Any) -> None:
        loss, last = OUTPUTS[output]
        hidden = hidden_activations(activation, len(sizes) - 2)
        problem = make_problem(sizes, [*hidden, last], loss, dtype, "mean")
        layout = parameter_layout(sizes)
        self._parameters = aligned_zeros((problem.parameter_count,), dtype)
        self._views = [
            *weight_views(self._parameters, layout),
            *bias_views(self._parameters, layout),
        ]
        self._programs = Programs(problem)

    def predict(self, parameters: list[Array], X: Array, where: Where) -> Array:
        """Return the outputs (rows, outputs) by these parameters, coefficients first."""
        for view, values in zip(self._views, parameters, strict=True):
            view[...] = values
        return inference.predict(self._parameters, self._programs, X, len(parameters[-1]), where)


def predict(estimator: Any, X: Any) -> Array | None:
    """Return what the kernels predict, or None if they do not.

    The reason is logged, but for a few rows, which are not worth a word.
    """
    own = is_scikit_learns(estimator.activation)
    if X.shape[0] < FEW_ROWS and own:
        return None
    if own and not all(hasattr(estimator, name) for name in FITTED):
        # scikit-learn's own error, which names what is missing.
        return None
    # Another thread may be fitting this estimator: all that follows is of the same arrays.
    coefs, intercepts = list(estimator.coefs_), list(estimator.intercepts_)
    reason = prediction_refusal(estimator, X, coefs, intercepts)
    if reason is None:
        result = _compute(estimator, X, coefs, intercepts)
        if not own or np.isfinite(result).all():
            return result
        # scikit-learn's own numbers and warnings.
        reason = "a prediction is not finite"
    if not own:
        got = f"activation: got {estimator.activation!r}"
        raise DomainError(f"{got}, wanted one that scikit-learn has, as {reason}")
    say_once(reason)
    return None


def _compute(estimator: Any, X: Array, coefs: list[Array], intercepts: list[Array]) -> Array:
    dtype = np.result_type(X, *coefs)
    if X.dtype != dtype or not X.flags.carray:
        # Read-only inputs would be another type to compiled code.
        X = np.require(X, dtype, ["C", "A"])
        X = X if X.flags.writeable else writable(X)
    network = vars(estimator).get("_network")
    if network is None:
        # Parameters that were put into an estimator which was never fitted.
        network = estimator._network = Network()
    sizes = (X.shape[1], *(each.size for each in intercepts))
    activation = estimator.activation
    if not isinstance(activation, str):
        activation = tuple(activation)
    made_for = (sizes, activation, estimator.out_activation_, dtype)
    copy = network.predicting.take(made_for, lambda: Copy(*made_for))
    where = Where(device=estimator.device, threads=threads_of(estimator))
    result = copy.predict([*coefs, *intercepts], X, where)
    network.predicting.give(made_for, copy)
    return result
