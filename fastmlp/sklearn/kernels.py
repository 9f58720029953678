"""Epochs of scikit-learn's estimators on fastmlp's kernels."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.neural_network._base import LOSS_FUNCTIONS

from fastmlp.data.admission import Data
from fastmlp.data.arrays import writable
from fastmlp.data.batches import batch_rows
from fastmlp.dispatch.planning import Programs, Where
from fastmlp.dispatch.problems import make_problem
from fastmlp.errors import NonFiniteTrainingError
from fastmlp.optimizer_base import Optimizer
from fastmlp.optimizers import SGD, Adam
from fastmlp.sklearn.acceleration import (
    beyond_scikit_learn,
    hidden_activations,
    optimizer_refusal,
    say_once,
    threads_of,
)
from fastmlp.sklearn.engine import ScikitLearnEngine, Training
from fastmlp.sklearn.optimizers import KernelOptimizer, state_names
from fastmlp.state.parameters import aligned_zeros, bias_views, weight_views
from fastmlp.state.training_state import TrainingState
from fastmlp.training.trainer import Trainer
from fastmlp_kernels.algebra import OPTIMIZERS
from fastmlp_kernels.problem import parameter_layout

Array = NDArray[Any]
Numbers = NDArray[np.float64]

# By output activation: the loss as scikit-learn computes it, and fastmlp's activation.
TRAINED = {
    "identity": ("half_squared_error", "identity"),
    "softmax": ("clipped_softmax_cross_entropy", "identity"),
    "logistic": ("clipped_binary_cross_entropy", "sigmoid"),
    "exp": ("half_poisson_deviance", "exp"),
}
# Targets that become those of a kernel without another rounding than float32's.
TARGETS = tuple(
    map(np.dtype, ("?", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"))
)
# scikit-learn sums where kernels average, and squares before it scales. So it overflows at numbers
# that are finite here. From this power of the largest number on, scikit-learn computes the loss.
LARGE = 0.75
# Below this `alpha` the penalty does not show large parameters, so these are looked at.
SMALL_ALPHA = 1e-6


# Fits of a search share their optimizers and their problems, so that what follows from equal ones
# is computed once.
_sgd: Any = lru_cache(maxsize=256)(SGD)
_adam: Any = lru_cache(maxsize=256)(Adam)
_problem: Any = lru_cache(maxsize=256)(make_problem)


def solver_of(optimizer: Any) -> Optimizer:
    """Return fastmlp's optimizer that steps as a given one of scikit-learn's does now."""
    if isinstance(optimizer, KernelOptimizer):
        return optimizer.optimizer
    # As numbers, since scikit-learn takes True for 1.
    if hasattr(optimizer, "velocities"):
        rate, momentum = float(optimizer.learning_rate), float(optimizer.momentum)
        look_ahead = bool(optimizer.nesterov and momentum > 0)
        return _sgd(rate, momentum, look_ahead, rate_in_velocity=True)
    return _adam(
        float(optimizer.learning_rate_init),
        float(optimizer.beta_1),
        float(optimizer.beta_2),
        float(optimizer.epsilon),
        epsilon_hat=True,
    )


@lru_cache(maxsize=64)
def type_of_loss(
    loss: str, outputs: int, X: Any, y: Any, weight: Any, alpha: type, batch_size: type
) -> Any:
    """Return the type of scikit-learn's `loss_`, from the dtypes of its arrays and scalars' types.

    It evaluates scikit-learn's own expressions for one row. Rules of promotion change with NumPy.
    """
    weights = None if weight is None else np.ones(1, weight)
    targets, predictions = np.ones((1, outputs), y), np.ones((1, outputs), X)
    value = LOSS_FUNCTIONS[loss](targets, predictions, weights)
    rows = 1 if weights is None else weights.sum()
    value += (0.5 * alpha(0)) * X.type(0) / rows
    return type((0.0 + value * batch_size(1)) / 1)


class KernelEngine:
    """An `Engine` on the kernels.

    The parameters are trained as one flat vector. After each epoch they are copied to the
    estimator's own arrays, which users may keep, or edit between two calls. The arrays of the
    optimizer's state become views of flat vectors. scikit-learn itself replaces them in each step.
    """

    @staticmethod
    def refusal(training: Training) -> str | None:
        """Return why it cannot run this fit, or None."""
        output, y = training.estimator.out_activation_, training.y
        if y.dtype not in TARGETS:
            return f"the targets are of dtype {y.dtype}"
        if output == "exp" and (y < 0).any():
            return "a target of the Poisson loss is negative"
        if output == "softmax" and not (np.count_nonzero(y, axis=1) == 1).all():
            return "a row has not one class"
        return None

    def __init__(self, training: Training, alone: bool = True) -> None:
        self._estimator = estimator = training.estimator
        self._training, self._own = training, ScikitLearnEngine(training)
        X, output = training.X, estimator.out_activation_
        layers = len(training.parameters) // 2
        sizes = (X.shape[1], *(each.size for each in training.parameters[layers:]))
        loss, last = TRAINED[output]
        hidden = hidden_activations(estimator.activation, len(sizes) - 2)
        # scikit-learn's gradients are sums over outputs and means over rows, for every loss.
        self._problem = _problem(sizes, (*hidden, last), loss, X.dtype, "batch_mean")
        self._rows = batch_rows(len(X), int(training.batch_size))
        self._scale = 1.0 / sizes[-1] if output == "identity" else 1.0
        self._shares = self._rows / self._rows.sum()
        weights = training.sample_weight
        self._weights = None if weights is None else np.asarray(weights, np.float64)
        self._loss_type = _type_of_losses(training)
        self._alpha = float(estimator.alpha)
        self._large = float(np.finfo(X.dtype).max) ** LARGE
        if self._weights is not None:
            # scikit-learn multiplies by the weights before it divides by their sum.
            self._large /= max(1.0, float(np.abs(self._weights).max()))
        self._solvers: tuple[Optimizer, ...] = ()
        self._rate: float | None = None
        self._rule = solver_of(estimator._optimizer).rule
        self._layout = parameter_layout(sizes)
        self._state = TrainingState(aligned_zeros((self._problem.parameter_count,), X.dtype), 0)
        self._ours = self._views(self._state.parameters)
        self._take_parameters()
        if alone:
            self._take_trainer()
        self._adopt_state()
        self._behind = False
        if alone:
            self._trainer.prepare()

    def _take_trainer(self) -> None:
        spare = self._estimator._network.training
        self._programs = spare.take(self._problem, lambda: Programs(self._problem))
        self._trainer = Trainer(
            self._state,
            self._programs,
            self.data(),
            int(self._training.batch_size),
            self.solvers()[0].update,
            self.where,
            weights=self._weights,
            l2=self._alpha,
        )

    @property
    def where(self) -> Where:
        """Where the estimator is trained."""
        estimator = self._estimator
        return Where(device=estimator.device, threads=threads_of(estimator))

    @property
    def kind(self) -> tuple[Any, ...]:
        """What fits have in common that one program can train side by side."""
        update, size = self.solvers()[0].update, int(self._training.batch_size)
        return self._problem, update, size, self._alpha > 0, self.where

    @property
    def alpha(self) -> float:
        """The factor of the penalty."""
        return self._alpha

    @property
    def state(self) -> TrainingState:
        """What the training changes."""
        return self._state

    def data(self) -> Data:
        """Return the rows as kernels want them."""
        training = self._training
        return training_data(training.X, training.y, training.estimator.out_activation_)

    def finish(self) -> None:
        """Leave the programs to the next fit. After an exception nobody relies on them."""
        self._trainer.close()
        self._estimator._network.training.give(self._problem, self._programs)

    def _views(self, flat: Array) -> list[Array]:
        return [*weight_views(flat, self._layout), *bias_views(flat, self._layout)]

    def _take_parameters(self) -> None:
        for ours, theirs in zip(self._ours, self._training.parameters, strict=True):
            ours[...] = theirs

    def _give_parameters(self) -> None:
        for ours, theirs in zip(self._ours, self._training.parameters, strict=True):
            theirs[...] = ours

    def _adopt_state(self) -> None:
        """Make the optimizer's state views of ours. scikit-learn's own steps replace them."""
        optimizer, state = self._estimator._optimizer, self._state
        state.prepare(self._rule, OPTIMIZERS[self._rule].slots)
        if isinstance(optimizer, KernelOptimizer):
            if optimizer.slots is not None:
                state.slots[...] = optimizer.slots
            optimizer.slots, state.steps = state.slots, optimizer.steps
            optimizer.sizes = self._problem.sizes
            return
        state.steps = getattr(optimizer, "t", 0)
        for name, slot in zip(state_names(optimizer), state.slots, strict=False):
            views = self._views(slot)
            for view, values in zip(views, getattr(optimizer, name), strict=True):
                view[...] = values
            setattr(optimizer, name, views)

    def report(self) -> None:
        """Give the estimator its parameters, and tell the optimizer how many steps it has taken.

        A second call changes nothing, so it repairs one that was interrupted.
        """
        self._give_parameters()
        optimizer, steps = self._estimator._optimizer, self._state.steps
        if isinstance(optimizer, KernelOptimizer):
            optimizer.took(steps)
        elif hasattr(optimizer, "t"):
            optimizer.t = steps
            root = np.sqrt(1 - optimizer.beta_2**steps)
            optimizer.learning_rate = (
                optimizer.learning_rate_init * root / (1 - optimizer.beta_1**steps)
            )

    def epoch(self, order: NDArray[np.int64]) -> Any:
        """Train on every mini-batch of the rows in this order; return scikit-learn's `loss_`.

        scikit-learn itself runs an epoch that meets a number that is not finite, or nearly so.
        Users then get its losses, parameters and warnings.
        """
        reason = self._refusal_of_epoch(order)
        if reason is None:
            if self._behind:
                self._catch_up()
            before = self._state.steps
            try:
                epoch = self._trainer.run(order[None], self.solvers())
                loss = self.loss(epoch.losses[0], epoch.penalties[0])
                reason = self.distrust(epoch.failed, loss, self._state.parameters)
                if reason is None:
                    self.report()
                    return self.typed(loss)
                self._trainer.undo()
            except BaseException:
                # Usually an interrupt, which may come between any two lines.
                self._settle(before, undo=reason is not None)
                raise
        return self._epoch_of_scikit_learn(order, reason)

    def _settle(self, before: int, undo: bool) -> None:
        """Bring the estimator to the state of an epoch that was cut short.

        Its finished batches count. `before` is the number of steps before the epoch.
        """
        if self._state.steps > before and not undo:
            self.report()
            return
        own = self._training.parameters
        same = all(np.array_equal(*both) for both in zip(self._ours, own, strict=True))
        # Batches that were trained and not counted. The optimizer's state is that after them.
        if undo or not same:
            self._trainer.undo()

    def typed(self, loss: float) -> Any:
        """Return a loss as scikit-learn's `loss_`."""
        return self._loss_type(loss)

    def _refusal_of_epoch(self, order: NDArray[np.int64]) -> str | None:
        """Return why scikit-learn must run the next epoch, or None."""
        refusal = optimizer_refusal(self._estimator._optimizer, self._training.X)
        if refusal is not None or self._weights is None:
            return refusal
        # scikit-learn divides by a batch's weight, in the weights' dtype. It reports a weight of 0.
        starts = np.cumsum(self._rows) - self._rows
        with np.errstate(over="ignore"):
            totals = np.add.reduceat(self._weights[order], starts)
            theirs = totals.astype(self._training.sample_weight.dtype)  # type: ignore[union-attr]
        if (theirs == 0).any():
            return "the weights of a mini-batch sum to 0"
        # Kernels get the inverse of the sum. One that is not a normal number counts as 0.
        ordinary = np.isfinite(theirs).all() and (totals >= np.finfo(np.float64).tiny).all()
        return None if ordinary else "the sum of a mini-batch's weights is negative or out of range"

    def distrust(self, failed: bool, loss: float, flat: Array) -> str | None:
        """Return why an epoch that has been trained is done again by scikit-learn, or None.

        `failed` says whether it met a number that is not finite; `flat` are the parameters now.
        """
        if failed:
            return "an epoch met a number that is not finite"
        if beyond_scikit_learn(self._estimator) is not None:
            return None
        largest = abs(loss)
        if self._alpha >= SMALL_ALPHA:
            # The penalty is part of the loss.
            largest /= min(1.0, self._alpha)
        else:
            largest = max(largest, float(max(flat.max(), -flat.min())) ** 2 * flat.size)
        return None if largest < self._large else "an epoch met numbers that nearly overflow"

    def solvers(self) -> tuple[Optimizer, ...]:
        """Return fastmlp's optimizer; one that has not changed is not made and checked again."""
        theirs = self._estimator._optimizer
        # Adam's rate is that of its last step, and Adam computes it itself.
        rate = theirs.learning_rate if hasattr(theirs, "velocities") else None
        if not self._solvers or rate != self._rate:
            self._solvers, self._rate = (solver_of(theirs),), rate
        return self._solvers

    def _epoch_of_scikit_learn(self, order: NDArray[np.int64], reason: str) -> Any:
        beyond = beyond_scikit_learn(self._estimator)
        if beyond is not None:
            raise NonFiniteTrainingError.at(
                f"fit: got epoch {self._estimator.n_iter_ + 1} in which {reason}, wanted finite "
                "numbers. The parameters are those from before it; try a smaller learning rate and "
                f"inputs of the order of 1 ({beyond}, so that scikit-learn cannot go on)",
                self._estimator.n_iter_ + 1,
                None,
                None,
            )
        say_once(reason)
        self._behind = True
        return self._own.epoch(order)

    def _catch_up(self) -> None:
        """Take over the results of scikit-learn, which has trained the last epoch."""
        self._take_parameters()
        self._adopt_state()
        self._trainer.upload()
        self._behind = False

    def loss(self, losses: Numbers, penalties: Numbers) -> float:
        """Return scikit-learn's loss of an epoch from those of its mini-batches."""
        # scikit-learn weighs mini-batches by their rows, also where rows have weights.
        return float(np.dot(losses * self._scale + penalties, self._shares))


def _type_of_losses(training: Training) -> Any:
    estimator, weight = training.estimator, training.sample_weight
    binary = estimator.loss == "log_loss" and estimator.out_activation_ == "logistic"
    # mypy does not take a class for hashable.
    scalars: list[Any] = [type(estimator.alpha), type(training.batch_size)]
    return type_of_loss(
        "binary_log_loss" if binary else estimator.loss,
        training.y.shape[1],
        training.X.dtype,
        training.y.dtype,
        None if weight is None else weight.dtype,
        *scalars,
    )


def training_data(X: Array, y: Array, output: str) -> Data:
    """Return scikit-learn's checked arrays as the kernels want them."""
    inputs = np.require(X, None, ["C", "A"])
    inputs = inputs if inputs.flags.writeable else writable(inputs)
    if output == "softmax":
        return Data(inputs, y.argmax(axis=1).astype(X.dtype)[:, None], True)
    # A target beyond float32 makes an epoch that is not finite. scikit-learn runs it.
    with np.errstate(over="ignore"):
        return Data(inputs, np.require(y, X.dtype, ["C", "A", "W"]), False)
