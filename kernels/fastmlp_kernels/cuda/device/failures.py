"""What goes wrong on a GPU, in a sentence each: errors of driver and compiler, translated.

No Numba here: errors are told by the driver's own names, which every package that calls it writes
into its messages.
"""

import re
from collections.abc import Callable, Iterator

# After these the driver refuses every call of the process: its context is lost.
LOSSES_OF_CONTEXT = {
    "CUDA_ERROR_ILLEGAL_ADDRESS": "a kernel read or wrote outside its memory",
    "CUDA_ERROR_MISALIGNED_ADDRESS": "a kernel used a misaligned address",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE": "a kernel used an address of the wrong kind of memory",
    "CUDA_ERROR_INVALID_PC": "a kernel jumped outside its code",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION": "a kernel held an instruction that the GPU does not know",
    "CUDA_ERROR_HARDWARE_STACK_ERROR": "a kernel's stack was damaged",
    "CUDA_ERROR_LAUNCH_FAILED": "a kernel failed while it ran",
    "CUDA_ERROR_LAUNCH_TIMEOUT": "a kernel ran longer than the system allows",
    "CUDA_ERROR_ASSERT": "a kernel's assertion failed",
    "CUDA_ERROR_ECC_UNCORRECTABLE": "the GPU's memory is damaged",
    "CUDA_ERROR_CONTAINED": "the GPU stopped the process after an error of its memory",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE": "the link between GPUs failed",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED": "the context was destroyed",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "the GPU is not available to the process any more",
}
# The driver knows neither the instructions nor the file format that the toolkit has written.
NEWER_TOOLKIT = {
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
    "CUDA_ERROR_INVALID_PTX",
    "CUDA_ERROR_INSUFFICIENT_DRIVER",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
}
OTHER_GPU = {"CUDA_ERROR_NO_BINARY_FOR_GPU", "CUDA_ERROR_UNSUPPORTED_DEVICE_SIDE_SYNC"}
NO_GPU = {
    "CUDA_ERROR_NO_DEVICE",
    "CUDA_ERROR_INVALID_DEVICE",
    "CUDA_ERROR_NOT_INITIALIZED",
    "CUDA_ERROR_STUB_LIBRARY",
}
# Not errors of the driver by name: it was not found, or libNVVM was not.
MISSING = {"CudaSupportError", "NvvmSupportError", "NvrtcSupportError"}


class DeviceFailure(RuntimeError):
    """A GPU could not do what it was asked to."""


class OutOfDeviceMemory(DeviceFailure):
    """Something does not fit in the GPU's memory."""


class DeviceLost(DeviceFailure):
    """The process cannot use its GPU any more."""


class Process:
    """Whether this process's context is lost: the first message that said so, or None."""

    lost: str | None = None


def refuse_if_lost(process: type[Process] = Process) -> None:
    """Raise what was raised when the context was lost: a further call could only fail obscurely."""
    if process.lost is not None:
        raise DeviceLost(process.lost)


def readable_bytes(count: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} bytes"


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from, or while."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def driver_error(error: BaseException) -> str | None:
    """Return the driver's name of an error, as ``CUDA_ERROR_OUT_OF_MEMORY``; None if it has none.

    PTX of a newer version than the driver's has no name of its own where a linker refuses it.
    """
    for each in causes(error):
        text = f"{each}"
        if "Unsupported .version" in text:
            return "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"
        found = re.search(r"\bCUDA_ERROR_[A-Z0-9_]+\b", text)
        if found:
            return found[0]
    return None


