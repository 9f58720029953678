"""The kernels by which `ceilings` measures launches and barriers; plain functions, jitted there."""

from numba import cuda


def empty():
    """Do nothing."""


def one(a):
    """Do nothing with an array."""


def eight(a, b, c, d, e, f, g, h):
    """Do nothing with eight arrays."""


def meet_block(count, out):
    """Let the threads of a block wait for each other so many times."""
    for _ in range(count):
        cuda.syncthreads()
    out[0] = count
