"""Ctrl-C during an epoch: compiled code does not look at signals, so Python waits beside it."""

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastmlp_kernels.problem import BATCHES, STOP

# An epoch longer than this runs in a thread of its own, so that Ctrl-C is heard at once.
THREAD_SECONDS = 0.05
WAIT_SECONDS = 0.1


def run_interruptibly(
    work: Callable[[], None],
    control: NDArray[np.int64],
    seconds: float,
    waiting: Callable[[int], None],
) -> None:
    """Run an epoch so that an interrupt stops it after its present batch.

    A short epoch is simply waited for; a long one runs in a thread, while this one sleeps, reports
    how far it is and passes an interrupt on. `control` may have one row for each of several
    networks: they are stopped together, and their finished batches are counted together.
    """
    if seconds <= THREAD_SECONDS or threading.current_thread() is not threading.main_thread():
        work()
        return
    failures: list[BaseException] = []
    # Not Thread.is_alive: an interrupted join makes it say False of a thread that runs (CPython
    # 3.11, Thread._wait_for_tstate_lock).
    done = threading.Event()

    def target() -> None:
        try:
            work()
        except BaseException as failure:
            failures.append(failure)
        finally:
            done.set()

    thread = threading.Thread(target=target, name="fastmlp-epoch", daemon=True)
    try:
        try:
            thread.start()
        except RuntimeError:
            done.set()
            raise
        while not done.wait(WAIT_SECONDS):
            waiting(int(control[..., BATCHES].sum()))
    except BaseException:
        control[..., STOP] = 1
        _wait(done)
        raise
    if failures:
        raise failures[0]


def _wait(done: threading.Event) -> None:
    # Parameters must not be touched any more when this returns, however often Ctrl-C is pressed.
    while not done.is_set():
        try:
            done.wait(WAIT_SECONDS)
        except KeyboardInterrupt:
            continue
