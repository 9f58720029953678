"""Predictions on the kernels: a network that follows the parameters of an estimator."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.data.inputs import Inputs, straight
from fastmlp.dispatch.planning import Programs, Where
from fastmlp.dispatch.problems import make_problem
from fastmlp.errors import DomainError
from fastmlp.sklearn.acceleration import (
    OUTPUTS,
    hidden_activations,
    is_scikit_learns,
    prediction_refusal,
    say_once,
    threads_of,
)
from fastmlp.state.parameters import aligned_zeros, bias_views, weight_views
from fastmlp.training import inference
from fastmlp_kernels.problem import parameter_layout

Array = NDArray[Any]


# Below so many rows, scikit-learn's own product is as fast, and needs no copy of the parameters.
# scikit-learn and fastmlp take 24 and 26 us for 64 rows, 40 and 39 for 128, 238 and 205 for 1,000
# (64-100-10, float64, 2-core AMD EPYC, OpenBLAS on 2 threads, 2026-11-24).
FEW_ROWS = 128
# The attributes that a prediction reads. A fit that failed early leaves only some of them.
FITTED = ("n_layers_", "coefs_", "intercepts_", "out_activation_")
# Spares of each kind that are kept. As many calls at the same time find one ready.
SPARES_KEPT = 8


class Spares:
    """Things that one call at a time uses, kept for the next one.

    A call takes one out, so that no other call sees it, and gives it back after a clean end. After
    an exception it may be half set up, so it is not given back. There is no lock, which a forked
    child could inherit in a locked state. Taking the last one off a list is a single operation of
    the interpreter, and so is appending one.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Any, Any]] = []

    def take(self, made_for: Any, make: Callable[[], Any]) -> Any:
        """Return a spare made for this, or a new one. Those for anything else are dropped."""
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
    """What an estimator keeps for its computations, made when it is first needed.

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

    Users may edit `coefs_` in place at any time, so each prediction copies the parameters anew. A
    check whether they have changed would cost more.
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

    def predict(self, parameters: list[Array], X: Any, where: Where) -> Array | None:
        """Return the outputs (rows, outputs) for these parameters, coefficients first.

        None says that X is not finite. It is an array that kernels read as it is, or `Inputs`.
        """
        for view, values in zip(self._views, parameters, strict=True):
            view[...] = values
        return inference.predict(self._parameters, self._programs, X, len(parameters[-1]), where)


def predict(estimator: Any, X: Any) -> Array | None:
    """Return what the kernels predict, or None if they do not.

    The reason is logged, unless there are only a few rows.
    """
    own = is_scikit_learns(estimator.activation)
    if X.shape[0] < FEW_ROWS and own:
        return None
    if own and not all(hasattr(estimator, name) for name in FITTED):
        # scikit-learn's own error, which names what is missing.
        return None
    # Another thread may be fitting this estimator. Everything below uses the same arrays.
    coefs, intercepts = list(estimator.coefs_), list(estimator.intercepts_)
    reason = prediction_refusal(estimator, X, coefs, intercepts)
    if reason is None:
        result = _compute(estimator, X, coefs, intercepts)
        if result is not None and (not own or np.isfinite(result).all()):
            return result
        # scikit-learn's own numbers and warnings.
        reason = "a prediction is not finite"
    if not own:
        got = f"activation: got {estimator.activation!r}"
        raise DomainError(f"{got}, wanted one that scikit-learn has, as {reason}")
    say_once(reason)
    return None


def _compute(estimator: Any, X: Array, coefs: list[Array], intercepts: list[Array]) -> Array | None:
    dtype = np.result_type(X, *coefs)
    rows = X if straight(X, X.shape[1], dtype) else Inputs(X, X.shape[1], dtype)
    network = vars(estimator).get("_network")
    if network is None:
        # The parameters were put into an estimator that was never fitted.
        network = estimator._network = Network()
    sizes = (X.shape[1], *(each.size for each in intercepts))
    activation = estimator.activation
    if not isinstance(activation, str):
        activation = tuple(activation)
    made_for = (sizes, activation, estimator.out_activation_, dtype)
    copy = network.predicting.take(made_for, lambda: Copy(*made_for))
    where = Where(device=estimator.device, threads=threads_of(estimator))
    result = copy.predict([*coefs, *intercepts], rows, where)
    network.predicting.give(made_for, copy)
    return result
