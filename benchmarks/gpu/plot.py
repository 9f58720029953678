"""The plot of a GPU run: how many times as long as fastmlp its best peer takes, case by case."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from benchmarks.comparisons import Spread


def draw(compared: list[tuple[str, str, Spread]], path: Path) -> str:
    """Draw (case, precision, ratio), a bar each; return a line that says what became of it."""
    if importlib.util.find_spec("matplotlib") is None:
        return "No plot: matplotlib is not installed (pip install matplotlib)."
    if not compared:
        return "No plot: no case was trained by both fastmlp and a peer."
    import matplotlib

    matplotlib.use("Agg")  # no window: a run may have no screen
    from matplotlib import pyplot

    cases = list(dict.fromkeys(case for case, _, _ in compared))
    precisions = list(dict.fromkeys(precision for _, precision, _ in compared))
    figure, axis = pyplot.subplots(figsize=(9, 1.2 + 0.6 * len(cases)), layout="constrained")
    height = 0.8 / len(precisions)
    for index, precision in enumerate(precisions):
        rows = [(case, ratio) for case, kind, ratio in compared if kind == precision]
        shift = (index - (len(precisions) - 1) / 2) * height
        places = [cases.index(case) + shift for case, _ in rows]
        found = [ratio for _, ratio in rows]
        errors = [[r.median - r.low for r in found], [r.high - r.median for r in found]]
        # From 1, where both are as fast: a bar's length from another place would say nothing.
        lengths = [r.median - 1 for r in found]
        axis.barh(places, lengths, height, left=1, xerr=errors, label=precision, capsize=2)
    axis.axvline(1, color="black", linewidth=1)
    axis.set(xscale="log", xlabel="time of the best peer over fastmlp's (right of 1: faster)")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.set_yticks(range(len(cases)), cases)
    axis.invert_yaxis()
    axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return f"Plot: {path}"
