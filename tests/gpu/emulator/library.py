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
        read = [first, second] if scales[1] == 0 else [first, second, result]
        for layout, address in read:
            if not (self._state(layout, address) == WRITTEN).all():
                raise Fault("a product reads memory that nobody has written, or beyond an array")
        if not self._state(*result).all():
            raise Fault("a product writes beyond an array")
        super().multiply(held, scales, bias, first, second, result)
        self._state(*result)[...] = WRITTEN

    def _state(self, layout, address):
        """Return what is known of each byte of a matrix."""
        kind, rows, columns, stride = self.get(layout, "MatrixLayout").facts
        size, start = np.dtype(STORED[kind]).itemsize, address - self.device.memory.base
        state = self.device.memory.state[start:]
        strides = (stride * size, 1)
        return np.lib.stride_tricks.as_strided(state, (columns, rows * size), strides)
