"""The microkernels' object code where a process's memory is crowded."""

import subprocess
import sys

import pytest

# Leaves one hole, too small for code and constants together, in memory that is otherwise taken: the
# next sections come to lie gigabytes apart, unless they are asked for in one piece.
CROWDED = """
import ctypes
import numpy as np
from fastmlp_kernels.cpu import machine_code
from fastmlp_kernels.cpu.simd import instruction_set

KIB, HOLE = 1024, {hole} * 1024
PRIVATE_ANONYMOUS_UNRESERVED, FAILED = 0x4022, 2**64 - 1
target = instruction_set()
machine_code._cached_object(target, "float32")
machine_code.target_machine(target)
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def reserve(size):
    return libc.mmap(None, size, 0, PRIVATE_ANONYMOUS_UNRESERVED, -1, 0)


low = reserve(6 * KIB**3)
assert low not in (None, FAILED)
for size in (4096 * KIB, 1024 * KIB, 256 * KIB, 64 * KIB, 16 * KIB, 4 * KIB):
    while low < (place := reserve(size) or 0) < FAILED:
        pass
    if 0 < place < low:
        libc.munmap(place, size)
libc.munmap(low + 6 * KIB**3 - HOLE - KIB**2, HOLE)
code = machine_code.microkernels(target, "float32")
lanes = target.lanes("float32")
source = np.arange(lanes * target.panel("float32"), dtype=np.float32).reshape(lanes, -1)
copy = np.zeros_like(source)
words = [ctypes.c_int64] * 6
function = ctypes.CFUNCTYPE(*words)(code["transpose"])
function(source.ctypes.data, copy.ctypes.data, 1, 0, 1)
assert np.array_equal(copy[:, :lanes], source[:, :lanes].T)
print("ran")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for memory at places of its choice")
@pytest.mark.parametrize("hole", [16, 48])
def test_code_and_constants_lie_together(child_python, child_environment, hole):
    command = [child_python, "-c", CROWDED.format(hole=hole)]
    finished = subprocess.run(
        command, env=child_environment, capture_output=True, text=True, check=False
    )
    assert finished.stdout == "ran\n", finished.stderr[-500:]
