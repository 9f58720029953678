"""A team of threads that run one compiled call together and meet at a spinning barrier."""

import ctypes
import functools
import os
import sys
import threading
import time
from collections.abc import Callable

import numpy as np

from fastmlp_kernels.compile import kernel, part
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
# What the bell of a member that stays holds: it listens, is kept for the next call, is to take part
# in it, is not needed after all, or has left.
LISTENING, KEPT, CALLED, DISMISSED, GONE = 0, 1, 2, 3, 1 << 32
# The bells of a team lie before its count of the members that are done, a cache line each.
BELL_BYTES = 64
# Times that a member lets others run before it leaves: about 1 ms with nobody there, and the next
# epoch of a fit usually comes within 0.3 ms.
LOYALTY = 2000
DISMISSAL_SECONDS = 1e-4
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


@part
def is_called(bell):
    """Wait until the member that was kept for a call is called or dismissed; return which."""
    patience = PATIENCE
    while atomic_load(bell) == KEPT:
        if patience > 0:
            patience -= 1
            pause()
        else:
            give_way()
    if atomic_load(bell) == CALLED:
        return True
    atomic_store(bell, GONE)
    return False


@part
def stays(bell, done):
    """Say that a member's work is done, and wait for more; return whether there is any."""
    atomic_store(bell, LISTENING)
    atomic_add(done, 1)
    patience, loyalty = PATIENCE, LOYALTY
    while atomic_load(bell) == LISTENING:
        if patience > 0:
            patience -= 1
            pause()
        elif loyalty > 0:
            loyalty -= 1
            give_way()
        elif atomic_add(bell, GONE) == LISTENING:
            return False
        else:
            # Kept at the last moment: the caller counts on this member.
            atomic_add(bell, -GONE)
            return True
    return True


@part
def all_done(done, others):
    """Wait until the other members have done their work, and forget that they have."""
    patience = PATIENCE
    while atomic_load(done) < others:
        if patience > 0:
            patience -= 1
            pause()
        else:
            give_way()
    atomic_store(done, 0)


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


@part
def ring(bells, members):
    """Call the members that were kept."""
    for member in range(members):
        atomic_add(bells + member * BELL_BYTES, CALLED - KEPT)


# What a caller does with a bell: keep a member that is there, keep one that is about to start, give
# up one that could not be started, and let go one that is not needed.
KEEP, START, GIVE_UP, DISMISS = range(4)


@kernel
def change_bell(bell, change):
    """Do one of the above; return whether the member is there, or for `DISMISS` whether it left."""
    if change == KEEP:
        there = atomic_add(bell, KEPT) < GONE
        if not there:
            atomic_add(bell, -KEPT)
        return there
    if change == DISMISS:
        # A member that is about to leave sees that it was kept, and takes its leave back.
        while atomic_load(bell) == GONE + KEPT:
            pause()
        if atomic_load(bell) == KEPT:
            atomic_add(bell, DISMISSED - KEPT)
        return atomic_load(bell) != DISMISSED
    atomic_store(bell, KEPT if change == START else GONE)
    return change == START


@functools.cache
def compile_team() -> None:
    """Compile what `StayingTeam` calls, or load it: a later shape is not to."""
    change_bell(np.zeros(1, np.int64).ctypes.data, GIVE_UP)


class StayingTeam:
    """The other members of calls that follow one another, as the epochs of a fit do.

    A thread that has done its part of a call waits in compiled code for the next one, for a
    millisecond: an epoch then starts in less than a microsecond instead of the 0.1 to 0.2 ms that
    starting threads takes. Nothing is left running for longer, and a forked child, which has none
    of the threads, starts its own.

    Parameters
    ----------
    bells : ndarray
        uint8[members, BELL_BYTES], aligned: a bell for each but the last member, who is the caller,
        then the count of the members that are done.
    """

    def __init__(self, bells: np.ndarray) -> None:
        self._words = bells.view(np.int64)[:, 0]
        start = bells.__array_interface__["data"][0]
        self._bells = [start + member * BELL_BYTES for member in range(len(bells) - 1)]
        self._process = 0

    def keep(self, work: Callable[[int], None], before_start: Callable[[], None]) -> None:
        """Keep all other members for the caller's next run, which must follow and calls them.

        Parameters
        ----------
        work : callable
            ``work(member)`` runs compiled code that begins with `is_called` and ends with `stays`;
            a thread holds on to it.
        before_start : callable
            Called if a thread has to be started.

        Raises
        ------
        RuntimeError
            If the system starts no more threads; nobody is kept then.
        """
        if self._process != os.getpid():
            self._words[:-1], self._words[-1] = GONE, 0
            self._process = os.getpid()
        try:
            missing = [pair for pair in enumerate(self._bells) if not change_bell(pair[1], KEEP)]
            if missing:
                before_start()
            for member, bell in missing:
                self._start(work, member, bell)
        except BaseException:
            self.dismiss()
            raise

    def dismiss(self) -> None:
        """Let everybody go who was kept and has not been called, and wait until they have left."""
        # A thread that has just been started looks at the tables first: they must not change yet.
        while not all([change_bell(bell, DISMISS) for bell in self._bells]):
            time.sleep(DISMISSAL_SECONDS)

    def _start(self, work: Callable[[int], None], member: int, bell: int) -> None:
        change_bell(bell, START)
        name = f"fastmlp-{member}"
        thread = threading.Thread(target=work, args=(member,), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            change_bell(bell, GIVE_UP)
            raise RuntimeError(
                f"threads: got {len(self._bells) + 1}, wanted no more than the system starts "
                f"({error}); threads=1 needs none"
            ) from error
