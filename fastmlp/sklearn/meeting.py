"""Fits of several threads that meet before their first epoch, and are trained side by side.

scikit-learn calls `fit` for one candidate of a search at a time. With a thread for each, all of
them come to the same place: they have their first parameters, and wait. One of them trains all
whose networks have one shape and the same rows. Each then goes on as if it had trained alone, and
has the same bits. An epoch costs no change of threads.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastmlp.device.machine import detect
from fastmlp.dispatch.planning import Programs
from fastmlp.errors import CallOrderError
from fastmlp.sklearn.acceleration import training_refusal
from fastmlp.sklearn.consistency import mismatch
from fastmlp.sklearn.engine import Fit, Training
from fastmlp.sklearn.kernels import KernelEngine
from fastmlp.state.parameters import aligned_zeros
from fastmlp.state.training_state import TrainingState
from fastmlp.training.epochs import Epoch
from fastmlp.training.trainer import Trainer

Array = NDArray[Any]

# The most fits that wait for each other: each is a thread.
MOST_FITS = 64

_of_thread = threading.local()


class Gathering(Protocol):
    """What a thread's fits take part in."""

    def checked(self, estimator: Any, check: Callable[[], Any]) -> Any:
        """Return the rows of a fit as `check` returns them."""

    def train(self, fit: Fit) -> bool:
        """Have a fit trained; return whether its caller need not go on with it."""


def meeting_here() -> Gathering | None:
    """Return what this thread takes part in."""
    return getattr(_of_thread, "meeting", None)


@contextmanager
def taking_part(meeting: Gathering) -> Iterator[None]:
    """Have the fits of this thread take part."""
    _of_thread.meeting = meeting
    try:
        yield
    finally:
        _of_thread.meeting = None


def may_join(training: Training, incremental: bool) -> bool:
    """Return whether a fit may be trained beside others: nobody looks at its epochs one by one."""
    estimator = training.estimator
    if incremental or meeting_here() is None or training.sample_weight is not None:
        return False
    watched = estimator.callbacks or hasattr(estimator, "_skl_callbacks") or estimator.verbose
    if watched or estimator.early_stopping:
        return False
    # On a GPU several networks are trained by another kernel than one is.
    if estimator.device != "cpu" and detect().cuda_missing is None:
        return False
    reasons = mismatch, training_refusal, KernelEngine.refusal
    return all(each(training) is None for each in reasons)


@dataclass(eq=False)
class Seat:
    """A fit that waits.

    Attributes
    ----------
    fit : Fit
    engine : KernelEngine
        Without a trainer of its own.
    called : Event
        Set when the fit may go on: it has been trained, or must go on alone, or has `group`.
    group : list of Seat
        What the fit's thread is to train before it goes on.
    error : BaseException or None
        Why the fit cannot go on.
    """

    fit: Fit
    engine: KernelEngine
    called: threading.Event = field(default_factory=threading.Event)
    group: "list[Seat]" = field(default_factory=list)
    error: BaseException | None = None


class Meeting:
    """Where fits wait for each other.

    Parameters
    ----------
    places : int
        How many threads there are.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self._lock = threading.Lock()
        # Whose turn it is: threads that all want the interpreter only take it from each other.
        self._turn = threading.Lock()
        self._waiting: list[Seat] = []
        # Fits that have not ended, and may still come.
        self._left = 0
        self.closed = False

    def expect(self, candidates: int, folds: int = 1) -> None:
        """Wait for so many candidates more on so many folds."""
        with self._lock:
            self._left += candidates * folds

    def attended(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose fits take part; after it, one fit less is expected."""

        def attend(*given: Any, **keywords: Any) -> Any:
            try:
                with taking_part(self), self._turn:
                    return function(*given, **keywords)
            finally:
                with self._lock:
                    self._left -= 1
                    self._begin()

        return attend

    def checked(self, estimator: Any, check: Callable[[], Any]) -> Any:
        """Return the rows of a fit, which are its own."""
        return check()

    def train(self, fit: Fit) -> bool:
        """Return when a fit has been trained, or must go on alone: False then."""
        seat = Seat(fit, KernelEngine(fit.training, alone=False))
        with self._lock:
            self._refuse_if_closed()
            self._waiting.append(seat)
            self._begin()
        self._turn.release()
        try:
            self._wait_or_train(seat)
        finally:
            self._turn.acquire()
        if seat.error is not None:
            raise seat.error
        return fit.done

    def _wait_or_train(self, seat: Seat) -> None:
        seat.called.wait()
        if seat.group:
            try:
                for group in alike(seat.group):
                    train_together(group, self._refuse_if_closed)
            except BaseException as error:
                release(seat.group, error)
                raise
            release(seat.group)

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._lock:
            self.closed = True
            waiting, self._waiting = self._waiting, []
        release(waiting, CallOrderError("fit: got a search that has ended"))

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise CallOrderError("fit: got a search that has ended")

    def _begin(self) -> None:
        """Have one of those who wait train all of them, if nobody else can come meanwhile."""
        if self._waiting and len(self._waiting) >= min(self.places, self._left):
            first, self._waiting, group = self._waiting[0], [], self._waiting
            first.group = group
            first.called.set()


