"""Threads that use one model: reads go side by side, changes one after another.

A call that changes a model holds its lock. A call that reads takes none: it looks whether the model
was changed meanwhile, and if so reads a copy that was made while nobody changed it. A fit keeps
other training out from its beginning to its end, and holds the lock for each epoch, so that others
read the parameters of whole epochs.

Every lock is taken by the statement ``with lock:`` of a lock written in C. No exception that a
signal handler raises, as Ctrl-C does, falls between taking it and being sure to give it back.
"""

import os
import time
from collections.abc import Callable
from threading import Lock, get_ident
from typing import Any, TypeVar

from fastmlp.errors import BusyError

T = TypeVar("T")

# How often, and how many seconds apart, a thread looks whether it waits for itself.
LOOKS, LOOK_SECONDS = 5, 1e-3


class ModelLock:
    """Who may change a model, and when.

    Attributes
    ----------
    fitting : Lock
        Held by a fit from its beginning to its end.
    writing : Lock
        Held while parameters or the optimizer's state change, and while they are copied.
    """

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._process = os.getpid()
        self.fitting, self.writing, self._turn = Lock(), Lock(), Lock()
        self._writer = self._reader = 0
        # Whether somebody fits or waits: calls look at this alone, and nobody pays who is alone.
        self._crowded = False

    def change(self, method: str, work: Callable[..., T], *arguments: Any) -> T:
        """Return ``work(*arguments)``, which changes the model.

        Parameters
        ----------
        method : str
            What the user called, for messages.

        Raises
        ------
        BusyError
            If a fit of this model runs, or this thread is in the middle of another change.
        """
        if self._crowded or self.writing.locked():
            self._queue(method)
        with self.writing:
            if self._crowded and self.fitting.locked():
                raise self._busy(method)
            self._writer = get_ident()
            return work(*arguments)

    def fit(self, method: str, work: Callable[[], T]) -> T:
        """Return ``work()``, which trains the model for a while; see `epoch`, and `change`."""
        if self.fitting.locked() or self.writing.locked():
            self._queue(method)
        with self.fitting:
            self._crowded = True
            return work()

    def hold(self, method: str, work: Callable[..., T], *arguments: Any) -> T:
        """Return ``work(*arguments)``, which nothing may disturb and which changes no parameter.

        In the callbacks of a fit it is permitted.
        """
        if self.writing.locked():
            self._renew_in_child()
            self._refuse_to_wait_for_oneself(method)
        return self.epoch(work, *arguments)

    def epoch(self, work: Callable[..., T], *arguments: Any) -> T:
        """Return ``work(*arguments)``, by which the fit that is going on changes the model."""
        if self._turn.locked():
            self._let_readers_go_first()
        with self.writing:
            self._writer = get_ident()
            return work(*arguments)

    def copied(self, method: str, copy: Callable[[], T]) -> T:
        """Return ``copy()``, made while nothing changes the model.

        Raises
        ------
        BusyError
            If this thread is in the middle of a change, as in a signal handler.
        """
        self._renew_in_child()
        self._refuse_to_wait_for_oneself(method)
        if self._holds_turn():
            # In a signal handler, within this very method.
            with self.writing:
                return copy()
        with self._turn:
            self._reader = get_ident()
            self._crowded = True
            with self.writing:
                self._writer = get_ident()
                return copy()

    def _queue(self, method: str) -> None:
        """Refuse what cannot go on, and let others go first who wait."""
        self._renew_in_child()
        self._refuse_to_wait_for_oneself(method)
        if self.fitting.locked():
            raise self._busy(method)
        # Looked at after it is taken back: whoever comes later than that look says so anew.
        self._crowded = False
        if self._turn.locked() or self.fitting.locked():
            self._crowded = True
            self._let_readers_go_first()

    def _let_readers_go_first(self) -> None:
        # A lock of Python is not fair: who gives it back and takes it again mostly gets it.
        if not self._holds_turn():
            with self._turn:
                pass

    def _holds_turn(self) -> bool:
        return self._reader == get_ident() and self._turn.locked()

    def _renew_in_child(self) -> None:
        """Forget what threads of a parent process hold: a forked child has none of them."""
        if self._process != os.getpid():
            self._renew()

    def _refuse_to_wait_for_oneself(self, method: str) -> None:
        # Another thread may have taken the lock and not yet have said so: it soon does.
        for _ in range(LOOKS):
            if not (self.writing.locked() and self._writer == get_ident()):
                return
            time.sleep(LOOK_SECONDS)
        raise BusyError(
            f"{method}: got a call in the middle of a change of the same model by the same thread, "
            "as from a signal handler; wanted it after that change, or from another thread"
        )

    def _busy(self, method: str) -> BusyError:
        return BusyError(
            f"{method}: got a model that a fit is training, wanted no other change of it "
            "meanwhile; wait for the fit, train a copy (copy.deepcopy), or only read (predict, "
            "evaluate)"
        )
