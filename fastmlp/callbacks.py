"""What a fit tells its callbacks after each epoch, and the rule of early stopping."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from fastmlp.arguments import check_integer, check_number, check_switch
from fastmlp.errors import DomainError, DTypeError, ShapeError, check_name, known_keywords
from fastmlp.synonyms import resolve

MONITORS = ("loss", "validation_loss", "validation_score")
STOPPING = "; a rule of early stopping is given as early_stopping="


@dataclass(frozen=True)
class EpochEnd:
    """What a callback is given after an epoch.

    Of an ensemble `step` and the losses, scores and rates have one number a network, NaN for one
    that has stopped.

    Attributes
    ----------
    epoch, epochs : int
        Finished epochs of this fit, and those that were asked for.
    step : int or ndarray
        Steps taken with the present optimizer's state.
    loss, penalty : float or ndarray
        Of the epoch; the penalty is that of `l2`.
    validation_loss, validation_score : float, ndarray or None
    learning_rate : float or ndarray
        Of the last step.
    values : mapping of str to float or ndarray
        All numbers of the epoch by the names of ``history.values``, such as "validation_rmse".
    seconds : float
        Time since the fit began. It includes training, validation and callbacks.
    epoch_seconds : float
        Of this epoch's training alone, as in ``history.seconds``.
    model : MLP or Ensemble

    Examples
    --------
    >>> def stop_when_good(event):
    ...     return event.loss < 0.5
    >>> history = model.fit(X, y, epochs=20, callbacks=stop_when_good)
    """

    epoch: int
    epochs: int
    step: Any
    loss: Any
    penalty: Any
    validation_loss: Any
    validation_score: Any
    learning_rate: Any
    seconds: float
    epoch_seconds: float
    model: Any
    values: Mapping[str, Any] = field(default_factory=dict)


Callback = Callable[[EpochEnd], object]


@known_keywords
@dataclass(frozen=True)
class Checkpoint:
    """Write the model and the state of the fit to a file, as one of the callbacks of a fit.

    ``fit(..., resume=path)`` goes on from there, and ends with the same bits.

    Parameters
    ----------
    path : path
        A file as `MLP.save` writes it, which `fastmlp.load` reads too. It holds the parameters
        after an epoch, which need not be the best ones: to use a model, save it after the fit.
    every : int
        Epochs from one checkpoint to the next. The end of the fit is always one.
    keep : int
        How many are kept. Those before the last one are called ``path.1``, ``path.2`` and so on.
        If there are more of them, from a fit that kept more, they are deleted.

    Notes
    -----
    To resume replaces what the model holds. A fit with other data or arguments is refused, but
    functions, as of a schedule, are not compared, and of `Chunks` the first one alone is.

    Each is written when the epoch's other callbacks have been called. A disk that is full does not
    end the fit: a warning is logged, the next epoch tries again, and if the last one fails too, its
    error is raised after the fit. What callbacks of yours keep is in the file if they have the
    methods ``state_dict()``, which returns numbers and arrays by name, and
    ``load_state_dict(state)``, as `WeightAverage` has; a fit with other ones is refused.

    Examples
    --------
    >>> checkpoint = Checkpoint("fit.fastmlp", every=10)
    >>> history = model.fit(X, y, epochs=20, callbacks=checkpoint, resume=True)
    """

    path: str | PathLike[str]
    every: int = 1
    keep: int = 2

    def __post_init__(self) -> None:
        """Check the settings."""
        if not isinstance(self.path, str | PathLike):
            raise DTypeError(f"path: got {self.path!r}, wanted a path")
        check_integer(self.every, "every", 1)
        check_integer(self.keep, "keep", 1, 100)


def check_callbacks(callbacks: Any) -> tuple[tuple[Callback, ...], tuple[Checkpoint, ...]]:
    """Return the callables and the checkpoints. None means none; a single one needs no list."""
    given = () if callbacks is None else callbacks
    given = tuple(given) if isinstance(given, list | tuple) else (given,)
    checkpoints = tuple(each for each in given if isinstance(each, Checkpoint))
    called = tuple(each for each in given if not isinstance(each, Checkpoint))
    for each in called:
        # A class of a user's may do all its work as it is made.
        if isinstance(each, type) and any(_is_ours(base) for base in each.__mro__):
            raise DTypeError(
                f"callbacks: got the class {each.__name__}, wanted an object; call it: "
                f"{each.__name__}(...){'' if each is not EarlyStopping else STOPPING}"
            )
        if not callable(each):
            raise DTypeError(
                f"callbacks: got {each!r}, wanted callables that take an EpochEnd and return True "
                f"to stop{STOPPING if isinstance(each, EarlyStopping) else ''}"
            )
    return called, checkpoints


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "fastmlp"


def check_resume(resume: Any, checkpoints: Sequence[Checkpoint]) -> str | None:
    """Return the path from which a fit goes on; True stands for that of the only checkpoint."""
    if resume is None or resume is False:
        return None
    if resume is True:
        if len(checkpoints) != 1:
            raise DomainError(
                f"resume: got True with {len(checkpoints)} Checkpoint among callbacks, wanted one "
                "of them, or a path"
            )
        return fspath(checkpoints[0].path)
    if not isinstance(resume, str | PathLike):
        raise DTypeError(f"resume: got {resume!r}, wanted a path or True")
    if not Path(resume).name:
        raise DomainError(f"resume: got {resume!r}, wanted the path of a file, or True")
    return fspath(resume)


def check_answer(answer: object, members: int) -> Sequence[int]:
    """Return which networks a callback's answer stops: all, none, or those of an array of bool."""
    if not isinstance(answer, np.ndarray) or answer.ndim == 0:
        return range(members if answer else 0)
    if answer.shape != (members,):
        raise ShapeError(
            f"callbacks: got an answer of shape {answer.shape}, wanted True, or ({members},), one "
            "truth value a network"
        )
    return [int(each) for each in np.flatnonzero(answer)]


