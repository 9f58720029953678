"""Rows that a fit is validated on: sets with names, or a part that is held out of the training."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fastmlp.arguments import BETWEEN, check_within
from fastmlp.data.admission import Data
from fastmlp.data.arrays import host_copy
from fastmlp.data.weighting import Weights, check_any_weight, check_sample_weight
from fastmlp.errors import DTypeError, ShapeError

# Of the streams of a seed, the one that draws the rows to hold out.
HELD_OUT = 1
# What a set is called that has no name of its own.
UNNAMED = "validation"


class Validation(NamedTuple):
    """Checked rows, and their weights: float64[rows], or of an ensemble also [members, rows]."""

    data: Data
    weights: Weights | None = None


def check_validation(
    given: Any, admit: Callable[[Any, str], Data], members: int | None
) -> dict[str, Validation]:
    """Return the sets of `validation_data` by name; one that is called "validation" comes first.

    `admit` checks a pair (X, y), of which messages speak with the name of the set before X and y.

    Raises
    ------
    DTypeError, DomainError, ShapeError
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        return {UNNAMED: _set(given, UNNAMED, admit, members)}
    for name in given:
        if not isinstance(name, str) or not name:
            raise DTypeError(f"validation_data: got a set called {name!r}, wanted a name as text")
    if not given:
        raise ShapeError("validation_data: got a dict of no sets, wanted {'name': (X, y), ...}")
    names = sorted(given, key=lambda name: name != UNNAMED)
    return {name: _set(given[name], name, admit, members) for name in names}


def _set(
    given: Any, name: str, admit: Callable[[Any, str], Data], members: int | None
) -> Validation:
    if not isinstance(given, tuple | list) or len(given) not in (2, 3):
        got = type(given).__name__
        got += f" of {len(given)}" if isinstance(given, tuple | list) else ""
        raise DTypeError(
            f"validation_data: got {got}, wanted a pair (X, y), or (X, y, weights), or a dict of "
            "such by name"
        )
    data = admit(tuple(given[:2]), f"{name} ")
    weights = given[2] if len(given) == 3 else None
    return validation_of(data, weights, members, f"{name} weights")


def validation_of(
    data: Data, weights: Any, members: int | None, argument: str = "sample_weight"
) -> Validation:
    """Return rows with their weights checked: some of them are above 0."""
    checked = check_sample_weight(weights, len(data.X), members, argument)
    return Validation(data, check_any_weight(checked, argument))


def hold_out(
    share: Any, data: Data, sample_weight: Any, seed: int, members: int | None
) -> tuple[Data, Weights | None, Validation]:
    """Return what is left to train on, its weights, and a part that is held out.

    The part is drawn by the seed and the number of rows alone. So a second fit on the same rows
    holds out the same ones, and so does one that is resumed. Both parts are copies.

    Parameters
    ----------
    share : float
        Of the rows, as in scikit-learn: rounded up.
    """
    rows = len(data.X)
    count = math.ceil(check_within(share, "validation_split", BETWEEN) * rows)
    if count == rows:
        raise ShapeError(
            f"validation_split: got {share!r} of {rows} rows, wanted some left to train on"
        )
    weights = check_sample_weight(sample_weight, rows, members)
    order = np.random.default_rng((seed, HELD_OUT)).permutation(rows)
    X, y = host_copy(data.X), host_copy(data.y)
    parts = []
    # In their own order: what is trained on is shuffled only if that is asked for.
    for chosen in (np.sort(order[count:]), np.sort(order[:count])):
        own = None if weights is None else np.ascontiguousarray(weights[..., chosen])
        parts.append((data._replace(X=X[chosen], y=y[chosen]), own))
    (train, left), (held, of_held) = parts
    return train, left, validation_of(held, of_held, members, "sample_weight of validation_split")
