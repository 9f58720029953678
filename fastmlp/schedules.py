"""Learning rates that depend on the step: any function of the step, and ready ones.

An optimizer's `learning_rate` may be a callable ``step -> rate``. Steps are counted from 0, as
optax counts them. The schedules here also take an array of steps. A schedule is called while the
model's lock is held, so it must not wait for a thread that uses the model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import TEXTS, check_number, check_positive
from fastmlp.errors import DomainError, DTypeError, ShapeError, known_keywords


class Schedule:
    """A schedule that takes an array of steps at once: the class of those below.

    Examples
    --------
    Any function of the step is a schedule too:

    >>> optimizer = Adam(lambda step: 1e-3 / (1 + step / 100))
    """

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step, or of each step of an array."""
        raise NotImplementedError


@known_keywords
@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """``initial * decay ** (step / every)``.

    Parameters
    ----------
    initial : float
        The rate of step 0.
    decay : float
        Above 0: what `every` steps multiply the rate by.
    every : float
        At least 1.

    Examples
    --------
    >>> fastmlp.schedules.ExponentialDecay(1.0, decay=0.5, every=10)(20)
    0.25
    """

    initial: float
    decay: float
    every: float = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_number(self.initial, "initial")
        check_positive(self.decay, "decay")
        check_number(self.every, "every", 1)

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step."""
        return self.initial * self.decay ** (step / self.every)


@known_keywords
@dataclass(frozen=True)
class StepDecay(Schedule):
    """``initial * decay ** floor(step / every)``: PyTorch's StepLR.

    Parameters
    ----------
    initial, decay : float
        The first rate, and what each stair of `every` steps multiplies it by.
    every : float

    Examples
    --------
    >>> fastmlp.schedules.StepDecay(1.0, decay=0.5, every=10)(19)
    0.5
    """

    initial: float
    decay: float
    every: float

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_number(self.initial, "initial")
        check_number(self.decay, "decay")
        check_number(self.every, "every", 1)

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step."""
        return self.initial * float(self.decay) ** (step // self.every)


@known_keywords
@dataclass(frozen=True)
class PiecewiseConstant(Schedule):
    """``rates[k]``, where k is how many of the `boundaries` are at most the step.

    There is one rate more than boundaries, which rise: PyTorch's MultiStepLR with rates of one's
    own.

    Parameters
    ----------
    boundaries, rates : sequence of float

    Examples
    --------
    >>> schedule = fastmlp.schedules.PiecewiseConstant([100, 200], [1e-2, 1e-3, 1e-4])
    >>> float(schedule(100))
    0.001
    """

    boundaries: Sequence[float]
    rates: Sequence[float]

    def __post_init__(self) -> None:
        """Check the numbers, and keep them as tuples, which can be compared."""
        for name in ("boundaries", "rates"):
            given = getattr(self, name)
            if isinstance(given, TEXTS) or not np.iterable(given):
                raise DTypeError(f"{name}: got {given!r}, wanted a list of numbers")
            numbers = tuple(check_number(each, f"{name}[{i}]") for i, each in enumerate(given))
            object.__setattr__(self, name, numbers)
        if any(later <= sooner for sooner, later in pairwise(self.boundaries)):
            raise DomainError(f"boundaries: got {self.boundaries}, wanted each above the last")
        if len(self.rates) != len(self.boundaries) + 1:
            raise ShapeError(
                f"rates: got {len(self.rates)} with {len(self.boundaries)} boundaries, wanted "
                f"{len(self.boundaries) + 1}, the first for the steps before the first boundary"
            )

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step."""
        return np.array(self.rates)[np.searchsorted(self.boundaries, step, side="right")]


@known_keywords
@dataclass(frozen=True)
class InverseScaling(Schedule):
    """``initial / (step + 1) ** power``.

    Parameters
    ----------
    initial, power : float

    Examples
    --------
    >>> fastmlp.schedules.InverseScaling(1.0)(3)
    0.5
    """

    initial: float
    power: float = 0.5

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_number(self.initial, "initial")
        check_number(self.power, "power")

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step."""
        return self.initial / (step + 1.0) ** self.power


def _check_decay(initial: float, steps: float, final: float) -> None:
    check_number(initial, "initial")
    check_number(steps, "steps", 1)
    check_number(final, "final")


@known_keywords
@dataclass(frozen=True)
class LinearDecay(Schedule):
    """A straight line from `initial` to `final` over `steps` steps; later ones stay there.

    Parameters
    ----------
    initial, final : float
    steps : float
        At least 1.

    Examples
    --------
    >>> float(fastmlp.schedules.LinearDecay(1.0, steps=10)(4))
    0.6
    """

    initial: float
    steps: float
    final: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check_decay(self.initial, self.steps, self.final)

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step."""
        along = np.minimum(step, self.steps) / self.steps
        return self.initial + (self.final - self.initial) * along


@known_keywords
@dataclass(frozen=True)
class CosineDecay(Schedule):
    """From `initial` to `final` along half a cosine over `steps` steps (SGDR, arXiv:1608.03983).

    Parameters
    ----------
    initial, final : float
    steps : float
        At least 1; later steps stay at `final`.

    Examples
    --------
    >>> float(fastmlp.schedules.CosineDecay(1.0, steps=10)(5))
    0.5
    """

    initial: float
    steps: float
    final: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check_decay(self.initial, self.steps, self.final)

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step."""
        return _cosine(self.initial, self.final, np.minimum(step, self.steps) / self.steps)


@known_keywords
@dataclass(frozen=True)
class OneCycle(Schedule):
    """Half a cosine up to `maximum` and one down, over `steps` steps: PyTorch's OneCycleLR.

    The momentum stays as it is, as with ``cycle_momentum=False`` (L. Smith and N. Topin,
    arXiv:1708.07120).

    Parameters
    ----------
    maximum : float
    steps : float
        At least 1.
    warmup : float
        The share of the steps in which the rate rises, below 1.
    initial_divisor, final_divisor : float
        The rate begins at ``maximum / initial_divisor`` and ends at that over `final_divisor`,
        where later steps stay.

    Examples
    --------
    >>> optimizer = Adam(fastmlp.schedules.OneCycle(1e-2, steps=700))
    """

    maximum: float
    steps: float
    warmup: float = 0.3
    initial_divisor: float = 25.0
    final_divisor: float = 1e4

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_number(self.maximum, "maximum")
        check_number(self.steps, "steps", 1)
        if check_number(self.warmup, "warmup") >= 1:
            raise DomainError(f"warmup: got {self.warmup!r}, wanted a share of the steps, below 1")
        check_positive(self.initial_divisor, "initial_divisor")
        check_positive(self.final_divisor, "final_divisor")

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step."""
        initial = self.maximum / self.initial_divisor
        # The maximum lies at this step, which need not be a whole number.
        top, last = self.warmup * self.steps - 1.0, self.steps - 1.0
        rising = _cosine(initial, self.maximum, step / max(top, 1.0))
        along = np.minimum((step - top) / (last - top), 1.0)
        falling = _cosine(self.maximum, initial / self.final_divisor, along)
        return np.where(step < top, rising, falling)


@known_keywords
@dataclass(frozen=True)
class LinearWarmup(Schedule):
    """A straight line from 0 over `steps` steps, and then another schedule.

    Parameters
    ----------
    steps : float
        At least 1.
    then : callable or float
        That schedule, which starts at its own step 0, or the rate of all later steps.

    Examples
    --------
    >>> optimizer = Adam(fastmlp.schedules.LinearWarmup(100, then=1e-3))
    """

    steps: float
    then: float | Callable[[int], float]

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_number(self.steps, "steps", 1)
        check_rate(self.then, "then")

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step."""
        rising = rates_of(self.then, 0, "then") * (step + 1.0) / self.steps
        later = rates_of(self.then, np.maximum(step - self.steps, 0), "then")
        return np.where(step < self.steps, rising, later)


def _cosine(first: float, last: float, along: Any) -> Any:
    """Return the number so far along half a cosine from `first` to `last`."""
    return last + (first - last) * 0.5 * (1 + np.cos(np.pi * along))


def check_schedule(value: Any, argument: str) -> None:
    """Refuse a class in the place of a schedule: it would be called with a step."""
    if isinstance(value, type):
        raise DTypeError(
            f"{argument}: got the class {value.__name__}, wanted an object; call it: "
            f"{value.__name__}(...)"
        )


def check_rate(value: Any, argument: str) -> None:
    """Refuse what is neither a finite number of at least 0 nor a schedule."""
    if callable(value):
        check_schedule(value, argument)
    else:
        check_number(value, argument)


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