def release(seats: Sequence[Seat], error: BaseException | None = None) -> None:
    """Let fits go on that have not been told to yet."""
    for seat in seats:
        if not seat.called.is_set():
            seat.error = error
            seat.called.set()


def alike(seats: Sequence[Seat]) -> list[list[Seat]]:
    """Return groups of fits that one program can train: of one shape, and on the same rows."""
    groups: dict[Any, list[list[Seat]]] = {}
    for seat in seats:
        of_kind = groups.setdefault(seat.engine.kind, [])
        same = (group for group in of_kind if _share_rows(group[0], seat))
        found = next(same, None)
        if found is None:
            of_kind.append([seat])
        else:
            found.append(seat)
    return [group for of_kind in groups.values() for group in of_kind]


def _share_rows(one: Seat, other: Seat) -> bool:
    """Return whether two fits have rows of the same bits."""
    ours, theirs = one.fit.training, other.fit.training
    return _same_bits(ours.X, theirs.X) and _same_bits(ours.y, theirs.y)


def _same_bits(one: Array, other: Array) -> bool:
    if one is other:
        return True
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    # A zero and a negative one are equal numbers.
    words = f"u{one.itemsize}"
    return all(each.flags.c_contiguous for each in (one, other)) and np.array_equal(
        one.view(words), other.view(words)
    )


def train_together(seats: Sequence[Seat], look: Callable[[], None]) -> None:
    """Train fits of one kind until each is done; whoever must go on alone is let go before.

    `look` is called before each epoch, and may raise.
    """
    if len(seats) > 1:
        Together(seats).run(look)
    release(seats)


class Together:
    """The training of several fits side by side."""

    def __init__(self, seats: Sequence[Seat]) -> None:
        self._seats, engine = seats, seats[0].engine
        problem, update, batch_size, _, where = engine.kind
        states = [seat.engine.state for seat in seats]
        parameters, slots = (
            _stacked([getattr(each, name) for each in states]) for name in ("parameters", "slots")
        )
        steps = np.array([each.steps for each in states], dtype=np.int64)
        self._state = TrainingState(parameters, 0, steps=steps, rule=states[0].rule, slots=slots)
        self._trainer = Trainer(
            self._state,
            Programs(replace(problem, members=len(seats))),
            engine.data(),
            batch_size,
            update,
            where,
            l2=[seat.engine.alpha for seat in seats],
        )
        self._orders = np.array([seat.fit.order for seat in seats])
        self._solvers: tuple[Any, ...] = ()

    def run(self, look: Callable[[], None]) -> None:
        """Train until nobody is left."""
        self._trainer.prepare()
        here = dict(enumerate(self._seats))
        while here:
            look()
            for k, seat in here.items():
                self._orders[k] = seat.fit.order
            epoch = self._trainer.run(self._orders, self._solvers_now())
            gone = [k for k, seat in here.items() if not self._take(k, seat, epoch)]
            for k in gone:
                del here[k]
            if gone and here:
                self._trainer.leave_out(gone)

    def _solvers_now(self) -> tuple[Any, ...]:
        """Return the optimizers; the same object as long as none has changed."""
        now = tuple(seat.engine.solvers()[0] for seat in self._seats)
        if len(self._solvers) != len(now) or any(
            one is not other for one, other in zip(now, self._solvers, strict=True)
        ):
            self._solvers = now
        return self._solvers

    def _take(self, k: int, seat: Seat, epoch: Epoch) -> bool:
        """Tell a fit of its epoch; return whether it takes part in the next one."""
        engine, fit = seat.engine, seat.fit
        loss = engine.loss(epoch.losses[k], epoch.penalties[k])
        failed = bool(epoch.bad_batches[k] > 0 or not epoch.finite[k])
        if engine.distrust(failed, loss, self._state.parameters[k]) is None:
            try:
                fit.take(engine.typed(loss))
            except Exception as error:
                # Its own, as a warning is that a filter turns into an error.
                seat.error = error
            if not fit.done and seat.error is None:
                return True
        else:
            # It trains this epoch again, alone, and finds the reason there.
            networks = np.zeros(len(self._seats), dtype=np.bool_)
            networks[k] = True
            self._trainer.undo(networks)
        own, held = engine.state, self._state
        own.parameters[...], own.slots[...] = held.parameters[k], held.slots[k]
        own.steps = int(held.steps[k])
        engine.report()
        release([seat], seat.error)
        return False


def _stacked(arrays: Sequence[Array]) -> Array:
    """Return arrays of one shape as one, where kernels find it well aligned."""
    together = aligned_zeros((len(arrays), *arrays[0].shape), arrays[0].dtype)
    together[...] = arrays
    return together
