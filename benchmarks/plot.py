"""The plot of a run: how many times as long as fastmlp its best peer takes, case by case."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from benchmarks.comparisons import comparisons


def draw(document: dict[str, Any], path: Path) -> str:
    """Draw the ratios of the training suite; return a line that says what became of it."""
    if importlib.util.find_spec("matplotlib") is None:
        return "No plot: matplotlib is not installed (pip install matplotlib)."
    found = [item for item in comparisons(document) if item.suite == "training" and item.ratio]
    if not found:
        return "No plot: no case was trained by both fastmlp and a peer."
    import matplotlib

    matplotlib.use("Agg")  # no window: a run may have no screen
    from matplotlib import pyplot

    cases = list(dict.fromkeys(item.case for item in found))
    devices = list(dict.fromkeys(item.device for item in found))
    figure, axis = pyplot.subplots(figsize=(9, 1.2 + 0.5 * len(cases)), layout="constrained")
    height = 0.8 / len(devices)
    for index, device in enumerate(devices):
        on = [item for item in found if item.device == device]
        places = [cases.index(item.case) + (index - (len(devices) - 1) / 2) * height for item in on]
        ratios = [item.ratio for item in on]
        errors = [[r.median - r.low for r in ratios], [r.high - r.median for r in ratios]]
        # From 1, where both are as fast: a bar's length from another place would say nothing.
        lengths = [r.median - 1 for r in ratios]
        axis.barh(places, lengths, height, left=1, xerr=errors, label=device.upper(), capsize=3)
        if device == "cpu":
            goals = [item.goal or None for item in on]
            axis.plot(goals, places, "D", color="black", markersize=4, label="target")
    axis.axvline(1, color="black", linewidth=1)
    axis.set(xscale="log", xlabel="time of the best peer over fastmlp's (right of 1: faster)")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    batches = {item.case: item.batch for item in found}
    axis.set_yticks(range(len(cases)), [f"{case}, {batches[case]}" for case in cases])
    axis.invert_yaxis()
    axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return f"Plot: {path}"
