"""Turn the JSON of a run into tables and a plot.

``python -m benchmarks.report FILE.json [--out FOLDER]`` prints the tables as Markdown; with
``--out`` it also writes them and the plot. A ratio is the peer's time over fastmlp's of the same
turn of the round-robin, so above 1 fastmlp is faster; of the ratios of all turns the median and
the quartiles are shown. Each peer's best number of threads is the one that counts; of fastmlp, the
one that it chooses itself.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from benchmarks import record, whole_fits_report
from benchmarks.comparisons import (
    DECIDE_THEMSELVES,
    Comparison,
    Setting,
    comparisons,
    ratio,
    spread,
)
from benchmarks.plot import draw
from benchmarks.tables import (
    NONE,
    at_least,
    at_most,
    digits,
    show_ratio,
    show_share,
    show_time,
    table,
    unit_of,
)

MOST_REGRET = 1.15
BESIDE_PEERS = {
    "prediction": (
        "Predictions",
        "Calls with rows and outputs in NumPy arrays. Outputs agreed with float64 before.",
    ),
    "shuffled": (
        "Shuffled rows",
        "A step of Adam in an epoch over rows in a random order, which is given; every provider "
        "gathers its mini-batches. An incomplete last mini-batch is left out.",
    ),
    "ensembles": (
        "Ensembles",
        "A step of all networks, on the same rows in the same order.",
    ),
}
"""Suites with a table of fastmlp and its best peer: their headings, and what they measure."""


def side_by_side(found: list[Comparison], ceilings: dict[str, float]) -> str:
    """Return the training suite, one row a case, the devices beside each other.

    `ceilings` has the operations a second of the GPU's largest products, by precision.
    """
    devices = list(dict.fromkeys(item.device for item in found))
    head = ["network, batch"]
    for device in devices:
        name = device.upper()
        head += [f"{name}: fastmlp", f"{name}: best peer", f"{name}: ratio"]
        # The targets and the peak are those of the processor.
        head += [f"{name}: target"] if device == "cpu" else []
        head += [f"{name}: GFLOP/s"]
        head += [f"{name}: of {'FMA peak' if device == 'cpu' else 'measured product'}"]
    both = len(devices) > 1
    rows = []
    for case in dict.fromkeys(item.case for item in found):
        on = {item.device: item for item in found if item.case == case}
        first = next(iter(on.values()))
        row = [f"{case}, {first.batch}" + (" (own)" if first.group == "own" else "")]
        for device in devices:
            row += device_cells(on.get(device), device, ceilings)
        if both:
            ours = [on[device].best("ours") if device in on else None for device in devices]
            times = [item.seconds.median for item in ours if item]
            row.append(f"{times[0] / times[1]:.2f}" if len(times) == len(devices) else NONE)
        rows.append(row)
    if both:
        head.append(f"fastmlp: {devices[0].upper()} over {devices[1].upper()}")
    return table(head, rows)


def device_cells(
    item: Comparison | None, device: str, ceilings: dict[str, float] | None = None
) -> list[str]:
    """Return the cells of one case on one device."""
    ours, peer = (item.best("ours"), item.best("peer")) if item else (None, None)
    found = item.ratio if item else None
    cells = [
        f"{way_of(ours, device)}{show_time(ours.seconds)}" if ours else NONE,
        f"{peer.name}: {show_time(peer.seconds)}" if peer else NONE,
        show_ratio(found),
    ]
    if device == "cpu":
        cells.append(at_least(item.goal if item else 0.0, found.median if found else None))
    rate = ours.flops / ours.seconds.median if ours else 0.0
    cells.append(f"{rate / 1e9:.3g}" if ours else NONE)
    if device == "cpu":
        cells.append(show_share(item.share(ours)) if item and ours else NONE)
    else:
        top = (ceilings or {}).get(item.precision) if item else None
        cells.append(f"{rate / top:.1%}" if ours and top else NONE)
    return cells


def beside_peers(found: list[Comparison]) -> str:
    """Return what a suite measured on the CPU, one row each."""
    rows = []
    for item in found:
        # The title of a prediction has its rows.
        batch = "" if item.suite == "prediction" else f", {item.batch}"
        rows.append([f"{item.case}{batch}", *device_cells(item, "cpu")[:-1]])
    return table(["network, rows", "fastmlp", "best peer", "ratio", "target", "GFLOP/s"], rows)


def way_of(setting: Setting, device: str) -> str:
    """Return what stands before a time: the kernel of a GPU, the threads where they are several."""
    if device == "cuda":
        return f"{setting.kernel}: "
    return f"{setting.threads} threads: " if setting.threads > 1 else ""


def everybody(found: list[Comparison]) -> str:
    """Return every provider's best setting, with how many times as long as fastmlp it takes."""
    rows = []
    for item in found:
        ours = item.best("ours")
        for setting in item.providers():
            compared = ours is not None and setting.turns.keys() & ours.turns.keys()
            times = show_ratio(ratio(setting, ours)) if ours and compared else NONE
            name = f"{item.suite}: {item.case}" if item.suite != "training" else item.case
            mark = "" if setting.chosen else ", not chosen"
            row = [name, item.device, setting.name + mark, show_time(setting.seconds), times]
            if item.suite == "training":
                row.append(show_share(item.share(setting)))
            else:
                # There the goal is a ratio, which has a table of its own.
                held = setting is ours and item.suite not in BESIDE_PEERS
                goal = item.goal if held else 0.0
                unit, factor = unit_of(goal)
                row.append(at_most(goal, setting.seconds.median, f" {unit}", factor))
            rows.append(row)
    last = "goal" if found and found[0].suite != "training" else "of FMA peak"
    return table(["case", "device", "by", "time of one", "over fastmlp", last], rows)


