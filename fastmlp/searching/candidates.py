"""What a search compares: candidates, made of a grid and of what all of them share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_integer, check_number, check_switch, is_sequence
from fastmlp.data.arrays import host_array
from fastmlp.errors import DomainError, DTypeError, refuse_keyword
from fastmlp.initialization import new_network
from fastmlp.losses import check_loss
from fastmlp.optimizers import Optimizer, check_optimizer
from fastmlp.plateau import ReduceOnPlateau
from fastmlp_kernels.problem import Problem

Array = NDArray[Any]

# What a candidate is where nobody says otherwise: as in `MLP` and in `MLP.fit`.
DEFAULTS: dict[str, Any] = {
    "hidden_sizes": (64,),
    "activations": "relu",
    "loss": "half_squared_error",
    "outputs": None,
    "seed": 0,
    "dtype": "float32",
    "reduction": "mean",
    "precision": "float32",
    "initializer": None,
    "gain": 1.0,
    "dropout": 0.0,
    "optimizer": None,
    "learning_rate": None,
    "batch_size": None,
    "l2": 0.0,
    "shuffle": True,
    "class_weight": None,
}
# Those that `MLP.fit` takes under the same names.
OF_FIT = ("batch_size", "l2", "shuffle", "class_weight")


@dataclass(frozen=True)
class Trial:
    """A candidate, checked.

    Attributes
    ----------
    values : dict of str to Any
        Everything that it is, by the names of `DEFAULTS`.
    template : Problem
    parameters : ndarray
        dtype[P]: where its training begins.
    optimizer : Optimizer
    """

    values: dict[str, Any]
    template: Problem
    parameters: Array
    optimizer: Optimizer

    @property
    def seed(self) -> int:
        """Its seed: a number, also where it was drawn."""
        return int(self.values["seed"])

    @property
    def l2(self) -> float:
        """The factor of its penalty."""
        return float(self.values["l2"])


def list_candidates(grid: Any, fixed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the candidates of one grid or of several, each as a dict of its own values.

    A grid maps names to lists of values, of which every combination is a candidate; the last
    name's values change first. `fixed` are the values that all candidates share.

    Raises
    ------
    DTypeError, DomainError, UnknownKeywordError
    """
    for name in fixed:
        if name not in DEFAULTS:
            refuse_keyword("search", name, DEFAULTS)
    grids = [grid] if isinstance(grid, Mapping) else grid
    if isinstance(grids, str) or not isinstance(grids, Iterable):
        raise DTypeError(
            f"grid: got {grid!r}, wanted a dict such as {{'learning_rate': [1e-3, 1e-2]}}, or "
            "several in a list"
        )
    found = [each for one in grids for each in _combinations(one, fixed)]
    if not found:
        raise DomainError("grid: got no candidates, wanted at least one dict: {'seed': [0, 1]}")
    return found


def _combinations(grid: Any, fixed: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not isinstance(grid, Mapping):
        raise DTypeError(f"grid: got {grid!r}, wanted a dict of lists of values")
    choices = []
    for name, values in grid.items():
        if name not in DEFAULTS:
            refuse_keyword("grid", str(name), DEFAULTS)
        if name in fixed:
            raise DomainError(f"{name}: got it in grid and beside it, wanted one of the two")
        # Of an array, Python's own numbers.
        values = values.tolist() if isinstance(values, np.ndarray) else values
        listed = list(values) if is_sequence(values) else [values]
        if not listed:
            raise DomainError(f"grid[{name!r}]: got no values, wanted at least one")
        choices.append(listed)
    return [dict(zip(grid, each, strict=True)) for each in product(*choices)]


def make_trials(
    candidates: Sequence[dict[str, Any]], fixed: Mapping[str, Any], inputs: int, y: Any
) -> list[Trial]:
    """Return the candidates, checked, for rows of so many inputs and for these targets."""
    # Equal optimizers are one object, so that their numbers are computed once.
    optimizers: dict[str, Optimizer] = {}
    trials = []
    for own in candidates:
        values = {**DEFAULTS, **fixed, **own}
        hidden = _check_hidden(values["hidden_sizes"])
        names = ("activations", "loss", "seed", "dtype", "reduction", "precision", "initializer")
        described: list[Any] = [values[name] for name in (*names, "gain", "dropout")]
        made = new_network((inputs, *hidden, _outputs(values, y)), *described)
        optimizer = _check_rate(values).for_layers(len(made.template.activations))
        optimizer = optimizers.setdefault(_identity(optimizer), optimizer)
        values |= {"seed": made.state.seed, "hidden_sizes": hidden}
        check_number(values["l2"], "l2")
        check_switch(values["shuffle"], "shuffle")
        if values["batch_size"] is not None:
            check_integer(values["batch_size"], "batch_size", 1)
        trials.append(Trial(values, made.template, made.state.parameters, optimizer))
    return trials


def _identity(optimizer: Optimizer) -> str:
    """Return a text that two optimizers share only if they are equal."""
    rate = optimizer.settings["learning_rate"]
    return f"{optimizer!r} {id(rate) if callable(rate) else ''}"


def _check_hidden(given: Any) -> tuple[int, ...]:
    units = tuple(given) if is_sequence(given) else (given,)
    return tuple(check_integer(each, "hidden_sizes", 1) for each in units)


def _check_rate(values: Mapping[str, Any]) -> Optimizer:
    optimizer: Any = check_optimizer(values["optimizer"])
    rate = values["learning_rate"]
    if rate is not None:
        optimizer = replace(optimizer, learning_rate=rate)
    if isinstance(optimizer.settings["learning_rate"], ReduceOnPlateau):
        raise DomainError(
            "learning_rate: got a ReduceOnPlateau, wanted a number or a schedule of steps: a "
            "search looks at no validation while networks train"
        )
    made: Optimizer = optimizer
    return made


def _outputs(values: Mapping[str, Any], y: Any) -> int:
    """Return how many outputs a network needs for its loss and these targets."""
    if values["outputs"] is not None:
        return check_integer(values["outputs"], "outputs", 1)
    row, targets = check_loss(values["loss"]), host_array(y, "y")
    columns = 1 if targets.ndim < 2 else targets.shape[1]
    if row.label_rule is None or columns > 1:
        return columns * int(row.outputs_per_target)
    labels = targets.astype(np.float64)
    # What is no label is refused where y is checked.
    return max(2, int(labels.max()) + 1) if np.isfinite(labels).all() else 2
