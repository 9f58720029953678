"""What the CUDA cases share: block sizes, launches from host arrays, rows marked as unused."""

import numpy as np
import pytest
from numba import cuda

from fastmlp_kernels.compile import simulated
from fastmlp_kernels.cuda.layered.launching import SIMULATED_TILES, Tiles
from tests.tolerances import compare

if simulated():
    import tests.gpu.simulated_blocks  # noqa: F401

# The simulator runs the scalar rules in plain Python, where NumPy warns of every NaN made on
# purpose; small grids are Numba's worry about the GPU.
MARKS = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Grid size"),
]

# The simulator runs a Python thread for each CUDA thread. Its blocks' numbers are no powers of two,
# so that nothing relies on one.
TILES = [SIMULATED_TILES] if simulated() else [SIMULATED_TILES, Tiles()]


def emulated_device():
    """Return the emulated GPU that `tests.gpu.emulator.plugin` has installed, or None."""
    return getattr(cuda, "emulated_device", None)


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
