"""Figures that a notebook shows. Importing this imports matplotlib."""

import io

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A matplotlib figure that a notebook shows where it is the value of a cell.

    Notebooks show figures of `matplotlib.pyplot`, and other ones only once that is imported. Its
    list of all open figures would keep this one alive for as long as the process.
    """

    def _repr_png_(self) -> bytes:
        """Return the picture, as IPython asks for it."""
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()
