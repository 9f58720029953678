"""Callbacks that write a fit down while it runs: to a CSV file, or for TensorBoard."""

import csv
import secrets
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from fastmlp.callbacks import EpochEnd
from fastmlp.errors import DTypeError, MissingPackageError, known_keywords

# After how long at most TensorBoard sees an epoch. A thread of tensorboardX writes beside the fit.
FLUSH_SECONDS = 1


def _check_path(path: Any) -> str:
    if not isinstance(path, str | PathLike):
        raise DTypeError(f"path: got {path!r}, wanted a path")
    return fspath(path)


@known_keywords
class CSVLogger:
    """Write each epoch to a CSV file as soon as it is finished, as `History.to_csv` does.

    Parameters
    ----------
    path : path
        A new fit begins the file anew. One that is resumed writes the epochs before it too.

    Raises
    ------
    OSError
        In the fit, if the file cannot be written. The model keeps its finished epochs.

    Examples
    --------
    >>> history = model.fit(X, y, epochs=3, callbacks=CSVLogger("fit.csv"))
    >>> np.genfromtxt("fit.csv", delimiter=",", names=True).dtype.names
    ('epoch', 'loss', 'seconds', 'learning_rate')
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = _check_path(path)
        self._history: Any = None
        self._titles: list[str] = []

    def __call__(self, event: EpochEnd) -> None:
        """Write the last epoch."""
        history = event.model.history
        # A penalty that was 0 so far has no column yet.
        untitled = "penalty" not in self._titles and np.nansum(event.penalty) != 0
        if history is not self._history or untitled:
            history.to_csv(self.path)
            self._history, self._titles = history, history._titles()
            return
        with Path(self.path).open("a", encoding="utf-8", newline="") as file:
            lines = history._lines(self._titles, event.epoch - 1)
            csv.writer(file).writerows([*place, *numbers] for place, numbers in lines)


@known_keywords
class TensorBoard:
    """Write the numbers of each epoch for TensorBoard, under the names of ``history.values``.

    Of an ensemble each network has its own curve, such as ``validation_loss/3``. The steps of the
    curves are the epochs of all fits, so a second fit goes on where the first ended. TensorBoard
    sees an epoch about a second later.

    Parameters
    ----------
    path : path
        The folder to write to, as ``tensorboard --logdir`` takes it. There is one for each fit that
        is to have curves of its own.

    Raises
    ------
    MissingPackageError
        If tensorboardX is not installed: ``pip install fastmlp[tensorboard]``.

    Examples
    --------
    >>> board = TensorBoard("runs/first")
    >>> history = model.fit(X, y, epochs=3, callbacks=board)
    >>> board.close()
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = _check_path(path)
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise MissingPackageError(
                "TensorBoard: got no tensorboardX, wanted it installed: "
                "pip install fastmlp[tensorboard]"
            ) from None
        self._make: Any = SummaryWriter
        self._writer: Any = None

    def __call__(self, event: EpochEnd) -> None:
        """Write the last epoch."""
        if self._writer is None:
            # Not before the first epoch: a refused fit leaves no folder.
            # Names have the second alone, so a copy would write over a file of the same second.
            own = f".{secrets.token_hex(4)}"
            self._writer = self._make(self.path, flush_secs=FLUSH_SECONDS, filename_suffix=own)
        epochs = np.atleast_1d(event.model.epochs_trained)
        for name, numbers in event.values.items():
            if np.ndim(numbers) == 0:
                self._writer.add_scalar(name, numbers, int(epochs.max()))
                continue
            for member in np.flatnonzero(~np.isnan(numbers)).tolist():
                self._writer.add_scalar(f"{name}/{member}", numbers[member], int(epochs[member]))

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy begins with: it opens a file of its own in the folder."""
        return {**self.__dict__, "_writer": None}

    def close(self) -> None:
        """Write what is left, and close the file; the end of the process does it too."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
