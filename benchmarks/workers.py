"""The processes in which providers are prepared, validated and timed.

On the CPU each provider and setting has one, so that none disturbs another's threads or memory, and
all workers of as many threads are held to the same processors. On a GPU a family of providers
shares one from case to case: a library's start and a context take seconds. A crash of one family
leaves the others their GPU.

A worker waits at a pipe while the others are measured. It reads the clock itself: what crosses the
pipe is seconds, so the pipe's own time is in no figure.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from benchmarks.baselines import Entry, Missing
from benchmarks.cases import Case
from benchmarks.outcomes import expected_outcome
from benchmarks.prediction import Prediction, expected_outputs
from benchmarks.providers import BASELINES
from benchmarks.servers import serve
from benchmarks.turns import Competitor, Measurement
from benchmarks.validation import Disagreement, expected_parameters
from benchmarks.whole_fits import WholeFit
from fastmlp.device.machine import count_cores
from fastmlp.errors import MissingPackageError

PATIENCE = 900.0
"""Seconds after which a worker that does not answer is given up."""

LONG_SECONDS, FAR_BEHIND = 0.2, 8.0
"""On a GPU, whose time is short: an epoch of so many seconds, and so many times the fastest."""

GRACE = 20.0
"""Seconds in which a worker that has processes of its own may end them."""


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
        # A search starts processes of its own, and so does PyTorch's compiler: a daemon may not.
        alone = entry.jobs == 1 and entry.device == "cpu"
        self.searches = entry.jobs > 1
        self.process = context.Process(
            target=serve, args=(other, entry, environment or {}), daemon=alone
        )
        with untuned():
            self.process.start()
        other.close()

    def ask(
        self,
        name: str,
        *arguments: Any,
        of: Competitor | None = None,
        patience: float = PATIENCE,
    ) -> Any:
        """Call a method of the worker's `Server` of a competitor and return its answer.

        A worker that does not answer in `patience` seconds is ended.
        """
        try:
            self.connection.send((of, name, arguments))
            if not self.connection.poll(max(patience, 0.0)):
                self.stop()
                raise Failed(f"{name}: no answer in {patience:.3g} seconds")
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
        if self.searches:
            # It hears of that, and ends those that it has started.
            self.connection.close()
            self.process.join(GRACE)
        self.stop()
        self.connection.close()

    def stop(self) -> None:
        """End the process at once: it has nothing to save, and some libraries take seconds."""
        if self.process.is_alive():
            if self.searches and hasattr(os, "killpg"):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
            self.process.join()


def oracle(case: Case | WholeFit) -> Any:
    """Return what everybody who is timed on a case must come to."""
    if isinstance(case, WholeFit):
        return expected_outcome(case)
    if isinstance(case, Prediction):
        return expected_outputs(case)
    return parameters_of(replace(case, precision="float32"))


@functools.lru_cache(maxsize=16)
def parameters_of(case: Case) -> Any:
    """Return the parameters after an epoch, which are the same for every precision."""
    return expected_parameters(case)


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


SHARED: dict[str, Worker] = {}
"""The workers of a GPU, by family. They outlive a round-robin, and end with this process."""


@atexit.register
def end_shared() -> None:
    """End the workers of a GPU."""
    while SHARED:
        SHARED.popitem()[1].close()


class Pool:
    """The workers of one round-robin; asking for another's frees their memory.

    Parameters
    ----------
    patience : float
        Seconds that anybody may take to prepare a case or to run an epoch.
    steady : float
        Seconds of epochs that everybody runs on the CPU before anything is timed.
    """

    def __init__(self, patience: float = PATIENCE, steady: float = 0.0) -> None:
        self.patience, self.steady = patience, steady
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
        return self.workers[competitor]

    def epoch(self, competitor: Competitor, count: int = 1) -> float:
        """Return the seconds of an epoch."""
        worker, _ = self.workers[competitor]
        return worker.ask("epoch", count, of=competitor, patience=self.patience)

    def is_far_behind(self, competitor: Competitor) -> bool:
        """Return whether one epoch says enough: more turns would take most of a GPU's time."""
        case, entry = competitor
        every = [about["seconds"] for (of, _), (_, about) in self.workers.items() if of == case]
        limit = max(LONG_SECONDS, FAR_BEHIND * min(every))
        return entry.device == "cuda" and self.workers[competitor][1]["seconds"] > limit

    def open(self, everyone: tuple[Competitor, ...]) -> None:
        """Start and validate everybody: nothing is timed yet, so several do so at a time."""
        self.everyone = everyone
        expected = self.oracles(everyone)
        places: dict[Any, list[Competitor]] = {}
        for competitor in everyone:
            if competitor not in self.refusals:
                family = competitor[1].device == "cuda" and BASELINES[competitor[1].provider].family
                places.setdefault(family or competitor, []).append(competitor)
        started: list[Worker] = []
        with ThreadPoolExecutor(count_cores()) as several:
            waiting = [
                several.submit(self.prepare, place, competitors, expected, started)
                for place, competitors in places.items()
            ]
            try:
                for one in waiting:
                    one.result()
            except BaseException:
                # Ctrl-C: whoever is waited for must not hold up what is saved.
                several.shutdown(wait=False, cancel_futures=True)
                for worker in started:
                    worker.stop()
                raise
        for competitor in [each for each in everyone if each in self.workers]:
            try:
                self.workers[competitor][1]["seconds"] = self.epoch(competitor)
            except Failed as error:
                self.refusals[competitor] = error
                del self.workers[competitor]

    def oracles(self, everyone: tuple[Competitor, ...]) -> dict[Any, Any]:
        """Return what everybody must come to, by case; without its data nobody can be timed."""
        expected = {}
        for case in dict.fromkeys(case for case, _ in everyone):
            try:
                expected[case] = oracle(case)
            except MissingPackageError as error:
                without = [competitor for competitor in everyone if competitor[0] == case]
                self.refusals |= dict.fromkeys(without, Missing(str(error)))
        return expected

    def prepare(
        self,
        place: Any,
        competitors: list[Competitor],
        expected: dict[Any, Any],
        started: list[Worker],
    ) -> None:
        """Prepare and validate those of one process, one after another."""
        waiting = list(competitors)
        while waiting:
            competitor = waiting.pop(0)
            case, entry = competitor
            worker = SHARED.get(place) if entry.device == "cuda" else None
            if worker is None or not worker.process.is_alive():
                worker = Worker(entry)
                started.append(worker)
                if entry.device == "cuda":
                    SHARED[place] = worker
            request = ("prepare", case, expected[case])
            try:
                about = worker.ask(*request, of=competitor, patience=self.patience)
                if self.steady and entry.device == "cpu":
                    steady = ("steady", self.steady)
                    worker.ask(*steady, of=competitor, patience=self.patience)
                self.workers[competitor] = worker, about
            except (Missing, Disagreement, Failed) as error:
                self.refusals[competitor] = error
                if entry.device == "cpu":
                    worker.close()
                elif not worker.process.is_alive():
                    # Whoever was ready there is lost too.
                    lost = [each for each, (held, _) in self.workers.items() if held is worker]
                    waiting = lost + waiting
                    for each in lost:
                        del self.workers[each]

    def close(self) -> None:
        """End every worker; those of a GPU let go of what they hold."""
        for worker in dict.fromkeys(worker for worker, _ in self.workers.values()):
            if worker not in SHARED.values():
                worker.close()
        for worker in SHARED.values():
            with contextlib.suppress(Failed):
                worker.ask("release", patience=GRACE)
        self.workers.clear()
        self.everyone = ()
