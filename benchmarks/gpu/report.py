"""Turn the record of a GPU run into tables and a plot: ``python -m benchmarks.gpu.report FILE``.

As a step of the sequence it does so with what is there by then. What was compared is reported as
`benchmarks.report` reports it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks import results_csv
from benchmarks.gpu.steps import STEPS, Context, read, short
from benchmarks.plot import draw
from benchmarks.report import refusal_lines, sections
from benchmarks.tables import NONE, table


def run(context: Context) -> None:
    """Write the tables and the plot beside the record."""
    path = Path(context.options["record"])
    record = read(path)
    assert record is not None, "the record was written before this step"
    target = path.with_suffix(".md")
    target.write_text(markdown(record), encoding="utf-8")
    context.keep("tables", str(target))
    print(f"  tables: {target}", flush=True)
    document = compared(record)
    if document is not None:
        context.attempt("plot", draw, document, path.with_suffix(".png"))
        context.attempt("rows", results_csv.add, document, path.stem, path.parent)


def results(record: dict[str, Any], step: str) -> dict[str, Any]:
    """Return what a step has found, or nothing."""
    return record["steps"].get(step, {}).get("results", {})


def compared(record: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the comparison has measured, as `benchmarks.report` takes it, or None."""
    found = results(record, "comparison")
    products = results(record, "ceilings").get("products") or {}
    return found | {"ceilings": products} if found.get("benchmarks") else None


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
    head = ["network, batch", "best on the CPU", "best on the GPU", "CPU over GPU"]
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
    document = compared(record)
    if document is not None:
        parts += sections(document)
        if refusal_lines(document):
            parts += ["## Not measured", refusal_lines(document)]
    if results(record, "crossover"):
        parts += ["## CPU beside GPU", crossover_table(record)]
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
    record = read(options.file)
    if record is None:
        print(f"file: {options.file} cannot be read as JSON", file=sys.stderr)
        return 2
    print(markdown(record))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        target = options.out / options.file.stem
        target.with_suffix(".md").write_text(markdown(record), encoding="utf-8")
        document = compared(record)
        if document is not None:
            print(draw(document, target.with_suffix(".png")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
