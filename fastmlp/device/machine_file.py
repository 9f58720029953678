"""The measured constants of this machine, in a file of the user's configuration folder.

``python -m fastmlp calibrate`` writes the file, and `machine.detect` reads it. Constants that were
measured on another processor, or with another version of the kernels, are ignored.
"""

import functools
import json
import logging
import math
import os
import platform
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fastmlp.atomic_writing import write_atomically
from fastmlp.version import VERSION

logger = logging.getLogger("fastmlp")

# Fields of `Machine`.
CONSTANTS = (
    "cpu_flops",
    "cpu_bytes",
    "cpu_step_seconds",
    "cpu_barrier_seconds",
    "cpu_thread_seconds",
)
GPU_CONSTANTS = (
    "gpu_flops",
    "gpu_tf32_flops",
    "gpu_bfloat16_flops",
    "gpu_bytes",
    "gpu_launch_seconds",
    "gpu_node_seconds",
    "gpu_meeting_seconds",
    "gpu_copy_bytes",
    "gpu_copy_seconds",
)


def configuration_file() -> Path:
    """Return the path of the file, in the folder where the platform keeps a user's settings."""
    if sys.platform == "win32":
        given, usual = os.environ.get("APPDATA", ""), ("AppData", "Roaming")
    elif sys.platform == "darwin":
        given, usual = "", ("Library", "Application Support")
    else:
        given, usual = os.environ.get("XDG_CONFIG_HOME", ""), (".config",)
    # The XDG convention ignores a relative path.
    folder = Path(given) if Path(given).is_absolute() else Path.home().joinpath(*usual)
    return folder / "fastmlp" / "machine.json"


def processor() -> str:
    """Return the model of the processor, or what the system tells of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def stamp() -> dict[str, Any]:
    """Return what identifies this machine and these kernels, for which stored constants hold."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "fastmlp": VERSION,
    }


def stored_constants() -> dict[str, float]:
    """Return the constants that were measured on this machine, by name; empty without a file."""
    return dict(_stored()[0])


def stored_gpu_constants(gpu: str) -> dict[str, float]:
    """Return the constants that were measured on this machine with a GPU of that name."""
    return dict(_stored()[1].get(gpu, {}))


@functools.cache
def _stored() -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return the constants of the file: those of the processor, and those of each GPU."""
    try:
        path = configuration_file()
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, RuntimeError):
        # Path.home() raises a RuntimeError for a user without a home.
        return {}, {}
    except (OSError, UnicodeDecodeError) as error:
        logger.warning("%s: got a file that cannot be read (%s); %s", path, error, _INSTEAD)
        return {}, {}
    try:
        content = json.loads(text)
        measured_on, constants = content["stamp"], _checked(content["constants"], CONSTANTS)
        gpus = content.get("gpus", {})
        gpus = {gpu: _checked(found, GPU_CONSTANTS) for gpu, found in gpus.items()}
    except Exception as error:
        # Any error: brackets a thousand deep, for example, are a RecursionError.
        kind = f"{type(error).__name__}: {error}"
        logger.warning("%s: got a damaged file (%s); %s", path, kind, _INSTEAD)
        return {}, {}
    if measured_on != stamp():
        logger.info("%s: measured on %s, this is %s; %s", path, measured_on, stamp(), _INSTEAD)
        return {}, {}
    return constants, gpus


_INSTEAD = "the shipped constants are used, 'python -m fastmlp calibrate' measures this machine's"


def _checked(constants: Mapping[str, Any], known: Collection[str]) -> dict[str, float]:
    for name, value in constants.items():
        if name not in known:
            raise ValueError(f"unknown constant {name!r}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} is {value!r}")
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value!r}")
    return {name: float(value) for name, value in constants.items()}


def store_constants(
    constants: Mapping[str, float], gpu: str = "", gpu_constants: Mapping[str, float] | None = None
) -> Path:
    """Write the constants of this machine; return the file's path.

    The constants of the GPU named `gpu` are kept beside those of other GPUs.
    """
    path = configuration_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    gpus = dict(_stored()[1])
    if gpu_constants:
        gpus[gpu] = _checked(gpu_constants, GPU_CONSTANTS)
    content = {"stamp": stamp(), "constants": _checked(constants, CONSTANTS), "gpus": gpus}
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    _stored.cache_clear()
    return path
