"""Who is told that kernels are being compiled: the compiler knows it, and shows nothing itself."""

import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

logger = logging.getLogger("fastmlp")

Result = TypeVar("Result")
# Given a lock that it can acquire once the compilation has ended, what is compiled, and how often;
# returns a function that waits until nothing is shown any more, or None where nothing will be.
Show = Callable[[threading.Lock, str, str], Callable[[], None] | None]

_show: Show | None = None
_logged: set[str] = set()


def announce_to(show: Show) -> None:
    """Have `show` called when a compilation begins, by the thread that compiles."""
    global _show
    _show = show


def compile_or_load(
    work: Callable[[Callable[[], None]], Result], compiled: str, how_often: str
) -> Result:
    """Return ``work(begins)``, which compiles something or loads it; the former is announced.

    Parameters
    ----------
    work : callable
        Calls `begins` when it has to compile: several times if it likes, in any thread.
    compiled, how_often : str
        In words: "kernels", "once per installation and version".
    """
    running = threading.Lock()
    begun: list[Callable[[], None] | None] = []

    def begins() -> None:
        if begun or not running.locked():
            return
        begun.append(None)
        if compiled not in _logged:
            _logged.add(compiled)
            logger.info("compiling %s (%s)", compiled, how_often)
        if _show is not None:
            begun[0] = _show(running, compiled, how_often)

    try:
        # No interrupt comes before a `with` lets go of a lock: what is shown is sure to end.
        with running:
            return work(begins)
    finally:
        # A debugger may raise there what an interrupt can not.
        if running.locked():
            running.release()
        if begun and begun[0] is not None:
            begun[0]()


def compile_always(work: Callable[[], Result], compiled: str, how_often: str) -> Result:
    """Return ``work()``, which compiles something; announce it."""

    def begun(begins: Callable[[], None]) -> Result:
        begins()
        return work()

    return compile_or_load(begun, compiled, how_often)


def passes(events: Any, begins: Callable[[], None]) -> Any:
    """Return what hears a compiler's passes: what is loaded from the disk cache goes through none.

    `events` is of the compiler; each has a class of its own for listeners.
    """

    class Passes(events.Listener):
        def on_start(self, started: Any) -> None:
            begins()

        def on_end(self, ended: Any) -> None:
            pass

    return Passes()
