"""Run every check and every measurement that needs a GPU: ``python3 dev.py --here gpu``.

Needs no network and no configuration. Each step runs in a process of its own, within a budget of
the eight minutes that the whole takes at most, and says in one line what became of it; the record
(JSON) is written after each step, the tables and the plot at the end. ``--quick`` takes three
minutes at most and shows that it works: a case of every kernel, and one comparison. Its figures
mean nothing.

Exit codes: 0 when every step is done, or was skipped because something is missing here; 1 when one
failed, or found a wrong result; 2 for a wrong argument; 3 when nothing failed, but a step was cut
off by its budget; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.cases import GPU_CASES
from benchmarks.gpu import steps
from fastmlp.version import VERSION
from fastmlp_kernels.problem import PRECISIONS

RESULTS = steps.ROOT / "benchmarks" / "results"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="dev.py gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = [case.name for case in GPU_CASES]
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="show that it works; no figures")
    parser.add_argument("--minutes", type=float, help="of the whole (8; quick: 3)")
    parser.add_argument("--steps", nargs="+", choices=steps.names(), metavar="STEP", help="some of")
    parser.add_argument("--cases", nargs="+", choices=known, metavar="CASE", help="some of")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    options = parser.parse_args(arguments)
    if options.minutes is None:
        options.minutes = (steps.QUICK_LIMIT if options.quick else steps.LIMIT) / 60
    if options.minutes <= 0:
        parser.error(f"--minutes: got {options.minutes:g}, wanted more than 0")
    options.steps = options.steps or steps.names(options.quick)
    return options


def commit() -> str:
    """Return the checkout's commit, as far as Git knows it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        answer = subprocess.run(command, cwd=steps.ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return answer.stdout.strip() or "unknown"


def outcome(record: dict[str, Any]) -> int:
    """Return the exit code of a run."""
    found = {entry["status"] for entry in record["steps"].values()}
    return 1 if "failed" in found else 3 if "cut off" in found else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the sequence."""
    options = parse(arguments)
    # A quick run must not lie among the records.
    usual = steps.ROOT / "build" / "benchmarks" if options.quick else RESULTS
    folder = (options.out or usual).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gpu-{datetime.now():%Y%m%d-%H%M%S}.json"
    record: dict[str, Any] = {
        "kind": "gpu",
        "datetime": datetime.now().isoformat(timespec="seconds"),
        "quick": options.quick,
        "fastmlp": VERSION,
        "commit": commit(),
        "system": f"{platform.platform()}, Python {platform.python_version()}",
        "steps": {},
    }
    told = {
        "quick": options.quick,
        "device": "cuda",
        "out": str(folder),
        "cases": options.cases,
        "precisions": options.precisions,
    }
    wanted = [step for step in steps.STEPS if step.name in options.steps]
    steps.sequence(wanted, told, record, path, options.minutes * 60)
    print(f"\nRecord: {path}")
    for step in steps.STEPS:
        if step.name in record["steps"]:
            entry = record["steps"][step.name]
            print(f"  {step.title}: {entry['status']}")
    return outcome(record)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
