"""Where parameters and the optimizer's state live: on the host, and beside it on a GPU.

The host's arrays are what users see, hold views of and write to, so they are the authority. A GPU's
copy is a *mirror*: it stays there between calls, and with it a copy on the host of what the two had
in common last. Before the mirror is used the host's array is compared with that copy: reading two
arrays from the host's memory takes less than sending one over the bus, and it sees every write,
also one through a view that no method was told of. Only while a fit runs may the mirror be *ahead*;
whoever needs the host's array then calls `fetch`.
"""

import contextlib
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.errors import DeviceError, DeviceLostError, DeviceMemoryError
from fastmlp.state.finite import all_finite
from fastmlp.state.training_state import Snapshot, TrainingState
from fastmlp_kernels.device_memory import DeviceMemory
from fastmlp_kernels.problem import Program

Array = NDArray[Any]

# A lost context takes the GPU's memory with it. So that the host holds good parameters, they are
# fetched before an epoch when the last copy is older than this, and older than so many times what
# fetching took: an error on the device costs an epoch and a second or so of training, or, where the
# copies are slow, an epoch and as much as keeps them below 2 % of the time.
BACKUP_SECONDS = 1.0
BACKUP_SHARE = 0.02


class Mirror:
    """The copy of a host array on a GPU. It holds no reference to the host's array itself."""

    def __init__(self, host: Array, memory: DeviceMemory) -> None:
        self._memory = memory
        self.device = memory.to_device(host)
        self._seen = host.copy()
        self.ahead = False

    def current(self, host: Array, memory: DeviceMemory) -> Any:
        """Return the device array, brought up to date if the host's was written to."""
        if not self.ahead and not same_bits(host, self._seen):
            memory.write(host, self.device)
            self._seen[...] = host
        return self.device

    def fetch(self, host: Array, memory: DeviceMemory | None = None) -> None:
        """Bring the host's array up to date."""
        if self.ahead:
            (memory or self._memory).to_host(self.device, host)
            self._seen[...] = host
            self.ahead = False


def same_bits(first: Array, second: Array) -> bool:
    """Return whether two arrays of one dtype and shape hold the same bits."""
    words = f"u{first.itemsize}"
    # As words: a NaN would differ from itself, and 0.0 be the same as -0.0.
    return bool(np.array_equal(first.view(words), second.view(words)))


# Keyed by the identity of the host's array: a copy of a model has arrays of its own, and whoever
# pickles one must not find device memory in it.
_mirrors: dict[int, tuple[weakref.ref[Array], Mirror]] = {}
# Of a lost context: to free them would be a call to the driver that fails.
_lost: list[Mirror] = []


def mirror_of(host: Array, memory: DeviceMemory) -> Mirror:
    """Return the mirror of a host array; it lives as long as the array does."""
    key = id(host)
    kept = _mirrors.get(key)
    if kept is not None and kept[0]() is host:
        return kept[1]
    mirror = Mirror(host, memory)
    _mirrors[key] = (weakref.ref(host, lambda _: _mirrors.pop(key, None)), mirror)
    return mirror


def resident(program: Program, host: Array) -> Any:
    """Return parameters or state where a program computes; unchanged ones are not copied again."""
    memory = program.memory
    if memory is not None:
        return mirror_of(host, memory).current(host, memory)
    # Trained on a GPU, read on the host. Without a GPU there are no mirrors.
    if _mirrors and id(host) in _mirrors:
        _mirrors[id(host)][1].fetch(host)
    return host


def written(program: Program, host: Array) -> None:
    """Bring the host's array up to date: a program has written to what `resident` returned."""
    if program.memory is not None:
        mirror = mirror_of(host, program.memory)
        mirror.ahead = True
        mirror.fetch(host, program.memory)


def blank(program: Program, host: Array) -> Any:
    """Return an array where a program computes, to write what then goes to `host`."""
    return host if program.memory is None else program.memory.empty(host.shape, host.dtype)


@contextlib.contextmanager
def _translated(argument: str) -> Iterator[None]:
    from fastmlp_kernels.cuda.device import memory
    from fastmlp_kernels.cuda.device.failures import DeviceFailure, DeviceLost, OutOfDeviceMemory

    try:
        with memory.device_errors(argument):
            yield
    except OutOfDeviceMemory as failure:
        raise DeviceMemoryError(str(failure)) from failure
    except DeviceLost as failure:
        _lost.extend(mirror for _, mirror in _mirrors.values())
        _mirrors.clear()
        raise DeviceLostError(str(failure)) from failure
    except DeviceFailure as failure:
        raise DeviceError(str(failure)) from failure


