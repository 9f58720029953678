"""Which engine runs a fit: the one place that knows them."""

from typing import Any

from numpy.typing import NDArray

from fastmlp.errors import DomainError
from fastmlp.sklearn.acceleration import beyond_scikit_learn, say_once, training_refusal
from fastmlp.sklearn.engine import Engine, ScikitLearnEngine, SelectiveEngine
from fastmlp.sklearn.kernels import KernelEngine

Array = NDArray[Any]

# Those that are tried before scikit-learn's own arithmetic, in this order.
ENGINES: tuple[type[SelectiveEngine], ...] = (KernelEngine,)


def make_engine(
    estimator: Any, X: Any, y: Array, sample_weight: Array | None, batch_size: int
) -> Engine:
    """Return the engine for a fit: the first that takes it, or scikit-learn's own.

    Raises
    ------
    DomainError
        If only a kernel could run it, and none does.
    """
    arguments = (estimator, X, y, sample_weight, batch_size)
    reason = training_refusal(estimator, X)
    if reason is None:
        for engine in ENGINES:
            reason = engine.refusal(*arguments)
            if reason is None:
                return engine(*arguments)
    beyond = beyond_scikit_learn(estimator)
    if beyond is not None:
        reason = reason or "no kernel trains it"
        raise DomainError(f"{beyond}, wanted one that scikit-learn has, as {reason}")
    if reason is not None:
        say_once(reason)
    return ScikitLearnEngine(*arguments)
