"""A team of threads that run one compiled call together and meet at a spinning barrier."""

import ctypes
import os
import sys
import time
from collections.abc import Callable

import numpy as np

from fastmlp_kernels.compile import part
from fastmlp_kernels.cpu.intrinsics import (
    atomic_add,
    atomic_load,
    atomic_store,
    compare_and_swap,
    give_way,
    nanoseconds,
    pause,
    set_processors,
)
from fastmlp_kernels.shield import start_thread

# A meeting place: two words, each in a cache line of its own.
ARRIVED, GENERATION = 0, 64
MEETING_BYTES = 128
# Of a set of processors, as the C library keeps it.
MASK_BYTES = 128
# What a member's bell holds. Nobody is there (as in memory that is zero); a thread has been asked
# to come; the member waits for a call; the caller counts on it; it is called.
GONE, COMING, LISTENING, CLAIMED, CALLED = range(5)
# A team's bells: a cache line for the count of members that are done, then one for each member.
BELL_BYTES = 64
# How long a member waits for its first call, before which others may still have to be started, and
# for each next one. The next epoch of a fit usually comes within 0.3 ms.
FIRST_NANOSECONDS = 100_000_000
NEXT_NANOSECONDS = 1_000_000
# How long compiled code waits for a thread that was asked to come, before it lets Python look.
ARRIVAL_NANOSECONDS = 10_000_000
# After so long a thread is asked for once more: the first may have died before it came.
REPEAT_SECONDS = 2.0
GIVE_UP_SECONDS = 60.0
# Pauses before a waiting thread lets others run: about 50 us. Where there are more threads than
# processors, the one that is waited for gets its turn.
PATIENCE = 2000
# What the caller of a call is as a member: the last one.
CALLER = -1


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
def _bell(bells, member):
    return bells + (member + 1) * BELL_BYTES


@part
def call_team(bells, others):
    """Call members 0 to `others` - 1, if all are there; return whether they were.

    All or nobody is called, in compiled code: no interrupt leaves a member waiting for a caller
    that never comes.
    """
    for member in range(others):
        bell, since = _bell(bells, member), nanoseconds()
        while atomic_load(bell) == COMING and nanoseconds() - since < ARRIVAL_NANOSECONDS:
            give_way()
        if not compare_and_swap(bell, LISTENING, CLAIMED):
            for claimed in range(member):
                atomic_store(_bell(bells, claimed), LISTENING)
            return False
    for member in range(others):
        atomic_store(_bell(bells, member), CALLED)
    return True


@part
def wait_for_team(bells, others):
    """Wait until the other members have done their work, and forget that they have."""
    patience = PATIENCE
    while atomic_load(bells) < others:
        if patience > 0:
            patience -= 1
            pause()
        else:
            give_way()
    atomic_store(bells, 0)


@part
def arrives(bells, member):
    """Say that a thread has come as a member; return whether it is still waited for."""
    return compare_and_swap(_bell(bells, member), COMING, LISTENING)


@part
def is_called(bells, member, loyalty):
    """Wait so many nanoseconds to be called; return whether the member was."""
    bell, patience, since = _bell(bells, member), PATIENCE, nanoseconds()
    while atomic_load(bell) != CALLED:
        if patience > 0:
            patience -= 1
            pause()
            continue
        give_way()
        # By the clock: where processors are busy, each turn that is given away takes long.
        late = nanoseconds() - since > loyalty
        if late and compare_and_swap(bell, LISTENING, GONE):
            return False
    return True


@part
def has_done(bells, member):
    """Say that a member's work of this call is done."""
    atomic_store(_bell(bells, member), LISTENING)
    atomic_add(bells, 1)


def choose_places(places: np.ndarray) -> bool:
    """Choose a processor for each member, the caller's own for the caller; return whether it could.

    `places` is uint8[members + 1, MASK_BYTES], masks of processors: of all that the process may
    use, of the caller's, and of each other member's.
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
    for processor in allowed:
        _add(places[0], processor)
    for row, processor in enumerate([here, *others[: members - 1]], start=1):
        _add(places[row], processor)
    return True


def _add(mask: np.ndarray, processor: int) -> None:
    mask[processor // 8] |= 1 << processor % 8


@part
def settle(places, member):
    """Move this thread to its processor, and leave it free to be moved again.

    Linux wakes a thread where its waker runs, and takes long to see that another processor is idle;
    a team on one processor waits out its patience at every meeting (64-64-10 at batch 64: 71 us a
    step instead of 23; 2-core AMD EPYC, 2026-11-23). From here on the thread neither sleeps nor
    waits for Python, which is what gets it moved back.

    Parameters
    ----------
    places : int
        Address of what `choose_places` filled.
    member : int
        Or `CALLER`.
    """
    set_processors(places + (member + 2) * MASK_BYTES, MASK_BYTES)
    set_processors(places, MASK_BYTES)


class Team:
    """The other members of a program's calls.

    A thread that has done its part of a call waits in compiled code for the next one, for a
    millisecond: the next epoch of a fit then starts in less than a microsecond instead of the 0.1
    to 0.2 ms that starting threads takes. Nothing is left running for longer, and a forked child,
    which has none of the threads, starts its own.

    An exception at any moment, as Ctrl-C raises, leaves nobody waiting for a call that never comes.

    Parameters
    ----------
    bells : ndarray
        uint8[members, BELL_BYTES], aligned and zero.
    """

    def __init__(self, bells: np.ndarray) -> None:
        self._words = bells.view(np.int64)[:, 0]
        self._process = os.getpid()

    def run(self, work: Callable[[int], bool], members: int, before_start: Callable) -> None:
        """Run a call with so many members, the last one in this thread.

        Parameters
        ----------
        work : callable
            ``work(member)`` runs compiled code. As `CALLER` it begins with `call_team` and returns
            False if that does; as a member it begins with `arrives` and waits with `is_called`.
        members : int
        before_start : callable
            Called before threads are started.

        Raises
        ------
        RuntimeError
            If the system starts no more threads; nothing has been computed then.
        """
        if self._process != os.getpid():
            self._words[:] = 0
            self._process = os.getpid()
        # When each member was last asked to come.
        begun = time.monotonic()
        asked = dict.fromkeys(range(members - 1), begun)
        failures: list[Exception] = []
        while not work(CALLER):
            if failures:
                raise RuntimeError(
                    f"threads: got {members}, wanted no more than the system starts "
                    f"({failures[0]}); threads=1 needs none"
                ) from failures[0]
            missing = [member for member, when in asked.items() if self._is_missing(member, when)]
            if missing:
                before_start()
            if time.monotonic() - begun > GIVE_UP_SECONDS:
                raise RuntimeError(
                    f"threads: got {members}, wanted no more than the system starts (none came in "
                    f"{GIVE_UP_SECONDS:.0f} s: is there memory left?); threads=1 needs none"
                )
            for member in missing:
                asked[member] = time.monotonic()
                self._start(work, member, failures)

    def _is_missing(self, member: int, asked: float) -> bool:
        state = self._words[member + 1]
        overdue = time.monotonic() - asked > REPEAT_SECONDS
        return bool(state == GONE or (state == COMING and overdue))

    def _start(self, work: Callable[[int], bool], member: int, failures: list[Exception]) -> None:
        def failed(error: Exception) -> None:
            failures.append(error)
            self._words[member + 1] = GONE

        self._words[member + 1] = COMING
        start_thread(lambda: work(member), f"fastmlp-{member}", True, failed)
