"""Epochs of scikit-learn's estimators on fastmlp's kernels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.arrays import Data, writable
from fastmlp.batches import batch_rows
from fastmlp.epochs import Epoch, Trainer
from fastmlp.optimizers import SGD, Adam, Optimizer
from fastmlp.parameters import TrainingState, aligned_zeros, bias_views, weight_views
from fastmlp.planning import Where
from fastmlp.problems import make_problem
from fastmlp.sklearn.acceleration import hidden_activations, threads_of
from fastmlp.sklearn.engine import ScikitLearnEngine
from fastmlp.sklearn.optimizers import KernelOptimizer
from fastmlp_kernels.algebra import OPTIMIZERS
from fastmlp_kernels.problem import parameter_layout

Array = NDArray[Any]

# Output activation to the loss as scikit-learn computes it, and fastmlp's activation.
TRAINED = {
    "identity": ("half_squared_error", "identity"),
    "softmax": ("clipped_softmax_cross_entropy", "identity"),
    "logistic": ("clipped_binary_cross_entropy", "sigmoid"),
    "exp": ("half_poisson_deviance", "exp"),
}


def solver_of(optimizer: Any) -> Optimizer:
    """Return fastmlp's optimizer that steps as one of scikit-learn's does, as it now stands."""
    if isinstance(optimizer, KernelOptimizer):
        return optimizer.optimizer
    if hasattr(optimizer, "velocities"):
        rate, momentum = optimizer.learning_rate, optimizer.momentum
        look_ahead = bool(optimizer.nesterov and momentum > 0)
        return SGD(rate, momentum, look_ahead, rate_in_velocity=True)
    return Adam(
        optimizer.learning_rate_init,
        optimizer.beta_1,
        optimizer.beta_2,
        optimizer.epsilon,
        epsilon_hat=True,
    )


class KernelEngine:
    """An `Engine` on the kernels.

    The parameters are trained as one flat vector, and copied to the estimator's own arrays after
    each epoch: users may hold on to those, or edit them between two calls. The optimizer's state
    becomes views of flat vectors, as scikit-learn itself replaces it at every step.
    """

    @staticmethod
    def refusal(
        estimator: Any, X: Any, y: Array, sample_weight: Array | None, batch_size: int
    ) -> str | None:
        """Return why it cannot run this fit, or None."""
        if estimator.out_activation_ == "exp" and (y < 0).any():
            return "a target of the Poisson loss is negative"
        return None

    def __init__(
        self, estimator: Any, X: Any, y: Array, sample_weight: Array | None, batch_size: int
    ) -> None:
        self._estimator = estimator
        self._own = ScikitLearnEngine(estimator, X, y, sample_weight, batch_size)
        sizes = (X.shape[1], *(each.shape[0] for each in estimator.intercepts_))
        loss, last = TRAINED[estimator.out_activation_]
        hidden = hidden_activations(estimator.activation, len(sizes) - 2)
        # Gradients are sums over outputs and means over rows, whatever scikit-learn's losses are.
        problem = make_problem(sizes, [*hidden, last], loss, X.dtype, "batch_mean")
        self._rows = batch_rows(len(X), int(batch_size))
        mean_of_outputs = estimator.out_activation_ == "identity"
        self._scale = 1.0 / sizes[-1] if mean_of_outputs else 1.0
        self._shares = self._rows / self._rows.sum()
        self._weights = None if sample_weight is None else np.asarray(sample_weight, np.float64)
        self._solver: Optimizer | None = None
        self._rate: float | None = None
        self._layout = parameter_layout(sizes)
        self._state = TrainingState(aligned_zeros((problem.parameter_count,), X.dtype), 0)
        self._ours = self._views(self._state.parameters)
        self._take_parameters()
        self._trainer = Trainer(
            self._state,
            estimator._network.programs_to_train(problem),
            training_data(X, y, estimator.out_activation_),
            int(batch_size),
            solver_of(estimator._optimizer).rule,
            Where(device=estimator.device, threads=threads_of(estimator)),
            weights=self._weights,
            l2=float(estimator.alpha),
        )
        self._adopt_state()
        self._trainer.prepare()

    def _views(self, flat: Array) -> list[Array]:
        return [*weight_views(flat, self._layout), *bias_views(flat, self._layout)]

    def _pairs(self) -> Any:
        """Return our view and scikit-learn's array of each parameter."""
        own = [*self._estimator.coefs_, *self._estimator.intercepts_]
        return zip(self._ours, own, strict=True)

    def _take_parameters(self) -> None:
        for ours, theirs in self._pairs():
            ours[...] = theirs

    def _give_parameters(self) -> None:
        for ours, theirs in self._pairs():
            theirs[...] = ours

    def _adopt_state(self) -> None:
        """Make the optimizer's state views of ours; scikit-learn replaces it in its own steps."""
        optimizer, state = self._estimator._optimizer, self._state
        rule = solver_of(optimizer).rule
        state.prepare(rule, OPTIMIZERS[rule].slots)
        if isinstance(optimizer, KernelOptimizer):
            if optimizer.slots is not None:
                state.slots[...] = optimizer.slots
            optimizer.slots, state.steps = state.slots, optimizer.steps
            return
        state.steps = getattr(optimizer, "t", 0)
        names = ("velocities",) if hasattr(optimizer, "velocities") else ("ms", "vs")
        for name, slot in zip(names, state.slots, strict=False):
            views = self._views(slot)
            for view, values in zip(views, getattr(optimizer, name), strict=True):
                view[...] = values
            setattr(optimizer, name, views)

    def _report(self) -> None:
        """Give the estimator its parameters, and tell the optimizer how many steps it has taken."""
        self._give_parameters()
        optimizer, steps = self._estimator._optimizer, self._state.steps
        if isinstance(optimizer, KernelOptimizer):
            optimizer.steps = steps
            optimizer.learning_rate = float(np.max(optimizer.optimizer.rates(steps - 1, 1)))
        elif hasattr(optimizer, "t"):
            optimizer.t = steps
            root = np.sqrt(1 - optimizer.beta_2**steps)
            optimizer.learning_rate = (
                optimizer.learning_rate_init * root / (1 - optimizer.beta_1**steps)
            )

    def epoch(self, order: NDArray[np.int64]) -> Any:
        """Train on every mini-batch of the rows in this order; return scikit-learn's `loss_`.

        An epoch that meets a number that is not finite is scikit-learn's own: its losses,
        parameters and warnings are then what its users get.
        """
        if self._has_batch_without_weight(order):
            # scikit-learn divides by zero there, and says so.
            return self._epoch_of_scikit_learn(order)
        before = self._state.steps
        try:
            epoch = self._trainer.run(order, self._solver_now())
        except BaseException:
            # An interrupt: the batches that were finished count.
            if self._state.steps > before:
                self._report()
            raise
        if epoch.bad_batch or not epoch.finite:
            self._trainer.undo()
            return self._epoch_of_scikit_learn(order)
        self._report()
        return self._loss(epoch)

    def _solver_now(self) -> Optimizer:
        """Return fastmlp's optimizer; one that has not changed is not made and checked again."""
        theirs = self._estimator._optimizer
        # Adam's is that of its last step, and its own concern.
        rate = theirs.learning_rate if hasattr(theirs, "velocities") else None
        if self._solver is None or rate != self._rate:
            self._solver, self._rate = solver_of(theirs), rate
        return self._solver

    def _has_batch_without_weight(self, order: NDArray[np.int64]) -> bool:
        if self._weights is None:
            return False
        starts = np.cumsum(self._rows) - self._rows
        return bool((np.add.reduceat(self._weights[order], starts) == 0).any())

    def _epoch_of_scikit_learn(self, order: NDArray[np.int64]) -> Any:
        loss = self._own.epoch(order)
        self._take_parameters()
        self._adopt_state()
        self._trainer.upload()
        return loss

    def _loss(self, epoch: Epoch) -> Any:
        # scikit-learn weighs mini-batches by their rows, also where rows have weights.
        return np.dot(epoch.losses * self._scale + epoch.penalties, self._shares)


def training_data(X: Array, y: Array, output: str) -> Data:
    """Return scikit-learn's checked arrays as the kernels want them."""
    inputs = np.require(X, None, ["C", "A"])
    inputs = inputs if inputs.flags.writeable else writable(inputs)
    if output == "softmax":
        return Data(inputs, y.argmax(axis=1).astype(X.dtype)[:, None], True)
    return Data(inputs, np.require(y, X.dtype, ["C", "A", "W"]), False)
