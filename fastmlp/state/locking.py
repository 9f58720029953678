"""Threads that use one model: reads go side by side, changes one after another.

A call that changes a model holds its lock. A call that reads takes none: it looks whether the model
was changed meanwhile, and if so reads a copy that was made while nobody changed it. A fit keeps
other training out from its beginning to its end, and holds the lock for each epoch, so that others
read the parameters of whole epochs.

Every lock is taken by the statement ``with lock:`` of a lock written in C. No exception that a
signal handler raises, as Ctrl-C does, falls between taking it and being sure to give it back.
"""

from collections.abc import Callable
from threading import Lock, RLock
from typing import Any, TypeVar

from fastmlp.errors import BusyError

T = TypeVar("T")


class ModelLock:
    """Who may change a model, and when.

    Attributes
    ----------
    fitting : Lock
        Held by a fit from its beginning to its end.
    active : bool
        Whether somebody may be changing the model. True says "ask the lock": an interrupt may have
        left it so. False is sure: it is set after the lock is taken, before anything is changed.
    """

    def __init__(self) -> None:
        self.fitting = Lock()
        # Their owner is known to the interpreter from the instruction that takes them. A call of a
        # signal handler between that and the change comes before the change.
        self._writing, self._turn = RLock(), RLock()
        self.active = False
        # Whether a reader waits; whether somebody fits or waits. Calls look at the latter alone, so
        # that nobody pays who is alone.
        self._waiting = self._crowded = False

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
        if self._crowded or self.active:
            self._queue(method)
        with self._writing:
            if self._crowded and self.fitting.locked():
                raise self._busy(method)
            self.active = True
            try:
                return work(*arguments)
            finally:
                self.active = False

    def fit(self, method: str, work: Callable[[], T]) -> T:
        """Return ``work()``, which trains the model for a while; see `epoch`, and `change`."""
        if self.fitting.locked() or self.active:
            self._queue(method)
        with self.fitting:
            self._crowded = True
            return work()

    def hold(self, method: str, work: Callable[..., T], *arguments: Any) -> T:
        """Return ``work(*arguments)``, which nothing may disturb and which changes no parameter.

        In the callbacks of a fit it is permitted.
        """
        if self.active:
            self._refuse_to_wait_for_oneself(method)
        return self.epoch(work, *arguments)

    def epoch(self, work: Callable[..., T], *arguments: Any) -> T:
        """Return ``work(*arguments)``, by which the fit that is going on changes the model."""
        if self._crowded:
            self._let_readers_go_first()
        with self._writing:
            self.active = True
            try:
                return work(*arguments)
            finally:
                self.active = False

    def copied(self, method: str, copy: Callable[[], T]) -> T:
        """Return ``copy()``, made while nothing changes the model.

        Raises
        ------
        BusyError
            If this thread is in the middle of a change, as in a signal handler.
        """
        self._refuse_to_wait_for_oneself(method)
        with self._turn:
            self._waiting = self._crowded = True
            with self._writing:
                # Nobody is changing anything, whatever an interrupt has left here.
                self._waiting = self.active = False
                return copy()

    def _queue(self, method: str) -> None:
        """Refuse what cannot go on, and let others go first who wait."""
        self._refuse_to_wait_for_oneself(method)
        if self.fitting.locked():
            raise self._busy(method)
        self._let_readers_go_first()
        # Who begins to fit or to wait after this line says so anew; who began before is seen.
        self._crowded = False
        if self.fitting.locked() or self._waiting:
            self._crowded = True

    def _let_readers_go_first(self) -> None:
        # A lock of Python is not fair: who gives it back and takes it again mostly gets it.
        with self._turn:
            self._waiting = False

    def _refuse_to_wait_for_oneself(self, method: str) -> None:
        if self.active and self._writing._is_owned():  # type: ignore[attr-defined]
            raise BusyError(
                f"{method}: got a call in the middle of a change of the same model by the same "
                "thread, as from a signal handler; wanted it after that change, or from another "
                "thread"
            )

    def _busy(self, method: str) -> BusyError:
        return BusyError(
            f"{method}: got a model that a fit is training, wanted no other change of it "
            "meanwhile; wait for the fit, train a copy (copy.deepcopy), or only read (predict, "
            "evaluate)"
        )
