"""cuBLASLt on an emulated device: every call is checked as by the recording stand-in, and computed.

It keeps to the device's memory: what it reads must have been written, and on a stream that is being
captured it multiplies when the graph is launched.
"""

import numpy as np

from tests.gpu.emulator.global_memory import WRITTEN
from tests.gpu.emulator.registers import Fault
from tests.gpu.recording_cublas import (
    CUBLASLT_EPILOGUE_BGRADA,
    CUBLASLT_EPILOGUE_DRELU,
    CUBLASLT_MATMUL_DESC_BIAS_POINTER,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER,
    STORED,
    WITH_AUX_POINTER,
    WITH_BIAS_POINTER,
    RecordingCublasLt,
)


class EmulatedCublasLt(RecordingCublasLt):
    """The stand-in, on a device's memory; its other parameters are those of the stand-in."""

    def __init__(self, device, **choices):
        super().__init__(**choices)
        self.device = device

    def enqueue(self, stream, multiply):
        self.device.driver.enqueue(stream or 0, multiply)

    def multiply(self, held, scales, extra, first, second, result):
        read = [self._state(*each) for each in (first, second)]
        written = [self._state(*result)]
        if scales[1] != 0:
            read.append(self._state(*result))
        epilogue, attributes = extra
        # As long as a column of the result, which is a row of ours.
        kind, rows, columns, _ = self.get(result[0], "MatrixLayout").facts
        if epilogue in WITH_BIAS_POINTER:
            address = attributes[CUBLASLT_MATMUL_DESC_BIAS_POINTER]
            vector = self._bytes(address)[: rows * np.dtype(STORED[kind]).itemsize]
            (written if epilogue == CUBLASLT_EPILOGUE_BGRADA else read).append(vector)
        if epilogue in WITH_AUX_POINTER:
            stride = attributes[CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD] // 8
            address = attributes[CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER]
            bits = self._bytes(address)[: stride * columns]
            (read if epilogue == CUBLASLT_EPILOGUE_DRELU else written).append(bits)
        if not all((each == WRITTEN).all() for each in read):
            raise Fault("a product reads memory that nobody has written, or beyond an array")
        if not all(each.all() for each in written):
            raise Fault("a product writes beyond an array")
        super().multiply(held, scales, extra, first, second, result)
        for each in written:
            each[...] = WRITTEN

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