def threads_table(found: list[Comparison]) -> str:
    """Return what a second thread brings, and what the choice of kernel and threads loses."""
    rows = []
    for item in found:
        ours, one = item.best("ours"), item.on_threads(1)
        if ours is None or item.regret is None:
            continue
        counts = sorted(s.threads for s in item.settings if s.role == "ours" and s.threads > 1)
        most = item.on_threads(counts[-1]) if counts else None
        row = [f"{item.case}, {item.batch}", item.device, f"{ours.kernel} on {ours.threads}"]
        row += [show_time(one.seconds) if one else NONE]
        row += [f"{most.threads}: {show_time(most.seconds)}" if most else NONE]
        row += [show_ratio(ratio(one, most)) if one and most else NONE, f"{item.regret:.2f}"]
        rows.append(row)
    head = ["network, batch", "device", "chosen", "1 thread", "most threads", "speed-up", "regret"]
    return table(head, rows)


def worst_regret(found: list[Comparison]) -> str:
    """Return the line about the largest regret of all cases."""
    regrets = [(item.regret, item) for item in found if item.regret is not None]
    worst, item = max(regrets, key=lambda pair: pair[0])
    where = f"{item.case} on {item.device}"
    return f"The worst regret is {worst:.2f}, of {where} ({at_most(MOST_REGRET, worst)})."


def calls_beside_kernel(found: list[Comparison]) -> str:
    """Return what `fit` and `step` add to the kernel of one batch, or nothing."""
    lines = []
    for item in found:
        kernel = next((s for s in item.settings if s.provider == "fastmlp" and s.chosen), None)
        if kernel is None:
            continue
        for setting in item.settings:
            if setting.provider in DECIDE_THEMSELVES:
                added = (setting.seconds.median - kernel.seconds.median) * 1e6
                lines.append(
                    f"- {setting.provider} adds {added:.3g} µs to its kernel: {item.suite} "
                    f"of {item.case}, {item.batch}, on {item.device}"
                )
    return "\n".join(lines)


def variants_table(found: list[Comparison]) -> str:
    """Return every variant beside its plain case, turn by turn."""
    rows = []
    plain = {(item.suite, item.case, item.device): item for item in found}
    for item in found:
        ours = item.best("ours")
        if ours is None:
            continue
        beside = plain.get((item.suite, item.against, item.device))
        base = beside.best("ours") if beside else None
        common = base is not None and base.turns.keys() & ours.turns.keys()
        times = ratio(ours, base) if base and common else None
        row = [f"{item.case}, {item.batch}", item.device, ours.name, show_time(ours.seconds)]
        row += [show_ratio(times)]
        row += [at_most(item.goal, times.median if times else None)]
        rows.append([*row, show_share(item.share(ours))])
    return table(
        ["network, batch", "device", "by", "time of one", "over plain", "goal", "of FMA peak"], rows
    )


def memory_table(found: list[Comparison]) -> str:
    """Return the MiB that each provider's best setting adds to its process."""
    names = list(dict.fromkeys(s.provider for item in found for s in item.providers()))
    rows = []
    for item in found:
        cells = {}
        for setting in item.providers():
            if not math.isnan(setting.memory):
                cells.setdefault(setting.provider, f"{setting.memory:.0f}")
        if cells:
            row = [f"{item.case}, {item.batch}", item.device]
            rows.append(row + [cells.get(name, NONE) for name in names])
    return table(["network, batch", "device", *names], rows) if rows else ""


def peak_lines(found: list[Comparison]) -> str:
    """Return the machine's FMA peak, over all turns of all cases."""
    rates: dict[int, list[float]] = {}
    for item in found:
        for peak in (setting for setting in item.settings if setting.role == "peak"):
            seconds = [second for rounds in peak.turns.values() for second in rounds]
            rates.setdefault(peak.threads, []).extend(peak.flops / s / 1e9 for s in seconds)
    return "\n".join(
        f"- FMA peak of this machine in the same turns, float32, {threads} "
        f"thread{'s' if threads > 1 else ''}: {digits(spread(values), 1.0)} GFLOP/s"
        for threads, values in sorted(rates.items())
    )


