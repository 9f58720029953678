"""Many networks of one shape, trained side by side on the same rows."""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastmlp.arguments import check_integer
from fastmlp.errors import DomainError, DTypeError, ShapeError, known_keywords
from fastmlp.files.contents import Contents
from fastmlp.initialization import new_network
from fastmlp.model import MLP
from fastmlp.network import Network
from fastmlp.optimizers import Optimizer

Array = NDArray[Any]


class Ensemble(Network):
    """Networks of one shape that differ in their seeds, and if asked in their optimizers.

    Network k is what ``MLP(..., seed=seed + k)`` is: the same first weights, the same order of the
    rows, and the same bits after any fit on the CPU. Together they are trained faster: on the CPU
    each thread takes one network after another, on a GPU one launch trains all of them.

    Parameters
    ----------
    sizes, activations, loss, dtype, reduction, precision, initializer, gain, dropout
        As in `MLP`, of every network.
    members : int
        How many networks.
    seed : int
        Of the first network; each other one has the next.

    Attributes
    ----------
    history : History or None
        Of the last `fit`, also of one that was interrupted.

    Examples
    --------
    >>> ensemble = Ensemble([4, 16, 1], members=5, seed=0)
    >>> history = ensemble.fit(X, y, epochs=5, optimizer=Adam(1e-2))
    >>> mean, spread = ensemble.predict_mean(X), ensemble.predict_spread(X)
    >>> best = ensemble[int(history.loss[-1].argmin())]  # an `MLP` of its own: a copy
    """

    _kind = "Ensemble"

    @known_keywords
    def __init__(
        self,
        sizes: Sequence[int],
        members: int = 8,
        activations: Any = "relu",
        loss: Any = "half_squared_error",
        *,
        seed: int | None = 0,
        dtype: DTypeLike = "float32",
        reduction: str = "mean",
        precision: str = "float32",
        initializer: Any = None,
        gain: float | Sequence[float] = 1.0,
        dropout: float | Sequence[float] = 0.0,
    ) -> None:
        count = check_integer(members, "members", 1)
        shape, drawn = (sizes, activations, loss), (initializer, gain)
        self._begin(new_network(*shape, seed, dtype, reduction, precision, *drawn, dropout, count))

    def _optimizers(self, given: Any) -> tuple[Optimizer, ...]:
        """Return one optimizer a network, all of one rule; one may stand for all of them."""
        members = len(self)
        if not isinstance(given, list | tuple):
            return (self._optimizer(given),) * members
        if len(given) != members:
            raise ShapeError(
                f"optimizer: got {len(given)} of them, wanted one, or {members}, one for each "
                "network"
            )
        checked = tuple(self._optimizer(each) for each in given)
        rules = dict.fromkeys(each.rule for each in checked)
        if len(rules) > 1:
            raise DomainError(
                f"optimizer: got the rules {', '.join(rules)}, wanted one rule for all networks"
            )
        return checked

    def __len__(self) -> int:
        """Return the number of networks."""
        return self.template.members

    def __getitem__(self, member: SupportsIndex) -> MLP:
        """Return a copy of a network, with its optimizer's state: it goes on independently."""
        try:
            number = operator.index(member)
        except TypeError:
            raise DTypeError(f"member: got {member!r}, wanted a whole number") from None
        count = len(self)
        if not -count <= number < count:
            raise IndexError(f"member: got {number}, wanted a whole number from 0 to {count - 1}")
        index, problem = number % count, self.template
        history = None if self.history is None else self.history.member(index)
        parts = replace(problem, members=1), None, self._state.member(index), history
        model = MLP._from(Contents(*parts, self._columns, self._vector))
        model.threads = self.threads
        return model

    def __iter__(self) -> Iterator[MLP]:
        """Yield a copy of each network."""
        return (self[member] for member in range(len(self)))

    def predict_mean(self, X: Any, **where: Any) -> Array:
        """Return the mean of the networks' predictions, (rows, outputs); see `predict`."""
        return self.predict(X, **where).mean(axis=0, dtype=np.float64).astype(self.dtype)

    def predict_spread(self, X: Any, **where: Any) -> Array:
        """Return their standard deviation, (rows, outputs): how far the networks disagree."""
        return self.predict(X, **where).std(axis=0, dtype=np.float64).astype(self.dtype)
