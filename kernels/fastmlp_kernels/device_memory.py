"""Memory that is not the host's, as whoever holds a `Program` uses it."""

from typing import Any, Protocol

import numpy as np


class DeviceMemory(Protocol):
    """Memory that is not the host's, as a program uses it: see `cuda.memory.DeviceMemory`.

    `traffic` counts what has moved to it and from it.
    """

    traffic: Any

    def here(self) -> Any:
        """Return a context in which any thread works on this program's device."""

    def empty(self, shape: Any, dtype: Any) -> Any:
        """Return a new device array, not written."""

    def to_device(self, array: Any) -> Any:
        """Return the array on the device; one that is there already is not copied."""

    def write(self, array: np.ndarray, held: Any) -> None:
        """Copy a host array into a device array of its shape."""

    def to_host(self, held: Any, out: np.ndarray) -> None:
        """Copy a device array into a host array of its shape, after all that was enqueued."""

    def copy(self, held: Any, into: Any) -> None:
        """Copy a device array into another one of its shape, in the order of the launches."""

    def all_finite(self, *arrays: Any) -> bool:
        """Return whether all elements of device arrays of one dtype are finite."""

    def available(self) -> float:
        """Return the bytes that data may take on the device."""
