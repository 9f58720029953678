"""A team of threads that run one compiled call together and meet at a spinning barrier."""

import ctypes
import math
import os
import sys
import time
from collections.abc import Callable

import numpy as np

from fastmlp_kernels.compile import part
from fastmlp_kernels.cpu.atomics import (
    atomic_add,
    atomic_load,
    atomic_store,
    compare_and_swap,
    give_way,
    nanoseconds,
    pause,
    processor,
    set_processors,
    sleep_on,
    wake,
)
from fastmlp_kernels.cpu.intrinsics import field_address, record_at, word
from fastmlp_kernels.cpu.tables import BELL, MASK_BYTES, MEETING
from fastmlp_kernels.shield import start_thread

# What a thread's bell holds. Nobody is there (as in memory that is zero); a thread has been asked
# to come; it waits for a call; the caller counts on it; it is called; it works; it sleeps until it
# is called.
GONE, COMING, LISTENING, CLAIMED, CALLED, BUSY, SLEEPING = range(7)
# How long a thread waits for its first call, before which others may still have to be started, and
# for each next one. The next epoch of a fit usually comes within 0.3 ms.
FIRST_NANOSECONDS = 100_000_000
NEXT_NANOSECONDS = 1_000_000
# How long it then sleeps. To wake it takes 50 us, to start another 200 us and more. A model that is
# dropped is kept alive so long.
SLEEP_NANOSECONDS = 100_000_000
# How long compiled code waits for a thread that was asked to come, before it lets Python look.
ARRIVAL_NANOSECONDS = 10_000_000
# After so long a thread is asked for once more: the first may have died before it came.
REPEAT_SECONDS = 2.0
GIVE_UP_SECONDS = 60.0
# Calls that follow each other so fast are a row; and how long threads are let come, at most.
FREQUENT_SECONDS = 1e-3
LET_COME_SECONDS = 1e-3
# Pauses before a waiting thread lets others run: about 50 us. Where there are more threads than
# processors, the one that is waited for gets its turn.
PATIENCE = 2000
# The number of the thread that calls, the last one. Its bell counts the others that are done.
CALLER = -1


@part
def meet(place, threads):
    """Wait until all `threads` have called this; what each wrote before is visible to all after.

    `place` is the address of a meeting place that is zero at first.
    """
    if threads == 1:
        return
    meeting = record_at(place, MEETING, 0)
    arrived, generation = field_address(meeting, "arrived"), field_address(meeting, "generation")
    present = atomic_load(generation)
    if atomic_add(arrived, 1) == threads - 1:
        atomic_store(arrived, 0)
        atomic_store(generation, present + 1)
        return
    patience = PATIENCE
    while atomic_load(generation) == present:
        if patience > 0:
            patience -= 1
            pause()
        else:
            give_way()


@part
def _bell(bells, thread):
    return field_address(record_at(bells, BELL, thread + 1), "state")


@part
def _reach(bell, value):
    """Turn the bell of a thread that waits or sleeps to a value; return whether it did."""
    if compare_and_swap(bell, LISTENING, value):
        return True
    if not compare_and_swap(bell, SLEEPING, value):
        return False
    # At once, whatever becomes of the call: nobody sleeps at a bell that says anything else.
    wake(bell)
    return True


@part
def call_team(bells, others):
    """Call threads 0 to `others` - 1, if all are there; return whether they were.

    All or nobody is called, in compiled code: no interrupt leaves a thread waiting for a caller
    that never comes.
    """
    for thread in range(others):
        bell, since = _bell(bells, thread), nanoseconds()
        while atomic_load(bell) == COMING and nanoseconds() - since < ARRIVAL_NANOSECONDS:
            give_way()
        if not _reach(bell, CLAIMED):
            for claimed in range(thread):
                atomic_store(_bell(bells, claimed), LISTENING)
            return False
    for thread in range(others):
        atomic_store(_bell(bells, thread), CALLED)
    return True


@part
def wait_for(place, count):
    """Wait until the word at an address is at least `count`."""
    patience = PATIENCE
    while atomic_load(place) < count:
        if patience > 0:
            patience -= 1
            pause()
        else:
            give_way()


