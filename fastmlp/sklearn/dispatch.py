"""Which engine runs a fit. Only this module knows all engines."""

from fastmlp.errors import DomainError, ShapeError
from fastmlp.sklearn.acceleration import beyond_scikit_learn, say_once, training_refusal
from fastmlp.sklearn.consistency import mismatch
from fastmlp.sklearn.engine import Engine, ScikitLearnEngine, SelectiveEngine, Training
from fastmlp.sklearn.kernels import KernelEngine

# The engines that are tried, in this order, before scikit-learn's own arithmetic.
ENGINES: tuple[type[SelectiveEngine], ...] = (KernelEngine,)


def make_engine(training: Training) -> Engine:
    """Return the engine for a fit: the first that takes it, or scikit-learn's own.

    Raises
    ------
    ShapeError
        If only a kernel could run the fit, and data and parameters do not belong to one network.
    DomainError
        If only a kernel could run the fit, and none does for another reason.
    """
    beyond = beyond_scikit_learn(training.estimator)
    # Before anything else, since a kernel does not check the shapes of what it is given.
    unfit = mismatch(training)
    if unfit is not None and beyond is not None:
        raise ShapeError(f"{unfit}; warm_start=False starts a new network")
    reason = unfit or training_refusal(training)
    if reason is None:
        for engine in ENGINES:
            reason = engine.refusal(training)
            if reason is None:
                return engine(training)
    if beyond is not None:
        reason = reason or "no kernel trains it"
        raise DomainError(f"{beyond}, wanted one that scikit-learn has, as {reason}")
    if reason is not None:
        say_once(reason)
    return ScikitLearnEngine(training)
