"""Compare fastmlp with its peers: ``python -m benchmarks.run``, or ``python3 dev.py bench``.

Runs the pytest-benchmark suites in `benchmarks/suites`, then writes their JSON, the tables and the
plot to a folder. For a record the machine should have nothing else to do. ``--quick`` only shows
that everything works: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from benchmarks import cases, report

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
QUICK = {"passes": "2", "turn-seconds": "0", "steps": "3", "threads": "1"}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__.split("\n")[0])
    names = ", ".join(case.name for case in cases.CASES)
    parser.add_argument("--quick", action="store_true", help="show that it works; no figures")
    parser.add_argument("--cases", nargs="+", metavar="CASE", help=f"some of: {names}")
    parser.add_argument("--providers", nargs="+", metavar="NAME", help="fastmlp, PyTorch, ...")
    parser.add_argument("--suites", nargs="+", choices=("training", "overhead"), help="all")
    parser.add_argument("--device", choices=("cpu", "cuda", "both"), default="both")
    parser.add_argument("--threads", nargs="+", type=int, metavar="N", help="numbers to try")
    parser.add_argument("--passes", type=int, help="how often each provider has its turn")
    parser.add_argument("--out", type=Path, help="folder for the results")
    options = parser.parse_args(arguments)
    try:
        for name in options.cases or ():
            cases.find(name)
    except ValueError as error:
        parser.error(str(error))
    return options


def pytest_options(options: argparse.Namespace) -> dict[str, str]:
    """Return what the suites are told; what is named on the command line wins over ``--quick``."""
    found = dict(QUICK, cases=",".join(cases.QUICK_CASES)) if options.quick else {}
    if options.device != "both":
        found["devices"] = options.device
    for name in ("cases", "providers", "threads"):
        if getattr(options, name):
            found[name] = ",".join(str(word) for word in getattr(options, name))
    if options.passes:
        found["passes"] = str(options.passes)
    return found


def run_suites(options: argparse.Namespace, path: Path) -> int:
    """Run the suites in a process of their own; return pytest's exit status."""
    folder = ROOT / "benchmarks" / "suites"
    suites = [str(folder / f"test_{name}.py") for name in options.suites or ()] or [str(folder)]
    command = [sys.executable, "-m", "pytest", *suites, "-q", "-rfE", "--tb=short"]
    # The report has the tables, with ratios; pytest-benchmark's would list every turn.
    command += ["--benchmark-json", str(path), "--benchmark-quiet", "-p", "no:randomly"]
    command += ["--benchmark-columns=median", "--no-header", "-o", "console_output_style=count"]
    command += [f"--{name}={value}" for name, value in pytest_options(options).items()]
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths)))
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def main(arguments: list[str] | None = None) -> int:
    """Run the suites and report; return 1 if a provider failed or was refused."""
    options = parse(arguments)
    # A quick run must not lie among the records.
    folder = options.out or (ROOT / "build" / "benchmarks" if options.quick else RESULTS)
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"benchmark-{datetime.now():%Y%m%d-%H%M%S}.json"
    status = run_suites(options, path)
    if not path.exists() or not path.stat().st_size:
        path.unlink(missing_ok=True)
        print("Nothing was measured: see pytest's messages above.", file=sys.stderr)
        return status or 1
    document = json.loads(path.read_text(encoding="utf-8"))
    print(f"\n{report.markdown(document)}")
    print(f"Record: {path}")
    print("\n".join(report.write(document, folder, path.stem)))
    if options.quick:
        print("Quick: the figures above mean nothing.")
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main())
