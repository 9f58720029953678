"""Who computes an epoch: the seam between scikit-learn's bookkeeping and the arithmetic."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import _safe_indexing, gen_batches

Array = NDArray[Any]


class Engine(Protocol):
    """The arithmetic of training, made once for a call of `fit` or `partial_fit`.

    Parameters
    ----------
    estimator
        Initialised: it has `coefs_`, `intercepts_`, `out_activation_` and `_optimizer`.
    X : array or sparse matrix (rows, inputs)
        In the dtype of the fit.
    y : ndarray (rows, outputs)
        Of bool for classifiers: one column, or one a class.
    sample_weight : ndarray (rows,) or None
    batch_size : int
        At most the number of rows; NumPy's integer where the user gave one.
    """

    def __init__(
        self, estimator: Any, X: Any, y: Array, sample_weight: Array | None, batch_size: int
    ) -> None: ...

    def epoch(self, order: NDArray[np.int64]) -> Any:
        """Train on every mini-batch of the rows in this order; return scikit-learn's `loss_`.

        The estimator's `_optimizer` is taken as it stands, its learning rate too. Afterwards the
        arrays in `coefs_` and `intercepts_` have been updated in place, as scikit-learn does, and
        the state in `_optimizer` is that after the last step.
        """


class SelectiveEngine(Engine, Protocol):
    """An engine that cannot run everything."""

    @staticmethod
    def refusal(
        estimator: Any, X: Any, y: Array, sample_weight: Array | None, batch_size: int
    ) -> str | None:
        """Return why it cannot run this fit, or None."""


class ScikitLearnEngine:
    """scikit-learn's own arithmetic: what runs whenever something is not accelerated."""

    def __init__(
        self, estimator: Any, X: Any, y: Array, sample_weight: Array | None, batch_size: int
    ) -> None:
        self._estimator = estimator
        self._X, self._y, self._sample_weight = X, y, sample_weight
        self._batch_size = batch_size

    def epoch(self, order: NDArray[np.int64]) -> Any:
        """Train on every mini-batch of the rows in this order; return scikit-learn's `loss_`."""
        estimator = self._estimator
        layers = len(estimator.coefs_)
        parameters = [*estimator.coefs_, *estimator.intercepts_]
        # Filled by scikit-learn: what it keeps of a step.
        activations: list[Any] = [None] * (layers + 1)
        deltas, weights, biases = [None] * layers, [None] * layers, [None] * layers
        total: Any = 0.0
        rows = len(order)
        for batch in gen_batches(rows, self._batch_size):
            # Rows in their own order are read where they lie, as scikit-learn does.
            chosen = order[batch] if estimator.shuffle else batch
            X = _safe_indexing(self._X, chosen) if estimator.shuffle else self._X[chosen]
            sample_weight = None if self._sample_weight is None else self._sample_weight[chosen]
            activations[0] = X
            loss, weights, biases = estimator._backprop(
                X, self._y[chosen], sample_weight, activations, deltas, weights, biases
            )
            total += loss * (batch.stop - batch.start)
            estimator._optimizer.update_params(parameters, [*weights, *biases])
        return total / rows