@part
def wait_for_team(bells, others):
    """Wait until the other threads have done their work, and forget that they have."""
    done = _bell(bells, CALLER)
    wait_for(done, others)
    atomic_store(done, 0)


@part
def call_present(bells, others):
    """Call those of threads 0 to `others` - 1 that wait or sleep; return how many they were."""
    called = 0
    for thread in range(others):
        if _reach(_bell(bells, thread), CALLED):
            called += 1
    return called


@part
def withdraw(bells, others):
    """Take back the calls that no thread has heard yet; return how many they were.

    A thread that has no processor then keeps nobody waiting.
    """
    withdrawn = 0
    for thread in range(others):
        if compare_and_swap(_bell(bells, thread), CALLED, LISTENING):
            withdrawn += 1
    return withdrawn


@part
def arrives(bells, thread):
    """Say that a thread has come; return whether it is still waited for."""
    return compare_and_swap(_bell(bells, thread), COMING, LISTENING)


@part
def settle(places, thread):
    """Move this thread to its processor, and leave it free to be moved again.

    Linux wakes a thread where its waker runs, and takes long to see that another processor is idle;
    a team on one processor waits out its patience at every meeting (64-64-10 at batch 64: 71 us a
    step instead of 23; 2-core AMD EPYC, 2026-11-23). From here on the thread neither sleeps nor
    waits for Python, which is what gets it moved back.

    Parameters
    ----------
    places : int
        Address of what `choose_places` filled.
    thread : int
        Or `CALLER`.
    """
    own, here = places + (thread + 2) * MASK_BYTES, processor()
    if 0 <= here < 8 * MASK_BYTES and word(own, here // 64) >> here % 64 & 1:
        # To say where a thread may run costs 5 us a call (2-core AMD EPYC, Zen 3, 2026-11-29).
        return
    set_processors(own, MASK_BYTES)
    set_processors(places, MASK_BYTES)


@part
def is_called(bells, thread, loyalty, places):
    """Wait so many nanoseconds to be called, at the thread's place, and sleep for a while then.

    Returns whether it was called. If not, nobody counts on it any more.
    """
    bell, patience, since = _bell(bells, thread), PATIENCE, nanoseconds()
    while not (atomic_load(bell) == CALLED and compare_and_swap(bell, CALLED, BUSY)):
        if patience > 0:
            patience -= 1
            pause()
            continue
        give_way()
        if places:
            settle(places, thread)
        # By the clock: where processors are busy, each turn that is given away takes long.
        late = nanoseconds() - since > loyalty
        if late and compare_and_swap(bell, LISTENING, SLEEPING):
            sleep_on(bell, SLEEPING, SLEEP_NANOSECONDS)
            if compare_and_swap(bell, SLEEPING, GONE):
                return False
            if places:
                # It wakes up where its waker runs.
                settle(places, thread)
            patience, since = PATIENCE, nanoseconds()
    return True


@part
def has_done(bells, thread):
    """Say that a thread's work of this call is done."""
    atomic_store(_bell(bells, thread), LISTENING)
    atomic_add(_bell(bells, CALLER), 1)


def choose_places(places: np.ndarray) -> bool:
    """Choose a processor for each thread, the caller's own for the caller; return whether it could.

    `places` is uint8[threads + 1, MASK_BYTES], masks of processors: of all that the process may
    use, of the caller's, and of each other thread's.
    """
    threads = len(places) - 1
    if not sys.platform.startswith("linux"):
        return False
    allowed = sorted(os.sched_getaffinity(0))
    here = ctypes.CDLL(None).sched_getcpu()
    if len(allowed) < threads or here not in allowed or allowed[-1] >= 8 * MASK_BYTES:
        return False
    start = allowed.index(here) + 1
    others = allowed[start:] + allowed[: start - 1]
    masks = np.zeros_like(places)
    for each in allowed:
        _add(masks[0], each)
    for row, each in enumerate([here, *others[: threads - 1]], start=1):
        _add(masks[row], each)
    # Threads that wait read these at any time: none of them shall see a mask without processors.
    places[...] = masks
    return True


def _add(mask: np.ndarray, number: int) -> None:
    mask[number // 8] |= 1 << number % 8


class Team:
    """The other threads of a program's calls.

    A thread that has done its part of a call waits in compiled code for the next one, for a
    millisecond: the next epoch of a fit then starts in less than a microsecond instead of the 0.1
    to 0.2 ms that starting threads takes. Then it sleeps for a tenth of a second, and leaves. A
    forked child, which has none of the threads, starts its own.

    An exception at any moment, as Ctrl-C raises, leaves nobody waiting for a call that never comes.

    Parameters
    ----------
    bells : ndarray
        Of BELL, one for each thread, aligned to a cache line and zero.
    """

    def __init__(self, bells: np.ndarray) -> None:
        self._states = bells["state"]
        self._process = os.getpid()
        # When calls missed the threads last, and first in a row.
        self._missed = self._first_missed = -math.inf

    def run(self, work: Callable[[int], bool], threads: int, before_start: Callable) -> None:
        """Run a call with so many threads, the last one in this thread.

        Parameters
        ----------
        work : callable
            ``work(thread)`` runs compiled code. For `CALLER` it begins with `call_team` and returns
            False if that does; for another it begins with `arrives` and waits with `is_called`.
        threads : int
        before_start : callable
            Called before threads are started.

        Raises
        ------
        RuntimeError
            If the system starts no more threads; nothing has been computed then.
        """
        self.renew()
        # When each thread was last asked to come.
        begun = time.monotonic()
        asked = dict.fromkeys(range(threads - 1), begun)
        failures: list[Exception] = []
        while not work(CALLER):
            if failures:
                raise RuntimeError(
                    f"threads: got {threads}, wanted no more than the system starts "
                    f"({failures[0]}); threads=1 needs none"
                ) from failures[0]
            missing = [thread for thread, when in asked.items() if self._is_missing(thread, when)]
            if missing:
                before_start()
            if time.monotonic() - begun > GIVE_UP_SECONDS:
                raise RuntimeError(
                    f"threads: got {threads}, wanted no more than the system starts (none came in "
                    f"{GIVE_UP_SECONDS:.0f} s: is there memory left?); threads=1 needs none"
                )
            for thread in missing:
                asked[thread] = time.monotonic()
                self._start(work, thread, failures)

    def renew(self) -> None:
        """Forget the threads of a parent process."""
        if self._process != os.getpid():
            self._states[:] = 0
            self._process = os.getpid()

    def invite(self, work: Callable[[int], bool], threads: int, before_start: Callable) -> None:
        """Have the threads started that are not there, and wait for none: see `run`."""
        missing = [thread for thread in range(threads - 1) if self._states[thread + 1] == GONE]
        if missing:
            before_start()
        for thread in missing:
            self._start(work, thread, [])

    def miss(self, send: Callable[[], None]) -> None:
        """Note that a call had to do without the threads; they may still be of use to the next.

        They are sent for where such calls follow each other closely, and once in a row of such
        calls they are let come: a thread takes Python's lock some times before it is in compiled
        code, which takes 10 ms where the caller gives the lock up for tens of microseconds only.

        Parameters
        ----------
        send : callable
            Sends for the threads.
        """
        now, last = time.monotonic(), self._missed
        self._missed = now
        if now - last >= FREQUENT_SECONDS:
            self._first_missed = now
            return
        send()
        if now - self._first_missed >= FREQUENT_SECONDS:
            self._first_missed = math.inf
            self._let_come()
            # The row goes on from here.
            self._missed = time.monotonic()

    def _let_come(self) -> None:
        begun = time.monotonic()
        while (self._states == COMING).any() and time.monotonic() - begun < LET_COME_SECONDS:
            time.sleep(5e-5)

    def _is_missing(self, thread: int, asked: float) -> bool:
        state = self._states[thread + 1]
        overdue = time.monotonic() - asked > REPEAT_SECONDS
        return bool(state == GONE or (state == COMING and overdue))

    def _start(self, work: Callable[[int], bool], thread: int, failures: list[Exception]) -> None:
        def failed(error: Exception) -> None:
            failures.append(error)
            self._states[thread + 1] = GONE

        self._states[thread + 1] = COMING
        start_thread(lambda: work(thread), f"fastmlp-{thread}", True, failed)
