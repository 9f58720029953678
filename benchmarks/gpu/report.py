"""Turn the record of a GPU run into tables and a plot: ``python -m benchmarks.gpu.report FILE``.

As a step of the sequence it does so with what is there by then.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.comparisons import Spread, spread
from benchmarks.gpu.plot import draw
from benchmarks.gpu.steps import STEPS, Context, read, short
from benchmarks.tables import NONE, show_ratio, show_time, table

Entry = dict[str, Any]
HOW = (
    "Medians, with quartiles in brackets; a ratio is the best peer's time over that of the kernel "
    "that fastmlp chooses, in the same turns, so above 1 fastmlp is faster. All data are on the "
    "GPU; everybody's parameters after one epoch agreed with float64 before a time was taken."
)


def run(context: Context) -> None:
    """Write the tables and the plot beside the record."""
    path = Path(context.options["record"])
    record = read(path)
    assert record is not None, "the record was written before this step"
    target = path.with_suffix(".md")
    target.write_text(markdown(record), encoding="utf-8")
    context.keep("tables", str(target))
    print(f"  tables: {target}", flush=True)
    context.attempt("plot", draw, compared(record), path.with_suffix(".png"))


def results(record: dict[str, Any], step: str) -> dict[str, Any]:
    """Return what a step has found, or nothing."""
    return record["steps"].get(step, {}).get("results", {})


def seconds(entry: Entry, row: dict[str, Any]) -> Spread | None:
    """Return the seconds of a step by an entry, or None if it was not timed."""
    turns = entry.get("turns")
    return spread(value / row["steps"] for value in turns.values()) if turns else None


def median(entry: Entry) -> float:
    """Return the median seconds of an epoch of an entry that was timed."""
    return float(np.median(list(entry["turns"].values())))


def timed(row: dict[str, Any], role: str) -> list[Entry]:
    """Return the entries of a role that have times and have not failed."""
    entries = [each for each in row["entries"] if each.get("role") == role]
    return [each for each in entries if each.get("turns") and not each.get("failed")]


def chosen_of(row: dict[str, Any]) -> Entry | None:
    """Return fastmlp as its users get it."""
    return next((each for each in timed(row, "ours") if each["chosen"]), None)


def ratio(slower: Entry, faster: Entry) -> Spread | None:
    """Return how many times as long `slower` takes, turn by turn."""
    common = slower["turns"].keys() & faster["turns"].keys()
    return spread(slower["turns"][k] / faster["turns"][k] for k in common) if common else None


def comparison_rows(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rows that were measured, by name."""
    found = results(record, "comparison")
    return {name: row for name, row in found.items() if isinstance(row, dict) and "entries" in row}


def compared(record: dict[str, Any]) -> list[tuple[str, str, Spread]]:
    """Return (case, precision, ratio) of every case that fastmlp and a peer have run.

    A case has up to two rows at a precision, one of them with what PyTorch compiles: the best peer
    of both counts, which is the smaller of the two ratios.
    """
    found: dict[tuple[str, str], Spread] = {}
    for row in comparison_rows(record).values():
        ours, peers = chosen_of(row), timed(row, "peer")
        if ours is None or not peers:
            continue
        times = ratio(min(peers, key=median), ours)
        key = (f"{row['case']}, {row['batch']}", row["precision"])
        if times is not None and (key not in found or times.median < found[key].median):
            found[key] = times
    return [(*key, times) for key, times in found.items()]


def ceiling(record: dict[str, Any], precision: str) -> float | None:
    """Return the operations a second that a large product has reached in PyTorch."""
    measured = results(record, "ceilings").get("products") or {}
    return measured.get(precision)


def summary_table(record: dict[str, Any]) -> str:
    """Return a line for each row: fastmlp, the best peer, their ratio, the share of the ceiling."""
    lines = []
    for name, row in comparison_rows(record).items():
        ours, peers, every = chosen_of(row), timed(row, "peer"), timed(row, "ours")
        peer = min(peers, key=median) if peers else None
        times = ratio(peer, ours) if peer and ours else None
        took = seconds(ours, row) if ours else None
        rate = row["flops_per_step"] / took.median if took else None
        top = ceiling(record, row["precision"])
        best = min(every, key=median) if every else None
        lines.append(
            [
                name,
                f"{ours['kernel']}: {show_time(took)}" if ours and took else NONE,
                f"{peer['label']}: {show_time(seconds(peer, row))}" if peer else NONE,
                show_ratio(times),
                f"{rate / 1e12:.3g}" if rate else NONE,
                f"{rate / top:.1%}" if rate and top else NONE,
                f"{median(ours) / median(best):.2f} ({best['kernel']})" if ours and best else NONE,
            ]
        )
    head = ["network, batch, precision", "fastmlp", "best peer", "ratio", "TFLOP/s"]
    return table([*head, "of measured product", "regret (best kernel)"], lines)


