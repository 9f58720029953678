"""Compare fastmlp with its peers: ``python -m benchmarks.run``, or ``python3 dev.py bench``.

Runs the pytest-benchmark suites in `benchmarks/suites` part by part: a case of the training suite,
a kind of variants, a case of another suite, the small calls, a whole fit beside scikit-learn's,
first fits. After each part the record is saved and its tables printed, so an end before the end
(Ctrl-C, SIGTERM, a crash) loses at most the turns of one part. For a record the machine should have
nothing else to do. ``--cases`` alone leaves out the whole fits, ``--fits`` alone all but them.
``--quick`` only shows that everything works: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import FrameType

from benchmarks import cases, compare, record, report, results_csv, whole_fits
from benchmarks.baselines import Entry
from benchmarks.prediction import NETWORKS
from benchmarks.providers import named
from benchmarks.workers import Failed, Worker
from fastmlp.device.machine import detect

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
QUICK = {"passes": "2", "turn-seconds": "0", "steps": "3", "threads": "1"}
FITS = ("fits", "first_fits")
SUITES = ("training", "prediction", "variants", *cases.APART, "overhead", *FITS)


class Listener:
    """Hears SIGINT and SIGTERM: the part that runs shall save what it has, and be the last.

    Attributes
    ----------
    heard : int
        The signal that was heard, or 0.
    """

    def __init__(self) -> None:
        self.heard = 0
        self.told = False
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Listener:
        self.before = {
            number: signal.signal(number, self.hear) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Ask the part to end; whoever is impatient and asks again ends it at once."""
        self.heard = number
        if self.process is not None and self.process.poll() is None:
            if self.told or os.name != "posix":
                self.process.kill()
            else:
                self.told = True
                self.process.send_signal(signal.SIGINT)

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        """Return the exit status of a part."""
        self.process = process
        # The signal may have come while the process was made.
        if self.heard and not self.told:
            self.hear(self.heard, None)
        return process.wait()


@dataclass(frozen=True)
class Part:
    """What one pytest process measures: a suite, with the options that narrow it."""

    suite: str
    only: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """A name for messages."""
        return " ".join([self.suite, *(value for _, value in self.only)])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__.split("\n")[0])
    names = ", ".join(cases.NAMES)
    parser.add_argument("--quick", action="store_true", help="show that it works; no figures")
    parser.add_argument("--cases", nargs="+", metavar="CASE", help=f"some of: {names}")
    fits = ", ".join(case.name for case in whole_fits.WHOLE_FITS)
    parser.add_argument("--fits", nargs="+", metavar="FIT", help=f"some of: {fits}")
    parser.add_argument("--providers", nargs="+", metavar="NAME", help="fastmlp, JAX, ...")
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=SUITES, help="all")
    parser.add_argument("--device", choices=("cpu", "cuda", "both"), help="what is here")
    parser.add_argument("--threads", nargs="+", type=int, metavar="N", help="numbers to try")
    parser.add_argument("--passes", type=int, help="how often each provider has its turn")
    parser.add_argument("--out", type=Path, help="folder for the results")
    both = "compare two commits of fastmlp in turns; . is the working tree"
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help=both)
    options = parser.parse_args(arguments)
    try:
        for name in options.cases or ():
            cases.find(name)
        for name in options.fits or ():
            whole_fits.find(name)
        named(options.providers or [])
    except ValueError as error:
        parser.error(str(error))
    return options


def devices(options: argparse.Namespace) -> list[str]:
    """Return where it is measured: where the command line says, or on whatever is here."""
    if options.device in ("cpu", "cuda"):
        return [options.device]
    both = options.device == "both" or detect().cuda_missing is None
    return ["cpu", "cuda"] if both else ["cpu"]


def parts(options: argparse.Namespace) -> list[Part]:
    """Return the parts of a run, in their order."""
    here = cases.EVERY_CASE if "cuda" in devices(options) else cases.CASES
    usual = cases.QUICK_CASES if options.quick else [case.name for case in here]
    names = options.cases or usual
    every_fit = whole_fits.QUICK if options.quick else [fit.name for fit in whole_fits.WHOLE_FITS]
    fits = options.fits or every_fit
    left_out = set()
    if options.cases and not options.fits:
        left_out = set(FITS)
    elif options.fits and not options.cases:
        left_out = set(SUITES) - set(FITS)
    kinds = [
        kind
        for kind in cases.KINDS
        if any(row.kind == kind and row.plain.name in names for row in cases.VARIANTS)
    ]
    every = [case.name for case in cases.EVERY_CASE]
    found = {
        "training": [Part("training", (("cases", name),)) for name in names if name in every],
        "prediction": [Part("prediction", (("cases", n),)) for n in NETWORKS if n in names],
        "variants": [
            Part("variants", (("kinds", kind), ("cases", ",".join(names)))) for kind in kinds
        ],
        **parts_apart(options),
        "overhead": [Part("overhead")],
        "fits": [Part("fits", (("fits", name),)) for name in fits],
        "first_fits": [Part("first_fits")] if whole_fits.FIRST in fits else [],
    }
    wanted = [suite for suite in SUITES if suite in options.suites and suite not in left_out]
    return [part for suite in wanted for part in found[suite]]