_NOTHING = contextlib.nullcontext()


def guarded(device: str, argument: str) -> contextlib.AbstractContextManager[None]:
    """Return a context in which errors of a GPU are raised as fastmlp's, in plain words."""
    return _NOTHING if device == "cpu" else _translated(argument)


class OnHost:
    """A fit's parameters and state where the host computes: the arrays themselves."""

    lost = False

    def __init__(self, state: TrainingState) -> None:
        self._state = state
        self.parameters, self.slots = state.parameters, state.slots
        self._before: Any = None

    def upload(self) -> None:
        """Take up what the host has written."""
        self.parameters, self.slots = self._state.parameters, self._state.slots

    def keep(self) -> None:
        """Remember the present values for `undo`."""
        older = self._before
        self._before = self._state.snapshot() if older is None else self._state.save(older)

    @property
    def backup(self) -> Snapshot | None:
        """What was kept, if it is on the host: its arrays change while an epoch runs."""
        return self._before

    def trained(self) -> None:
        """Take note of an epoch."""

    def fetch(self) -> None:
        """Bring the host's arrays up to date: they are."""

    def lose(self) -> None:
        """Go back to the last values on the host: they are what they are."""

    def is_finite(self) -> bool:
        """Return whether all values are finite."""
        return all_finite(self._state.parameters) and all_finite(self._state.slots)

    def undo(self, networks: NDArray[np.bool_] | None = None) -> None:
        """Go back to what was kept; with `networks`, only those of several."""
        self._state.restore(self._before, networks)


class OnDevice:
    """A fit's parameters and state on a GPU: mirrors, ahead of the host until they are fetched."""

    lost = False

    def __init__(self, state: TrainingState, memory: DeviceMemory) -> None:
        self._state, self._memory = state, memory
        self.upload()
        arrays = (self.parameters, self.slots)
        self._before = [memory.empty(each.shape, each.dtype) for each in arrays]
        self._counts = state.steps, state.epochs
        self._note(0.0)

    def _note(self, seconds: float) -> None:
        """Remember what the host's arrays are those of, and when that was."""
        self._fetched = self._state.steps, self._state.epochs
        pause = max(BACKUP_SECONDS, seconds / BACKUP_SHARE)
        self._due = time.monotonic() + pause

    def _pairs(self) -> Iterator[tuple[Array, Mirror]]:
        for host in (self._state.parameters, self._state.slots):
            yield host, mirror_of(host, self._memory)

    def upload(self) -> None:
        """Take up what the host has written."""
        for _, mirror in self._pairs():
            mirror.ahead = False
        held = [mirror.current(host, self._memory) for host, mirror in self._pairs()]
        self.parameters, self.slots = held

    def keep(self) -> None:
        """Remember the present values for `undo`, on the GPU; on the host too when that is due."""
        if time.monotonic() >= self._due:
            self.fetch()
        for held, into in zip((self.parameters, self.slots), self._before, strict=True):
            self._memory.copy(held, into)
        self._counts = self._state.steps, self._state.epochs

    backup = None

    def trained(self) -> None:
        """Take note of an epoch: the host's arrays are behind."""
        for _, mirror in self._pairs():
            mirror.ahead = True

    def fetch(self) -> None:
        """Bring the host's arrays up to date."""
        started = time.monotonic()
        for host, mirror in self._pairs():
            mirror.fetch(host, self._memory)
        self._note(time.monotonic() - started)

    def lose(self) -> None:
        """Go back to the last values on the host: the GPU's memory is lost."""
        self.lost = True
        self._state.steps, self._state.epochs = self._fetched

    def is_finite(self) -> bool:
        """Return whether all values are finite."""
        return self._memory.all_finite(self.parameters, self.slots)

    def undo(self, networks: NDArray[np.bool_] | None = None) -> None:
        """Go back to what was kept; with `networks`, only those of several."""
        if networks is not None:
            self.fetch()
            before = [np.empty_like(host) for host, _ in self._pairs()]
            for kept, host in zip(self._before, before, strict=True):
                self._memory.to_host(kept, host)
            self._state.restore(Snapshot(before[0], before[1], *self._counts), networks)
            self._note(0.0)
            self.upload()
            return
        for held, kept in zip((self.parameters, self.slots), self._before, strict=True):
            self._memory.copy(kept, held)
        self._state.steps, self._state.epochs = self._counts
        self.trained()


def home_of(state: TrainingState, program: Program) -> OnHost | OnDevice:
    """Return where a program trains a state."""
    return OnHost(state) if program.memory is None else OnDevice(state, program.memory)
