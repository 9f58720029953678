"""Arrays of other libraries that lie on the GPU, seen without a copy.

By DLPack (PyTorch, CuPy, JAX), whose structures are read here as Numba has no door for them, or by
``__cuda_array_interface__``. DLPack first: its producer waits for what it has enqueued on streams
of its own, which the other interface leaves to the consumer, and PyTorch's does not say.
"""

import ctypes
from typing import Any

import numpy as np
from numba import cuda

from fastmlp_kernels.cuda.device.failures import DeviceFailure

# DLPack's kinds of device: memory of a GPU, and managed memory, which a GPU reads as well.
DLPACK_CUDA, DLPACK_MANAGED = 2, 13
# The producer makes the array ready for work on the legacy default stream.
LEGACY_STREAM = 1
# DLPack's codes of kinds of numbers, as NumPy writes them.
KINDS = {0: "i", 1: "u", 2: "f"}


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("number", ctypes.c_int32)]


class _DType(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    """``DLTensor`` of dlpack.h, the same in all its versions."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class Capsule:
    """What a DLPack capsule describes, as an array interface.

    The capsule is kept and never marked as used: what it refers to is freed by its own destructor,
    once nothing refers to this object any more.
    """

    def __init__(self, capsule: Any) -> None:
        # `pythonapi` raises what the interpreter sets: a capsule of another name is a ValueError.
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        tensor = _Tensor.from_address(pointer(capsule, b"dltensor"))
        if tensor.dtype.kind not in KINDS or tensor.dtype.lanes != 1:
            raise TypeError(f"a DLPack array of kind {tensor.dtype.kind} has no NumPy dtype")
        dtype = np.dtype(f"{KINDS[tensor.dtype.kind]}{tensor.dtype.bits // 8}")
        shape = tuple(tensor.shape[k] for k in range(tensor.ndim))
        strides = None
        if tensor.strides:
            strides = tuple(tensor.strides[k] * dtype.itemsize for k in range(tensor.ndim))
        self._capsule = capsule
        self.__cuda_array_interface__ = {
            "shape": shape,
            "strides": strides,
            "typestr": dtype.str,
            "data": ((tensor.data or 0) + tensor.byte_offset, False),
            "version": 3,
            "stream": None,
        }


def number_of(value: Any) -> int:
    """Return the number of the GPU that a library's array lies on."""
    if hasattr(value, "__dlpack_device__"):
        return int(value.__dlpack_device__()[1])
    from cuda.bindings import driver

    ordinal = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    status, number = driver.cuPointerGetAttribute(
        ordinal, value.__cuda_array_interface__["data"][0]
    )
    if int(status) != 0:
        raise DeviceFailure(f"got an address that the driver does not know ({status.name})")
    return int(number)


def here() -> int:
    """Return the number of the GPU that this thread computes on."""
    return int(getattr(cuda.get_current_device(), "id", 0))


def as_device(value: Any, argument: str) -> Any:
    """Return an array that lies on the GPU as Numba's own, without a copy.

    Raises
    ------
    DeviceFailure
        If it lies on another GPU than the one that computes.
    """
    if getattr(value, "__cuda_ndarray__", False):
        return value
    number, wanted = number_of(value), here()
    if number != wanted:
        raise DeviceFailure(
            f"{argument}: got an array on GPU {number}, wanted one on GPU {wanted}, where this "
            "thread computes: copy it there, or pass a NumPy array"
        )
    if hasattr(value, "__dlpack__"):
        # A program's own stream waits for the legacy default stream by itself.
        return cuda.as_cuda_array(Capsule(value.__dlpack__(stream=LEGACY_STREAM)))
    return cuda.as_cuda_array(value)
