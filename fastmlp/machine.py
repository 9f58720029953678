"""What this machine has, asked once a process."""

import ctypes
import functools
import importlib.util
import logging
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

from fastmlp.machine_file import stored_constants
from fastmlp_kernels.problem import Machine

logger = logging.getLogger("fastmlp")

CGROUP = Path("/sys/fs/cgroup")
NAME_BYTES = 256


@functools.cache
def detect() -> Machine:
    """Return what kernels may use here."""
    missing, gpu = find_gpu()
    machine = Machine(cores=count_cores(), cuda_missing=missing, gpu=gpu, **stored_constants())
    logger.debug("machine: %s", machine)
    return machine


def sharing(machine: Machine, threads: int) -> Machine:
    """Return the machine as one where a team costs nothing, so that kernels use all `threads`."""
    return replace(machine, cores=threads, cpu_barrier_seconds=0.0, cpu_thread_seconds=0.0)


def count_cores() -> int:
    """Return how many processors this process may keep busy."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cgroup_quota())))


def cgroup_quota() -> float:
    """Return the processors that a container's quota grants; infinity without one."""
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


def find_gpu() -> tuple[str | None, str]:
    """Return why no GPU can be used (None when one can), and the GPU's name."""
    if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
        return None, "CUDA simulator"
    missing, gpu = ask_driver()
    if missing is None and importlib.util.find_spec("numba_cuda") is None:
        missing = (
            f"there is an NVIDIA GPU ({gpu}), but the package numba-cuda was not found: "
            "pip install 'fastmlp[cuda13]' (or 'fastmlp[cuda12]' for an older driver)"
        )
    return missing, gpu


def ask_driver() -> tuple[str | None, str]:
    """Return why the NVIDIA driver offers no GPU (None when it does), and the first one's name."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return f"no NVIDIA driver: {library} was not found; install the NVIDIA driver", ""
    status = driver.cuInit(0)
    if status != 0:
        return (
            f"the NVIDIA driver found no usable GPU: cuInit of {library} returned {status}; "
            "see what nvidia-smi says",
            "",
        )
    count = ctypes.c_int(0)
    status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status != 0 or count.value == 0:
        return "the NVIDIA driver lists no GPU; see nvidia-smi and CUDA_VISIBLE_DEVICES", ""
    device = ctypes.c_int(0)
    name = ctypes.create_string_buffer(NAME_BYTES)
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, NAME_BYTES, device)
    return None, name.value.decode(errors="replace")
