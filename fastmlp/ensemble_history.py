"""What a fit of several networks did, epoch by epoch and network by network."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.history import History

Numbers = NDArray[np.float64]


class EnsembleHistory:
    """The record of a fit of an ensemble. It holds the epochs that all its networks finished.

    Attributes
    ----------
    kernel, device : str
        What ran it.
    metric : str
        What `validation_score` is.
    rows, members : int
        Rows of an epoch, and networks.
    """

    def __init__(self, kernel: str, device: str, metric: str, rows: int, members: int) -> None:
        self.kernel = kernel
        self.device = device
        self.metric = metric
        self.rows = rows
        self.members = members
        self._loss: list[Numbers] = []
        self._penalty: list[Numbers] = []
        self._learning_rate: list[Numbers] = []
        self._seconds: list[float] = []
        self._validation_loss: list[Numbers] = []
        self._validation_score: list[Numbers] = []

    def record(
        self, loss: Numbers, seconds: float, penalty: Numbers, learning_rate: Numbers
    ) -> None:
        """Add an epoch: one number a network, and the seconds of all together."""
        self._loss.append(loss)
        self._penalty.append(penalty)
        self._learning_rate.append(learning_rate)
        self._seconds.append(seconds)

    def record_validation(self, loss: Numbers, score: Numbers) -> None:
        """Add the validation of the last epoch."""
        self._validation_loss.append(loss)
        self._validation_score.append(score)

    def __len__(self) -> int:
        """Return the number of finished epochs."""
        return len(self._loss)

    def __bool__(self) -> bool:
        """Return True: a history without epochs is still a history."""
        return True

    def _table(self, rows: list[Numbers]) -> Numbers:
        return np.array(rows, dtype=np.float64).reshape(len(rows), self.members)

    @property
    def loss(self) -> Numbers:
        """Loss of each network in each epoch, (epochs, members)."""
        return self._table(self._loss)

    @property
    def penalty(self) -> Numbers:
        """The L2 penalty, (epochs, members), which is not part of `loss`; zeros without one."""
        return self._table(self._penalty)

    @property
    def learning_rate(self) -> Numbers:
        """Learning rate of the last step of each epoch, (epochs, members)."""
        return self._table(self._learning_rate)

    @property
    def validation_loss(self) -> Numbers:
        """Loss on the validation data, (epochs, members); no rows without validation data."""
        return self._table(self._validation_loss)

    @property
    def validation_score(self) -> Numbers:
        """Score on the validation data, (epochs, members); no rows without validation data."""
        return self._table(self._validation_score)

    @property
    def seconds(self) -> Numbers:
        """Seconds of training of each epoch, all networks together, without the validation."""
        return np.array(self._seconds, dtype=np.float64)

    @property
    def rows_per_second(self) -> float:
        """Rows that networks were trained on a second, over all of them and all epochs."""
        total = sum(self._seconds)
        return self.rows * self.members * len(self) / total if total > 0 else 0.0

    def member(self, index: int) -> History:
        """Return the record of one network; its seconds are its share of those of all."""
        history = History(self.kernel, self.device, self.metric, self.rows)
        columns = zip(self._loss, self._seconds, self._penalty, self._learning_rate, strict=True)
        for loss, seconds, penalty, rate in columns:
            share = seconds / self.members
            history.record(float(loss[index]), share, float(penalty[index]), float(rate[index]))
        for loss, score in zip(self._validation_loss, self._validation_score, strict=True):
            history.record_validation(float(loss[index]), float(score[index]))
        return history

    def line(self, epoch: int = -1) -> str:
        """Return one epoch in words: the mean over the networks, and the range."""
        parts = [f"loss {_spread(self._loss[epoch])}"]
        if self._validation_loss:
            parts.append(f"validation loss {_spread(self._validation_loss[epoch])}")
            parts.append(f"validation {self.metric} {_spread(self._validation_score[epoch])}")
        return ", ".join(parts)

    def __repr__(self) -> str:
        head = f"History of {len(self)} epochs of {self.members} networks on {self.kernel}"
        if not self._loss:
            return f"<{head}>"
        return f"<{head}: {self.line()}, {self.rows_per_second:,.0f} rows/s>"


def _spread(values: Any) -> str:
    return f"{np.mean(values):.6g} ({np.min(values):.6g} to {np.max(values):.6g})"
