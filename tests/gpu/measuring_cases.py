"""The constants of a GPU are measured, here in the simulator: that they are, not what they are."""

import math

from fastmlp.device.machine_file import GPU_CONSTANTS
from fastmlp_kernels.cuda.measuring import Effort, measure
from tests.gpu.device import MARKS

pytestmark = MARKS


def test_every_constant_is_measured():
    little = Effort(launches=2, meetings=3, threads=2, bytes=64, width=3, repeats=1)
    found = measure(little)
    assert found.keys() == set(GPU_CONSTANTS)
    assert all(0 < value < math.inf for value in found.values())
