"""What every Python process of a rehearsal imports first: it has an emulated GPU, a small one."""

import ctypes
import sys
from pathlib import Path

DRIVER = "libcuda.so.1"
MEMORY_BYTES = 1 << 27
# Few, since checks fill all multiprocessors.
PROCESSORS = 2
# By their numbers in cuda.h, as `benchmarks.gpu.versions` asks for them.
ATTRIBUTES = {1: 1024, 8: 48 * 1024, 16: PROCESSORS, 39: 2048, 75: 9, 76: 0, 97: 227 * 1024}
SUCCESS, INVALID_VALUE = 0, 1


class DriverLibrary:
    """The calls of the driver's library by which its limits are asked."""

    def cuInit(self, flags):
        return SUCCESS

    def cuDeviceGet(self, device, number):
        return SUCCESS

    def cuDriverGetVersion(self, version):
        version._obj.value = 13000
        return SUCCESS

    def cuDeviceTotalMem_v2(self, count, device):
        count._obj.value = MEMORY_BYTES
        return SUCCESS

    def cuDeviceGetName(self, name, size, device):
        name.value = b"emulated"
        return SUCCESS

    def cuDeviceGetAttribute(self, value, attribute, device):
        if attribute not in ATTRIBUTES:
            return INVALID_VALUE
        value._obj.value = ATTRIBUTES[attribute]
        return SUCCESS


class Library(ctypes.CDLL):
    """`ctypes.CDLL`, which finds the emulated driver as well."""

    def __new__(cls, name=None, *more, **named):
        return DriverLibrary() if name == DRIVER else super().__new__(cls)


def install():
    """Give this process its GPU."""
    from tests.gpu.emulator import driver, machine
    from tests.gpu.emulator.device import Device

    ctypes.CDLL = Library
    driver.PROCESSORS = PROCESSORS
    machine.install(Device(MEMORY_BYTES))


# Some processes begin without the project's path, such as those that ask for a version.
root = str(Path(__file__).resolve().parents[5])
sys.path[:0] = [each for each in (root, f"{root}/kernels") if each not in sys.path]
install()
