"""Who hears of epochs: plain callables, and scikit-learn's callbacks where it has them."""

import time
from dataclasses import dataclass
from typing import Any

from fastmlp.errors import DTypeError

try:
    from sklearn.callback import CallbackSupportMixin as CallbackSupportMixin
except ImportError:  # before scikit-learn 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Nothing: this scikit-learn has no callbacks."""


@dataclass(frozen=True)
class EpochEnd:
    """What a callback is told after an epoch.

    Attributes
    ----------
    epoch, step : int
        Finished epochs and mini-batches of this fit.
    loss : float
        The epoch's loss, as in `loss_curve_`.
    validation_score : float or None
        With ``early_stopping=True``, the score of the rows set aside.
    learning_rate : float
        The rate of the epoch's last step. scikit-learn's Adam includes its bias correction.
    seconds : float
        Time since the fit began.
    estimator : object
        The estimator as it is now. The next epoch changes it.

    Examples
    --------
    >>> from fastmlp.sklearn import MLPRegressor
    >>> losses = []
    >>> regressor = MLPRegressor(tol=0.1, callbacks=[lambda event: losses.append(event.loss)])
    >>> regressor = regressor.fit(X, y)
    >>> losses == regressor.loss_curve_
    True
    """

    epoch: int
    step: int
    loss: float
    validation_score: float | None
    learning_rate: float
    seconds: float
    estimator: Any


class FitTask:
    """A fit as scikit-learn's callbacks see it: a task with one subtask for each epoch.

    Without such callbacks it does nothing. It must begin inside `fit`. scikit-learn has wrapped
    `fit` already, and a second wrapper would end the task twice.
    """

    def __init__(
        self, estimator: Any, X: Any, y: Any, sample_weight: Any, name: str, subtasks: int
    ) -> None:
        self._estimator = estimator
        self._context: Any = None
        self._epoch: Any = None
        if not hasattr(estimator, "_skl_callbacks"):
            return
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        # Labels as the user wrote them. They are made when a callback asks for them.
        self._told = {"X": X, "y": lambda: estimator._targets_of(y), "metadata": metadata}
        self._context = estimator._init_callback_context(task_name=name, max_subtasks=subtasks)
        self._context.call_on_fit_task_begin(estimator=estimator, **self._told)

    def begin_epoch(self) -> None:
        """Tell that an epoch begins."""
        if self._context is not None:
            self._epoch = self._context.subcontext(task_name="epoch")
            self._epoch.call_on_fit_task_begin(estimator=self._estimator, **self._told)

    def end_epoch(self) -> bool:
        """Tell that the epoch has ended; return whether a callback wants to stop."""
        if self._epoch is None:
            return False
        ended, self._epoch = self._epoch, None
        return bool(
            ended.call_on_fit_task_end(
                estimator=self._estimator, reconstruction_attributes=self._snapshot, **self._told
            )
        )

    def end(self) -> None:
        """Tell that the fit has ended."""
        if self._context is not None:
            self._context.call_on_fit_task_end(
                estimator=self._estimator, reconstruction_attributes=self._snapshot, **self._told
            )

    def _snapshot(self) -> dict[str, Any]:
        return {
            name: [each.copy() for each in getattr(self._estimator, name)]
            for name in ("coefs_", "intercepts_")
        }


class Listeners:
    """Everybody who hears of the epochs of a fit.

    Parameters
    ----------
    task : FitTask
    batches : int
        Mini-batches of an epoch.
    """

    def __init__(self, estimator: Any, task: FitTask, batches: int) -> None:
        self._estimator, self._task, self._batches = estimator, task, batches
        self._start = time.perf_counter()

    def begin_epoch(self) -> None:
        """Tell that an epoch begins."""
        self._task.begin_epoch()

    def end_epoch(self, learning_rate: float) -> bool:
        """Tell all that an epoch has ended; return whether one of them wants to stop."""
        stop = self._task.end_epoch()
        estimator = self._estimator
        if estimator.callbacks:
            scores = estimator.validation_scores_
            event = EpochEnd(
                epoch=estimator.n_iter_,
                step=estimator.n_iter_ * self._batches,
                loss=float(estimator.loss_),
                validation_score=float(scores[-1]) if scores else None,
                learning_rate=float(learning_rate),
                seconds=time.perf_counter() - self._start,
                estimator=estimator,
            )
            # All of them are called, also after one that wants to stop.
            answers = [callback(event) for callback in estimator.callbacks]
            stop = stop or any(bool(answer) for answer in answers)
        return stop


def check_callbacks(callbacks: Any) -> None:
    """Refuse what is no list of callables."""
    others = (
        "(set_callbacks takes scikit-learn's callbacks; Checkpoint is for fastmlp's own models)"
    )
    if not isinstance(callbacks, list | tuple | None):
        wanted = "a list or tuple of callables of one argument, an EpochEnd"
        raise DTypeError(f"callbacks: got {callbacks!r}, wanted {wanted} {others}")
    for index, callback in enumerate(callbacks or ()):
        if not callable(callback):
            wanted = "a callable of one argument, an EpochEnd"
            raise DTypeError(f"callbacks[{index}]: got {callback!r}, wanted {wanted} {others}")
