"""What a fit did, epoch by epoch."""

import csv
import math
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.errors import MissingPackageError


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


class EpochRecords:
    """The epochs of a fit, each whole.

    One is added or replaced by one operation, so an interrupt leaves all columns equally long.
    """

    def __init__(self) -> None:
        self._epochs: list[EpochRecord] = []

    def record_validation(self, loss: Any, score: Any) -> None:
        """Add the validation of the last epoch."""
        self._epochs[-1] = self._epochs[-1]._replace(validation_loss=loss, validation_score=score)

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

    def plot(self, path: str | PathLike[str] | None = None) -> Any:
        """Plot the loss by epoch; of several networks, a line for each.

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


class History(EpochRecords):
    """The record of a fit. It holds the finished epochs, also of a fit that was interrupted.

    Attributes
    ----------
    kernel, device : str
        What ran it.
    metric : str
        What `validation_score` is.
    rows : int
        Rows of an epoch.
    best_epoch : int or None
        The epoch, from 1, that early stopping found best; None in a fit without it.

    Notes
    -----
    All columns are equally long, or empty. An epoch that an interrupt left without its validation
    has NaN there.
    """

    def __init__(self, kernel: str, device: str, metric: str, rows: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.device = device
        self.metric = metric
        self.rows = rows
        self.best_epoch: int | None = None

    def record(
        self, loss: float, seconds: float, penalty: float = 0.0, learning_rate: float = math.nan
    ) -> None:
        """Add an epoch."""
        self._epochs.append(EpochRecord(loss, seconds, penalty, learning_rate))

    def last(self) -> dict[str, Any]:
        """Return what is known of the last epoch, by name."""
        return {"epoch": len(self), **self._epochs[-1]._asdict()}

    def _numbers(self, name: str) -> NDArray[np.float64]:
        # None becomes NaN.
        return np.array(self._column(name), dtype=np.float64)

    @property
    def loss(self) -> NDArray[np.float64]:
        """Loss of each epoch: of its mini-batches while they were trained on."""
        return self._numbers("loss")

    @property
    def penalty(self) -> NDArray[np.float64]:
        """The L2 penalty of each epoch, which is not part of `loss`; zeros without one."""
        return self._numbers("penalty")

    @property
    def learning_rate(self) -> NDArray[np.float64]:
        """Learning rate of the last step of each epoch."""
        return self._numbers("learning_rate")

    @property
    def validation_loss(self) -> NDArray[np.float64]:
        """Loss on the validation data after each epoch; empty without validation data."""
        return self._numbers("validation_loss")

    @property
    def validation_score(self) -> NDArray[np.float64]:
        """Score on the validation data after each epoch; empty without validation data."""
        return self._numbers("validation_score")

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Seconds of training of each epoch, without the validation."""
        return self._numbers("seconds")

    @property
    def rows_per_second(self) -> float:
        """Rows trained on a second, over all epochs."""
        total = sum(self._column("seconds"))
        return self.rows * len(self) / total if total > 0 else 0.0

    def phrases(self, epoch: int = -1, digits: int = 6) -> list[str]:
        """Return what is known of one epoch in words, the loss first."""
        record = self._epochs[epoch]
        said = [f"loss {record.loss:.{digits}g}"]
        if record.validation_loss is not None:
            said.append(f"validation loss {record.validation_loss:.{digits}g}")
            said.append(f"validation {self.metric} {record.validation_score:.4f}")
        return said

    def line(self, epoch: int = -1) -> str:
        """Return one epoch in words."""
        return ", ".join(self.phrases(epoch))

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write one line an epoch to a CSV file."""
        columns = {name: self._column(name) for name in ("loss", "seconds", "learning_rate")}
        penalty, validation = self._column("penalty"), self._column("validation_loss")
        if any(penalty):
            columns["penalty"] = penalty
        if validation:
            columns["validation_loss"] = validation
            columns[f"validation_{self.metric}"] = self._column("validation_score")
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", *columns])
            lines = zip(*columns.values(), strict=True)
            writer.writerows([epoch, *line] for epoch, line in enumerate(lines, start=1))

    def __repr__(self) -> str:
        head = f"History of {len(self)} epochs on {self.kernel}"
        if not len(self):
            return f"<{head}>"
        return f"<{head}: {self.line()}, {self.rows_per_second:,.0f} rows/s>"
