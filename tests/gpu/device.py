"""What the CUDA cases share: block sizes, launches from host arrays, rows marked as unused."""

import threading

import numpy as np
import pytest
from numba import cuda

from fastmlp_kernels.compile import simulated
from fastmlp_kernels.cuda.layered.launching import SIMULATED_TILES, Tiles
from tests.tolerances import compare

# The simulator runs the scalar rules in plain Python, where NumPy warns of every NaN made on
# purpose; small grids are Numba's worry about the GPU.
MARKS = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Grid size"),
]

# The simulator runs a Python thread for each CUDA thread. Its blocks' numbers are no powers of two,
# so that nothing relies on one.
TILES = [SIMULATED_TILES] if simulated() else [SIMULATED_TILES, Tiles()]


class Allocations(dict):
    """The shared arrays of a block in the simulator, by the line that asks for them.

    The simulator looks a line up and, where it finds nothing, stores a new array. Between the two
    another thread of the block could do the same, and the two threads would share nothing.
    """

    def __init__(self):
        self._lock = threading.Lock()

    def get(self, line):
        """Return a line's array; where it is None, others wait until it is stored."""
        self._lock.acquire()
        found = super().get(line)
        if found is not None:
            self._lock.release()
        return found

    def __setitem__(self, line, array):
        super().__setitem__(line, array)
        self._lock.release()


def emulated_device():
    """Return the emulated GPU that `tests.gpu.emulator.plugin` has installed, or None."""
    return getattr(cuda, "emulated_device", None)


def share_between_all_threads():
    """Have all threads of a simulated block share the same arrays, however busy the machine is."""
    from numba.cuda.simulator import kernelapi

    begin = kernelapi.FakeCUDAShared.__init__

    def begin_with_a_lock(self, dynshared_size):
        begin(self, dynshared_size)
        self._allocations = Allocations()

    kernelapi.FakeCUDAShared.__init__ = begin_with_a_lock


if simulated():
    share_between_all_threads()


def generator(*seed):
    return np.random.default_rng(seed)


def normal(shape, dtype, seed=0, scale=1.0):
    return generator(seed, *shape).normal(0.2, scale, shape).astype(dtype)


def padded(array, spare=2):
    """Return `array` with NaN rows below it, which a kernel must not read."""
    below = np.full((spare, *array.shape[1:]), np.nan, array.dtype)
    return np.concatenate([array, below])


def unwritten(rows, columns, dtype, spare=2):
    return np.full((rows + spare, columns), np.nan, dtype)


def over(tiles, kernel, count, *arguments):
    """Launch with a thread an element; arrays are copied to the device and back."""
    launch(kernel, -(-count // tiles.threads), tiles.threads, *arguments)


def product(tiles, kernel, rows, columns, *arguments):
    side, tile = tiles.side, tiles.tile
    launch(kernel, (-(-rows // side), -(-columns // side)), (tile, tile), *arguments)


def launch(kernel, grid, block, *arguments):
    held = {id(a): cuda.to_device(a) for a in arguments if isinstance(a, np.ndarray) and a.size}
    for a in arguments:
        if isinstance(a, np.ndarray) and not a.size:
            held[id(a)] = cuda.device_array(a.shape, a.dtype)
    kernel[grid, block](*(held.get(id(a), a) for a in arguments))
    for argument in arguments:
        if id(argument) in held and argument.size:
            held[id(argument)].copy_to_host(argument)


def compare_rows(actual, oracle, what):
    """Compare the rows used, and see that the others were left alone."""
    rows = len(oracle.value)
    compare(actual[:rows], oracle, what)
    assert np.isnan(actual[rows:]).all(), f"{what}: wrote beyond the rows used"
