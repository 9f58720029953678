"""What this machine has. Each process asks once."""

import ctypes
import functools
import importlib.metadata
import importlib.util
import logging
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastmlp.device.machine_file import stored_constants, stored_gpu_constants
from fastmlp_kernels.cuda.device.failures import driver_refusal
from fastmlp_kernels.cuda.device.rates import expected_rates
from fastmlp_kernels.problem import Machine

logger = logging.getLogger("fastmlp")

CGROUP = Path("/sys/fs/cgroup")
# By these, users and schedulers limit a process; joblib and Dask set the first for their workers.
THREAD_LIMITS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
NAME_BYTES = 256
# Values of CUdevice_attribute: the compute capability, the multiprocessors, and the most shared
# memory that a block may ask for.
MAJOR, MINOR, PROCESSORS, SHARED_BYTES = 75, 76, 16, 97
# Clocks of the processors and of the memory, in kHz (0 where the driver no longer says), and the
# width of the memory's bus in bits.
CLOCK, MEMORY_CLOCK, BUS_BITS = 13, 36, 37
# Packages of libNVVM, which writes PTX, and of nvJitLink, which makes machine code of it. The first
# name is that of CUDA 13, the second that of CUDA 12.
TOOLKIT = ("nvidia-nvvm", "nvidia-cuda-nvcc-cu12")
LINKER = ("nvidia-nvjitlink", "nvidia-nvjitlink-cu12")


@functools.cache
def detect() -> Machine:
    """Return what kernels may use here."""
    gpu = find_gpu()
    measured = stored_constants() | stored_gpu_constants(gpu.get("gpu", ""))
    known = {"cores": count_cores(), **gpu, **measured}
    machine = Machine(**known)
    logger.debug("machine: %s", machine)
    return machine


def sharing(machine: Machine, threads: int) -> Machine:
    """Return the machine as if a team cost nothing, so that kernels use all `threads`."""
    return replace(machine, cores=threads, cpu_barrier_seconds=0.0, cpu_thread_seconds=0.0)


def count_cores() -> int:
    """Return how many processors this process may keep busy."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cgroup_quota(), environment_limit())))


def environment_limit() -> float:
    """Return the threads that the environment allows this process; infinity if it says nothing.

    Of a list, as OpenMP takes for nested loops, the first number counts. What is no positive number
    is passed over, as OpenMP does.
    """
    given = (os.environ.get(name, "").split(",")[0].strip() for name in THREAD_LIMITS)
    return min(
        (int(each) for each in given if each.isdecimal() and int(each) > 0), default=math.inf
    )


def physical_memory() -> int:
    """Return the bytes of memory of this machine, or of the address space where that is unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


def cgroup_quota() -> float:
    """Return the processors that a container's quota grants; infinity without a quota."""
    quotas = [math.inf]
    # A quota may be set on the group of the process or on any group above it.
    for group in own_cgroups():
        try:
            quota, period = (group / "cpu.max").read_text().split()
            quotas.append(float(quota) / float(period) if quota != "max" else math.inf)
        except (OSError, ValueError):
            continue
    try:
        quota_us = float((CGROUP / "cpu" / "cpu.cfs_quota_us").read_text())
        period_us = float((CGROUP / "cpu" / "cpu.cfs_period_us").read_text())
        quotas.append(quota_us / period_us if quota_us > 0 else math.inf)
    except (OSError, ValueError):
        pass
    return min(quotas)


def own_cgroups() -> list[Path]:
    """Return the folders of the control groups that hold this process, version 2."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    inside = [line[len("0::/") :] for line in lines if line.startswith("0::/")]
    folder = CGROUP.joinpath(*inside)
    return [each for each in (folder, *folder.parents) if each.is_relative_to(CGROUP)]


def find_gpu() -> dict[str, Any]:
    """Return the fields of `Machine` about the GPU.

    `cuda_missing` says why no GPU can be used, or is None. The first GPU that the driver shows is
    asked. CUDA_VISIBLE_DEVICES chooses which one that is.
    """
    if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
        return {"cuda_missing": None, "gpu": "CUDA simulator"}
    driver, missing = load_driver()
    if missing is not None:
        return {"cuda_missing": missing}
    facts, version = ask_driver(driver)
    if importlib.util.find_spec("numba_cuda") is None:
        missing = (
            f"there is an NVIDIA GPU ({facts['gpu']}), but the package numba-cuda was not found: "
            "pip install 'fastmlp[cuda13]' (or 'fastmlp[cuda12]' for an older driver)"
        )
    else:
        missing = driver_refusal(version, installed(TOOLKIT), installed(LINKER))
    return {"cuda_missing": missing, **facts}


def load_driver() -> tuple[Any, str | None]:
    """Return the NVIDIA driver's library, initialised, and the reason if it offers no GPU."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return None, f"no NVIDIA driver: {library} was not found; install the NVIDIA driver"
    status = driver.cuInit(0)
    if status != 0:
        return driver, (
            f"the NVIDIA driver found no usable GPU: cuInit of {library} returned {status}; "
            "see what nvidia-smi says"
        )
    count = ctypes.c_int(0)
    status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status != 0 or count.value == 0:
        return driver, "the NVIDIA driver lists no GPU; see nvidia-smi and CUDA_VISIBLE_DEVICES"
    return driver, None


def ask_driver(driver: Any) -> tuple[dict[str, Any], tuple[int, int]]:
    """Return what a driver says of its first GPU, and the CUDA version that it supports."""
    device, number = ctypes.c_int(0), ctypes.c_int(0)
    name = ctypes.create_string_buffer(NAME_BYTES)
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, NAME_BYTES, device)

    def attribute(code: int) -> int:
        # A driver writes nothing for an attribute that it does not know.
        number.value = 0
        driver.cuDeviceGetAttribute(ctypes.byref(number), code, device)
        return number.value

    capability, processors = (attribute(MAJOR), attribute(MINOR)), attribute(PROCESSORS)
    clocks = 1e3 * attribute(CLOCK), 1e3 * attribute(MEMORY_CLOCK)
    facts = {
        "gpu": name.value.decode(errors="replace"),
        "gpu_capability": capability,
        "gpu_processors": processors,
        "gpu_shared_bytes": attribute(SHARED_BYTES),
        **expected_rates(capability, processors, *clocks, attribute(BUS_BITS)),
    }
    driver.cuDriverGetVersion(ctypes.byref(number))
    return facts, (number.value // 1000, number.value % 1000 // 10)


def installed(distributions: tuple[str, ...]) -> tuple[int, int] | None:
    """Return major and minor version of the first of some distributions that is installed."""
    for name in distributions:
        try:
            major, minor = importlib.metadata.version(name).split(".")[:2]
            return int(major), int(minor)
        except (importlib.metadata.PackageNotFoundError, ValueError):
            continue
    return None