def everybody_table(record: dict[str, Any]) -> str:
    """Return every provider of every row, or why it has no time."""
    lines = []
    for name, row in comparison_rows(record).items():
        ours = chosen_of(row)
        for entry in row["entries"]:
            took = seconds(entry, row)
            why = next(
                (f"{k}: {entry[k]}" for k in ("failed", "refused", "skipped") if k in entry), ""
            )
            times = ratio(entry, ours) if took and ours else None
            error = f"{entry['error']:.1g}" if "error" in entry else NONE
            said = "; ".join(f"{k}: {v}" for k, v in entry.get("notes", {}).items() if v)
            cells = [name, entry["label"], show_time(took) if took else why or NONE]
            lines.append([*cells, show_ratio(times), error, said])
    return table(["row", "by", "time of a step", "over fastmlp", "error", "notes"], lines)


def crossover_table(record: dict[str, Any]) -> str:
    """Return CPU beside GPU, and what dispatch made of it."""
    lines = []
    for name, found in results(record, "crossover").items():
        if not isinstance(found, dict) or not found.get("seconds"):
            continue
        times = found["seconds"]
        best = {
            device: min((k for k in times if k.startswith(device)), key=times.get, default=None)
            for device in ("cpu", "cuda")
        }
        cells = [f"{b}: {times[b] * 1e6:.4g} µs" if b else NONE for b in best.values()]
        both = all(best.values())
        gain = f"**{times[best['cpu']] / times[best['cuda']]:.2f}**" if both else NONE
        regrets = [
            f"{found[key]}: {found[f'regret_{key}']:.2f}" if found.get(f"regret_{key}") else NONE
            for key in ("auto", "auto_measured")
        ]
        lines.append([name, *cells, gain, *regrets])
    head = ["network, batch, precision", "best on the CPU", "best on the GPU", "CPU over GPU"]
    head += ["`auto` and its regret", "with the measured constants"]
    return table(head, lines)


def plain_table(found: dict[str, Any]) -> str:
    """Return a step's results as they are."""
    return table(["what", "found"], [[name, short(value)] for name, value in found.items()])


def steps_table(record: dict[str, Any]) -> str:
    """Return what became of each step."""
    lines = []
    for step in STEPS:
        entry = record["steps"].get(step.name)
        if entry:
            reason = " ".join(str(entry.get("reason", "")).split())
            lines.append([step.title, entry["status"], f"{entry['seconds']:.0f} s", reason])
    return table(["step", "status", "took", "why"], lines)


def outputs(record: dict[str, Any]) -> str:
    """Return the ends of the outputs of tests that did not pass."""
    parts = []
    for step in ("device_cases", "sanitizer"):
        for name, found in results(record, step).items():
            if isinstance(found, dict) and found.get("output"):
                parts.append(f"### {name}\n\n```text\n{found['output'].strip()}\n```")
    return "\n\n".join(parts)


def markdown(record: dict[str, Any]) -> str:
    """Return the whole report."""
    device = results(record, "versions").get("device") or {}
    lines = [
        f"- GPU: {device.get('name', 'none')}; {record['system']}",
        f"- fastmlp {record['fastmlp']}, commit {record['commit']}; {record['datetime']}",
    ]
    if record["quick"]:
        lines.append("- Quick: the figures mean nothing.")
    parts = ["# fastmlp on a GPU", "\n".join(lines), steps_table(record)]
    if comparison_rows(record):
        parts += ["## One training step", HOW, summary_table(record)]
    if results(record, "crossover"):
        parts += ["## CPU beside GPU", crossover_table(record)]
    if comparison_rows(record):
        parts += ["## Every provider", everybody_table(record)]
    for step in STEPS:
        if step.name not in ("comparison", "crossover", "report") and results(record, step.name):
            parts += [f"## {step.title}", plain_table(results(record, step.name))]
    if outputs(record):
        parts += ["## Tests that did not pass", outputs(record)]
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Read a record and report on it."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.report", description=__doc__)
    parser.add_argument("file", type=Path, help="what `dev.py gpu` wrote")
    parser.add_argument("--out", type=Path, help="folder for the tables and the plot")
    options = parser.parse_args(arguments)
    try:
        record = json.loads(options.file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"file: {options.file} cannot be read as JSON: {error}", file=sys.stderr)
        return 2
    print(markdown(record))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        target = options.out / options.file.stem
        target.with_suffix(".md").write_text(markdown(record), encoding="utf-8")
        print(draw(compared(record), target.with_suffix(".png")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
