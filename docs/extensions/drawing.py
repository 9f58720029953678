"""What the plots of the pages have in common: colours, sizes, and where they are kept."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window: a build may have no screen
from matplotlib import pyplot  # noqa: E402

GENERATED = Path(__file__).resolve().parents[1] / "generated"
# Told apart also without seeing red and green.
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#999999"


def picture(width=4.0, height=2.4):
    """Return a figure with one set of axes."""
    figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure, stem):
    """Write a figure to the folder of generated pictures, and forget it."""
    GENERATED.mkdir(exist_ok=True)
    # Without a date and with fixed ids, so that the same picture has the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": stem}):
        figure.savefig(GENERATED / f"{stem}.svg", metadata={"Date": None})
    pyplot.close(figure)
