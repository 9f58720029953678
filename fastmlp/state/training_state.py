"""Everything that training changes of a model, and how far it is."""

import logging
import operator
import os
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from itertools import starmap
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastmlp.state.locking import ModelLock
from fastmlp.state.parameters import aligned, aligned_zeros
from fastmlp_kernels.problem import BATCHES, STATUS

logger = logging.getLogger("fastmlp")

Array = NDArray[Any]
T = TypeVar("T")

# Of a state, what a copy of it does not have.
LEFT_OUT = ("lock", "now", "backup")


def applied_batches(control: NDArray[np.int64]) -> Any:
    """Return how many batches of an epoch have changed the parameters; of each network if many."""
    if control.ndim > 1:
        failed = control[:, STATUS]
        return np.where(failed > 0, failed - 1, control[:, BATCHES])
    status = control.item(STATUS)
    return status - 1 if status else control.item(BATCHES)


def at_once(*calls: tuple[Any, ...]) -> None:
    """Call functions written in C, each with its arguments; no signal handler runs in between.

    Python runs handlers between two of its own instructions, and a deque that consumes an iterator
    is one instruction.
    """
    deque(starmap(operator.call, calls), maxlen=0)


class Snapshot(NamedTuple):
    """Copies of what an epoch changes: see `TrainingState`."""

    parameters: Array
    slots: Array
    steps: Any
    epochs: Any


class Origin(NamedTuple):
    """Where a copy of a model's parameters, as a compiled handle has, came from.

    The model's steps then, its `TrainingState.now` as the copy last knew it, and how many of the
    copy's own changes the model has.
    """

    steps: int
    now: Any
    changes: int