def parts_apart(options: argparse.Namespace) -> dict[str, list[Part]]:
    """Return the parts of the suites that have cases of their own: all, or those that are named."""
    found = {}
    for suite, every in cases.APART.items():
        names = [case.name for case in every]
        wanted = options.cases or (names[:1] if options.quick else names)
        found[suite] = [Part(suite, (("cases", name),)) for name in names if name in wanted]
    return found


def pytest_options(options: argparse.Namespace, part: Part) -> dict[str, str]:
    """Return what a suite is told; what is named on the command line wins over ``--quick``."""
    found = dict(QUICK) if options.quick else {}
    found["devices"] = ",".join(devices(options))
    for name in ("providers", "threads"):
        if getattr(options, name):
            found[name] = ",".join(str(word) for word in getattr(options, name))
    if options.passes:
        found["passes"] = str(options.passes)
    return found | dict(part.only)


def suite_arguments(suite: str, told: dict[str, str], path: Path) -> list[str]:
    """Return pytest's arguments for a suite that writes what it measures to `path`."""
    file = ROOT / "benchmarks" / "suites" / f"test_{suite}.py"
    found = [str(file), "-q", "-rfE", "--tb=short", "-p", "no:randomly", "--no-header"]
    # The report has the tables, with ratios; pytest-benchmark's would list every turn.
    found += ["--benchmark-json", str(path), "--benchmark-quiet", "--benchmark-columns=median"]
    found += ["-o", "console_output_style=count"]
    return found + [f"--{name}={value}" for name, value in told.items()]


def run_part(options: argparse.Namespace, part: Part, path: Path, listener: Listener) -> int:
    """Run a part in a process of its own, which writes to `path`; return pytest's exit status."""
    command = suite_arguments(part.suite, pytest_options(options, part), path)
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths)))
    # In a session of its own a Ctrl-C of the terminal reaches it once, from the listener: a second
    # one would end it while it saves.
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *command],
        cwd=ROOT,
        env=environment,
        start_new_session=True,
    )
    return listener.wait(process)


def compile_ahead(options: argparse.Namespace) -> None:
    """Compile fastmlp's kernels to its disk cache, so that no two workers do so at a time."""
    if not any(name.startswith("fastmlp") for name in options.providers or ["fastmlp"]):
        return
    for dtype in ("float32", "float64"):
        case = replace(cases.CASES[0].with_steps(1), dtype=dtype)
        worker = Worker(Entry("fastmlp.fit"))
        try:
            worker.ask("first_call", case)
        except Failed as error:
            # The same happens again where it belongs to a case, and goes on record there.
            print(f"fastmlp could not be compiled ahead: {error}", file=sys.stderr)
        finally:
            worker.stop()


def measure(options: argparse.Namespace, path: Path, listener: Listener) -> bool:
    """Run every part and save the record after each; return whether all went well.

    A part that was interrupted is in the record with the turns that it had.
    """
    waiting, missing, whole, well = parts(options), [], None, True
    started = time.monotonic()
    compile_ahead(options)
    with tempfile.TemporaryDirectory() as folder:
        while waiting and not listener.heard:
            part = waiting.pop(0)
            file = Path(folder) / f"{len(waiting)}.json"
            print(f"\n{part.name} ({len(waiting)} to follow)", flush=True)
            failed = run_part(options, part, file, listener) != 0
            measured = record.load(file)
            if measured is not None:
                whole = record.grown(whole, measured)
                print("\n" + "\n\n".join(report.sections(measured)), flush=True)
            if measured is None or listener.heard:
                missing.append(part)
            if whole is not None:
                whole["unfinished"] = [each.name for each in (*missing, *waiting)]
                record.save(whole, path)
            well = well and not failed
    print(f"\n{(time.monotonic() - started) / 60:.1f} minutes")
    return well


def main(arguments: list[str] | None = None) -> int:
    """Run the suites and report; return 1 if a provider failed, 128 and more after a signal."""
    options = parse(arguments)
    if options.compare:
        threads = max(options.threads or [0])
        # Whoever ends this shall leave no checkout behind.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            return compare.run(options.compare, options.cases, threads)
        except compare.Failure as error:
            print(error, file=sys.stderr)
            return 2
    # A quick run must not lie among the records.
    folder = options.out or (ROOT / "build" / "benchmarks" if options.quick else RESULTS)
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"benchmark-{datetime.now():%Y%m%d-%H%M%S}.json"
    with Listener() as listener:
        well = measure(options, path, listener)
    document = record.load(path)
    if document is None:
        print("Nothing was measured: see pytest's messages above.", file=sys.stderr)
        return 128 + listener.heard if listener.heard else 1
    print(f"\n{report.markdown(document)}")
    print(f"Record: {path}")
    print("\n".join(report.write(document, folder, path.stem)))
    if not listener.heard:
        print(results_csv.add(document, path.stem, folder))
    if options.quick:
        print("Quick: the figures above mean nothing.")
    return 128 + listener.heard if listener.heard else int(not well)


if __name__ == "__main__":
    sys.exit(main())
