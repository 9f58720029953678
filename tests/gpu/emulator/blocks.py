"""Blocks of a grid that run side by side: who their threads are, and what their registers hold."""

import numpy as np

from tests.gpu.emulator.registers import F32, F64, KEPT, NUMPY_TYPES, U32, WARP


class Launch:
    """A launch: its program, its shape, its arguments, and when it began."""

    def __init__(self, program, grid, block, arguments, dynamic_bytes, label, start):
        self.program, self.grid, self.block = program, grid, block
        self.arguments = dict(zip(program.parameters, arguments, strict=True))
        self.dynamic_bytes, self.label, self.start = dynamic_bytes, label, start
        self.threads_per_block = int(np.prod(block))
        # By address: what was done before the atomics there, as seen by whoever comes next.
        self.released = {}
        # By block: what the others' fences and atomics have let it see.
        self.acquired = {}

    @property
    def threads(self):
        return self.threads_per_block * int(np.prod(self.grid))


class Blocks:
    """Some blocks of a launch. Arrays have an element for each of their threads.

    Attributes
    ----------
    own : array
        The position among these blocks of the thread's own.
    thread : array
        Its number in its block.
    identity : array
        Its number in the grid.
    warp : array
        The number of its warp among those of these blocks.
    registers : dict
        An array for each register.
    now : Instruction
        The one that is executed.
    """

    def __init__(self, launch, numbers):
        self.launch, self.numbers = launch, numbers
        self.count, self.per_block = len(numbers), launch.threads_per_block
        self.threads = self.count * self.per_block
        every = np.arange(self.threads)
        self.own, self.thread = every // self.per_block, every % self.per_block
        self.identity = numbers[self.own] * self.per_block + self.thread
        self.warps_per_block = -(-self.per_block // WARP)
        self.warp = self.own * self.warps_per_block + self.thread // WARP
        self.lane = self.thread % WARP
        kinds = launch.program.registers.items()
        self.registers = {
            name: np.zeros(self.threads, NUMPY_TYPES[KEPT[kind]]) for name, kind in kinds
        }
        self.now = self.arriving = None
        self.shared_bytes = 0
        self._special = {}

    def parameter(self, name, dtype, count):
        """Return a parameter's value for so many threads."""
        value = self.launch.arguments[name]
        if dtype in (F32, F64):
            return np.full(count, value, dtype)
        bits = np.dtype(dtype).itemsize * 8
        return np.full(count, int(value) & ((1 << bits) - 1), f"u{bits // 8}").view(dtype)

    def special(self, what, axis):
        """Return what a special register holds in every thread."""
        if (what, axis) not in self._special:
            value = np.broadcast_to(self._value(what, axis), self.threads)
            self._special[what, axis] = value.astype(U32)
        return self._special[what, axis]

    def _value(self, what, axis):
        shapes = {"block_shape": self.launch.block, "grid_shape": self.launch.grid}
        if what in shapes:
            return shapes[what][axis]
        numbers = {
            "thread": (self.thread, self.launch.block),
            "block": (self.numbers[self.own], self.launch.grid),
        }
        if what in numbers:
            number, shape = numbers[what]
            # The first axis is the fastest.
            return number // int(np.prod(shape[:axis], dtype=int)) % shape[axis]
        return {
            "lane": self.lane,
            "warp": self.thread // WARP,
            "dynamic_bytes": self.launch.dynamic_bytes,
            "shared_bytes": self.shared_bytes,
        }[what]

    def where(self):
        """Return the kernel and the line that are executed."""
        return self.launch.label, self.launch.program.where(self.now)
