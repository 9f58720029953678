"""The optimizer of a fit: scikit-learn's objects, or one that stands for fastmlp's."""

from typing import Any

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
    steps : int
        Taken so far.
    slots : ndarray or None
        Its state, dtype[slots, P]; None before the first step.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer.settings["learning_rate"])
        self.optimizer = optimizer
        self.steps = 0
        self.slots: Any = None


def prepare_optimizer(estimator: Any, incremental: bool) -> None:
    """Give the estimator the `_optimizer` that scikit-learn would: `partial_fit` keeps it."""
    kept = getattr(estimator, "_optimizer", None)
    if incremental and kept is not None:
        ours = kept.optimizer if isinstance(kept, KernelOptimizer) else None
        # Another optimizer cannot go on with this one's state.
        if ours == estimator.optimizer:
            return
    parameters = [*estimator.coefs_, *estimator.intercepts_]
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
