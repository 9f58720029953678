"""What is here: packages, driver, toolkit, and the limits of the device."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import subprocess
import sys
from typing import Any

from benchmarks.gpu.sanitizer import find_program
from benchmarks.gpu.steps import Context, Skipped, missing_gpu

PACKAGES = (
    "numpy",
    "numba",
    "numba-cuda",
    "llvmlite",
    "cuda-bindings",
    "cuda-core",
    "cuda-pathfinder",
    "nvidia-nvvm",
    "nvidia-nvjitlink",
    "nvidia-cublas",
    "torch",
    "triton",
    "jax",
    "jaxlib",
    "jax-cuda13-plugin",
    "jax-cuda12-plugin",
    "pytest",
)
# CUdevice_attribute of the driver API's cuda.h.
ATTRIBUTES = {
    "threads_per_block": 1,
    "shared_bytes_per_block": 8,
    "registers_per_block": 12,
    "clock_khz": 13,
    "multiprocessors": 16,
    "memory_clock_khz": 36,
    "memory_bus_bits": 37,
    "l2_bytes": 38,
    "threads_per_multiprocessor": 39,
    "capability_major": 75,
    "capability_minor": 76,
    "shared_bytes_per_multiprocessor": 81,
    "cooperative_launch": 95,
    "shared_bytes_opt_in": 97,
}
ASKED = "name,driver_version,pstate,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
LIBRARIES = ("nvvm", "nvJitLink", "nvrtc", "cudart", "cublasLt")


def run(context: Context) -> None:
    """Note versions first: they are of use without a GPU as well."""
    context.attempt("python", lambda: sys.version.split()[0])
    context.attempt("packages", packages)
    context.attempt("folders", folders)
    context.attempt("libraries", libraries)
    context.attempt("compute_sanitizer", lambda: find_program(os.environ) or "none")
    reason = missing_gpu()
    if reason is not None:
        context.keep("device", {"skipped": reason})
        print(f"  no GPU: {reason}", flush=True)
        return
    context.attempt("device", device)
    context.attempt("nvidia_smi", nvidia_smi)
    context.attempt("cublasLt", own_cublas)
    context.attempt("torch", torch_sees)
    context.attempt("jax", jax_sees)
    context.attempt("machine", machine)


def packages() -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def folders() -> dict[str, str]:
    """Return where CUDA was said to be, or was found by this command."""
    return {name: os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")}


def libraries() -> dict[str, str]:
    """Return where each CUDA library is loaded from, as Numba will."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib
    except ImportError as error:
        raise Skipped(f"cuda-pathfinder is not installed ({error})") from error
    found = {}
    for name in LIBRARIES:
        try:
            loaded = load_nvidia_dynamic_lib(name)
        except Exception as error:
            found[name] = f"not found ({type(error).__name__})"
            continue
        found[name] = f"{loaded.abs_path} ({getattr(loaded, 'found_via', 'unknown')})"
    return found


def own_cublas() -> str:
    """Return which cuBLASLt `cuda.layered` takes its products from, or why none."""
    try:
        from fastmlp_kernels.cuda.layered import cublas
    except ImportError as error:
        raise Skipped(f"fastmlp has no binding of cuBLASLt ({error})") from error
    try:
        found = cublas.connect()
    except cublas.CublasError as error:
        raise Skipped(str(error)) from error
    return f"{found.library._name}, version {found.library.cublasLtGetVersion()}"


def device() -> dict[str, Any]:
    """Return the limits of the first device, asked of the driver itself."""
    driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    _check(driver.cuInit(0), "cuInit")
    handle, version, memory = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_size_t(0)
    _check(driver.cuDeviceGet(ctypes.byref(handle), 0), "cuDeviceGet")
    _check(driver.cuDriverGetVersion(ctypes.byref(version)), "cuDriverGetVersion")
    _check(driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle), "cuDeviceTotalMem")
    name = ctypes.create_string_buffer(256)
    _check(driver.cuDeviceGetName(name, 256, handle), "cuDeviceGetName")
    found: dict[str, Any] = {
        "name": name.value.decode(errors="replace"),
        "driver_cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
        "memory_bytes": memory.value,
    }
    for attribute, number in ATTRIBUTES.items():
        value = ctypes.c_int(0)
        status = driver.cuDeviceGetAttribute(ctypes.byref(value), number, handle)
        found[attribute] = value.value if status == 0 else None
    return found


def _check(status: int, call: str) -> None:
    if status != 0:
        raise RuntimeError(f"{call} returned {status}")


def nvidia_smi() -> dict[str, str]:
    """Return driver, clocks and power of the first device."""
    command = ["nvidia-smi", f"--query-gpu={ASKED}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=15, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise Skipped(f"nvidia-smi: {error}") from error
    values = answer.stdout.splitlines()[0].split(", ")
    return dict(zip(ASKED.split(","), values, strict=True))


def torch_sees() -> dict[str, Any]:
    """Return what PyTorch was built for, and whether it sees the GPU."""
    try:
        import torch
    except ImportError as error:
        raise Skipped("PyTorch is not installed") from error
    return {"cuda": torch.version.cuda, "available": torch.cuda.is_available()}


def jax_sees() -> str:
    """Return the devices that JAX sees."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    try:
        import jax
    except ImportError as error:
        raise Skipped("JAX is not installed") from error
    return str(jax.devices())


def machine() -> str:
    """Return what fastmlp itself detects."""
    from fastmlp.device.machine import detect

    return str(detect())
