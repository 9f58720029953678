"""Arrays in the memory of an emulated device, as `numba.cuda` has them."""

import ctypes
import weakref

import numba
import numpy as np
from numba import types

from tests.gpu.emulator.global_memory import WRITTEN


class Allocation:
    """Bytes of a device, which are freed with the last array there."""

    def __init__(self, device, count):
        self.address = device.memory.allocate(count)
        weakref.finalize(self, device.memory.free, self.address, count).atexit = False


class DeviceArray:
    """What the kernels and their programs use of `numba.cuda`'s device arrays.

    Parameters
    ----------
    strides : tuple, optional
        In bytes; by default the array is C-contiguous.
    address : int, optional
        Where it lies, and `owner` is what keeps that memory; by default memory is allocated.
    """

    __cuda_ndarray__ = True

    def __init__(self, device, shape, dtype, strides=None, address=None, owner=None):
        self.device, self.dtype = device, np.dtype(dtype)
        self.shape = tuple(int(length) for length in np.atleast_1d(shape))
        self.ndim, self.size = len(self.shape), int(np.prod(self.shape, dtype=np.int64))
        self.nbytes = self.size * self.dtype.itemsize
        steps = [int(np.prod(self.shape[axis + 1 :])) for axis in range(self.ndim)]
        contiguous = tuple(step * self.dtype.itemsize for step in steps)
        self.strides = contiguous if strides is None else tuple(strides)
        lengths = zip(self.shape, self.strides, contiguous, strict=True)
        self.contiguous = self.size == 0 or all(n == 1 or a == b for n, a, b in lengths)
        if address is None:
            owner = Allocation(device, self.nbytes)
            address = owner.address
        self.address, self.owner = address, owner

    @property
    def numba_type(self):
        layout = "C" if self.contiguous else "A"
        if layout == "A" and self.seen().flags.f_contiguous:
            layout = "F"
        return types.Array(numba.from_dtype(self.dtype), self.ndim, layout)

    @property
    def flags(self):
        return {"C_CONTIGUOUS": self.contiguous}

    def is_c_contiguous(self):
        return self.contiguous

    @property
    def pointer(self):
        """The address as the driver states it, which has none for nothing."""
        return self.address if self.size else 0

    @property
    def device_ctypes_pointer(self):
        return ctypes.c_void_p(self.pointer)

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": self.shape,
            "strides": None if self.contiguous else self.strides,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "version": 3,
            "stream": None,
        }

    def arguments(self):
        """Return the parameters of a kernel that are this array."""
        return [0, 0, self.size, self.dtype.itemsize, self.pointer, *self.shape, *self.strides]

    def _seen(self, held, shape, dtype, strides):
        """Return an array of the host over bytes, where this one's lie."""
        if self.size == 0:
            return np.empty(shape, dtype)
        start = self.address - self.device.memory.base
        return np.ndarray(shape, dtype, buffer=held[start:].data, strides=strides)

    def seen(self):
        """Return the memory as an array of the host, without a copy."""
        return self._seen(self.device.memory.bytes, self.shape, self.dtype, self.strides)

    def mark_written(self):
        shape, strides = (*self.shape, self.dtype.itemsize), (*self.strides, 1)
        self._seen(self.device.memory.state, shape, np.uint8, strides)[...] = WRITTEN

    def copy_to_host(self, ary=None, stream=0):
        out = np.empty(self.shape, self.dtype) if ary is None else ary
        if out.shape != self.shape or out.dtype != self.dtype:
            raise ValueError(f"copy_to_host: got {out.shape} for an array of {self.shape}")
        out[...] = self.seen()
        return out

    def copy_to_device(self, ary, stream=0):
        """Copy from the host, or from another array of the device; a capture records the latter."""
        if isinstance(ary, DeviceArray):
            source = ary.seen().reshape(self.shape)
        else:
            source = np.array(ary, self.dtype).reshape(self.shape)
        self.device.driver.enqueue(stream, lambda: self._copy(source))

    def _copy(self, source):
        self.seen()[...] = source
        self.mark_written()

    def reshape(self, *shape):
        if not self.contiguous:
            raise NotImplementedError("reshape: got an array that is not contiguous")
        shape = shape[0] if len(shape) == 1 and not np.isscalar(shape[0]) else shape
        shape = np.broadcast_to(np.int8(0), self.shape).reshape(shape).shape
        return DeviceArray(self.device, shape, self.dtype, None, self.address, self.owner)

    def ravel(self):
        return self.reshape(self.size)

    def view(self, dtype):
        last = self.shape[-1] * self.dtype.itemsize // np.dtype(dtype).itemsize
        shape = (*self.shape[:-1], last)
        return DeviceArray(self.device, shape, dtype, None, self.address, self.owner)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, key):
        whole = self.seen()
        part = whole[key]
        if not isinstance(part, np.ndarray):
            return part
        address, strides = self.address, None
        if part.size:
            address = part.__array_interface__["data"][0]
            strides = part.strides
        return DeviceArray(self.device, part.shape, self.dtype, strides, address, self.owner)

    def __setitem__(self, key, value):
        part = self[key]
        part.copy_to_device(np.broadcast_to(np.asarray(value), part.shape))

    def __array__(self, dtype=None, copy=None):
        return self.copy_to_host()