class TrainingState:
    """Everything that training changes, of one network or of several.

    Of several, every array has one more axis, the first, and steps and epochs are int64[members],
    not to be written to: a network that failed, or an interrupt, leaves them uneven.

    How far it is stands in one attribute, `now`, which is replaced as a whole, and the words that a
    running kernel writes are a part of it. So an exception at any moment, as Ctrl-C raises, leaves
    a state whose steps and epochs are those of its parameters.

    Parameters
    ----------
    parameters : ndarray
        dtype[P], or dtype[members, P]
    seed : int or sequence of int
        Of the order of the rows, with `epochs`; each other network has the next, or a seed of its
        own.
    epochs, steps : int
        Finished epochs of all fits; steps taken with the present optimizer's state.
    rule : str or None
        The optimizer's rule that `slots`, dtype[slots, P], belong to.

    Attributes
    ----------
    now : tuple
        Steps, epochs, rule and slots before a kernel began; the kernel's control words, or None
        while there is none; and the batches of its epoch, or 0 for one that is a single step.
    lock : ModelLock
    """

    # Of each network, where they have seeds of their own.
    _seeds: tuple[int, ...] | None = None

    def __init__(
        self,
        parameters: Array,
        seed: int | Sequence[int],
        epochs: Any = None,
        steps: Any = None,
        rule: str | None = None,
        slots: Array | None = None,
    ) -> None:
        if not isinstance(seed, int):
            self._seeds = seeds = tuple(seed)
            seed = seeds[0]
        self.seed = seed
        self.parameters, self.lock = parameters, ModelLock()
        # While an epoch runs: what was before it.
        self.backup: Snapshot | None = None
        _states.add(self)
        networks = parameters.shape[:-1]
        begun: Any = np.zeros(networks, dtype=np.int64) if networks else 0
        steps, epochs = (begun if each is None else each for each in (steps, epochs))
        given = np.zeros((*networks, 0, 0), dtype=parameters.dtype) if slots is None else slots
        self.now: tuple[Any, Any, str | None, Array, Any, int]
        self.now = (steps, epochs, rule, given, None, 0)

    def member(self, index: int) -> "TrainingState":
        """Return a copy of the state of one network, made while nobody changes it."""
        return self.lock.copied("ensemble[k]", lambda: self._member(index))

    def _member(self, index: int) -> "TrainingState":
        steps, epochs, rule, slots, _, _ = self.settled()
        parameters = self.parameters
        if parameters.ndim > 1:
            parameters, slots, steps, epochs = (
                each[index] for each in (parameters, slots, steps, epochs)
            )
        counts = int(epochs), int(steps)
        return TrainingState(
            aligned(parameters), self.seed_of(index), *counts, rule=rule, slots=aligned(slots)
        )

    def seed_of(self, member: int) -> int:
        """Return the seed of a network."""
        return self.seed + member if self._seeds is None else self._seeds[member]

    @property
    def steps(self) -> Any:
        """Steps taken with the present optimizer's state."""
        steps, _, _, _, control, _ = self.now
        return steps if control is None else steps + applied_batches(control)

    @steps.setter
    def steps(self, steps: Any) -> None:
        _, epochs, rule, slots, _, _ = self.settled()
        self.now = (steps, epochs, rule, slots, None, 0)

    @property
    def epochs(self) -> Any:
        """Finished epochs of all fits."""
        return self.settled()[1]

    @epochs.setter
    def epochs(self, epochs: Any) -> None:
        steps, _, rule, slots, _, _ = self.settled()
        self.now = (steps, epochs, rule, slots, None, 0)

    @property
    def rule(self) -> str | None:
        """The optimizer's rule that the slots belong to."""
        return self.now[2]

    @property
    def slots(self) -> Array:
        """The optimizer's state."""
        return self.now[3]

    def settled(self) -> tuple[Any, Any, str | None, Array, None, int]:
        """Return what `now` would be had the kernel ended: it has, or an interrupt ended it."""
        steps, epochs, rule, slots, control, batches = now = self.now
        if control is None:
            return now
        applied = applied_batches(control)
        whole = (applied == batches) if batches else 0
        return steps + applied, epochs + whole, rule, slots, None, 0

    def settle(self) -> None:
        """Take what the kernel's words say as the truth; they may then be used again."""
        self.now = self.settled()

    def watch(self, control: NDArray[np.int64], batches: int = 0) -> None:
        """Have a kernel's words, now zero, say how far the state is; see `now`."""
        steps, epochs, rule, slots, _, _ = self.settled()
        self.now = (steps, epochs, rule, slots, control, batches)

    def touch(self) -> None:
        """Let whoever reads or keeps something of the parameters know that they have changed."""
        self.now = (*self.settled(),)

    def change(self, method: str, work: Callable[[], None]) -> None:
        """Do what changes the parameters while nobody else does, and let readers know."""

        def change() -> None:
            self.touch()
            work()
            # For a reader that began in between.
            self.touch()

        self.lock.change(method, change)

    def read(self, method: str, work: Callable[..., T], *arguments: Any) -> T:
        """Return ``work(parameters, *arguments)``, of parameters that nobody changes meanwhile.

        Readers take no lock, so that any number of them go side by side. One that finds afterwards
        that the parameters have changed begins again with a copy.
        """
        before = self.now
        if not self.lock.active:
            result = work(self.parameters, *arguments)
            if self.now is before:
                return result
        return work(self.lock.copied(method, self.parameters.copy), *arguments)

    def fresh_slots(self, count: int) -> Array:
        """Return the optimizer's state as it begins."""
        *networks, size = self.parameters.shape
        return aligned_zeros((*networks, count, size), self.parameters.dtype)

    def prepare(self, rule: str, slots: int) -> None:
        """Make sure that the optimizer's state is that of `rule`: another one starts afresh."""
        steps, epochs, present, _, _, _ = self.settled()
        if rule == present:
            return
        self.tell_of_change(rule)
        self.now = (0 * steps, epochs, rule, self.fresh_slots(slots), None, 0)

    def tell_of_change(self, rule: str) -> None:
        """Log that another optimizer's state is given up, if there is any."""
        if self.rule is not None and np.any(self.steps):
            logger.warning(
                "optimizer: %s takes over from %s with a fresh state; its steps are counted from 0",
                rule,
                self.rule,
            )

    def snapshot(self) -> Snapshot:
        """Return copies of what an epoch changes."""
        steps, epochs, _, slots, _, _ = self.settled()
        return Snapshot(self.parameters.copy(), slots.copy(), steps, epochs)

    def save(self, snapshot: Snapshot) -> Snapshot:
        """Return a snapshot of the same optimizer, in the memory of an older one."""
        steps, epochs, _, slots, _, _ = self.settled()
        snapshot.parameters[...], snapshot.slots[...] = self.parameters, slots
        return Snapshot(snapshot.parameters, snapshot.slots, steps, epochs)

    def restore(self, snapshot: Snapshot, networks: NDArray[np.bool_] | None = None) -> None:
        """Go back to a snapshot of the same optimizer; with `networks`, only those of several."""
        if networks is not None:
            snapshot = self._mixed(snapshot, networks)
        now = (snapshot.steps, snapshot.epochs, self.rule, self.slots, None, 0)
        at_once(
            (np.copyto, self.parameters, snapshot.parameters),
            (np.copyto, self.slots, snapshot.slots),
            (setattr, self, "now", now),
        )

    def _mixed(self, snapshot: Snapshot, networks: NDArray[np.bool_]) -> Snapshot:
        present = self.parameters, self.slots, self.steps, self.epochs
        pairs = zip(snapshot, present, strict=True)
        chosen = [np.where(_along(networks, now.ndim), before, now) for before, now in pairs]
        return Snapshot(*chosen)

    def __getstate__(self) -> dict[str, Any]:
        """Return copies, made while nobody changes the state."""
        return self.lock.copied("copy", self._contents)

    def _contents(self) -> dict[str, Any]:
        steps, epochs, rule, slots, _, _ = self.settled()
        others = {name: value for name, value in vars(self).items() if name not in LEFT_OUT}
        others["parameters"] = self.parameters.copy()
        return {**others, "now": (steps, epochs, rule, slots.copy(), None, 0)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or unpickled state, at the alignment that copying does not keep."""
        self.__dict__.update(state)
        self.lock, self.backup = ModelLock(), None
        self.parameters = aligned(self.parameters)
        steps, epochs, rule, slots, _, _ = self.now
        self.now = (steps, epochs, rule, aligned(slots), None, 0)
        _states.add(self)

    def adopt(self, other: "TrainingState") -> None:
        """Become what another state of the same shape is; it is not used any more."""
        calls = (np.copyto, self.parameters, other.parameters), (setattr, self, "now", other.now)
        at_once(*calls)

    def renew(self) -> None:
        """Go on in a forked child, which has none of the threads that were at work.

        An epoch that one of them was computing is taken back: half of its last step may be missing.
        """
        torn, self.lock = self.lock.active, ModelLock()
        if torn and self.backup is not None:
            self.restore(self.backup)
        self.backup = None


def _along(networks: NDArray[np.bool_], dimensions: int) -> NDArray[np.bool_]:
    return networks.reshape(-1, *[1] * (dimensions - 1))


_states: weakref.WeakSet[TrainingState] = weakref.WeakSet()


def _renew_all() -> None:
    for state in list(_states):
        state.renew()


# Windows has no fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
