"""Averages of a model's parameters over its training."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_integer, check_number
from fastmlp.callbacks import EpochEnd
from fastmlp.errors import CallOrderError, DomainError, DTypeError, ShapeError, known_keywords

Array = NDArray[Any]


@known_keywords
class WeightAverage:
    """The average of a model's parameters over epochs, or over whatever moments `update` is told.

    As one of the callbacks of `fit` it takes note of each epoch. In a loop of your own, call
    `update` after a step. A second fit goes on with the same average, and a `Checkpoint` holds it.

    Parameters
    ----------
    decay : float, optional
        Of an exponential moving average: after each update it is `decay` times the one before, plus
        ``1 - decay`` times the parameters. The first update copies them. By default the plain mean,
        as for stochastic weight averaging (SWA, P. Izmailov et al., arXiv:1803.05407).
    start : int
        The first epoch of a fit, counted from 1, that is averaged.

    Notes
    -----
    The numbers are those of ``torch.optim.swa_utils.AveragedModel``, computed in float64 for every
    dtype. A network of an ensemble that has stopped early is averaged no further.

    A model in the midst of a fit cannot be changed. To evaluate the average there, apply it to a
    copy: ``average.apply_to(copy.deepcopy(event.model))``.

    Examples
    --------
    >>> average = WeightAverage(start=6)
    >>> history = model.fit(X, y, epochs=10, callbacks=average)
    >>> with average.apply_to(model):
    ...     averaged = model.predict(X)
    >>> average.count
    5

    In a loop of your own:

    >>> for _ in range(3):
    ...     loss = model.step(X, y)
    ...     average.update(model)
    """

    def __init__(self, decay: float | None = None, start: int = 1) -> None:
        if decay is not None and check_number(decay, "decay") >= 1:
            raise DomainError(f"decay: got {decay!r}, wanted a number from 0 to below 1, or None")
        self.decay, self.start = decay, check_integer(start, "start", 1)
        # Of the shape of the parameters; how many went into it, of each network.
        self._average: NDArray[np.float64] | None = None
        self._count: NDArray[np.int64] = np.zeros((), dtype=np.int64)

    @property
    def count(self) -> Any:
        """How many updates there were; of an ensemble, of each network."""
        return self._count.copy() if self._count.ndim else int(self._count)

    @property
    def parameters(self) -> NDArray[np.float64]:
        """The average, float64 in the shape of ``model.parameters``: a copy.

        NaN for a network of an ensemble that stopped before the first epoch to be averaged.

        Raises
        ------
        CallOrderError
            If there was no update yet.
        """
        if self._average is None or not self._count.any():
            raise CallOrderError(
                "WeightAverage: got no parameters yet, wanted a fit of at least as many epochs as "
                f"start={self.start}, or a call of update(model)"
            )
        return np.where(self._count[..., None], self._average, np.nan)

    def __call__(self, event: EpochEnd) -> None:
        """Take note of an epoch, as a callback of `fit`."""
        if event.epoch >= self.start:
            # NaN is the loss of a network that has stopped.
            self._update(event.model, ~np.isnan(event.loss))

    def update(self, model: Any) -> None:
        """Take the present parameters of an `MLP` or an `Ensemble` into the average.

        Raises
        ------
        DTypeError, ShapeError
            If it is none, or one of another shape than before.
        """
        self._update(model, np.True_)

    def _update(self, model: Any, taken: Any) -> None:
        parameters = _parameters_of(model)
        if self._average is None:
            self._average = np.zeros(parameters.shape)
            self._count = np.zeros(parameters.shape[:-1], dtype=np.int64)
        _check_shape(parameters, self._average)
        counts = self._count[..., None]
        change = parameters - self._average
        if self.decay is None:
            change /= counts + 1
        else:
            change *= np.where(counts == 0, 1.0, 1.0 - self.decay)
        change *= np.asarray(taken)[..., None]
        self._average += change
        self._count = np.asarray(self._count + taken)

    def apply_to(self, model: Any) -> "Applied":
        """Give a model the average as its parameters, in the model's dtype.

        In a ``with`` statement the model gets back what it had, at the end. The optimizer's state
        stays as it is. A network of an ensemble that has no average keeps its parameters.

        Raises
        ------
        CallOrderError
            If there was no update yet.
        BusyError
            If the model is being trained.
        """
        before, average = _parameters_of(model).copy(), self.parameters
        _check_shape(before, average)
        model.parameters = np.where(np.isnan(average), before, average)
        return Applied(model, before)

    def state_dict(self) -> dict[str, Array]:
        """Return what `load_state_dict` goes on from, as arrays by name: copies."""
        if self._average is None:
            return {}
        return {"average": self._average.copy(), "count": self._count.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another average was, whose `state_dict` this is."""
        average = state.get("average")
        self._average = None if average is None else np.array(average, dtype=np.float64)
        self._count = np.array(state.get("count", 0), dtype=np.int64)

    def __repr__(self) -> str:
        return f"WeightAverage(decay={self.decay!r}, start={self.start})"


class Applied:
    """A model with other parameters: the end of a ``with`` statement gives back what it had."""

    def __init__(self, model: Any, before: Array) -> None:
        self._model, self._before = model, before

    def __enter__(self) -> Any:
        """Return the model."""
        return self._model

    def __exit__(self, *error: object) -> None:
        """Go back to the parameters from before."""
        self._model.parameters = self._before


def _parameters_of(model: Any) -> Array:
    held = getattr(model, "parameters", None)
    if not isinstance(held, np.ndarray):
        raise DTypeError(f"model: got {type(model).__name__}, wanted an MLP or an Ensemble")
    return held


def _check_shape(parameters: Array, average: Array) -> None:
    if parameters.shape != average.shape:
        raise ShapeError(
            f"model: got parameters of shape {parameters.shape}, wanted {average.shape}, as those "
            "of the average"
        )
