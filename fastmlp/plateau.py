"""Learning rates that fall when a loss stops improving: the rule, and its progress in a fit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import BETWEEN, check_integer, check_number, check_positive, check_within
from fastmlp.callbacks import EarlyStopping, Patience
from fastmlp.errors import CallOrderError, DomainError, DTypeError, known_keywords
from fastmlp.optimizers import Optimizer
from fastmlp.schedules import Schedule, check_schedule, rates_of

Array = NDArray[Any]

# The smallest normal number. Below it numbers lose digits.
SMALLEST_RATE = float(np.finfo(np.float64).tiny)


@known_keywords
@dataclass(frozen=True)
class ReduceOnPlateau(Schedule):
    """A learning rate that `fit` multiplies by `factor` each time an epoch's loss stops improving.

    It stands in the place of an optimizer's learning rate. Each fit begins with `initial`, and each
    network of an ensemble has its own rate. A fit that a `Checkpoint` resumes goes on with the rate
    that it had.

    Parameters
    ----------
    initial : float or callable
        The first rate, or a schedule of it, whose rates are multiplied.
    factor : float
        Between 0 and 1.
    patience : int
        Epochs in a row without an improvement after which the rate falls. PyTorch waits for one
        more.
    tolerance : float; monitor : str, optional; relative, higher_is_better : bool
        What an improvement is, and of what: see `EarlyStopping`.
    cooldown : int
        Epochs after a fall that are not counted, whatever the loss.
    minimum : float
        The rate falls to this one at most, and in any case stays above 0.

    Notes
    -----
    Epochs are compared with the best one so far, as for early stopping. PyTorch's
    ``ReduceLROnPlateau`` compares with the last one that was an improvement, so that many small
    steps together may count there as one.

    `MLP.step` and the estimators of `fastmlp.sklearn` watch no such loss, and refuse the rate.

    Examples
    --------
    >>> optimizer = Adam(ReduceOnPlateau(1e-3, patience=5))
    >>> history = model.fit(X, y, optimizer=optimizer, validation_split=0.2)
    """

    initial: float | Callable[[int], float]
    factor: float = 0.1
    patience: int = 10
    tolerance: float = 1e-4
    cooldown: int = 0
    minimum: float = 0.0
    monitor: str | None = None
    relative: bool = True
    higher_is_better: bool | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        if isinstance(self.initial, ReduceOnPlateau):
            raise DTypeError(
                "initial: got a ReduceOnPlateau, wanted a number or a schedule of steps; one rule "
                "lowers one rate"
            )
        check_number(self.minimum, "minimum")
        if callable(self.initial):
            check_schedule(self.initial, "initial")
        else:
            check_positive(self.initial, "initial")
            if self.minimum > self.initial:
                raise DomainError(
                    f"minimum: got {self.minimum!r}, wanted at most initial={self.initial!r}"
                )
        check_within(self.factor, "factor", BETWEEN)
        check_integer(self.cooldown, "cooldown", 0)
        # Another library's name of what is watched is stored as ours.
        object.__setattr__(self, "monitor", self.stopping().monitor)

    def stopping(self) -> EarlyStopping:
        """Return the rule by which a plateau begins."""
        numbers = self.patience, self.tolerance, self.monitor
        higher = self.higher_is_better
        return EarlyStopping(*numbers, False, self.relative, higher)

    def __call__(self, step: Any) -> Any:
        """Refuse: the rate of a step depends on the losses before it."""
        raise CallOrderError(
            "learning_rate: got ReduceOnPlateau where no loss is watched, wanted it in the fit of "
            "an MLP or an Ensemble; elsewhere a number, or a schedule of fastmlp.schedules"
        )

    def after(self, falls: int) -> Any:
        """Return the learning rate, a number or a schedule, after so many falls."""
        # A long fit falls until the product is 0, which is no learning rate.
        minimum = max(float(self.minimum), SMALLEST_RATE)
        reduced = _Reduced(self.initial, float(self.factor) ** falls, minimum)
        return reduced if callable(self.initial) else float(reduced(0))


@dataclass(frozen=True)
class _Reduced(Schedule):
    """The rates of another schedule times `scale`, at least `minimum`, and never above them."""

    whole: Any
    scale: float
    minimum: float

    def __call__(self, step: Any) -> Any:
        whole = rates_of(self.whole, step, "initial")
        return np.minimum(whole, np.maximum(self.scale * whole, self.minimum))


class Plateau:
    """The progress of a network's fit under a `ReduceOnPlateau`."""

    def __init__(self, rule: ReduceOnPlateau, known: Mapping[str, bool | None]) -> None:
        self._rule, self.patience = rule, Patience(rule.stopping(), known)
        # Epochs that are not counted yet; how often the rate has fallen.
        self.cooling = self.falls = 0

    def observe(self, epoch: int, value: float) -> bool:
        """Take note of an epoch; return whether the rate falls after it."""
        waited = self.patience.observe(epoch, value, None)
        if self.cooling:
            self.cooling, self.patience.waited = self.cooling - 1, 0
        elif waited:
            self.cooling, self.patience.waited = self._rule.cooldown, 0
            self.falls += 1
            return True
        return False


class Plateaus:
    """The optimizers of a fit, with the learning rates as they have fallen so far.

    Parameters
    ----------
    optimizers : sequence of Optimizer
        One for each network.
    known : mapping of str to bool or None
        What can be watched: see `fastmlp.metrics.monitors`.
    """

    def __init__(self, optimizers: Sequence[Optimizer], known: Mapping[str, bool | None]) -> None:
        rules = [each.settings["learning_rate"] for each in optimizers]
        self._whole = optimizers
        self._plateaus = {
            member: Plateau(rule, known)
            for member, rule in enumerate(rules)
            if isinstance(rule, ReduceOnPlateau)
        }
        self._made: dict[tuple[int, int], Optimizer] = {}

    def __bool__(self) -> bool:
        """Return whether any rate may fall."""
        return bool(self._plateaus)

    def optimizers(self) -> tuple[Optimizer, ...]:
        """Return one for each network; alike networks have the same object."""
        now = list(self._whole)
        for member, plateau in self._plateaus.items():
            given: Any = self._whole[member]
            key = id(given), plateau.falls
            if key not in self._made:
                rate = given.learning_rate.after(plateau.falls)
                self._made[key] = replace(given, learning_rate=rate)
            now[member] = self._made[key]
        return tuple(now)

    def observe(self, known: Mapping[str, Any], members: Sequence[int]) -> bool:
        """Take note of an epoch of these networks; return whether any learning rate has fallen."""
        fallen = False
        # Nothing is done for each network where none has a rule.
        for member, plateau in self._plateaus.items():
            if member in members:
                values = np.atleast_1d(plateau.patience.watched(known))
                fallen |= plateau.observe(known["epoch"], float(values[member]))
        return fallen

    def progress(self) -> dict[str, Array]:
        """Return what `take_up` goes on from; nothing without a rule."""
        if not self._plateaus:
            return {}
        best, counts = np.zeros(len(self._whole)), np.zeros((len(self._whole), 3), dtype=np.int64)
        for member, each in self._plateaus.items():
            best[member] = each.patience.best
            counts[member] = each.patience.waited, each.cooling, each.falls
        return {"plateau_best": best, "plateau_counts": counts}

    def take_up(self, best: Array | None, counts: Array | None) -> None:
        """Go on where another fit was."""
        if best is None or counts is None:
            return
        for member, each in self._plateaus.items():
            each.patience.best = float(best[member])
            each.patience.waited, each.cooling, each.falls = counts[member].tolist()
