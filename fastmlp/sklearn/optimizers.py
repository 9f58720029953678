"""The optimizer of a fit: scikit-learn's object, or one that stands for fastmlp's."""

from typing import Any

import numpy as np
from sklearn.neural_network._stochastic_optimizers import (
    AdamOptimizer,
    BaseOptimizer,
    SGDOptimizer,
)

from fastmlp.optimizers import Optimizer


class KernelOptimizer(BaseOptimizer):
    """One of fastmlp's optimizers in the place of scikit-learn's; only kernels can run it.

    Attributes
    ----------
    optimizer : fastmlp.optimizers.Optimizer
    learning_rate : float
        The rate of the last step, or of the first one before it is taken.
    steps : int
        Steps taken so far.
    sizes : tuple of int or None
        The units of each layer of the network that it has trained; None before the first step.
    slots : ndarray or None
        The optimizer's state, dtype[slots, P]; None before the first step.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        # A number, since scikit-learn's constructor does not know schedules.
        super().__init__(rate_of_step(optimizer, 0))
        self.optimizer = optimizer
        self.steps = 0
        self.sizes: tuple[int, ...] | None = None
        self.slots: Any = None

    def took(self, steps: int) -> None:
        """Note how many steps have been taken in all."""
        self.steps = steps
        self.learning_rate = rate_of_step(self.optimizer, steps - 1)


def rate_of_step(optimizer: Optimizer, step: int) -> float:
    """Return the learning rate of a step, counted from 0."""
    return float(np.max(optimizer.rates(step, 1)))


def state_names(optimizer: Any) -> tuple[str, ...]:
    """Return the attributes of scikit-learn's optimizer that hold an array for each parameter."""
    return ("velocities",) if hasattr(optimizer, "velocities") else ("ms", "vs")


def prepare_optimizer(estimator: Any, parameters: Any, incremental: bool) -> None:
    """Give the estimator an `_optimizer` when scikit-learn would; `partial_fit` keeps the old."""
    kept = getattr(estimator, "_optimizer", None)
    if incremental and kept is not None:
        ours = kept.optimizer if isinstance(kept, KernelOptimizer) else None
        # An optimizer cannot go on with the state of another.
        if ours == estimator.optimizer:
            return
    if estimator.optimizer is not None:
        estimator._optimizer = KernelOptimizer(estimator.optimizer)
    elif estimator.solver == "sgd":
        estimator._optimizer = SGDOptimizer(
            parameters,
            estimator.learning_rate_init,
            estimator.learning_rate,
            estimator.momentum,
            estimator.nesterovs_momentum,
            estimator.power_t,
        )
    else:
        estimator._optimizer = AdamOptimizer(
            parameters,
            estimator.learning_rate_init,
            estimator.beta_1,
            estimator.beta_2,
            estimator.epsilon,
        )
