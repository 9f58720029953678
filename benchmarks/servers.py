"""What runs inside a worker: providers are prepared, validated and timed, a request at a time."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import signal
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.baselines import Entry, Missing
from benchmarks.cases import Case
from benchmarks.prediction import Prediction, check_outputs
from benchmarks.providers import BASELINES
from benchmarks.turns import Competitor
from benchmarks.validation import Disagreement
from benchmarks.whole_fits import WholeFit

SETTLE = {"cpu": 0.05, "cuda": 0.005}
"""Seconds before a timing in which the last provider's threads stop spinning.

OpenBLAS's do so for 2**26 ticks, 27 ms at 2.4 GHz, and whoever is next has one processor less.
"""

AWAKE_SECONDS = 0.02
"""Seconds of short epochs between that rest and a timing: threads have been woken by then."""


def timed(function: Any, *arguments: Any) -> float:
    """Return the seconds of one call, with the garbage collector out of the way."""
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        function(*arguments)
        return time.perf_counter() - start
    finally:
        gc.enable()


def resident(field: str) -> float:
    """Return the MiB that this process holds (VmRSS) or has held at most (VmHWM), or NaN."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return float("nan")
    lines = [line.split() for line in status.splitlines() if line.startswith(field)]
    return int(lines[0][1]) / 1024 if lines else float("nan")


def forget_peak() -> None:
    """Let VmHWM begin anew at what is held now; without Linux there is none."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


class Server:
    """What a worker holds of a provider on a case: one method a request."""

    def __init__(self, entry: Entry) -> None:
        self.baseline = BASELINES[entry.provider](entry)

    def prepare(self, case: Case | WholeFit, expected: Any) -> dict[str, Any]:
        """Prepare a case and validate its first epoch."""
        reason = self.baseline.available()
        if reason is not None:
            raise Missing(reason)
        weights = case.initial_weights()
        self.data = case.data()
        self.baseline.load_what_follows()
        forget_peak()
        before = resident("VmRSS")
        self.run = self.baseline.prepare(case, self.data, weights)
        if isinstance(case, Prediction):
            self.run = functools.partial(self.baseline.predict, self.data.X)
        outputs = self.run()
        added = resident("VmHWM") - before
        if isinstance(case, Prediction):
            error = check_outputs(outputs, expected)
        else:
            error = self.baseline.check(case, expected)
        flops, per = self.baseline.work(case)
        # What is here now stays: a collection before each timing shall not walk through libraries.
        gc.collect()
        gc.freeze()
        if self.baseline.entry.device == "cuda":
            added = float("nan")  # the process is not its own
        about = {"error": error, "added_memory_mib": added, "flops": flops, "per": per}
        return about | {"notes": self.baseline.notes()}

    def steady(self, seconds: float) -> None:
        """Run epochs for so long: fastmlp goes on in code of its own after a second of them."""
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            self.run()

    def epoch(self, count: int = 1) -> float:
        """Return the seconds of one epoch, `count` of which are timed together."""

        def every_epoch() -> None:
            for _ in range(count):
                self.run()

        self.settle()
        if count > 1:
            # Short epochs follow each other in a program. After a rest the first one, of 2 ms,
            # took half as long again.
            self.steady(AWAKE_SECONDS)
        return timed(every_epoch) / count

    def predict(self, calls: int, rows: int = 1) -> float:
        """Return the seconds of predicting some rows, each call other ones."""
        starts = [i % (len(self.data.X) - rows + 1) for i in range(calls)]
        several = [self.data.X[start : start + rows] for start in starts]
        predict = self.baseline.predict
        predict(several[0])

        def every_call() -> None:
            for each in several:
                predict(each)

        self.settle()
        return timed(every_call) / calls

    def settle(self) -> None:
        """Let whoever was measured before come to rest."""
        time.sleep(SETTLE[self.baseline.entry.device])

    def import_time(self) -> float:
        """Return the seconds of importing the library into a process that has only NumPy."""
        return timed(self.baseline.load)

    def first_call(self, case: Case) -> float:
        """Return the seconds from before the import to the end of the first epoch."""
        data, weights = case.data(), case.initial_weights()

        def begin() -> None:
            self.baseline.load()
            self.baseline.prepare(case, data, weights)()

        return timed(begin)


def serve(connection: Any, entry: Entry, environment: dict[str, str]) -> None:
    """Answer requests until the pipe closes."""
    # Ctrl-C is the parent's: it ends this process, once what was measured is saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(environment)
    if entry.device == "cpu":
        os.environ["OMP_NUM_THREADS"] = str(entry.threads)
        if hasattr(os, "sched_setaffinity"):
            processors = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, processors[: entry.processors])
    if entry.jobs > 1 and hasattr(os, "setsid"):
        # A group of their own, so that no process of a search outlives this one.
        os.setsid()
    servers: dict[Competitor | None, Server] = {}
    while True:
        try:
            of, name, arguments = connection.recv()
        except EOFError:
            for server in servers.values():
                server.baseline.end()
            return
        connection.send(answer(servers, entry, of, name, arguments))


def answer(
    servers: dict[Competitor | None, Server],
    entry: Entry,
    of: Competitor | None,
    name: str,
    arguments: tuple[Any, ...],
) -> tuple[str, Any]:
    """Return what became of a request, and its result or why there is none."""
    try:
        if name == "release":
            servers.clear()
            gc.unfreeze()
            gc.collect()
            return "done", None
        if of not in servers:
            servers[of] = Server(of[1] if of else entry)
        return "done", getattr(servers[of], name)(*arguments)
    except Missing as error:
        return "missing", str(error)
    except Disagreement as error:
        return "refused", str(error)
    except Exception as error:
        # Whatever a library raises is a line in the report, not the end of the run; the record gets
        # no traceback, since its paths say nothing elsewhere.
        traceback.print_exc()
        return "failed", f"{name}: {type(error).__name__}: {error}"[:300]
