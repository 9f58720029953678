"""The plot of a run: how many times as long as fastmlp each peer takes, case by case."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.comparisons import Comparison, Spread, comparisons, ratio

MARKERS = "osD^vP"


def peers(item: Comparison) -> dict[str, Spread]:
    """Return the ratio of each peer's best setting to what fastmlp chooses."""
    ours = item.best("ours")
    if ours is None:
        return {}
    return {
        setting.provider: ratio(setting, ours)
        for setting in item.providers()
        if setting.role == "peer" and setting.turns.keys() & ours.turns.keys()
    }


def draw(document: dict[str, Any], path: Path) -> str:
    """Draw the ratios of the training suite; return a line that says what became of it."""
    if importlib.util.find_spec("matplotlib") is None:
        return "No plot: matplotlib is not installed (pip install matplotlib)."
    found = [item for item in comparisons(document) if item.suite == "training" and peers(item)]
    if not found:
        return "No plot: no case was trained by both fastmlp and a peer."
    import matplotlib

    matplotlib.use("Agg")  # no window: a run may have no screen
    from matplotlib import pyplot

    cases = list(dict.fromkeys((item.case, item.batch) for item in found))
    devices = list(dict.fromkeys(item.device for item in found))
    names = sorted({name for item in found for name in peers(item)})
    size = (9 * len(devices), 2 + 0.4 * len(cases))
    figure, axes = pyplot.subplots(1, len(devices), figsize=size, squeeze=False, sharey=True)
    for axis, device in zip(axes.flat, devices, strict=True):
        on = [item for item in found if item.device == device]
        for name, marker in zip(names, MARKERS, strict=False):
            points = [
                (peers(item)[name], cases.index((item.case, item.batch)))
                for item in on
                if name in peers(item)
            ]
            ratios, places = [point[0] for point in points], [point[1] for point in points]
            errors = [[r.median - r.low for r in ratios], [r.high - r.median for r in ratios]]
            medians = [r.median for r in ratios]
            axis.errorbar(medians, places, xerr=errors, fmt=marker, label=name, capsize=2)
        axis.axvline(1, color="black", linewidth=1)
        axis.set(
            xscale="log",
            xlabel="time of a training step over fastmlp's (right of 1: fastmlp is faster)",
            title=f"{record.machine(document)}, {device.upper()}, {document['datetime'][:10]}",
        )
        axis.xaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3, axis="x")
    axes.flat[0].set_yticks(range(len(cases)), [f"{case}, {batch}" for case, batch in cases])
    axes.flat[0].set_ylabel("units of each layer, batch size")
    axes.flat[0].invert_yaxis()
    axes.flat[-1].legend(frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return f"Plot: {path}"
