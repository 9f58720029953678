"""Learning rates that depend on the step: any function of the step, and four ready ones.

An optimizer's `learning_rate` may be a callable ``step -> rate``. Steps are counted from 0, as
optax counts them. The schedules here also take an array of steps. A schedule is called while the
model's lock is held, so it must not wait for a thread that uses the model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_number
from fastmlp.errors import DomainError, DTypeError, ShapeError, known_keywords


class Schedule:
    """A schedule that takes an array of steps at once."""

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step, or of each step of an array."""
        raise NotImplementedError


@known_keywords
@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """``initial * decay ** (step / every)``."""

    initial: float
    decay: float
    every: float = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_number(self.initial, "initial")
        _check_positive(self.decay, "decay")
        check_number(self.every, "every", 1)

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step."""
        return self.initial * self.decay ** (step / self.every)


@known_keywords
@dataclass(frozen=True)
class InverseScaling(Schedule):
    """``initial / (step + 1) ** power``."""

    initial: float
    power: float = 0.5

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_number(self.initial, "initial")
        check_number(self.power, "power")

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step."""
        return self.initial / (step + 1.0) ** self.power


@known_keywords
@dataclass(frozen=True)
class CosineDecay(Schedule):
    """From `initial` to `final` along half a cosine over `steps` steps (SGDR, arXiv:1608.03983)."""

    initial: float
    steps: float
    final: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_number(self.initial, "initial")
        check_number(self.steps, "steps", 1)
        check_number(self.final, "final")

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step."""
        along = np.minimum(step, self.steps) / self.steps
        return self.final + (self.initial - self.final) * 0.5 * (1 + np.cos(np.pi * along))


@known_keywords
@dataclass(frozen=True)
class LinearWarmup(Schedule):
    """A straight line from 0 over `steps` steps, and then another schedule.

    `then` is that schedule, which starts at its own step 0, or the rate of all later steps.
    """

    steps: float
    then: float | Callable[[int], float]

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_number(self.steps, "steps", 1)
        if not callable(self.then):
            check_number(self.then, "then")

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step."""
        rising = rates_of(self.then, 0, "then") * (step + 1.0) / self.steps
        later = rates_of(self.then, np.maximum(step - self.steps, 0), "then")
        return np.where(step < self.steps, rising, later)


def rates_of(rate: Any, steps: Any, argument: str) -> NDArray[np.float64]:
    """Return the rate of each step, for a number or for any schedule.

    Parameters
    ----------
    rate : float or callable
        A `Schedule` gets all steps in one call. Any other callable gets one step after another.
    steps : int or ndarray
        Whole numbers.
    argument : str
        The name of the argument that the rate was given as.

    Returns
    -------
    ndarray
        float64, of the shape of `steps`. Whether it is finite is not checked.

    Raises
    ------
    DTypeError, ShapeError
        If a schedule returns no numbers, or not one for each step. An error that a schedule
        raises is passed on, with a note of the step.
    """
    asked = np.asarray(steps)
    if not callable(rate):
        return np.full(asked.shape, float(rate))
    if isinstance(rate, Schedule):
        return _as_rates(rate(steps), asked.shape, argument, "an array of steps")
    found = [_rate_of(rate, int(step), argument) for step in asked.ravel()]
    return np.array(found, dtype=np.float64).reshape(asked.shape)


def _rate_of(rate: Callable[[int], Any], step: int, argument: str) -> float:
    try:
        given = rate(step)
    except Exception as error:
        error.add_note(f"{argument}: the schedule raised this at step {step}")
        raise
    return float(_as_rates(given, (), argument, f"step {step}"))


def _as_rates(given: Any, shape: tuple[int, ...], argument: str, at: str) -> NDArray[np.float64]:
    try:
        if given is None:
            # NumPy would read it as NaN.
            raise TypeError
        rates = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise DTypeError(
            f"{argument}: got {given!r} from the schedule at {at}, wanted a finite number >= 0"
        ) from None
    if rates.shape != shape:
        wanted = f"{shape}, one rate a step" if shape else "one number"
        raise ShapeError(
            f"{argument}: got shape {rates.shape} from the schedule at {at}, wanted {wanted}"
        )
    return rates


def _check_positive(value: Any, argument: str) -> None:
    if check_number(value, argument) == 0:
        raise DomainError(f"{argument}: got {value!r}, wanted a finite number > 0")
