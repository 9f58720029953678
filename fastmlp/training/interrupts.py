"""Ctrl-C during long work: compiled code does not look at signals, so Python waits beside it."""

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastmlp_kernels.problem import BATCHES, STOP
from fastmlp_kernels.shield import start_thread

T = TypeVar("T")

# Work longer than this runs in a thread of its own, so that Ctrl-C is heard at once.
THREAD_SECONDS = 0.05
WAIT_SECONDS = 0.1
# A thread that has not begun by then may have died for lack of memory. Its caller does the work.
BEGIN_SECONDS = 5.0


def run_interruptibly(
    work: Callable[[], T],
    control: NDArray[np.int64],
    seconds: float,
    waiting: Callable[[int], None] = lambda done: None,
) -> T:
    """Return ``work()``, and stop it early if a signal handler raises an exception meanwhile.

    Short work runs in this thread. Long work runs in a thread of its own. This one then sleeps and
    reports how far the work is. On an exception it sets ``control[STOP]`` and waits for the worker.
    `control` may have one row for each of several networks. They are stopped together, and their
    finished batches are counted together.

    Work that changes a model takes the model's lock itself, so the worker holds it. A second
    exception at a bad moment then cannot free a model that is still being trained.
    """
    if seconds <= THREAD_SECONDS or threading.current_thread() is not threading.main_thread():
        return work()
    worker = _Worker(work)
    try:
        # Where the system starts no more threads, the work is done here, and Ctrl-C is not heard.
        start_thread(worker.run, "fastmlp-epoch", True, lambda error: worker.run())
        late = time.monotonic() + BEGIN_SECONDS
        while not worker.wait():
            if time.monotonic() > late:
                worker.run()
            waiting(int(control[..., BATCHES].sum()))
    except BaseException:
        control[..., STOP] = 1
        worker.end()
        raise
    if worker.failure is not None:
        raise worker.failure
    return worker.result


class _Worker:
    """Work in a thread of its own, and how it ended."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._begun: dict[str, object] = {}
        # Neither Thread.join nor an Event. An interrupted join makes a thread that runs look
        # finished (CPython 3.11). An interrupted Event.wait may raise "release unlocked lock" in
        # place of the handler's exception. A lock is taken by one instruction, or not at all.
        self._ended = False
        self._working = threading.Lock()
        self._working.acquire()
        self.result: Any = None
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Do the work, unless somebody has begun it or its caller has given it up."""
        mine = object()
        if self._begun.setdefault("by", mine) is not mine:
            return
        try:
            self.result = self._work()
        except BaseException as failure:
            self.failure = failure
        finally:
            self._ended = True
            self._working.release()

    def wait(self) -> bool:
        """Wait a moment for the end of the work; return whether it has come."""
        if not self._ended:
            self._working.acquire(timeout=WAIT_SECONDS)
        return self._ended

    def end(self) -> None:
        """Wait until the work has ended, or make sure that it never begins.

        After this returns nobody touches the parameters any more, whatever was raised meanwhile,
        and however often.
        """
        while True:
            try:
                if self._begun.setdefault("by", self) is self:
                    return
                while not self.wait():
                    pass
                return
            except BaseException:  # noqa: PERF203  whatever it is, the first one is raised
                continue
