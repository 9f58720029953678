"""cuBLASLt on an emulated device: every call is checked as by the recording stand-in, and computed.

It keeps to the device's memory: what it reads must have been written, and on a stream that is being
captured it multiplies when the graph is launched.
"""

import numpy as np

from tests.gpu.emulator.global_memory import WRITTEN
from tests.gpu.emulator.registers import Fault
from tests.gpu.recording_cublas import STORED, RecordingCublasLt


class EmulatedCublasLt(RecordingCublasLt):
    """The stand-in, on a device's memory; its other parameters are those of the stand-in."""

    def __init__(self, device, **choices):
        super().__init__(**choices)
        self.device = device

    def enqueue(self, stream, multiply):
        self.device.driver.enqueue(stream or 0, multiply)

    def multiply(self, held, scales, bias, first, second, result):
        read = [self._state(*each) for each in (first, second)]
        if scales[1] != 0:
            read.append(self._state(*result))
        if bias is not None:
            # As long as a column of the result, which is a row of ours.
            kind, rows, *_ = self.get(result[0], "MatrixLayout").facts
            read.append(self._bytes(bias)[: rows * np.dtype(STORED[kind]).itemsize])
        if not all((each == WRITTEN).all() for each in read):
            raise Fault("a product reads memory that nobody has written, or beyond an array")
        if not self._state(*result).all():
            raise Fault("a product writes beyond an array")
        super().multiply(held, scales, bias, first, second, result)
        self._state(*result)[...] = WRITTEN

    def _bytes(self, address):
        """Return what is known of each byte from an address on."""
        start = address - self.device.memory.base
        if not 0 <= start < len(self.device.memory.state):
            raise Fault(f"a product is given the address {address}, which is nobody's")
        return self.device.memory.state[start:]

    def _state(self, layout, address):
        """Return what is known of each byte of a matrix."""
        kind, rows, columns, stride = self.get(layout, "MatrixLayout").facts
        size = np.dtype(STORED[kind]).itemsize
        known = self._bytes(address)
        if ((columns - 1) * stride + rows) * size > len(known):
            raise Fault("a product goes beyond all memory")
        strides = (stride * size, 1)
        return np.lib.stride_tricks.as_strided(known, (columns, rows * size), strides)
