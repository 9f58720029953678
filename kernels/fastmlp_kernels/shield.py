"""Work that no signal handler can tear: what the compiler and the import system keep is whole.

Python runs signal handlers in the main thread alone, between any two of its instructions. One that
raises, as Ctrl-C does, leaves a compiler or an import half done for good: "module 'numba' has no
attribute 'core'" in each later call of that process. Here the work has a thread of its own.
"""

import _thread
import contextvars
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")

# On Windows a wait is not ended by Ctrl-C: between two waits it is heard.
WAIT_SECONDS = 0.1
BEGIN_SECONDS = 5.0
# Of a fork for the compiler; a kernel takes some seconds.
FORK_SECONDS = 60.0

# Held while a thread is at shielded work, by the thread's identifier.
_at_work: dict[int, threading.Lock] = {}


def shield(work: Callable[[], Result]) -> Result:
    """Run `work` so that no signal handler interrupts it; return its result or raise its exception.

    The main thread waits while another one works. An exception of a signal handler leaves this
    call at once, and the work goes on to its end: whatever it caches is there for the next call.
    The process does not end before it, since a compiler must not run in an interpreter that is
    being taken down. Signal handlers do not run in other threads, so those simply call `work`.

    Parameters
    ----------
    work : callable without arguments
        May run beside a later call of the same work, after an interrupt. Must not wait for what
        the main thread holds: a lock, or a module that is being imported there.

    Examples
    --------
    >>> shield(lambda: 6 * 7)
    42
    """
    if threading.get_ident() != threading.main_thread().ident:
        return _work_here(work)
    results: list[Result] = []
    failures: list[BaseException] = []
    # Neither Thread.join nor an Event. An interrupted join makes a thread that runs look finished
    # (CPython 3.11), and an interrupted wait may keep the lock that Event.set needs.
    finished = threading.Lock()
    finished.acquire()
    context = contextvars.copy_context()

    begun: dict[str, object] = {}

    def target() -> None:
        if begun.setdefault("by", target) is not target:
            return
        try:
            results.append(_work_here(lambda: context.run(work)))
        except BaseException as failure:
            failures.append(failure)
        finally:
            finished.release()

    start_thread(target, "fastmlp-shield", False, lambda error: finished.release())
    late = time.monotonic() + BEGIN_SECONDS
    while not finished.acquire(timeout=WAIT_SECONDS):
        # A thread that has not begun by then may have died of want of memory.
        if time.monotonic() > late and begun.setdefault("by", begun) is begun:
            break
    if failures:
        try:
            raise failures[0]
        finally:
            # An exception that its own traceback refers to would live until a garbage collection.
            failures.clear()
    # Without a result the system starts no more threads, or the interpreter is about to end.
    return results[0] if results else work()


def start_thread(
    target: Callable[[], object],
    name: str,
    daemon: bool,
    failed: Callable[[Exception], object],
) -> None:
    """Have a thread started; an exception of a signal handler leaves it started or not, and whole.

    An interrupted ``Thread.start`` may keep a lock that the new thread needs (CPython 3.11). So it
    is called in a thread that is itself started by one instruction, and that no signal reaches.

    Parameters
    ----------
    target, name, daemon
        As of `threading.Thread`.
    failed : callable
        Given the error if the system starts no more threads, in whatever thread finds out.
    """

    def start() -> None:
        try:
            threading.Thread(target=target, name=name, daemon=daemon).start()
        except Exception as error:
            failed(error)

    try:
        _thread.start_new_thread(start, ())
    except RuntimeError as error:
        # The handler of a signal may raise a RuntimeError of its own just here.
        if "new thread" not in str(error):
            raise
        failed(error)


def _work_here(work: Callable[[], Result]) -> Result:
    """Run `work` in this thread, which is not the main one; a fork waits for its end."""
    thread = threading.get_ident()
    if thread in _at_work:
        return work()
    finished = _at_work[thread] = threading.Lock()
    finished.acquire()
    try:
        return work()
    finally:
        _at_work.pop(thread, None)
        finished.release()


def _wait_for_others() -> None:
    """Wait for shielded work before a fork: a child would wait forever for the compiler's lock."""
    this = threading.get_ident()
    for thread, finished in list(_at_work.items()):
        if thread != this and finished.acquire(timeout=FORK_SECONDS):
            finished.release()


# Windows has no fork.
if hasattr(os, "register_at_fork"):
    _hooks: dict[str, Any] = {"before": _wait_for_others, "after_in_child": _at_work.clear}
    os.register_at_fork(**_hooks)
