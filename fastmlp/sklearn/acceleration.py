"""Which estimators the kernels can run, and a line in the log for those that they cannot."""

import logging
from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.neural_network._multilayer_perceptron import BaseMultilayerPerceptron
from sklearn.utils._openmp_helpers import (
    _openmp_effective_n_threads,
    _openmp_parallelism_enabled,
)

from fastmlp.device.machine import detect
from fastmlp.errors import DomainError, look_up
from fastmlp.sklearn.consistency import are_arrays, network_sizes
from fastmlp.sklearn.engine import Training
from fastmlp.sklearn.optimizers import KernelOptimizer, state_names
from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.problem import DTYPES

logger = logging.getLogger("fastmlp")

# scikit-learn's hidden activations, by fastmlp's names.
NAME_OF = {"identity": "identity", "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}
OUTPUTS = {
    "identity": ("half_squared_error", "identity"),
    "softmax": ("softmax_cross_entropy", "identity"),
    "logistic": ("binary_cross_entropy", "sigmoid"),
    "exp": ("poisson", "exp"),
}
# The loss that belongs to each output activation.
LOSS_BEFORE = {
    "identity": "squared_error",
    "softmax": "log_loss",
    "logistic": "log_loss",
    "exp": "poisson",
}
COMPUTED = tuple(map(np.dtype, DTYPES))
# The parts of scikit-learn's step. A subclass that overrides one wants it to be called.
STEP_HOOKS = ("_backprop", "_forward_pass", "_compute_loss_grad")

_said: set[str] = set()


def say_once(reason: str) -> None:
    """Log once a process why something runs on scikit-learn's own code."""
    if reason not in _said:
        _said.add(reason)
        logger.info("scikit-learn's own code runs: %s", reason)


def hidden_activations(activation: Any, layers: int) -> tuple[str, ...]:
    """Return fastmlp's name of the activation of each hidden layer."""
    if isinstance(activation, str):
        return (_name_of("activation", activation),) * layers
    given = list(activation)
    if len(given) != layers:
        raise DomainError(
            f"activation: got {len(given)} names, wanted {layers}, one for each hidden layer"
        )
    return tuple(_name_of(f"activation[{i}]", each) for i, each in enumerate(given))


def _name_of(argument: str, name: Any) -> str:
    known = NAME_OF.get(name, name) if isinstance(name, str) else name
    return str(look_up(argument, ACTIVATIONS, known).name)


def scikit_learn_activation(names: tuple[str, ...]) -> str | None:
    """Return scikit-learn's name for the activation of all hidden layers, or None."""
    for own, ours in NAME_OF.items():
        if all(name == ours for name in names):
            return own
    return None


def beyond_scikit_learn(estimator: Any) -> str | None:
    """Return the argument that scikit-learn's own code cannot run, or None."""
    if estimator.optimizer is not None:
        return f"optimizer: got {estimator.optimizer!r}"
    if not is_scikit_learns(estimator.activation):
        return f"activation: got {estimator.activation!r}"
    return None


def is_scikit_learns(activation: Any) -> bool:
    """Return whether scikit-learn's own code takes this value of the argument."""
    return isinstance(activation, str) and activation in NAME_OF


def training_refusal(training: Training) -> str | None:
    """Return why no kernel of fastmlp trains this, or None."""
    estimator, X = training.estimator, training.X
    if issparse(X):
        return "the input is sparse"
    for name in STEP_HOOKS:
        own = getattr(BaseMultilayerPerceptron, name)
        if getattr(type(estimator), name) is not own or name in vars(estimator):
            return f"{type(estimator).__name__} overrides {name}"
    output = estimator.out_activation_
    if output not in OUTPUTS:
        return f"the output activation is {output!r}"
    # `set_params` between two fits changes the loss, and not the output activation.
    if estimator.loss != LOSS_BEFORE[output]:
        return f"the loss is {estimator.loss!r} behind the output activation {output!r}"
    if any(each.dtype != X.dtype for each in training.parameters):
        return f"the parameters are not of the dtype of X, {X.dtype}"
    return optimizer_refusal(estimator._optimizer, X)


def optimizer_refusal(optimizer: Any, X: Any) -> str | None:
    """Return what no kernel can run of an optimizer, or None.

    The object counts, and not the estimator's parameters: `partial_fit` keeps the object when the
    parameters change.
    """
    if isinstance(optimizer, KernelOptimizer):
        return None
    if getattr(optimizer, "momentum", 0) == 1:
        return "the momentum is 1"
    # An adaptive rate that is scaled down becomes 0 in the end.
    if not 0 < optimizer.learning_rate < np.inf:
        return "the learning rate is 0 or not a finite number"
    states = [each for name in state_names(optimizer) for each in getattr(optimizer, name)]
    # With float64 weights of rows, scikit-learn's own steps make some of the state float64.
    if any(each.dtype != X.dtype for each in states):
        return f"the optimizer's state is not of the dtype of X, {X.dtype}"
    return None


def prediction_refusal(
    estimator: Any, X: Any, coefs: list[Any], intercepts: list[Any]
) -> str | None:
    """Return why no kernel of fastmlp predicts for `X`, or None."""
    if issparse(X):
        return "the input is sparse"
    if estimator.out_activation_ not in OUTPUTS:
        return f"the output activation is {estimator.out_activation_!r}"
    if not are_arrays(coefs) or not are_arrays(intercepts):
        return "coefs_ and intercepts_ are not all arrays"
    # Not by name: a dtype takes 2 us to give its name, a fifth of a prediction of one row.
    if np.result_type(X, *coefs) not in COMPUTED:
        return f"a prediction is computed in {np.result_type(X, *coefs)}"
    if any(each.dtype not in COMPUTED for each in intercepts):
        return "an array of intercepts_ is of no dtype that is computed in"
    sizes = network_sizes(coefs, intercepts)
    if sizes is None or sizes[0] != X.shape[1] or len(coefs) != estimator.n_layers_ - 1:
        return "the shapes of coefs_ and intercepts_ do not fit together"
    return None


def threads_of(estimator: Any) -> int | None:
    """Return the most threads that an estimator may use; None for all that the process may use.

    An estimator without a number of its own keeps to the limits of scikit-learn's own loops. Those
    are ``OMP_NUM_THREADS``, which joblib sets for its workers, and the limits of threadpoolctl.
    """
    if estimator.threads is not None:
        return int(estimator.threads)
    if not _openmp_parallelism_enabled():
        return None
    allowed = int(_openmp_effective_n_threads(None, only_physical_cores=False))
    return allowed if allowed < detect().cores else None
