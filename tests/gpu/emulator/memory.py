"""Memory as the threads of some blocks see it: shared, global, atomics and asynchronous copies."""

import collections
from dataclasses import dataclass

import numpy as np

from tests.gpu.emulator import tensor_cores, traffic
from tests.gpu.emulator.arithmetic_instructions import SHARED_WINDOW
from tests.gpu.emulator.global_memory import ALLOCATED, WRITTEN
from tests.gpu.emulator.ordering import Ordering, Touches
from tests.gpu.emulator.registers import S64, U8, U16, U32, U64, Fault

SHARED_ALIGNMENT = 16
WINDOW_BYTES = 1 << 24


@dataclass
class Access:
    """Where some threads access memory.

    `place` are the bytes from the beginning of the space, `chosen` the positions of the threads in
    the group that executes the instruction (a slice of all, where it has no guard), `threads` those
    among the blocks.
    """

    space: str
    place: np.ndarray
    size: int
    chosen: np.ndarray | slice
    threads: np.ndarray


def mark_written(state, place, size):
    """Note that so many bytes are written, at places that are multiples of their number."""
    step = min(size, 8)
    words, first = state.view(f"u{step}"), place // step
    for number in range(size // step):
        words[first + number] = int(f"{WRITTEN:02}" * step, 16)


class Memory:
    """The shared memory of some blocks, and how they reach it and the device's."""

    def __init__(self, blocks, device):
        self.blocks, self.device = blocks, device
        self.ordering = Ordering(blocks, device.findings, device.clock) if device.watch else None
        program, launch = blocks.launch.program, blocks.launch
        dynamic = -(-program.static_shared // SHARED_ALIGNMENT) * SHARED_ALIGNMENT
        places = program.symbols.items()
        self.symbols = {name: dynamic if at is None else at for name, at in places}
        self.size = program.static_shared
        if None in program.symbols.values():
            self.size = dynamic + launch.dynamic_bytes
        blocks.shared_bytes = self.size
        # A block's memory is followed by some of nobody, as global allocations are.
        self.stride = (-(-self.size // SHARED_ALIGNMENT) + 1) * SHARED_ALIGNMENT
        self.begins = blocks.own * self.stride
        total = self.stride * blocks.count
        self._shared = np.resize(device.memory.poison, total)
        self._state = np.full(total, ALLOCATED, U8)
        self._touches = Touches(total, program.smallest) if device.watch else None
        self._views = {}
        self._copies = collections.defaultdict(list)

    # Where

    def _resolve(self, space, address, size, threads, guard):
        """Return the accesses that an instruction is: of one kind of memory each."""
        if guard is None:
            chosen = slice(None)
        else:
            chosen = np.flatnonzero(guard)
            address = address[chosen]
        if space != "generic":
            return self._access(space, address, size, threads, chosen)
        chosen = np.arange(len(threads))[chosen]
        offset = address - U64(SHARED_WINDOW)
        inside = offset < U64(WINDOW_BYTES)
        shared = self._access("shared", offset[inside], size, threads, chosen[inside])
        return shared + self._access("global", address[~inside], size, threads, chosen[~inside])

    def _access(self, space, address, size, threads, chosen):
        if not len(address):
            return []
        threads = threads[chosen]
        if (address & U64(size - 1)).any():
            wrong = f"{space} memory is not aligned to {size} bytes"
            self._refuse((address & U64(size - 1)) != 0, wrong, address)
        if space == "shared":
            self._limit(address, self.size - size, f"shared memory of {self.size} bytes is left")
            return [Access(space, address.view(S64) + self.begins[threads], size, chosen, threads)]
        state = self.device.memory.state
        address = address - U64(self.device.memory.base)
        self._limit(address, len(state) - size, "global memory is left")
        place = address.view(S64)
        first, last = state[place], state[place + (size - 1)]
        if not (first.all() and last.all()):
            wrong = "global memory is accessed out of bounds of an array"
            self._refuse((first == 0) | (last == 0), wrong, address)
        return [Access(space, place, size, chosen, threads)]

    def _limit(self, address, most, wrong):
        """Refuse addresses beyond a limit; those below 0 are huge ones."""
        if most < 0 or (address > U64(most)).any():
            self._refuse((address > U64(max(most, 0))) | (most < 0), wrong, address)

    def _refuse(self, those, wrong, address):
        kernel, where = self.blocks.where()
        first = int(address.view(S64)[np.flatnonzero(those)[0]])
        raise Fault(f"{wrong} (byte {first}); {kernel}, {where}")

    def _view(self, space, dtype):
        if space == "global":
            return self.device.memory.view(dtype)
        if dtype not in self._views:
            self._views[dtype] = self._shared.view(dtype)
        return self._views[dtype]

    def _held(self, space):
        """Return who touched a kind of memory, and what in it has been written."""
        if space == "shared":
            return self._touches, self._state
        return self.device.touches, self.device.memory.state

    # Loads and stores

    def load(self, space, address, dtype, count, threads, guard):
        """Return so many neighbouring elements of each thread."""
        item = np.dtype(dtype).itemsize
        accesses = self._resolve(space, address, item * count, threads, guard)
        whole = guard is None and len(accesses) == 1 and space != "generic"
        values = [] if whole else [np.zeros(len(address), dtype) for _ in range(count)]
        for access in accesses:
            self._note_read(access)
            held, first = self._view(access.space, dtype), access.place // item
            if whole:
                return [held[first + number] for number in range(count)]
            for number, each in enumerate(values):
                each[access.chosen] = held[first + number]
        return values

    def _note_read(self, access):
        if self.ordering:
            touches, state = self._held(access.space)
            self.ordering.look_at_a_read(
                access.space, touches, state, access.place, access.size, access.threads
            )
        if self.device.measure:
            traffic.count(self.device.counts, self.blocks, access)

    def store(self, space, address, values, threads, guard):
        """Store neighbouring elements of each thread."""
        item, dtype = values[0].dtype.itemsize, values[0].dtype.type
        for access in self._resolve(space, address, item * len(values), threads, guard):
            touches, state = self._held(access.space)
            if self.ordering:
                self.ordering.look_at_a_write(
                    access.space, touches, access.place, access.size, access.threads
                )
            held, first = self._view(access.space, dtype), access.place // item
            for number, each in enumerate(values):
                held[first + number] = each[access.chosen]
            mark_written(state, access.place, access.size)
            if self.device.measure:
                traffic.count(self.device.counts, self.blocks, access)

    def atomic_add(self, space, address, value, threads, guard):
        """Add to a word, thread by thread; return what each found there."""
        item, found = value.dtype.itemsize, np.zeros_like(value)
        for access in self._resolve(space, address, item, threads, guard):
            held, (_, state) = self._view(access.space, value.dtype.type), self._held(access.space)
            chosen = np.arange(len(threads))[access.chosen]
            for k in self.device.shuffled(len(access.place)):
                place = access.place[k]
                found[chosen[k]] = held[place // item]
                held[place // item] += value[chosen[k]]
                state[place : place + item] = WRITTEN
                if self.ordering and access.space == "global":
                    self.ordering.atomic(access.threads[k], int(place))
        return found

    def fence(self, threads):
        if self.ordering:
            self.ordering.fence(threads)

    def load_matrices(self, address, transposed, threads):
        """Return the fragments of four matrices of 8 by 8 halves; each lane states a row of one."""
        (access,) = self._resolve("shared", address, 16, threads, None)
        self._note_read(access)
        held = self._view("shared", U16)
        rows = held[(access.place // 2)[:, None] + np.arange(8)]
        return tensor_cores.matrix_fragments(rows.reshape(-1, 4, 8, 8), transposed)

    # Copies that happen as late as they may

    def copy(self, target, source, size, threads):
        """Begin a copy to shared memory, which holds all ones until the copy is waited for."""
        self._resolve("global", source, size, threads, None)
        nothing = np.full(len(threads), 0xFFFFFFFF, U32)
        self.store("shared", target, [nothing] * (size // 4), threads, None)
        for number, thread in enumerate(threads):
            self._copies[thread].append((thread, target[number], source[number], size))

    def commit_copies(self, threads):
        """End a group of copies."""
        for thread in threads:
            self._copies[thread].append(None)

    def wait_for_copies(self, threads, groups):
        """Do the copies of all groups but the last so many; None: of all, ended or not."""
        due = collections.defaultdict(list)
        for thread in threads:
            begun = self._copies[thread]
            ends = [k for k, each in enumerate(begun) if each is None]
            done = len(begun)
            if groups is not None:
                done = ends[-groups - 1] + 1 if len(ends) > groups else 0
            for *each, size in filter(None, begun[:done]):
                due[size].append(each)
            del begun[:done]
        for size, copies in due.items():
            who, target, source = (np.array(each) for each in zip(*copies, strict=True))
            words = self.load("global", source, U32, size // 4, who, None)
            self.store("shared", target, words, who, None)
