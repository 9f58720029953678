"""The optimizers as users write them: frozen settings. Their state lives in the model."""

import math
from dataclasses import dataclass, fields
from numbers import Real

from fastmlp.errors import DomainError, DTypeError

_BETWEEN_0_AND_1 = ("momentum", "beta1", "beta2", "decay")
_POSITIVE = ("learning_rate", "epsilon")


@dataclass(frozen=True)
class Optimizer:
    """What the optimizers have in common: numbers that are checked when they are set."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "nesterov":
                _check_number(field.name, value)
                # float() so that NumPy scalars and integers leave no trace in the settings.
                object.__setattr__(self, field.name, float(value))
            elif not isinstance(value, bool):
                raise DTypeError(f"nesterov: got {value!r}, wanted True or False")

    @property
    def rule(self) -> str:
        """The name of its row in the table of optimizers."""
        return type(self).__name__.lower()

    @property
    def settings(self) -> dict[str, float]:
        """Its numbers by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise DTypeError(f"{name}: got {value!r}, wanted a number")
    number = float(value)
    if name in _POSITIVE:
        wanted, good = "a finite number > 0", number > 0
    elif name in _BETWEEN_0_AND_1:
        wanted, good = "a number in [0, 1)", 0 <= number < 1
    else:
        wanted, good = "a finite number >= 0", number >= 0
    if not (good and math.isfinite(number)):
        raise DomainError(f"{name}: got {value!r}, wanted {wanted}")


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and Nesterov's look-ahead if asked."""

    learning_rate: float = 0.01
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers, and that Nesterov's look-ahead has a momentum."""
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise DomainError("momentum: got 0.0 with nesterov=True, wanted a number in (0, 1)")

    @property
    def rule(self) -> str:
        """The name of its row in the table of optimizers: it depends on the momentum."""
        if self.momentum == 0:
            return "sgd"
        return "nesterov" if self.nesterov else "momentum"

    @property
    def settings(self) -> dict[str, float]:
        """Its numbers by name."""
        return {
            "learning_rate": self.learning_rate,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
        }


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam; `weight_decay` is added to the gradient."""

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay."""

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """Gradient descent scaled by a running root mean square of the gradient."""

    learning_rate: float = 1e-2
    decay: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Gradient descent scaled by the root of the sum of all squared gradients."""

    learning_rate: float = 1e-2
    epsilon: float = 1e-10
    weight_decay: float = 0.0


PLAIN = SGD()


def check_optimizer(optimizer: object) -> Optimizer:
    """Return `optimizer` if it is one; None stands for plain gradient descent."""
    if optimizer is None:
        return PLAIN
    if isinstance(optimizer, Optimizer):
        return optimizer
    raise DTypeError(
        f"optimizer: got {optimizer!r}, wanted an object such as Adam(learning_rate=1e-3)"
    )
