"""The memory of a device: allocations with gaps between them, and what in them has been written."""

import collections

import numpy as np

from tests.gpu.emulator.registers import U8, U32, Fault

FREE, ALLOCATED, WRITTEN = range(3)
# Bytes between allocations, so that a step beyond one is seen.
GAP = 512
ALIGNMENT = 256
PAGE = 4096


class GlobalMemory:
    """Bytes at addresses of the host, so that what computes on the host may be given them.

    Parameters
    ----------
    size : int
        Bytes of it.
    poison : int
        The word of 32 bits that unwritten memory holds.

    Attributes
    ----------
    state : array of uint8
        FREE, ALLOCATED or WRITTEN, for each byte.
    """

    def __init__(self, size, poison):
        raw = np.zeros(size + PAGE, U8)
        skip = -raw.ctypes.data % PAGE
        self.bytes = raw[skip : skip + size]
        self.base = self.bytes.ctypes.data
        self.state = np.zeros(size, U8)
        self.poison = np.array([poison], U32).view(U8)
        self._views, self._end = {}, GAP
        self._free = collections.defaultdict(list)

    @property
    def left(self):
        """Bytes that were never allocated."""
        return len(self.bytes) - self._end

    def allocate(self, count):
        """Return the address of so many bytes, which hold poison."""
        count = max(int(count), 1)
        if self._free[count]:
            start = self._free[count].pop()
        else:
            start = -(-self._end // ALIGNMENT) * ALIGNMENT
            if start + count + GAP > len(self.bytes):
                raise MemoryError("[CUDA_ERROR_OUT_OF_MEMORY] of the emulated device")
            self._end = start + count + GAP
        self.state[start : start + count] = ALLOCATED
        self.bytes[start : start + count] = np.resize(self.poison, count)
        return self.base + start

    def free(self, address, count):
        start, count = address - self.base, max(int(count), 1)
        self.state[start : start + count] = FREE
        self._free[count].append(start)

    def write(self, address, array):
        """Copy an array of the host to an address."""
        raw = np.ascontiguousarray(array).reshape(-1).view(U8)
        place = self._place(address, raw.size)
        self.bytes[place] = raw
        self.state[place] = WRITTEN

    def read(self, address, shape, dtype):
        """Return an array that lies at an address, as one of the host."""
        count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        return self.bytes[self._place(address, count)].copy().view(dtype).reshape(shape)

    def put(self, array):
        """Return the address of a copy of an array."""
        address = self.allocate(np.asarray(array).nbytes)
        self.write(address, array)
        return address

    def _place(self, address, count):
        start = address - self.base
        if not self.state[start : start + count].all():
            raise Fault("a copy of the host goes beyond an allocation")
        return slice(start, start + count)

    def view(self, dtype):
        """Return all of it as an array of some type."""
        if dtype not in self._views:
            self._views[dtype] = self.bytes.view(dtype)
        return self._views[dtype]
