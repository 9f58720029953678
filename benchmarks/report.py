"""Turn the JSON of a run into tables and a plot.

``python -m benchmarks.report FILE.json [--out FOLDER]`` prints the tables as Markdown; with
``--out`` it also writes them and the plot. A ratio is the peer's time over fastmlp's of the same
turn of the round-robin, so above 1 fastmlp is faster; of the ratios of all turns the median and
the quartiles are shown. Each provider's best number of threads is the one that counts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Spread:
    """A median between its quartiles."""

    low: float
    median: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    """Return the median and the quartiles, interpolated linearly."""
    return Spread(*(float(value) for value in np.percentile(list(values), (25, 50, 75))))


@dataclass(frozen=True)
class Setting:
    """What was measured under one setting of a provider: seconds a step, turn by turn."""

    provider: str
    role: str
    threads: int
    kernel: str
    chosen: bool
    flops: float
    turns: dict[int, list[float]]

    @property
    def seconds(self) -> Spread:
        """Seconds a step over all rounds of all turns."""
        return spread(second for rounds in self.turns.values() for second in rounds)

    @property
    def name(self) -> str:
        """The provider with its setting, for a table's cell."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.provider} ({', '.join(filter(None, (self.kernel, threads)))})"


def ratio(slower: Setting, faster: Setting) -> Spread:
    """Return how many times as long `slower` takes, compared turn by turn."""
    common = sorted(slower.turns.keys() & faster.turns.keys())
    if not common:
        raise ValueError(f"{slower.name} and {faster.name} have no turn in common")
    return spread(np.median(slower.turns[k]) / np.median(faster.turns[k]) for k in common)


@dataclass(frozen=True)
class Comparison:
    """The settings of one case on one device, the best of each provider first."""

    suite: str
    case: str
    device: str
    reason: str
    settings: tuple[Setting, ...]

    def best(self, role: str) -> Setting | None:
        """Return the fastest setting of a role; of fastmlp's, those that dispatch chooses."""
        able = [item for item in self.settings if item.role == role and item.chosen]
        return min(able, key=lambda item: item.seconds.median, default=None)

    @property
    def ratio(self) -> Spread | None:
        """The best peer's time over fastmlp's."""
        ours, peer = self.best("ours"), self.best("peer")
        return ratio(peer, ours) if ours and peer else None

    @property
    def regret(self) -> float | None:
        """How much longer the chosen kernel takes than the best one; None if there is one only."""
        every = [item for item in self.settings if item.role == "ours"]
        ours = self.best("ours")
        if ours is None or len({item.kernel for item in every}) < 2:
            return None
        best = min(every, key=lambda item: item.seconds.median)
        return ratio(ours, best).median - 1

    def providers(self) -> list[Setting]:
        """Return the best setting of each provider and kernel, the fastest first."""
        found: dict[tuple[str, str], Setting] = {}
        for item in sorted(self.settings, key=lambda item: item.seconds.median):
            found.setdefault((item.provider, item.kernel), item)
        return list(found.values())


def comparisons(document: dict[str, Any]) -> list[Comparison]:
    """Group a run's benchmarks by suite, case and device, in the order of the file."""
    groups: dict[tuple[str, str, str], dict[tuple, Setting]] = {}
    reasons = {}
    for benchmark in document["benchmarks"]:
        about, data = benchmark["extra_info"], benchmark["stats"]["data"]
        key = (about["suite"], about["case"], about["device"])
        reasons[key] = about["reason"]
        which = (about["provider"], about["threads"], about["kernel"])
        setting = groups.setdefault(key, {}).setdefault(
            which,
            Setting(
                about["provider"],
                about["role"],
                about["threads"],
                about["kernel"],
                about["chosen"],
                about["flops"],
                {},
            ),
        )
        seconds = [value / about["per"] for value in data]
        setting.turns.setdefault(about["turn"], []).extend(seconds)
    return [
        Comparison(*key, reasons[key], tuple(settings.values())) for key, settings in groups.items()
    ]


