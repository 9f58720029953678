"""What a fit did, epoch by epoch."""

import csv
import math
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.errors import MissingPackageError


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
    best_epoch : int or None
        The epoch, from 1, that early stopping found best; None in a fit without it.
    """

    def __init__(self, kernel: str, device: str, metric: str, rows: int) -> None:
        self.kernel = kernel
        self.device = device
        self.metric = metric
        self.rows = rows
        self.best_epoch: int | None = None
        self._loss: list[float] = []
        self._penalty: list[float] = []
        self._learning_rate: list[float] = []
        self._seconds: list[float] = []
        self._validation_loss: list[float] = []
        self._validation_score: list[float] = []

    def record(
        self, loss: float, seconds: float, penalty: float = 0.0, learning_rate: float = math.nan
    ) -> None:
        """Add an epoch."""
        self._loss.append(loss)
        self._penalty.append(penalty)
        self._learning_rate.append(learning_rate)
        self._seconds.append(seconds)

    def record_validation(self, loss: float, score: float) -> None:
        """Add the validation of the last epoch."""
        self._validation_loss.append(loss)
        self._validation_score.append(score)

    def last(self) -> dict[str, Any]:
        """Return what is known of the last epoch, by name."""
        validated = bool(self._validation_loss)
        return {
            "epoch": len(self),
            "loss": self._loss[-1],
            "penalty": self._penalty[-1],
            "learning_rate": self._learning_rate[-1],
            "seconds": self._seconds[-1],
            "validation_loss": self._validation_loss[-1] if validated else None,
            "validation_score": self._validation_score[-1] if validated else None,
        }

    def __len__(self) -> int:
        """Return the number of finished epochs."""
        return len(self._loss)

    def __bool__(self) -> bool:
        """Return True: a history without epochs is still a history."""
        return True

    @property
    def loss(self) -> NDArray[np.float64]:
        """Loss of each epoch: of its mini-batches while they were trained on."""
        return np.array(self._loss)

    @property
    def penalty(self) -> NDArray[np.float64]:
        """The L2 penalty of each epoch, which is not part of `loss`; zeros without one."""
        return np.array(self._penalty)

    @property
    def learning_rate(self) -> NDArray[np.float64]:
        """Learning rate of the last step of each epoch."""
        return np.array(self._learning_rate)

    @property
    def validation_loss(self) -> NDArray[np.float64]:
        """Loss on the validation data after each epoch; empty without validation data."""
        return np.array(self._validation_loss)

    @property
    def validation_score(self) -> NDArray[np.float64]:
        """Score on the validation data after each epoch; empty without validation data."""
        return np.array(self._validation_score)

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Seconds of training of each epoch, without the validation."""
        return np.array(self._seconds)

    @property
    def rows_per_second(self) -> float:
        """Rows trained on a second, over all epochs."""
        total = sum(self._seconds)
        return self.rows * len(self) / total if total > 0 else 0.0

    def line(self, epoch: int = -1) -> str:
        """Return one epoch in words."""
        parts = [f"loss {self._loss[epoch]:.6g}"]
        if self._validation_loss:
            parts.append(f"validation loss {self._validation_loss[epoch]:.6g}")
            parts.append(f"validation {self.metric} {self._validation_score[epoch]:.4f}")
        return ", ".join(parts)

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write one line an epoch to a CSV file."""
        columns: dict[str, list[float]] = {"loss": self._loss, "seconds": self._seconds}
        columns["learning_rate"] = self._learning_rate
        if any(self._penalty):
            columns["penalty"] = self._penalty
        if self._validation_loss:
            columns["validation_loss"] = self._validation_loss
            columns[f"validation_{self.metric}"] = self._validation_score
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", *columns])
            # Not strict: an interrupt may fall between an epoch and its validation.
            lines = zip(*columns.values(), strict=False)
            writer.writerows([epoch, *line] for epoch, line in enumerate(lines, start=1))

    def plot(self, path: str | PathLike[str] | None = None) -> Any:
        """Plot the loss by epoch; save it to `path` if given; return the matplotlib figure."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise MissingPackageError(
                "plot: got no matplotlib, wanted it installed: pip install fastmlp[plot]"
            ) from None
        figure = Figure(layout="constrained")
        axes = figure.add_subplot()
        for label, values in (("training", self._loss), ("validation", self._validation_loss)):
            if values:
                axes.plot(range(1, len(values) + 1), values, label=label)
        axes.set(xlabel="epoch", ylabel="loss")
        axes.legend()
        if path is not None:
            figure.savefig(path)
        return figure

    def __repr__(self) -> str:
        head = f"History of {len(self)} epochs on {self.kernel}"
        if not self._loss:
            return f"<{head}>"
        return f"<{head}: {self.line()}, {self.rows_per_second:,.0f} rows/s>"
