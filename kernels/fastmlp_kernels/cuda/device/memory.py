"""Memory of the GPU: copies to it and from it, counted; what is free; errors in plain words."""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda

from fastmlp_kernels.cuda.device import checks
from fastmlp_kernels.cuda.device.failures import DeviceFailure, refuse_if_lost, translated

# Left to the driver and to other programs when it is asked whether something fits.
SHARE_OF_FREE = 0.9


@dataclass
class Traffic:
    """What has moved between the host and the GPU, and what was allocated there.

    Attributes
    ----------
    to_device, to_device_bytes : int
        Copies from the host to the GPU, and their bytes.
    to_host, to_host_bytes : int
        Copies back.
    on_device, on_device_bytes : int
        Copies within the GPU's memory.
    allocations, allocated_bytes : int
        Arrays made on the GPU; what is free again is not subtracted.
    """

    to_device: int = 0
    to_device_bytes: int = 0
    to_host: int = 0
    to_host_bytes: int = 0
    on_device: int = 0
    on_device_bytes: int = 0
    allocations: int = 0
    allocated_bytes: int = 0

    def copy(self) -> "Traffic":
        """Return the counts as they now are."""
        return dataclasses.replace(self)

    def since(self, before: "Traffic") -> "Traffic":
        """Return what has been added to an earlier copy."""
        names = [each.name for each in dataclasses.fields(self)]
        return Traffic(*(getattr(self, name) - getattr(before, name) for name in names))

    def add(self, kind: str, count: int) -> None:
        """Count a copy, or an allocation, of so many bytes."""
        words = "allocated_bytes" if kind == "allocations" else f"{kind}_bytes"
        setattr(self, kind, getattr(self, kind) + 1)
        setattr(self, words, getattr(self, words) + count)


def memory_info() -> tuple[float, float]:
    """Return the bytes that are free on the GPU, and all that it has; infinite in the simulator."""
    free, total = cuda.current_context().get_memory_info()
    return free, total


@contextlib.contextmanager
def device_errors(argument: str) -> Iterator[None]:
    """Raise errors of the driver and the compiler as a `DeviceFailure` in plain words.

    Once the process's context is lost nothing inside is run any more: every call raises the message
    of the first one, as the driver would refuse it with an error that explains nothing.
    """
    refuse_if_lost()
    try:
        yield
    except DeviceFailure:
        raise
    except Exception as error:
        failure = translated(error, argument, memory_info)
        if failure is None:
            raise
        raise failure from error


class DeviceMemory:
    """The GPU's memory as a program uses it: copies in the order of its launches, and counts.

    Parameters
    ----------
    stream : numba stream, optional
        That of the program's launches; by default the default stream.
    """

    # Bytes that resident data may take, where they are to be fewer than are free.
    limit: float | None = None

    def __init__(self, stream: Any = 0) -> None:
        self.stream = stream
        # The simulator's device has no number.
        self.device = getattr(cuda.get_current_device(), "id", 0)
        self.traffic = Traffic()
        self._finite: dict[Any, checks.Outside] = {}

    def here(self) -> Any:
        """Return a context in which a thread works on this GPU: a new one would on the first."""
        return cuda.gpus[self.device]

    def empty(self, shape: Any, dtype: Any) -> Any:
        """Return a new device array, not written."""
        dtype = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        try:
            array = cuda.device_array(shape, dtype)
        except Exception as error:
            with contextlib.suppress(AttributeError):
                error.asked = count  # type: ignore[attr-defined]
            raise
        self.traffic.add("allocations", count)
        return array

    def to_device(self, array: Any) -> Any:
        """Return the array on the GPU; one that is there already is not copied."""
        if getattr(array, "__cuda_ndarray__", False):
            return array
        if hasattr(array, "__cuda_array_interface__"):
            return cuda.as_cuda_array(array)
        held = self.empty(array.shape, array.dtype)
        self.write(array, held)
        return held

    def write(self, array: np.ndarray, held: Any) -> None:
        """Copy a host array into a device array of its shape, which any stream may then read."""
        if array.size > 0:
            # An axis that `[:, None]` has added has a stride of 0, which Numba takes for a repeated
            # one, and copies less.
            if 0 in array.strides:
                array = array.reshape(-1).reshape(array.shape)
            held.copy_to_device(array, stream=self.stream)
            self.traffic.add("to_device", array.nbytes)
            self.synchronize()

    def to_host(self, held: Any, out: np.ndarray) -> None:
        """Copy a device array into `out`, once all that was enqueued before is done."""
        if out.size > 0:
            self.to_device(held).copy_to_host(out, stream=self.stream)
            self.traffic.add("to_host", out.nbytes)
            self.synchronize()

    def copy(self, held: Any, into: Any) -> None:
        """Copy a device array into another one of its shape, in the order of the launches."""
        if held.size > 0:
            into.copy_to_device(held, stream=self.stream)
            self.traffic.add("on_device", held.nbytes)

    def synchronize(self) -> None:
        """Wait for all that was enqueued; copies on the default stream have been waited for."""
        if self.stream:
            self.stream.synchronize()

    def all_finite(self, *arrays: Any) -> bool:
        """Return whether all elements of arrays of one dtype are finite; four bytes come back."""
        dtype = arrays[0].dtype
        if dtype not in self._finite:
            self._finite[dtype] = checks.Outside(dtype, stream=self.stream)
        return not self._finite[dtype].any(arrays)

    def available(self) -> float:
        """Return the bytes that data may take on the GPU: a part of what is free, or `limit`."""
        free = SHARE_OF_FREE * memory_info()[0]
        return free if self.limit is None else min(free, self.limit)
