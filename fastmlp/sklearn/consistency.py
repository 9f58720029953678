"""Whether data, parameters and the optimizer's state belong to one network.

scikit-learn lets `warm_start` and `partial_fit` go on with targets of another number of columns. It
also lets users put any arrays into `coefs_`. It notices only when arrays meet in a step: some raise
an error, and others are broadcast. Kernels read memory by the shapes of their problem. So whatever
does not belong together runs on scikit-learn's own code, with its errors and its broadcasts.
"""

from itertools import combinations, pairwise
from typing import Any

import numpy as np

from fastmlp.sklearn.engine import Training
from fastmlp.sklearn.optimizers import KernelOptimizer, state_names

# Subclasses may compute differently; memory maps do not.
ARRAYS = (np.ndarray, np.memmap)


def mismatch(training: Training) -> str | None:
    """Return what does not belong to one network in what a fit is given, or None."""
    estimator, given = training.estimator, training.parameters
    layers = estimator.n_layers_ - 1
    if type(given) not in (list, tuple) or len(given) != 2 * layers:
        return "coefs_ and intercepts_ do not have one array a layer"
    if not are_arrays(given) or not all(each.flags.writeable for each in given):
        return "coefs_ and intercepts_ are not all arrays that can be written to"
    rows, inputs = training.X.shape
    sizes = network_sizes(given[:layers], given[layers:])
    if sizes is None or sizes[0] != inputs:
        return "the shapes of coefs_ and intercepts_ do not fit together"
    if any(np.may_share_memory(*both) for both in combinations(given, 2)):
        return "arrays of coefs_ and intercepts_ share memory"
    outputs = sizes[-1]
    if training.y.shape != (rows, outputs):
        return (
            f"y: got shape {training.y.shape}, wanted {(rows, outputs)} for the network's outputs"
        )
    weights = training.sample_weight
    if weights is not None and weights.shape != (rows,):
        return f"sample_weight: got shape {weights.shape}, wanted {(rows,)}"
    if len(training.memory[0]) != layers + 1:
        return "hidden_layer_sizes has another number of layers than coefs_"
    if not _state_fits(estimator._optimizer, given, sizes):
        return "the optimizer's state is that of other parameters"
    return None


def are_arrays(parameters: Any) -> bool:
    """Return whether these are all NumPy's own arrays."""
    return all(type(each) in ARRAYS for each in parameters)


def network_sizes(coefs: Any, intercepts: Any) -> tuple[int, ...] | None:
    """Return the units of each layer, inputs first, or None if the shapes do not fit together."""
    if not coefs or len(coefs) != len(intercepts):
        return None
    sizes = (coefs[0].shape[0] if coefs[0].ndim else 0, *(each.size for each in intercepts))
    fit = [each.shape for each in coefs] == list(pairwise(sizes))
    return sizes if fit and all(each.ndim == 1 for each in intercepts) else None


def _state_fits(optimizer: Any, parameters: Any, sizes: tuple[int, ...]) -> bool:
    if isinstance(optimizer, KernelOptimizer):
        return optimizer.sizes in (None, sizes)
    shapes = [each.shape for each in parameters]
    states = [getattr(optimizer, name) for name in state_names(optimizer)]
    return all(are_arrays(state) and [each.shape for each in state] == shapes for state in states)
