"""Work that nobody waits for: one thread does it, piece after piece, and ends when none is left."""

import os
import threading
from collections import deque
from collections.abc import Callable

from fastmlp_kernels.shield import shield, start_thread

_lock = threading.Lock()
_pieces: deque[Callable[[], object]] = deque()
_at_work = False


def later(work: Callable[[], object]) -> None:
    """Have a piece of work done after those that were given before.

    A process that ends waits for the piece that is at work, since a compiler must not run in an
    interpreter that is being taken down, and drops the others. A fork waits for it too: a child
    would wait for ever for the compiler's lock. Nothing is done where no thread is to be had. An
    exception of a signal handler may leave the work undone, or to be done after the next piece.
    """
    with _lock:
        _pieces.append(work)
        if _at_work:
            return
    # Whoever asks may be a daemon: its threads would be daemons too, and not be waited for.
    start_thread(_work_off, "fastmlp-background", False, _no_thread)


def _work_off() -> None:
    global _at_work
    with _lock:
        # Not whoever asks: an interrupt before the thread is there would leave it said for ever.
        if _at_work:
            return
        _at_work = True
    while True:
        with _lock:
            # The main thread is not alive once the process is about to end.
            if not _pieces or not threading.main_thread().is_alive():
                _pieces.clear()
                _at_work = False
                return
            work = _pieces.popleft()
        try:
            shield(work)
        except BaseException:
            _forget()
            raise


def _no_thread(error: Exception) -> None:
    """Drop the work that waits, unless an earlier thread is at it."""
    with _lock:
        if not _at_work:
            _pieces.clear()


def _forget() -> None:
    """Drop all work: there is no thread for it any more."""
    global _lock, _at_work
    _lock, _at_work = threading.Lock(), False
    _pieces.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