def translated(
    error: BaseException,
    argument: str,
    memory: Callable[[], tuple[float, float]],
    process: type[Process] = Process,
) -> DeviceFailure | None:
    """Return what to raise in place of an error; None for one that is not the GPU's.

    Parameters
    ----------
    error : exception
        With an attribute `asked`, the bytes that an allocation wanted, where that is known.
    argument : str
        What the message begins with: the argument or the call that needed the GPU.
    memory : callable
        Returns the bytes that are free on the GPU, and all that it has.
    process : type
        Where a lost context is noted.
    """
    name = driver_error(error)
    if name == "CUDA_ERROR_OUT_OF_MEMORY":
        return OutOfDeviceMemory(_out_of_memory(error, argument, memory))
    if name in LOSSES_OF_CONTEXT:
        process.lost = (
            f"{argument}: got {name} from the GPU ({LOSSES_OF_CONTEXT[name]}), wanted a call that "
            "succeeds. This process's CUDA context is lost: save the model, which holds its last "
            "good parameters on the host, and start a new process; device='cpu' still works here"
        )
        return DeviceLost(process.lost)
    if name in NEWER_TOOLKIT:
        return DeviceFailure(
            f"{argument}: got {name}: the installed CUDA packages are newer than the NVIDIA "
            f"driver ({_first_line(error)}), wanted a driver at least as new: install a newer "
            "driver, or packages of its version (nvidia-smi shows it): pip install "
            "'fastmlp[cuda12]' for CUDA 12"
        )
    if name in OTHER_GPU:
        return DeviceFailure(
            f"{argument}: got {name}: the installed CUDA packages make no code for this GPU, "
            "wanted packages that know it; device='cpu' works"
        )
    if name in NO_GPU or any(type(each).__name__ in MISSING for each in causes(error)):
        return DeviceFailure(
            f"{argument}: got no usable GPU ({_first_line(error)}), wanted an NVIDIA driver, a GPU "
            "that it shows (see nvidia-smi and CUDA_VISIBLE_DEVICES) and the CUDA packages: "
            "pip install 'fastmlp[cuda13]'"
        )
    if name is not None:
        return DeviceFailure(
            f"{argument}: got {name} from the GPU ({_first_line(error)}), wanted a call that "
            "succeeds"
        )
    return None


def _out_of_memory(
    error: BaseException, argument: str, memory: Callable[[], tuple[float, float]]
) -> str:
    sizes = [each.asked for each in causes(error) if hasattr(each, "asked")]
    asked = f"{readable_bytes(sizes[0])} more" if sizes else "more memory"
    try:
        free, total = memory()
        has = f"{readable_bytes(free)} free of {readable_bytes(total)}"
    except Exception:
        # The message is worth more than its numbers.
        has = "too little free"
    return (
        f"{argument}: got a need of {asked} on the GPU, which has {has}, wanted what fits: a "
        "smaller batch_size, fewer rows a call, NumPy arrays in place of arrays on the GPU (`fit` "
        "streams those that are larger than its memory), or other programs off the GPU"
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in f"{error}".splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def driver_refusal(
    driver: tuple[int, int],
    toolkit: tuple[int, int] | None,
    linker: tuple[int, int] | None,
) -> str | None:
    """Return why a driver cannot run what the installed toolkit writes; None where it can.

    Parameters
    ----------
    driver : tuple of int
        The CUDA version that the driver supports, as (12, 4).
    toolkit, linker : tuple of int or None
        Versions of libNVVM, which writes PTX, and of nvJitLink, which makes machine code of it;
        None where the package that would say so is not there.

    Notes
    -----
    A driver runs machine code of its major version, also of later minor ones, but reads PTX only
    up to its own minor version. So a later toolkit of the same major version is right where
    nvJitLink, at least as new as libNVVM, leaves the driver no PTX to read. Source: NVIDIA, CUDA
    Compatibility, "minor version compatibility" and its limits.
    """
    if toolkit is None or toolkit <= driver:
        return None
    linked = linker is not None and linker >= toolkit
    if toolkit[0] == driver[0] and linked:
        return None
    has, writes = ".".join(map(str, driver)), ".".join(map(str, toolkit))
    cure = (
        f"CUDA packages of version {driver[0]}: pip install 'fastmlp[cuda{driver[0]}]'"
        if toolkit[0] > driver[0]
        else f"nvJitLink {writes} or later: pip install 'fastmlp[cuda{driver[0]}]'"
    )
    return (
        f"the NVIDIA driver supports CUDA {has}, and the installed CUDA packages write code for "
        f"CUDA {writes}: install a newer driver, or {cure}"
    )
