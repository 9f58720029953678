"""A team of threads that run one compiled call together and meet at a spinning barrier."""

import ctypes
import os
import sys
import threading
from collections.abc import Callable

import numpy as np

from fastmlp_kernels.compile import part
from fastmlp_kernels.cpu.intrinsics import (
    atomic_add,
    atomic_load,
    atomic_store,
    give_way,
    pause,
    set_processors,
)

# A meeting place: two words, each in a cache line of its own.
ARRIVED, GENERATION = 0, 64
MEETING_BYTES = 128
# Of a set of processors, as the C library keeps it.
MASK_BYTES = 128
# Pauses before a waiting thread lets others run: about 50 us. Where there are more threads than
# processors, the one that is waited for gets its turn.
PATIENCE = 2000


@part
def meet(place, members):
    """Wait until all `members` have called this; what each wrote before is visible to all after.

    `place` is the address of a meeting place that is zero at first.
    """
    if members == 1:
        return
    generation = atomic_load(place + GENERATION)
    if atomic_add(place + ARRIVED, 1) == members - 1:
        atomic_store(place + ARRIVED, 0)
        atomic_store(place + GENERATION, generation + 1)
        return
    patience = PATIENCE
    while atomic_load(place + GENERATION) == generation:
        if patience > 0:
            patience -= 1
            pause()
        else:
            give_way()


def choose_places(places: np.ndarray) -> bool:
    """Choose a processor for each member, the caller's own for the last; return whether it could.

    `places` is zeros of uint8[members + 1, MASK_BYTES]: a mask of processors for each member, and
    in the last row the mask of all that the process may use.
    """
    members = len(places) - 1
    if not sys.platform.startswith("linux"):
        return False
    allowed = sorted(os.sched_getaffinity(0))
    here = ctypes.CDLL(None).sched_getcpu()
    if len(allowed) < members or here not in allowed or allowed[-1] >= 8 * MASK_BYTES:
        return False
    start = allowed.index(here) + 1
    others = allowed[start:] + allowed[: start - 1]
    places.fill(0)
    for row, processor in enumerate([*others[: members - 1], here]):
        _add(places[row], processor)
    for processor in allowed:
        _add(places[members], processor)
    return True


def _add(mask: np.ndarray, processor: int) -> None:
    mask[processor // 8] |= 1 << processor % 8


@part
def settle(places, member, members):
    """Move this thread to its processor, and leave it free to be moved again.

    Linux wakes a thread where its waker runs, and takes long to see that another processor is idle;
    a team on one processor waits out its patience at every meeting (64-64-10 at batch 64: 71 us a
    step instead of 23; 2-core AMD EPYC, 2026-11-23). From here on the thread neither sleeps nor
    waits for Python, which is what gets it moved back.

    Parameters
    ----------
    places : int
        Address of what `choose_places` filled.
    member, members : int
    """
    set_processors(places + member * MASK_BYTES, MASK_BYTES)
    set_processors(places + members * MASK_BYTES, MASK_BYTES)


def run_together(work: Callable[[int], None], members: int) -> None:
    """Call ``work(member)`` for each member at once, the last one in this thread.

    Nobody starts before all threads exist: a member that waits for one that never came would wait
    forever. Started and joined for each call, at about 0.1 ms a thread, so that there is nothing
    to be inherited by a forked child, shared between callers or left running at exit.

    Raises
    ------
    RuntimeError
        If the system starts no more threads; nothing has been done then.
    """
    failures: list[BaseException] = []
    ready, cancelled = threading.Event(), threading.Event()
    finished = [threading.Event() for _ in range(members - 1)]

    def target(member: int) -> None:
        ready.wait()
        try:
            if not cancelled.is_set():
                work(member)
        except BaseException as failure:
            failures.append(failure)
        finally:
            finished[member].set()

    started = []
    try:
        for member in range(members - 1):
            name = f"fastmlp-{member}"
            thread = threading.Thread(target=target, args=(member,), name=name, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError as error:
        cancelled.set()
        raise RuntimeError(
            f"threads: got {members}, wanted no more than the system starts ({error}); "
            "threads=1 needs none"
        ) from error
    except BaseException:
        cancelled.set()
        raise
    finally:
        ready.set()
    try:
        work(members - 1)
    finally:
        _wait_for(finished)
        for thread in started:
            thread.join()
    if failures:
        raise failures[0]


def _wait_for(events: list[threading.Event]) -> None:
    """Wait until all are set, however often Ctrl-C is pressed: arrays are being written to."""
    # Not Thread.join, which an interrupt leaves believing that the thread has ended (CPython 3.11).
    interrupt = None
    for event in events:
        while not event.is_set():
            try:
                event.wait()
            except KeyboardInterrupt as pressed:
                interrupt = pressed
    if interrupt is not None:
        raise interrupt