def show_time(time: Spread) -> str:
    """Return a time with its quartiles, in the unit that suits it."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if time.median * factor >= 1 or unit == "µs":
            break
    return f"{_digits(time, factor)} {unit}"


def show_ratio(value: Spread | None) -> str:
    """Return a ratio with its quartiles, or a dash."""
    return "–" if value is None else f"**{value.median:.2f}** ({value.low:.2f}–{value.high:.2f})"


def _digits(value: Spread, factor: float) -> str:
    low, median, high = (f"{part * factor:.3g}" for part in (value.low, value.median, value.high))
    return f"{median} ({low}–{high})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def side_by_side(found: list[Comparison]) -> str:
    """Return the training suite, one row a case, the devices beside each other."""
    devices = list(dict.fromkeys(item.device for item in found))
    head = ["network, batch"]
    for device in devices:
        name = device.upper()
        head += [f"{name}: fastmlp", f"{name}: best peer", f"{name}: ratio", f"{name}: GFLOP/s"]
    both = len(devices) > 1
    cases = list(dict.fromkeys(item.case for item in found))
    rows = []
    for case in cases:
        row = [case]
        on = {item.device: item for item in found if item.case == case}
        for device in devices:
            row += device_cells(on.get(device))
        if both:
            ours = [on[device].best("ours") if device in on else None for device in devices]
            times = [item.seconds.median for item in ours if item]
            row.append(f"{times[0] / times[1]:.2f}" if len(times) == len(devices) else "–")
        rows.append(row)
    if both:
        head.append(f"fastmlp: {devices[0].upper()} over {devices[1].upper()}")
    return table(head, rows)


def device_cells(item: Comparison | None) -> list[str]:
    """Return the cells of one case on one device."""
    ours, peer = (item.best("ours"), item.best("peer")) if item else (None, None)
    return [
        show_time(ours.seconds) if ours else "–",
        f"{peer.name}: {show_time(peer.seconds)}" if peer else "–",
        show_ratio(item.ratio if item else None),
        f"{ours.flops / ours.seconds.median / 1e9:.3g}" if ours else "–",
    ]


def everybody(found: list[Comparison]) -> str:
    """Return every provider's best setting, with how many times as long as fastmlp it takes."""
    rows = []
    for item in found:
        ours = item.best("ours")
        for setting in item.providers():
            times = "–" if ours is None else show_ratio(ratio(setting, ours))
            name = f"{item.suite}: {item.case}" if item.suite != "training" else item.case
            mark = "" if setting.chosen else ", not chosen"
            row = [name, item.device, setting.name + mark, show_time(setting.seconds), times]
            rows.append(row)
    return table(["case", "device", "by", "time of one", "over fastmlp"], rows)


def machine_lines(document: dict[str, Any]) -> str:
    """Return what the figures depend on."""
    machine = document["machine_info"]
    processor = machine.get("cpu", {}).get("brand_raw") or machine.get("processor", "")
    versions = ", ".join(f"{name} {v}" for name, v in machine.get("versions", {}).items())
    commit = document.get("commit_info") or {}
    dirty = " with uncommitted changes" if commit.get("dirty") else ""
    lines = [
        f"- Machine: {processor or 'unknown processor'}, {machine.get('processors', '?')} "
        f"processors used; GPU: {machine.get('gpu') or 'none'}; {machine.get('system', '')}, "
        f"Python {machine.get('python_version', '')}",
        f"- Versions: {versions}",
        f"- Commit: {str(commit.get('id', 'unknown'))[:12]}{dirty}; {document['datetime'][:19]}",
    ]
    return "\n".join(lines)


def refusal_lines(document: dict[str, Any]) -> str:
    """Return who was not measured, and why."""
    lines = []
    for row in document.get("refusals", []):
        kind = {"missing": "not here", "disagreement": "refused"}.get(row["kind"], row["kind"])
        reason = " ".join(row["reason"].split())
        lines.append(f"- {row['provider']} on {row['device']}: {kind}: {reason}")
    return "\n".join(lines)


def markdown(document: dict[str, Any]) -> str:
    """Return the whole report."""
    found = comparisons(document)
    training = [item for item in found if item.suite == "training"]
    small = [item for item in found if item.suite != "training"]
    regrets = [(item, item.regret) for item in training if item.regret is not None]
    parts = [
        "# fastmlp and its peers",
        "Medians, with quartiles in brackets; a ratio is the peer's time over fastmlp's in the "
        "same turn, so above 1 fastmlp is faster. float32; every provider's parameters after one "
        "epoch agreed with float64 before it was timed, and its best number of threads counts.",
        machine_lines(document),
    ]
    if training:
        reasons = {item.case: item.reason for item in training}
        why = "\n".join(f"- {case}: {reason}" for case, reason in reasons.items())
        parts += [
            "## One training step",
            side_by_side(training),
            why,
            "## Every provider, one training step",
            "`fastmlp.fit` is a call of `fit` for one epoch, with its checks; `fastmlp` is the "
            "kernel without them.",
            everybody(training),
        ]
    if regrets:
        cells = [[item.case, item.device, f"{regret:.1%}"] for item, regret in regrets]
        parts += ["## Regret of dispatch", table(["case", "device", "slower by"], cells)]
    if small:
        parts += ["## Small calls and first calls", everybody(small)]
    if refusal_lines(document):
        parts += ["## Not measured", refusal_lines(document)]
    return "\n\n".join(parts) + "\n"


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


def write(document: dict[str, Any], folder: Path, stem: str) -> list[str]:
    """Write the tables and the plot; return lines that say where."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.md"
    path.write_text(markdown(document), encoding="utf-8")
    return [f"Tables: {path}", draw(document, folder / f"{stem}.png")]


def main(arguments: list[str] | None = None) -> int:
    """Read a run's file and report on it."""
    parser = argparse.ArgumentParser(prog="benchmarks.report", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="what `python -m benchmarks.run` wrote")
    parser.add_argument("--out", type=Path, help="folder for the tables and the plot")
    options = parser.parse_args(arguments)
    try:
        document = json.loads(options.file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"file: {options.file} cannot be read as JSON: {error}", file=sys.stderr)
        return 2
    print(markdown(document))
    if options.out:
        print("\n".join(write(document, options.out, options.file.stem)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
