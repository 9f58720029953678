"""One process for each provider and setting, so that none disturbs another's threads or memory.

A worker waits at a pipe while the others are measured. It reads the clock itself: what crosses the
pipe is seconds, so the pipe's own time is in no figure. All workers of as many threads are held to
the same processors.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.baselines import Entry
from benchmarks.cases import Case
from benchmarks.outcomes import expected_outcome
from benchmarks.prediction import Prediction, check_outputs, expected_outputs
from benchmarks.providers import BASELINES
from benchmarks.turns import Competitor, Measurement
from benchmarks.validation import Disagreement, expected_parameters
from benchmarks.whole_fits import WholeFit
from fastmlp.device.machine import count_cores
from fastmlp.errors import MissingPackageError

PATIENCE = 900.0
"""Seconds after which a worker that does not answer is given up."""

SETTLE = 0.05
"""Seconds before a timing in which the last provider's threads stop spinning.

OpenBLAS's do so for 2**26 ticks, 27 ms at 2.4 GHz, and whoever is next has one processor less.
"""


GRACE = 20.0
"""Seconds in which a worker that has processes of its own may end them."""


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
    """What runs inside a worker: one method a request."""

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
            error = self.baseline.check(weights, expected)
        flops, per = self.baseline.work(case)
        # What is here now stays: a collection before each timing shall not walk through libraries.
        gc.collect()
        gc.freeze()
        about = {"error": error, "added_memory_mib": added, "flops": flops, "per": per}
        return about | {"notes": self.baseline.notes()}

    def epoch(self, count: int = 1) -> float:
        """Return the seconds of one epoch, `count` of which are timed together."""

        def every_epoch() -> None:
            for _ in range(count):
                self.run()

        time.sleep(SETTLE)
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

        time.sleep(SETTLE)
        return timed(every_call) / calls

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
    os.environ.update(environment, OMP_NUM_THREADS=str(entry.threads))
    if hasattr(os, "sched_setaffinity"):
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, processors[: entry.processors])
    if entry.jobs > 1 and hasattr(os, "setsid"):
        # A group of their own, so that no process of a search outlives this one.
        os.setsid()
    server = Server(entry)
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            server.baseline.end()
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


_STARTING = threading.Lock()


@contextlib.contextmanager
def untuned() -> Iterator[None]:
    """Start processes in here as most machines would: without settings of OpenBLAS.

    Some machines narrow it to the kernels of an old processor, for the sake of other programs. It
    would compute with those here too, and scikit-learn would be slower than its users see it.
    """
    with _STARTING:
        names = [name for name in os.environ if name.startswith("OPENBLAS_")]
        taken = {name: os.environ.pop(name) for name in names}
        try:
            yield
        finally:
            os.environ.update(taken)


class Worker:
    """The parent's end of a worker."""

    def __init__(self, entry: Entry, environment: dict[str, str] | None = None) -> None:
        # Spawned, not forked: thread pools and CUDA contexts do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        # A search starts processes of its own, which a daemon may not.
        self.process = context.Process(
            target=serve, args=(other, entry, environment or {}), daemon=entry.jobs == 1
        )
        with untuned():
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
        """End the process and its pipe."""
        if not self.process.daemon:
            # It hears of that, and ends those that it has started.
            self.connection.close()
            self.process.join(GRACE)
        self.stop()
        self.connection.close()

    def stop(self) -> None:
        """End the process at once: it has nothing to save, and some libraries take seconds."""
        if self.process.is_alive():
            if not self.process.daemon and hasattr(os, "killpg"):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            self.process.terminate()
            self.process.join()


def oracle(case: Case | WholeFit) -> Any:
    """Return what everybody who is timed on a case must come to."""
    if isinstance(case, WholeFit):
        return expected_outcome(case)
    if isinstance(case, Prediction):
        return expected_outputs(case)
    return expected_parameters(case, case.data(), case.initial_weights())


def caches(folder: str) -> dict[str, str]:
    """Return an environment in which compilers keep what they have compiled in a folder."""
    return {"NUMBA_CACHE_DIR": f"{folder}/numba", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}


def fresh(entry: Entry, environment: dict[str, str], *request: Any) -> Any:
    """Return a worker's answer; its process has imported none of the libraries before."""
    worker = Worker(entry, environment)
    try:
        return worker.ask(*request)
    finally:
        worker.close()


class Pool:
    """The workers of one round-robin; asking for another's ends them, which frees their memory."""

    def __init__(self) -> None:
        self.everyone: tuple[Competitor, ...] = ()
        self.workers: dict[Competitor, tuple[Worker, dict[str, Any]]] = {}
        self.refusals: dict[Competitor, Exception] = {}

    def worker(self, measurement: Measurement) -> tuple[Worker, dict[str, Any]]:
        """Return a worker that has validated its case, and what it said of it."""
        if measurement.everyone != self.everyone:
            self.close()
            self.open(measurement.everyone)
        competitor = measurement.case, measurement.entry
        if competitor in self.refusals:
            raise self.refusals[competitor]
        worker, about = self.workers[competitor]
        if "seconds" not in about:
            about["seconds"] = worker.ask("epoch")
        return worker, about

    def open(self, everyone: tuple[Competitor, ...]) -> None:
        """Start every worker and validate it: nothing is timed yet, so several do so at a time."""
        expected = {}
        for case in dict.fromkeys(case for case, _ in everyone):
            try:
                expected[case] = oracle(case)
            except MissingPackageError as error:
                without = [competitor for competitor in everyone if competitor[0] == case]
                self.refusals |= dict.fromkeys(without, Missing(str(error)))
        started: list[Worker] = []

        def prepare(competitor: Competitor) -> None:
            case, entry = competitor
            worker = Worker(entry)
            started.append(worker)
            try:
                answer = worker.ask("prepare", case, expected[case])
                self.workers[competitor] = worker, answer
            except (Missing, Disagreement, Failed) as error:
                worker.close()
                self.refusals[competitor] = error

        wanted = [competitor for competitor in everyone if competitor not in self.refusals]
        with ThreadPoolExecutor(count_cores()) as several:
            waiting = [several.submit(prepare, competitor) for competitor in wanted]
            try:
                for one in waiting:
                    one.result()
            except BaseException:
                # Ctrl-C: whoever is waited for must not hold up what is saved.
                several.shutdown(wait=False, cancel_futures=True)
                for worker in started:
                    worker.stop()
                raise
        self.everyone = everyone

    def close(self) -> None:
        """End every worker."""
        for worker, _ in self.workers.values():
            worker.close()
        self.workers.clear()
        self.everyone = ()