def notes_lines(found: list[Comparison]) -> str:
    """Return how providers came to run as they did, where they say so."""
    lines = []
    for item in found:
        for setting in item.settings:
            said = [f"{k}: {v}" for k, v in setting.notes.items() if isinstance(v, str) and v]
            lines += [f"- {setting.name}: {each}" for each in said]
    return "\n".join(dict.fromkeys(lines))


def machine_lines(document: dict[str, Any]) -> str:
    """Return what the figures depend on."""
    machine = document["machine_info"]
    versions = ", ".join(f"{name} {v}" for name, v in machine.get("versions", {}).items())
    commit, changed = record.commit(document)
    dirty = " with uncommitted changes" if changed else ""
    lines = [
        f"- Machine: {record.machine(document)} used; GPU: {machine.get('gpu') or 'none'}; "
        f"{machine.get('system', '')}, Python {machine.get('python_version', '')}",
        f"- Versions: {versions}",
        f"- Commit: {commit}{dirty}; {document['datetime'][:19]}",
    ]
    return "\n".join(lines)


def refusal_lines(document: dict[str, Any]) -> str:
    """Return who was not measured, and why."""
    lines = []
    for row in document.get("refusals", []):
        kind = {"missing": "not here", "disagreement": "refused"}.get(row["kind"], row["kind"])
        reason = " ".join(row["reason"].split())
        lines.append(f"- {row['provider']} on {row['device']}: {kind}: {reason}")
    if document.get("unfinished"):
        parts = ", ".join(document["unfinished"])
        lines.append(f"- Not measured, or not in all of their turns: {parts}")
    return "\n".join(lines)


def training_sections(found: list[Comparison], ceilings: dict[str, float]) -> list[str]:
    """Return the sections about the training suite."""
    reasons = {item.case: item.reason for item in found}
    why = "\n".join(f"- {case}: {reason}" for case, reason in reasons.items())
    parts = [
        "## One training step",
        "float32 unless another is named; every provider's parameters after one epoch agreed with "
        "float64 before it was timed. Shapes marked as own were not tuned for.",
        side_by_side(found, ceilings),
        peak_lines(found),
        why,
    ]
    if any(item.regret is not None for item in found):
        parts += [
            "## Threads and regret",
            "Regret is the time of the chosen kernel and threads over the best of all that were "
            "tried. What is chosen tries one thread itself, as in `fit`.",
            threads_table(found),
            worst_regret(found),
        ]
    parts += [
        "## Every provider, one training step",
        "`fastmlp.fit` is a call of `fit` for one epoch, with its checks; `fastmlp` is the "
        "kernel without them. The share of the peak is that of as many threads.",
        everybody(found),
        notes_lines(found),
    ]
    memory = memory_table(found)
    if memory:
        parts += [
            "## Memory",
            "MiB that building, compiling and a first epoch added to the process at most, beside "
            "its libraries and the data as NumPy arrays.",
            memory,
        ]
    return parts


def sections(document: dict[str, Any]) -> list[str]:
    """Return the tables of whatever was measured, with their headings."""
    found = comparisons(document)
    training = [item for item in found if item.suite == "training"]
    variants = [item for item in found if item.suite.startswith("variants")]
    fits = [item for item in found if whole_fits_report.belongs(item)]
    beside = [item for item in found if item.suite in BESIDE_PEERS]
    apart = [*training, *beside, *variants, *fits]
    small = [item for item in found if item not in apart]
    parts = training_sections(training, document.get("ceilings", {})) if training else []
    for suite, (heading, words) in BESIDE_PEERS.items():
        of_suite = [item for item in beside if item.suite == suite]
        if of_suite:
            every = f"## Every provider, {heading.lower()}"
            parts += [f"## {heading}", words, beside_peers(of_suite), every, everybody(of_suite)]
    if variants:
        parts += [
            "## Other optimizers, activations and dtypes",
            "fastmlp alone, as it chooses; over the plain case of the same turns.",
            variants_table(variants),
        ]
    if small:
        parts += ["## Small calls and first calls", everybody(small), calls_beside_kernel(small)]
    parts += whole_fits_report.sections(fits)
    return [part for part in parts if part]


def markdown(document: dict[str, Any]) -> str:
    """Return the whole report."""
    parts = [
        "# fastmlp and its peers",
        "Medians, with quartiles in brackets; a ratio is the peer's time over fastmlp's in the "
        "same turn, so above 1 fastmlp is faster. Of each peer the best number of threads counts, "
        "of fastmlp the one that it chooses.",
        machine_lines(document),
        *sections(document),
    ]
    if refusal_lines(document):
        parts += ["## Not measured", refusal_lines(document)]
    return "\n\n".join(parts) + "\n"


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
