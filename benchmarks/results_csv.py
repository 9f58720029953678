"""The table of everything that was measured: ``python -m benchmarks.results_csv record.json``.

A record is a run's JSON, with every timing: too large to keep in the repository. ``results.csv``
keeps one row for each setting of it. `benchmarks.run` adds its own rows when it has ended.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.comparisons import comparisons

NAME = "results.csv"
COLUMNS = (
    "record",
    "suite",
    "case",
    "batch",
    "device",
    "provider",
    "version",
    "kernel",
    "threads",
    "jobs",
    "chosen",
    "median_seconds",
    "lower_quartile_seconds",
    "upper_quartile_seconds",
    "machine",
    "date",
    "commit",
)


def rows(document: dict[str, Any], stem: str) -> list[dict[str, Any]]:
    """Return a row for each setting of a record, under the record's name.

    Seconds are those of one unit of work, a training step for example, over all turns.
    """
    commit, changed = record.commit(document)
    run = {
        "record": stem,
        "date": document["datetime"][:10],
        # A "+" marks changes that were not committed.
        "commit": commit + ("+" if changed else ""),
    }
    found = []
    for item in comparisons(document):
        for setting in item.settings:
            seconds = setting.seconds
            about = {
                "suite": item.suite,
                "case": item.case,
                "batch": item.batch,
                "device": item.device,
                "machine": record.machine(document, item.device),
                "provider": setting.provider,
                "version": setting.version,
                "kernel": setting.kernel,
                "threads": setting.threads,
                "jobs": setting.jobs,
                "chosen": "yes" if setting.chosen else "no",
                "median_seconds": f"{seconds.median:.4g}",
                "lower_quartile_seconds": f"{seconds.low:.4g}",
                "upper_quartile_seconds": f"{seconds.high:.4g}",
            }
            found.append(run | about)
    return found


def add(document: dict[str, Any], stem: str, folder: Path) -> str:
    """Put a record's rows into the folder's table, once; return a line that says where."""
    path = folder / NAME
    kept = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            kept = [row for row in csv.DictReader(file) if row["record"] != stem]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(kept + rows(document, stem), key=lambda row: row["record"]))
    return f"Rows: {path}"


def main(arguments: list[str] | None = None) -> int:
    """Add the rows of records to the table beside them."""
    parser = argparse.ArgumentParser(prog="benchmarks.results_csv", description="Add to a table.")
    parser.add_argument("files", type=Path, nargs="+", help="what `benchmarks.run` wrote")
    parser.add_argument("--out", type=Path, help="folder of the table; by default the record's")
    options = parser.parse_args(arguments)
    for file in options.files:
        document = record.load(file)
        if document is None:
            print(f"file: {file} cannot be read as JSON", file=sys.stderr)
            return 2
        print(add(document, file.stem, options.out or file.parent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
