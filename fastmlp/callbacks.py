"""What a fit tells after each epoch, and the rule by which it stops early."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastmlp.arrays import check_integer
from fastmlp.errors import DomainError, DTypeError, check_name

MONITORS = ("loss", "validation_loss", "validation_score")


@dataclass(frozen=True)
class EpochEnd:
    """What a callback is given after an epoch.

    Attributes
    ----------
    epoch, epochs : int
        Finished epochs of this fit, and those that were asked for.
    step : int
        Steps taken with the present optimizer's state.
    loss, penalty : float
        Of the epoch; the penalty is that of `l2`.
    validation_loss, validation_score : float or None
    learning_rate : float
        Of the last step.
    seconds : float
        Of the epoch's training.
    model : MLP
    """

    epoch: int
    epochs: int
    step: int
    loss: float
    penalty: float
    validation_loss: float | None
    validation_score: float | None
    learning_rate: float
    seconds: float
    model: Any


Callback = Callable[[EpochEnd], object]


def check_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    """Return callables; None stands for none of them, and one may stand alone."""
    given = () if callbacks is None else callbacks
    given = tuple(given) if isinstance(given, list | tuple) else (given,)
    for each in given:
        if not callable(each):
            raise DTypeError(
                f"callbacks: got {each!r}, wanted callables that take an EpochEnd and return True "
                "to stop"
            )
    return given


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when something has not improved for a number of epochs; keep the best parameters.

    Parameters
    ----------
    patience : int
        Epochs in a row without an improvement after which the fit ends.
    tolerance : float
        An epoch improves on the best one when it is better by more than this.
    monitor : {"loss", "validation_loss", "validation_score"}, optional
        What is watched; by default the loss on the validation data, or on the training data where
        there is no other.
    restore_best : bool
        Whether the model ends with the parameters of its best epoch instead of the last one's. The
        optimizer's state is the last one's.
    """

    patience: int = 10
    tolerance: float = 1e-4
    monitor: str | None = None
    restore_best: bool = True

    def __post_init__(self) -> None:
        """Check the settings."""
        check_integer(self.patience, "patience", 1)
        if not self.tolerance >= 0:
            raise DomainError(f"tolerance: got {self.tolerance!r}, wanted a number >= 0")
        if self.monitor is not None:
            check_name("monitor", self.monitor, MONITORS)

    def watched(self, validated: bool) -> str:
        """Return what is watched, in a fit with validation data or without."""
        monitor = self.monitor or ("validation_loss" if validated else "loss")
        if monitor != "loss" and not validated:
            raise DomainError(
                f"early_stopping: got monitor={monitor!r} without validation_data, wanted both"
            )
        return monitor


def check_early_stopping(value: Any, validated: bool) -> EarlyStopping | None:
    """Return the rule; True stands for its defaults."""
    if value is None or value is False:
        return None
    rule = EarlyStopping() if value is True else value
    if not isinstance(rule, EarlyStopping):
        raise DTypeError(
            f"early_stopping: got {value!r}, wanted True or an object such as "
            "EarlyStopping(patience=10)"
        )
    rule.watched(validated)
    return rule


class Patience:
    """The progress of a fit under a rule of early stopping."""

    def __init__(self, rule: EarlyStopping, validated: bool) -> None:
        self._rule = rule
        self._monitor = rule.watched(validated)
        self._best = float("-inf")
        self._waited = 0
        self.best_epoch = 0
        self.best_parameters: Any = None

    def observe(self, event: EpochEnd, parameters: Any) -> bool:
        """Take note of an epoch; return whether the fit has waited long enough."""
        value = getattr(event, self._monitor)
        goodness = value if self._monitor == "validation_score" else -value
        self._waited = 0 if goodness > self._best + self._rule.tolerance else self._waited + 1
        if goodness > self._best:
            self._best, self.best_epoch = goodness, event.epoch
            if self._rule.restore_best:
                self.best_parameters = parameters.copy()
        return self._waited >= self._rule.patience
