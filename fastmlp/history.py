"""What a fit did, epoch by epoch."""

import csv
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.errors import MissingPackageError

Numbers = NDArray[np.float64]


class EpochRecord(NamedTuple):
    """An epoch: each number is a float, or of several networks an array with one for each.

    The validation is None without validation data, and after an interrupt that came before it.
    """

    loss: Any
    seconds: float
    penalty: Any
    learning_rate: Any
    validation_loss: Any = None
    validation_score: Any = None


class History:
    """The record of a fit. It holds the finished epochs, also of a fit that was interrupted.

    Attributes
    ----------
    kernel, device : str
        What ran it.
    metric : str
        What `validation_score` is.
    rows : int
        Rows of an epoch.
    members : int or None
        Networks of an ensemble, or None: then a column has no axis of them.
    best_epoch : int, ndarray or None
        The epoch, from 1, that early stopping found best, of each network of an ensemble; None in a
        fit without it.

    Notes
    -----
    Columns are (epochs,), or of an ensemble (epochs, members) with NaN for a network that had
    stopped. All are equally long, or empty. An epoch that an interrupt left without its validation
    has NaN there.
    """

    def __init__(
        self, kernel: str, device: str, metric: str, rows: int, members: int | None = None
    ) -> None:
        self.kernel = kernel
        self.device = device
        self.metric = metric
        self.rows = rows
        self.members = members
        self.best_epoch: Any = None
        # Each is added or replaced by one operation: an interrupt leaves all columns equally long.
        self._epochs: list[EpochRecord] = []

    def record(
        self, loss: Any, seconds: float, penalty: Any = 0.0, learning_rate: Any = np.nan
    ) -> None:
        """Add an epoch: of an ensemble one number a network, and the seconds of all together."""
        self._epochs.append(EpochRecord(loss, seconds, penalty, learning_rate))

    def record_validation(self, loss: Any, score: Any) -> None:
        """Add the validation of the last epoch."""
        self._epochs[-1] = self._epochs[-1]._replace(validation_loss=loss, validation_score=score)

    def append(self, earlier: "History") -> None:
        """Add the epochs of another history: this one goes on from there."""
        self._epochs.extend(earlier._epochs)

    def last(self) -> dict[str, Any]:
        """Return what is known of the last epoch, by name."""
        return {"epoch": len(self), **self._epochs[-1]._asdict()}

    def __len__(self) -> int:
        """Return the number of finished epochs."""
        return len(self._epochs)

    def __bool__(self) -> bool:
        """Return True: a history without epochs is still a history."""
        return True

    def _column(self, name: str) -> list[Any]:
        """Return a number of all epochs; nothing if no epoch has it."""
        values = [getattr(record, name) for record in self._epochs]
        return [] if all(value is None for value in values) else values

    def _numbers(self, name: str) -> Numbers:
        shape = () if self.members is None else (self.members,)
        missing = np.full(shape, np.nan)
        rows = [missing if each is None else each for each in self._column(name)]
        return np.array(rows, dtype=np.float64).reshape(len(rows), *shape)

    @property
    def loss(self) -> Numbers:
        """Loss of each epoch: of its mini-batches while they were trained on."""
        return self._numbers("loss")

    @property
    def penalty(self) -> Numbers:
        """The L2 penalty of each epoch, which is not part of `loss`; zeros without one."""
        return self._numbers("penalty")

    @property
    def learning_rate(self) -> Numbers:
        """Learning rate of the last step of each epoch."""
        return self._numbers("learning_rate")

    @property
    def validation_loss(self) -> Numbers:
        """Loss on the validation data after each epoch; empty without validation data."""
        return self._numbers("validation_loss")

    @property
    def validation_score(self) -> Numbers:
        """Score on the validation data after each epoch; empty without validation data."""
        return self._numbers("validation_score")

    @property
    def seconds(self) -> Numbers:
        """Seconds of training of each epoch, (epochs,), without the validation."""
        return np.array(self._column("seconds"), dtype=np.float64)

    @property
    def rows_per_second(self) -> float:
        """Rows trained on a second, over all epochs and networks."""
        total = sum(self._column("seconds"))
        trained = np.count_nonzero(~np.isnan(self.loss))
        return self.rows * trained / total if total > 0 else 0.0

    def member(self, index: int) -> "History":
        """Return the record of one network of an ensemble; its seconds are its share of all."""
        history = History(self.kernel, self.device, self.metric, self.rows)
        for record in self._epochs:
            trained = ~np.isnan(record.loss)
            if not trained[index]:
                break
            numbers = (record.loss, record.penalty, record.learning_rate)
            loss, penalty, rate = (float(each[index]) for each in numbers)
            history.record(loss, record.seconds / int(trained.sum()), penalty, rate)
            if record.validation_loss is not None:
                history.record_validation(
                    float(record.validation_loss[index]), float(record.validation_score[index])
                )
        if self.best_epoch is not None:
            history.best_epoch = int(self.best_epoch[index])
        return history

    def phrases(self, epoch: int = -1, digits: int = 6) -> list[str]:
        """Return what is known of one epoch in words, the loss first.

        Of an ensemble the mean over the networks, and the range.
        """
        record = self._epochs[epoch]
        said = [f"loss {_said(record.loss, f'.{digits}g')}"]
        if record.validation_loss is not None:
            said.append(f"validation loss {_said(record.validation_loss, f'.{digits}g')}")
            said.append(f"validation {self.metric} {_said(record.validation_score, '.4f')}")
        return said

    def line(self, epoch: int = -1) -> str:
        """Return one epoch in words."""
        return ", ".join(self.phrases(epoch))

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write one line an epoch to a CSV file; of an ensemble one an epoch and network."""
        titles = {"loss": "loss", "seconds": "seconds", "learning_rate": "learning_rate"}
        if np.nansum(self.penalty):
            titles["penalty"] = "penalty"
        if len(self.validation_loss):
            titles["validation_loss"] = "validation_loss"
            titles["validation_score"] = f"validation_{self.metric}"
        head, alone = ["epoch"], [self]
        if self.members is not None:
            head, alone = ["epoch", "member"], [self.member(k) for k in range(self.members)]
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*head, *titles.values()])
            for epoch in range(len(self)):
                for member, history in enumerate(alone):
                    # A network that had stopped has no line.
                    for record in history._epochs[epoch : epoch + 1]:
                        numbers = [getattr(record, name) for name in titles]
                        writer.writerow([*(epoch + 1, member)[: len(head)], *numbers])

    def plot(self, path: str | PathLike[str] | None = None) -> Any:
        """Plot the loss by epoch; of an ensemble, a line for each network.

        Parameters
        ----------
        path : path, optional
            Where the picture is saved too; its ending says the format.

        Returns
        -------
        matplotlib.figure.Figure
            A notebook shows it where it is the value of a cell.

        Raises
        ------
        MissingPackageError
            If matplotlib is not installed.

        Examples
        --------
        ``history.plot()`` in a notebook, ``history.plot("loss.png")`` elsewhere.
        """
        try:
            from fastmlp.figures import NotebookFigure
        except ImportError:
            raise MissingPackageError(
                "plot: got no matplotlib, wanted it installed: pip install fastmlp[plot]"
            ) from None
        figure = NotebookFigure(layout="constrained")
        axes = figure.add_subplot()
        kinds = ("training", "loss", "C0"), ("validation", "validation_loss", "C1")
        for label, name, color in kinds:
            values = getattr(self, name)
            if len(values):
                lines = axes.plot(range(1, len(values) + 1), values, color=color)
                lines[0].set_label(label)
        axes.set(xlabel="epoch", ylabel="loss")
        if axes.lines:
            axes.legend()
        if path is not None:
            figure.savefig(path)
        return figure

    def __repr__(self) -> str:
        networks = "" if self.members is None else f" of {self.members} networks"
        head = f"History of {len(self)} epochs{networks} on {self.kernel}"
        if not len(self):
            return f"<{head}>"
        return f"<{head}: {self.line()}, {self.rows_per_second:,.0f} rows/s>"


def _said(values: Any, form: str) -> str:
    """Return a number in words; of several their mean and range, of those that there are."""
    if np.ndim(values) == 0:
        return format(float(values), form)
    there = values[~np.isnan(values)]
    numbers = there.mean(), there.min(), there.max()
    mean, least, most = (format(float(each), form) for each in numbers)
    return f"{mean} ({least} to {most})"
