"""What a fit of several networks did, epoch by epoch and network by network."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.history import EpochRecord, EpochRecords, History

Numbers = NDArray[np.float64]


class EnsembleHistory(EpochRecords):
    """The record of a fit of an ensemble. It holds the epochs that all its networks finished.

    Attributes
    ----------
    kernel, device : str
        What ran it.
    metric : str
        What `validation_score` is.
    rows, members : int
        Rows of an epoch, and networks.

    Notes
    -----
    All columns are equally long, or empty. An epoch that an interrupt left without its validation
    has NaN there.
    """

    def __init__(self, kernel: str, device: str, metric: str, rows: int, members: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.device = device
        self.metric = metric
        self.rows = rows
        self.members = members

    def record(
        self, loss: Numbers, seconds: float, penalty: Numbers, learning_rate: Numbers
    ) -> None:
        """Add an epoch: one number a network, and the seconds of all together."""
        self._epochs.append(EpochRecord(loss, seconds, penalty, learning_rate))

    def _table(self, name: str) -> Numbers:
        missing = np.full(self.members, np.nan)
        rows = [missing if each is None else each for each in self._column(name)]
        return np.array(rows, dtype=np.float64).reshape(len(rows), self.members)

    @property
    def loss(self) -> Numbers:
        """Loss of each network in each epoch, (epochs, members)."""
        return self._table("loss")

    @property
    def penalty(self) -> Numbers:
        """The L2 penalty, (epochs, members), which is not part of `loss`; zeros without one."""
        return self._table("penalty")

    @property
    def learning_rate(self) -> Numbers:
        """Learning rate of the last step of each epoch, (epochs, members)."""
        return self._table("learning_rate")

    @property
    def validation_loss(self) -> Numbers:
        """Loss on the validation data, (epochs, members); no rows without validation data."""
        return self._table("validation_loss")

    @property
    def validation_score(self) -> Numbers:
        """Score on the validation data, (epochs, members); no rows without validation data."""
        return self._table("validation_score")

    @property
    def seconds(self) -> Numbers:
        """Seconds of training of each epoch, all networks together, without the validation."""
        return np.array(self._column("seconds"), dtype=np.float64)

    @property
    def rows_per_second(self) -> float:
        """Rows that networks were trained on a second, over all of them and all epochs."""
        total = sum(self._column("seconds"))
        return self.rows * self.members * len(self) / total if total > 0 else 0.0

    def member(self, index: int) -> History:
        """Return the record of one network; its seconds are its share of those of all."""
        history = History(self.kernel, self.device, self.metric, self.rows)
        for record in self._epochs:
            numbers = (record.loss, record.penalty, record.learning_rate)
            loss, penalty, rate = (float(each[index]) for each in numbers)
            history.record(loss, record.seconds / self.members, penalty, rate)
            if record.validation_loss is not None:
                history.record_validation(
                    float(record.validation_loss[index]), float(record.validation_score[index])
                )
        return history

    def phrases(self, epoch: int = -1, digits: int = 6) -> list[str]:
        """Return what is known of one epoch in words: the mean over the networks, and the range."""
        record = self._epochs[epoch]
        said = [f"loss {_spread(record.loss, digits)}"]
        if record.validation_loss is not None:
            said.append(f"validation loss {_spread(record.validation_loss, digits)}")
            said.append(f"validation {self.metric} {_spread(record.validation_score, digits)}")
        return said

    def line(self, epoch: int = -1) -> str:
        """Return one epoch in words."""
        return ", ".join(self.phrases(epoch))

    def __repr__(self) -> str:
        head = f"History of {len(self)} epochs of {self.members} networks on {self.kernel}"
        if not len(self):
            return f"<{head}>"
        return f"<{head}: {self.line()}, {self.rows_per_second:,.0f} rows/s>"


def _spread(values: Any, digits: int) -> str:
    mean, least, most = (
        f"{float(number):.{digits}g}"
        for number in (np.mean(values), np.min(values), np.max(values))
    )
    return f"{mean} ({least} to {most})"
