"""One process for each provider and setting, so that none disturbs another's threads or memory.

A worker waits at a pipe while the others are measured. It reads the clock itself: what crosses the
pipe is seconds, so the pipe's own time is in no figure. All workers of as many threads are held to
the same processors.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.baselines import Entry
from benchmarks.cases import Case
from benchmarks.providers import BASELINES
from benchmarks.validation import Disagreement, expected_parameters, validate

PATIENCE = 900.0
"""Seconds after which a worker that does not answer is given up."""

SETTLE = 0.01
"""Seconds before a timing in which the last provider's threads stop spinning."""


class Missing(Exception):
    """A provider cannot run here; the message says why."""


class Failed(Exception):
    """A provider raised, or did not answer."""


class Clock:
    """A clock that advances by the seconds that workers report; pytest-benchmark reads it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        """Return the seconds reported so far."""
        return self.seconds

    def advance(self, seconds: float) -> None:
        """Add a worker's report."""
        self.seconds += seconds


CLOCK = Clock()


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


def peak_memory() -> float:
    """Return the most memory that this process has held, in MiB; NaN where it is not known."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return float("nan")
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM")]
    return int(lines[0][1]) / 1024 if lines else float("nan")


class Server:
    """What runs inside a worker: one method a request."""

    def __init__(self, entry: Entry) -> None:
        self.baseline = BASELINES[entry.provider](entry)

    def prepare(self, case: Case, expected: np.ndarray) -> dict[str, float]:
        """Prepare a case and validate its first epoch."""
        reason = self.baseline.available()
        if reason is not None:
            raise Missing(reason)
        weights = case.initial_weights()
        self.data = case.data()
        self.run = self.baseline.prepare(case, self.data, weights)
        self.run()
        error = validate(weights, expected, self.baseline.parameters())
        return {"error": error, "seconds": timed(self.run), "peak_memory_mib": peak_memory()}

    def epoch(self) -> float:
        """Return the seconds of one epoch."""
        time.sleep(SETTLE)
        return timed(self.run)

    def predict_row(self, calls: int) -> float:
        """Return the seconds of predicting one row, each call another one."""
        rows = [self.data.X[i % len(self.data.X)][None] for i in range(calls)]
        predict = self.baseline.predict_row
        predict(rows[0])

        def every_row() -> None:
            for row in rows:
                predict(row)

        time.sleep(SETTLE)
        return timed(every_row) / calls

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
    os.environ.update(environment, OMP_NUM_THREADS=str(entry.threads))
    if hasattr(os, "sched_setaffinity"):
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, processors[: entry.threads])
    server = Server(entry)
    while True:
        try:
            name, arguments = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            answer = ("done", getattr(server, name)(*arguments))
        except Missing as error:
            answer = ("missing", str(error))
        except Disagreement as error:
            answer = ("refused", str(error))
        except Exception as error:
            # Whatever a library raises is a line in the report, not the end of the run; the
            # record gets no traceback, since its paths say nothing elsewhere.
            traceback.print_exc()
            answer = ("failed", f"{name}: {type(error).__name__}: {error}"[:300])
        connection.send(answer)


class Worker:
    """The parent's end of a worker."""

    def __init__(self, entry: Entry, environment: dict[str, str] | None = None) -> None:
        # Spawned, not forked: thread pools and CUDA contexts do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(
            target=serve, args=(other, entry, environment or {}), daemon=True
        )
        self.process.start()
        other.close()

    def ask(self, name: str, *arguments: Any) -> Any:
        """Call a method of the worker's `Server` and return its answer."""
        try:
            self.connection.send((name, arguments))
            if not self.connection.poll(PATIENCE):
                raise Failed(f"{name}: no answer in {PATIENCE:g} seconds")
            kind, answer = self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.join(5)
            code = self.process.exitcode
            raise Failed(f"{name}: the process died with exit code {code}") from error
        if kind != "done":
            raise {"missing": Missing, "refused": Disagreement, "failed": Failed}[kind](answer)
        return answer

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.join(2)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


class Pool:
    """The workers of one case; asking for another case ends them, which frees their memory."""

    def __init__(self) -> None:
        self.case: Case | None = None
        self.workers: dict[Entry, tuple[Worker, dict[str, float]]] = {}
        self.refusals: dict[tuple[Case, Entry], Exception] = {}

    def worker(self, case: Case, entry: Entry) -> tuple[Worker, dict[str, float]]:
        """Return a worker that has validated the case, and what it said of it."""
        if case != self.case:
            self.close()
            self.case = case
            self.expected = expected_parameters(case, case.data(), case.initial_weights())
        if (case, entry) in self.refusals:
            raise self.refusals[case, entry]
        if entry not in self.workers:
            worker = Worker(entry)
            try:
                self.workers[entry] = worker, worker.ask("prepare", case, self.expected)
            except (Missing, Disagreement, Failed) as error:
                worker.close()
                self.refusals[case, entry] = error
                raise
        return self.workers[entry]

    def close(self) -> None:
        """End every worker."""
        for worker, _ in self.workers.values():
            worker.close()
        self.workers.clear()
        self.case = None
