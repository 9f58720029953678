"""Products of the emulated cuBLASLt: they compute, and keep to memory that has been written."""

from types import SimpleNamespace

import numpy as np
import pytest

from fastmlp_kernels.cuda.layered.cublas import Cublas
from fastmlp_kernels.cuda.layered.product import Product
from tests.gpu.emulator.device import Device
from tests.gpu.emulator.library import EmulatedCublasLt
from tests.gpu.emulator.registers import Fault

ROWS, COLUMNS, TERMS = 3, 4, 2
LEFT = np.arange(ROWS * TERMS, dtype=np.float32).reshape(ROWS, TERMS)
RIGHT = np.arange(TERMS * COLUMNS, dtype=np.float32).reshape(TERMS, COLUMNS) - 3
BYTES = 4 * ROWS * COLUMNS


def device():
    """Return a device whose streams do everything at once."""
    made = Device(size=1 << 16)
    made.driver = SimpleNamespace(enqueue=lambda stream, action: action())
    return made


def multiply(on, left, right, result, accumulate=False, bias=None):
    library = EmulatedCublasLt(on)
    epilogue = "none" if bias is None else "bias"
    product = Product(
        *(ROWS, COLUMNS, TERMS, False, False, (TERMS, COLUMNS, COLUMNS)),
        *("float32", "float32", "float32", (16, 16, 16), epilogue, 16),
    )
    work = on.memory.allocate(library.workspace), library.workspace
    Cublas(library).multiply(product, (left, right, result), accumulate, work, 1, bias or 0)


def placed(on):
    return on.memory.put(LEFT), on.memory.put(RIGHT)


def test_a_product_is_written_and_may_then_be_read():
    on = device()
    left, right = placed(on)
    result, bias = on.memory.allocate(BYTES), on.memory.put(np.ones(COLUMNS, np.float32))
    multiply(on, left, right, result)
    multiply(on, left, right, result, accumulate=True)
    expected = 2 * (LEFT @ RIGHT)
    assert (on.memory.read(result, (ROWS, COLUMNS), np.float32) == expected).all()
    multiply(on, left, right, result, bias=bias)
    assert (on.memory.read(result, (ROWS, COLUMNS), np.float32) == LEFT @ RIGHT + 1).all()


@pytest.mark.parametrize("which", ["left", "right", "result", "bias"])
def test_a_product_of_what_nobody_has_written_is_a_fault(which):
    on = device()
    left, right = placed(on)
    given = {"left": left, "right": right, "result": on.memory.put(LEFT @ RIGHT), "bias": None}
    given[which] = on.memory.allocate(BYTES)
    with pytest.raises(Fault, match="reads memory that nobody has written"):
        multiply(on, **given, accumulate=which == "result")


def test_a_product_beyond_an_array_is_a_fault():
    on = device()
    left, right = placed(on)
    with pytest.raises(Fault, match="writes beyond an array"):
        multiply(on, left, right, on.memory.allocate(BYTES - 4))
    with pytest.raises(Fault, match="reads memory that nobody has written, or beyond"):
        multiply(on, left, on.memory.put(RIGHT[:1]), on.memory.allocate(BYTES))
    with pytest.raises(Fault, match="which is nobody's"):
        multiply(on, left, right, 4096)


def test_copies_of_the_host_keep_to_an_array():
    memory = device().memory
    place = memory.put(LEFT)
    with pytest.raises(Fault, match="beyond an allocation"):
        memory.read(place, LEFT.size + 1, np.float32)
    with pytest.raises(Fault, match="beyond an allocation"):
        memory.write(place, np.zeros(LEFT.size + 1, np.float32))
    with pytest.raises(MemoryError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        memory.allocate(1 << 16)
