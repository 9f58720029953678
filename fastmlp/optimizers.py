"""The optimizers as users write them: frozen settings. Their state lives in the model.

A learning rate is a number, or a schedule: a callable ``step -> rate``, see `fastmlp.schedules`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastmlp.errors import DomainError, DTypeError, check_name, known_keywords
from fastmlp.schedules import rates_of
from fastmlp_kernels.algebra import OPTIMIZERS, hyper_table

Rate = float | Callable[[int], float]

_SWITCHES = ("nesterov", "rate_in_velocity", "epsilon_hat")
_BETWEEN_0_AND_1 = ("momentum", "beta1", "beta2", "decay")
_POSITIVE = ("learning_rate", "epsilon")


@dataclass(frozen=True)
class Optimizer:
    """What the optimizers have in common: numbers that are checked when they are set."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _SWITCHES:
                if not isinstance(value, bool):
                    raise DTypeError(f"{field.name}: got {value!r}, wanted True or False")
            elif not (field.name == "learning_rate" and callable(value)):
                _check_number(field.name, value)
                # float() so that NumPy scalars and integers leave no trace in the settings.
                object.__setattr__(self, field.name, float(value))

    @property
    def rule(self) -> str:
        """The name of its row in the table of optimizers."""
        return type(self).__name__.lower()

    @property
    def settings(self) -> dict[str, Any]:
        """Its numbers by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def rates(self, first: int, count: int) -> float | NDArray[np.float64]:
        """Return the learning rate of `count` steps, the first numbered `first` (from 0).

        Raises
        ------
        DomainError, DTypeError, ShapeError
            If a schedule gives anything but one finite number of at least 0 a step.
        """
        rate = self.settings["learning_rate"]
        if not callable(rate):
            return float(rate)
        rates = rates_of(rate, np.arange(first, first + count), "learning_rate")
        bad = ~(np.isfinite(rates) & (rates >= 0))
        if bad.any():
            at = int(np.argmax(bad))
            raise DomainError(
                f"learning_rate: got {rates[at]} from the schedule at step {first + at}, wanted a "
                "finite number >= 0"
            )
        return rates

    def hyper(self, first: int, count: int, dtype: DTypeLike, penalty: Any = 0.0) -> NDArray[Any]:
        """Return the table of hyper-parameters that kernels take; see `algebra.hyper_table`."""
        settings = {**self.settings, "learning_rate": self.rates(first - 1, count)}
        return hyper_table(OPTIMIZERS[self.rule], settings, first, count, dtype, penalty)


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        rate = " or a schedule, a callable step -> rate" if name == "learning_rate" else ""
        raise DTypeError(f"{name}: got {value!r}, wanted a number{rate}")
    number = float(value)
    if name in _POSITIVE:
        wanted, good = "a finite number > 0", number > 0
    elif name in _BETWEEN_0_AND_1:
        wanted, good = "a number in [0, 1)", 0 <= number < 1
    else:
        wanted, good = "a finite number >= 0", number >= 0
    if not (good and math.isfinite(number)):
        raise DomainError(f"{name}: got {value!r}, wanted {wanted}")


@known_keywords
@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and Nesterov's look-ahead if asked.

    `rate_in_velocity` has the velocity sum steps, as in Keras and scikit-learn, instead of
    gradients, as in PyTorch: the same until the learning rate changes.
    """

    learning_rate: Rate = 0.01
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    rate_in_velocity: bool = False

    def __post_init__(self) -> None:
        """Check the numbers, and that Nesterov's look-ahead has a momentum."""
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise DomainError("momentum: got 0.0 with nesterov=True, wanted a number in (0, 1)")

    @property
    def rule(self) -> str:
        """The name of its row in the table of optimizers: it depends on the momentum."""
        if self.rate_in_velocity:
            return "nesterov_velocity" if self.nesterov else "velocity"
        if self.momentum == 0:
            return "sgd"
        return "nesterov" if self.nesterov else "momentum"

    @property
    def settings(self) -> dict[str, Any]:
        """Its numbers by name."""
        return {
            "learning_rate": self.learning_rate,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
        }


@known_keywords
@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam; `weight_decay` is added to the gradient.

    With `epsilon_hat`, the epsilon is added to the root of the raw second moment, as in Keras,
    scikit-learn and the paper's efficient form (arXiv:1412.6980, section 2); by default to that of
    the corrected one, as in PyTorch.
    """

    learning_rate: Rate = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    epsilon_hat: bool = False


@known_keywords
@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay."""

    learning_rate: Rate = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01


@known_keywords
@dataclass(frozen=True)
class RMSprop(Optimizer):
    """Gradient descent scaled by a running root mean square of the gradient."""

    learning_rate: Rate = 1e-2
    decay: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.0


@known_keywords
@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Gradient descent scaled by the root of the sum of all squared gradients."""

    learning_rate: Rate = 1e-2
    epsilon: float = 1e-10
    weight_decay: float = 0.0


PLAIN = SGD()
# What a name stands for. The optimizer of a name is always the same object, as one that a user
# makes once is.
BY_NAME = {
    type(each).__name__.lower(): each for each in (PLAIN, Adam(), AdamW(), RMSprop(), Adagrad())
}


def check_optimizer(optimizer: object) -> Optimizer:
    """Return `optimizer` if it is one; None stands for plain gradient descent.

    The name of one of the classes stands for it with its default numbers.
    """
    if optimizer is None:
        return PLAIN
    if isinstance(optimizer, Optimizer):
        return optimizer
    if isinstance(optimizer, str):
        return BY_NAME[check_name("optimizer", optimizer, BY_NAME)]
    wanted = "wanted an object such as Adam(learning_rate=1e-3)"
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        name = optimizer.__name__
        raise DTypeError(f"optimizer: got the class {name}, {wanted}; call it: {name}()")
    got = f"{type(optimizer).__module__}.{type(optimizer).__name__}"
    if isinstance(optimizer, int | float):
        got = repr(optimizer)
        hint = f"; a learning rate is given to one: SGD({optimizer!r})"
    elif type(optimizer).__name__ in {type(each).__name__ for each in BY_NAME.values()}:
        hint = "; fastmlp has its own of that name"
    else:
        hint = ""
    raise DTypeError(f"optimizer: got {got}, {wanted}{hint}")