@known_keywords
@dataclass(frozen=True)
class EarlyStopping:
    """Stop when something has not improved for a number of epochs; keep the best parameters.

    Parameters
    ----------
    patience : int
        Epochs in a row without an improvement after which the fit ends.
    tolerance : float
        An epoch counts as an improvement when it is better than the best one by more than this
        share of the best one's size: by default by a ten-thousandth.
    monitor : str, optional
        What is watched: "loss", "validation_loss", "validation_score", or any metric of any
        validation set by its name in ``history.values``, such as "validation_rmse". By default the
        loss on the (first) validation data, or on the training data where there is no validation.
    restore_best : bool
        Whether the model ends with the parameters of its best epoch. Otherwise it keeps those of
        the last epoch. The optimizer's state is always that of the last epoch.
    relative : bool
        With False, `tolerance` is an amount instead of a share, as in Keras and scikit-learn. It
        then has to suit the scale of the loss.
    higher_is_better : bool, optional
        Needed to watch a metric of your own. Of all others it is known.

    Notes
    -----
    If the best value is 0, such as an R2 that has explained nothing yet, every better one counts.
    An infinite or NaN value is no improvement. Any finite value is an improvement on an infinite
    one.

    Examples
    --------
    >>> rule = EarlyStopping(patience=3)
    >>> history = model.fit(X, y, epochs=50, validation_split=0.2, early_stopping=rule)
    >>> history.best_epoch <= len(history.loss)
    True
    """

    patience: int = 10
    tolerance: float = 1e-4
    monitor: str | None = None
    restore_best: bool = True
    relative: bool = True
    higher_is_better: bool | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the settings."""
        check_integer(self.patience, "patience", 1)
        check_number(self.tolerance, "tolerance")
        for name in ("restore_best", "relative"):
            check_switch(getattr(self, name), name)
        higher = self.higher_is_better
        if higher is not None and not isinstance(higher, bool):
            raise DTypeError(f"higher_is_better: got {higher!r}, wanted True, False or None")
        if self.monitor is not None and not _may_be_metric(self.monitor):
            found = check_name("monitor", self.monitor, MONITORS)
            object.__setattr__(self, "monitor", found)

    def margin(self, best: float) -> float:
        """Return by how much a value has to be better than the best one to be an improvement."""
        if not self.relative:
            return self.tolerance
        # A share of infinity is infinite; any finite value is an improvement on it.
        return self.tolerance * abs(best) if math.isfinite(best) else 0.0

    def watched(self, known: Mapping[str, bool | None]) -> tuple[str, bool]:
        """Return the name of what is watched, and whether a higher number is better.

        `known` has what can be watched in a fit: see `fastmlp.metrics.monitors`.
        """
        validated = len(known) > 1
        monitor = self.monitor or ("validation_loss" if validated else "loss")
        if monitor != "loss" and not validated:
            raise DomainError(f"monitor: got {monitor!r} without validation_data, wanted both")
        name = check_name("monitor", monitor, known)
        higher, asked = known[name], self.higher_is_better
        if higher is None and asked is None:
            raise DomainError(
                f"monitor: got {name!r}, a metric of your own, wanted "
                "higher_is_better=True or False beside it"
            )
        if None not in (higher, asked) and higher != asked:
            raise DomainError(
                f"higher_is_better: got {asked} with monitor={name!r}, wanted {higher}, which is "
                "known of it"
            )
        return name, bool(asked if higher is None else higher)


def _may_be_metric(monitor: object) -> bool:
    """Whether a name may be that of a validation set and a metric, which a fit alone can tell."""
    return (
        isinstance(monitor, str)
        and "_" in monitor.strip("_")
        and resolve("monitor", monitor, MONITORS) is None
    )


def check_early_stopping(value: Any, known: Mapping[str, bool | None]) -> EarlyStopping | None:
    """Return the rule; True stands for its defaults. `known` is what can be watched."""
    if value is None or value is False:
        return None
    rule = EarlyStopping() if value is True else value
    if not isinstance(rule, EarlyStopping):
        got = "the class EarlyStopping" if rule is EarlyStopping else repr(value)
        raise DTypeError(
            f"early_stopping: got {got}, wanted True or an object such as "
            "EarlyStopping(patience=10)"
        )
    rule.watched(known)
    return rule


class Patience:
    """The progress of a network's fit under a rule of early stopping."""

    def __init__(self, rule: EarlyStopping, known: Mapping[str, bool | None]) -> None:
        self._rule = rule
        self._monitor, self.higher_is_better = rule.watched(known)
        # How good the best epoch was, and the epochs since the last improvement.
        self.best = float("-inf")
        self.waited = 0
        self.best_epoch = 0
        self.best_parameters: Any = None

    @property
    def keeps(self) -> bool:
        """Whether the best parameters are kept."""
        return self._rule.restore_best

    def watched(self, known: Mapping[str, Any]) -> Any:
        """Return what is watched, of all that is known of an epoch."""
        value = known[self._monitor]
        # Without the penalty's part the loss alone would look worse than what is minimised.
        return value + known["penalty"] if self._monitor == "loss" else value

    def observe(self, epoch: int, value: float, parameters: Any) -> bool:
        """Take note of an epoch; return whether the fit has waited long enough."""
        goodness = value if self.higher_is_better else -value
        improved = goodness > self.best + self._rule.margin(self.best)
        self.waited = 0 if improved else self.waited + 1
        if goodness > self.best:
            self.best, self.best_epoch = goodness, epoch
            if self.keeps:
                self.best_parameters = parameters.copy()
        return self.waited >= self._rule.patience
