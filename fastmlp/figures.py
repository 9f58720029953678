"""Figures that a notebook shows. Importing this imports matplotlib."""

import io

from matplotlib.figure import Figure


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
