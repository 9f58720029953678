"""What computes an epoch: the interface between scikit-learn's bookkeeping and arithmetic."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import _safe_indexing, gen_batches

Array = NDArray[Any]


@dataclass(frozen=True)
class Training:
    """What a call of `fit` or `partial_fit` gives to the engine that runs it.

    Parameters
    ----------
    estimator
        Initialised: it has `coefs_`, `intercepts_`, `out_activation_` and `_optimizer`.
    parameters : list of ndarray
        `coefs_` and `intercepts_`, as the call has found them. scikit-learn does not check whether
        the shapes of all these fit together.
    X : array or sparse matrix (rows, inputs)
        Its dtype is that of the fit.
    y : ndarray (rows, outputs)
        bool for classifiers, with one column, or with one for each class.
    sample_weight : ndarray (rows,) or None
    batch_size : int
        At most the number of rows; NumPy's integer where the user gave one.
    memory : tuple of four lists
        The lists that scikit-learn has made for its own steps: activations, their derivatives, and
        the gradients of `coefs_` and `intercepts_`. Each has an entry for each layer.
    """

    estimator: Any
    parameters: Any
    X: Any
    y: Array
    sample_weight: Array | None
    batch_size: int
    memory: tuple[list[Any], list[Any], list[Any], list[Any]]


class Engine(Protocol):
    """The arithmetic of training, made once for a call of `fit` or `partial_fit`."""

    def __init__(self, training: Training) -> None: ...

    def epoch(self, order: NDArray[np.int64]) -> Any:
        """Train on every mini-batch of the rows in this order; return scikit-learn's `loss_`.

        The estimator's `_optimizer` is used as it is, with its learning rate. The arrays in
        `coefs_` and `intercepts_` are updated in place, as by scikit-learn. Afterwards `_optimizer`
        has the state after the last step.
        """

    def finish(self) -> None:
        """Note that all epochs have ended without an exception."""


class SelectiveEngine(Engine, Protocol):
    """An engine that cannot run everything."""

    @staticmethod
    def refusal(training: Training) -> str | None:
        """Return why it cannot run this fit, or None."""


class ScikitLearnEngine:
    """scikit-learn's own arithmetic. It runs whenever something is not accelerated."""

    def __init__(self, training: Training) -> None:
        self._training = training

    def epoch(self, order: NDArray[np.int64]) -> Any:
        """Train on every mini-batch of the rows in this order; return scikit-learn's `loss_`."""
        training, estimator = self._training, self._training.estimator
        activations, deltas, weights, biases = training.memory
        total: Any = 0.0
        rows = len(order)
        for batch in gen_batches(rows, training.batch_size):
            # Rows in their own order are read in place, as scikit-learn does.
            chosen = order[batch] if estimator.shuffle else batch
            X = _safe_indexing(training.X, chosen) if estimator.shuffle else training.X[chosen]
            weight = training.sample_weight
            activations[0] = X
            loss, weights, biases = estimator._backprop(
                X,
                training.y[chosen],
                None if weight is None else weight[chosen],
                activations,
                deltas,
                weights,
                biases,
            )
            total += loss * (batch.stop - batch.start)
            estimator._optimizer.update_params(training.parameters, weights + biases)
        return total / rows

    def finish(self) -> None:
        """Do nothing, since nothing is kept for another call."""


class Fit:
    """A fit between two of its epochs.

    Parameters
    ----------
    training : Training
    epochs : generator
        It yields the order of each epoch and takes scikit-learn's `loss_`.

    Attributes
    ----------
    order : ndarray
        int64[rows], of the next epoch.
    done : bool
        Whether there is none.
    """

    def __init__(self, training: Training, epochs: Generator[Any, Any, None]) -> None:
        self.training, self._epochs = training, epochs
        self.order: Any = next(epochs, None)
        self.done = self.order is None

    def take(self, loss: Any) -> None:
        """Take the loss of an epoch, which has been trained in `order`."""
        try:
            self.order = self._epochs.send(loss)
        except StopIteration:
            self.done = True

    def run(self, engine: Engine) -> None:
        """Train all epochs that are left."""
        while not self.done:
            self.take(engine.epoch(self.order))
        engine.finish()
