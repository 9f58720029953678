"""Back to scikit-learn: its own estimator with a copy of all that was learnt."""

import copy
from typing import Any

from fastmlp.errors import DomainError
from fastmlp.sklearn.acceleration import (
    NAME_OF,
    hidden_activations,
    is_scikit_learns,
    scikit_learn_activation,
)
from fastmlp.sklearn.optimizers import KernelOptimizer


def scikit_learn_twin(estimator: Any, plain: type, additions: tuple[str, ...]) -> Any:
    """Return an object of scikit-learn's class `plain` in the state of `estimator`.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
    plain : type
        The class of scikit-learn that it extends.
    additions : tuple of str
        Parameters that scikit-learn does not have.
    """
    activation = _plain_activation(estimator)
    left_out = {*additions, "_network", "_skl_callbacks"}
    if isinstance(vars(estimator).get("_optimizer"), KernelOptimizer):
        # scikit-learn's solver starts afresh where it cannot use the state of fastmlp's optimizer.
        left_out.add("_optimizer")
    state = {name: value for name, value in vars(estimator).items() if name not in left_out}
    twin: Any = object.__new__(plain)
    twin.__dict__.update(copy.deepcopy(state))
    twin.activation = activation
    return twin


def _plain_activation(estimator: Any) -> str:
    activation = estimator.activation
    if is_scikit_learns(activation):
        return str(activation)
    layers = 1 if isinstance(activation, str) else len(activation)
    found = scikit_learn_activation(hidden_activations(activation, layers))
    if found is None:
        raise DomainError(
            f"to_sklearn: got activation {activation!r}, wanted one for all hidden layers out of "
            f"{', '.join(NAME_OF)}, the only ones that scikit-learn has"
        )
    return found
