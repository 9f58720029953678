"""Figures that a notebook shows. Importing this imports matplotlib."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Numbers that differ by more are drawn on a logarithmic scale.
WIDE = 100.0


class NotebookFigure(Figure):
    """A matplotlib figure that a notebook shows when it is the value of a cell.

    Without this class, a notebook shows a figure only once `matplotlib.pyplot` is imported. That
    module keeps a list of all open figures, which would keep this one alive with the process.
    """

    def _repr_png_(self) -> bytes:
        """Return the picture, as IPython asks for it."""
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def curves(
    drawn: Mapping[str, NDArray[np.float64]], title: str, best_epoch: Any, log: bool | None
) -> NotebookFigure:
    """Return a figure of numbers by epoch, (epochs,) or (epochs, networks) each, by their label.

    `best_epoch`, if there is one, is marked on each line. `log` is the scale; see `WIDE`.
    """
    figure = NotebookFigure(layout="constrained")
    axes = figure.add_subplot()
    best = np.atleast_1d(0 if best_epoch is None else best_epoch)
    for number, (label, values) in enumerate(drawn.items()):
        lines = axes.plot(range(1, len(values) + 1), values, color=f"C{number}")
        lines[0].set_label(label)
        for line, epoch in zip(lines, best.tolist(), strict=False):
            if epoch:
                line.set(marker="o", markevery=[epoch - 1])
    if drawn and best.any():
        axes.plot([], [], "o", color="gray", label="best epoch")
    axes.set(xlabel="epoch", ylabel=title)
    numbers = np.concatenate([np.ravel(values) for values in drawn.values()] or [np.ones(1)])
    numbers = numbers[np.isfinite(numbers)]
    wide = len(numbers) > 0 and numbers.min() > 0 and numbers.max() > WIDE * numbers.min()
    if log or (log is None and wide):
        axes.set_yscale("log")
    if axes.lines:
        axes.legend()
    return figure
