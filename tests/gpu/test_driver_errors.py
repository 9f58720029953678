"""Errors of a GPU, its driver and its toolkit: one clear message each, without a GPU to fail."""

import ctypes
import importlib.metadata
import pickle

import numpy as np
import pytest

from fastmlp import MLP
from fastmlp.device import machine, residency
from fastmlp.errors import DeviceError, DeviceLostError, DeviceMemoryError, FastMLPError
from fastmlp_kernels.cuda.device import failures
from fastmlp_kernels.cuda.device.failures import (
    DeviceFailure,
    DeviceLost,
    OutOfDeviceMemory,
    Process,
    driver_refusal,
    readable_bytes,
    translated,
)


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch):
    monkeypatch.setattr(Process, "lost", None)


class CudaAPIError(Exception):
    """As Numba's: the driver's name in the message."""


class CudaSupportError(ImportError):
    """As Numba's, by name."""


def memory():
    return 1.5e9, 80e9


def of_driver(name):
    return CudaAPIError(f"[{name}] Call to cuLaunchKernel results in {name}")


def translate(error, argument="fit"):
    failure = translated(error, argument, memory)
    assert failure is not None
    message = str(failure)
    assert message.startswith(f"{argument}: got ") and ", wanted " in message
    assert "\n" not in message
    return failure


def test_out_of_memory_says_what_was_asked_what_there_is_and_what_helps():
    error = of_driver("CUDA_ERROR_OUT_OF_MEMORY")
    error.asked = 3_200_000_000
    failure = translate(error, "batch_size")
    assert isinstance(failure, OutOfDeviceMemory)
    for part in ("3.2 GB more", "1.5 GB free of 80 GB", "smaller batch_size", "streams"):
        assert part in str(failure)
    # An allocation that is not ours does not say how much it wanted.
    assert "more memory" in str(translate(of_driver("CUDA_ERROR_OUT_OF_MEMORY")))


def test_a_driver_that_cannot_tell_its_memory_does_not_hide_the_error():
    def fails():
        raise RuntimeError("no context")

    failure = translated(of_driver("CUDA_ERROR_OUT_OF_MEMORY"), "fit", fails)
    assert "too little free" in str(failure)


@pytest.mark.parametrize("name", failures.LOSSES_OF_CONTEXT)
def test_a_lost_context_is_reported_once_and_remembered(name):
    failure = translate(of_driver(name))
    assert isinstance(failure, DeviceLost)
    for part in (name, failures.LOSSES_OF_CONTEXT[name], "context is lost", "new process"):
        assert part in str(failure)
    with pytest.raises(DeviceLost) as again:
        failures.refuse_if_lost()
    assert str(again.value) == str(failure)


@pytest.mark.parametrize(
    "error",
    [
        of_driver("CUDA_ERROR_UNSUPPORTED_PTX_VERSION"),
        of_driver("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        RuntimeError("ptxas fatal: Unsupported .version 9.5; current version is '9.0'"),
    ],
)
def test_a_toolkit_newer_than_the_driver(error):
    failure = translate(error)
    assert "newer than the NVIDIA driver" in str(failure) and "install a newer" in str(failure)
    assert Process.lost is None


@pytest.mark.parametrize(
    "error",
    [
        CudaSupportError("\nCUDA driver library cannot be found.\nEnsure that it is installed"),
        of_driver("CUDA_ERROR_NO_DEVICE"),
    ],
)
def test_no_driver_or_no_gpu(error):
    failure = translate(error, "device")
    assert "no usable GPU" in str(failure) and "nvidia-smi" in str(failure)


def test_the_driver_is_found_behind_other_errors():
    try:
        try:
            raise of_driver("CUDA_ERROR_NO_BINARY_FOR_GPU")
        except CudaAPIError as error:
            raise RuntimeError("launch failed") from error
    except RuntimeError as error:
        assert "no code for this GPU" in str(translate(error))


def test_another_error_of_the_driver_is_told_by_its_name():
    failure = translate(of_driver("CUDA_ERROR_INVALID_VALUE"))
    assert type(failure) is DeviceFailure and "CUDA_ERROR_INVALID_VALUE" in str(failure)
    assert Process.lost is None


@pytest.mark.parametrize("error", [ValueError("shapes differ"), KeyError("x"), MemoryError()])
def test_what_is_not_of_the_gpu_is_left_alone(error):
    assert translated(error, "fit", memory) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("CUDA_ERROR_OUT_OF_MEMORY", DeviceMemoryError),
        ("CUDA_ERROR_ILLEGAL_ADDRESS", DeviceLostError),
        ("CUDA_ERROR_INVALID_VALUE", DeviceError),
    ],
)
def test_the_seam_raises_errors_of_fastmlp(name, kind):
    with pytest.raises(kind) as caught:
        with residency.guarded("cuda", "predict"):
            raise of_driver(name)
    assert type(caught.value) is kind and isinstance(caught.value, FastMLPError)
    assert str(caught.value).startswith("predict: got ")
    assert isinstance(caught.value, MemoryError) == (kind is DeviceMemoryError)
    assert type(pickle.loads(pickle.dumps(caught.value))) is kind


def test_the_seam_lets_everything_else_through():
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error):
            with residency.guarded("cuda", "fit"):
                raise error
    # Nothing of the GPU is imported or asked on the host.
    with residency.guarded("cpu", "fit"):
        pass
    Process.lost = "fit: got an error, wanted none"
    with residency.guarded("cpu", "fit"):
        pass
    entered = []
    with pytest.raises(DeviceLostError, match="fit: got an error"):
        with residency.guarded("cuda", "step"):
            entered.append(1)
    assert not entered


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 bytes"), (2500, "2.5 KB"), (3e6, "3 MB"), (8.05e10, "80.5 GB")]
)
def test_bytes_are_readable(count, text):
    assert readable_bytes(count) == text


# The driver and the toolkit that are installed --------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "toolkit", "linker", "part"),
    [
        ((13, 0), None, None, None),
        ((13, 0), (13, 0), None, None),
        ((13, 5), (13, 0), (13, 0), None),
        ((13, 0), (12, 9), None, None),
        # nvJitLink makes machine code, which any driver of the major version runs.
        ((13, 0), (13, 5), (13, 5), None),
        ((13, 0), (13, 5), (13, 0), "nvJitLink 13.5"),
        ((13, 0), (13, 5), None, "nvJitLink 13.5"),
        ((12, 4), (13, 0), (13, 0), "fastmlp[cuda12]"),
    ],
)
def test_what_a_driver_can_run(driver, toolkit, linker, part):
    refusal = driver_refusal(driver, toolkit, linker)
    if part is None:
        assert refusal is None
    else:
        assert part in refusal and f"CUDA {driver[0]}.{driver[1]}" in refusal
        assert f"CUDA {toolkit[0]}.{toolkit[1]}" in refusal


class Driver:
    """A driver of a machine with one GPU, as ctypes calls it."""

    def __init__(self, status=0, count=1, version=13000):
        self.status, self.count, self.version = status, count, version

    def cuInit(self, flags):
        return self.status

    def cuDeviceGetCount(self, count):
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, device, number):
        device._obj.value = 7
        return 0

    def cuDeviceGetName(self, name, size, device):
        assert device.value == 7
        name.value = b"Fake H100"
        return 0

    def cuDeviceGetAttribute(self, number, code, device):
        assert device.value == 7
        known = {75: 9, 76: 0, 16: 132, 97: 232448, 13: 1_830_000, 37: 5120}
        if code not in known:
            return 1  # CUDA_ERROR_INVALID_VALUE, and nothing written
        number._obj.value = known[code]
        return 0

    def cuDriverGetVersion(self, number):
        number._obj.value = self.version
        return 0


@pytest.fixture
def gpu(monkeypatch):
    """Return a function that gives this machine a driver and CUDA packages."""

    def give(driver, **packages):
        def load(library):
            if driver is None:
                raise OSError(library)
            return driver

        def version(name):
            if name not in packages:
                raise importlib.metadata.PackageNotFoundError(name)
            return packages[name]

        monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
        monkeypatch.setattr(ctypes, "CDLL", load)
        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: packages.get("numba-cuda"))
        return machine.find_gpu()

    return give


def packages(nvvm, linker=None):
    found = {"numba-cuda": "0.30.4", "nvidia-nvvm": nvvm}
    return found if linker is None else {**found, "nvidia-nvjitlink": linker}


def test_the_gpu_is_described_by_its_driver(gpu):
    facts = gpu(Driver(), **packages("13.0.88"))
    assert facts == {
        "cuda_missing": None,
        "gpu": "Fake H100",
        "gpu_capability": (9, 0),
        "gpu_processors": 132,
        "gpu_shared_bytes": 232448,
        # By its clock; it does not say the memory's, so the bandwidth stays the shipped one.
        "gpu_flops": pytest.approx(2 * 128 * 132 * 1.83e9 * 0.75),
        "gpu_tf32_flops": pytest.approx(2 * 1024 * 132 * 1.83e9 * 0.75),
        "gpu_bfloat16_flops": pytest.approx(2 * 2048 * 132 * 1.83e9 * 0.75),
    }


@pytest.mark.parametrize(
    ("driver", "given", "part"),
    [
        (None, packages("13.0"), "no NVIDIA driver"),
        (Driver(status=100), packages("13.0"), "returned 100"),
        (Driver(count=0), packages("13.0"), "lists no GPU"),
        (Driver(), {}, "numba-cuda was not found"),
        (Driver(version=12040), packages("13.0.88", "13.0.88"), "CUDA 12.4"),
        (Driver(version=13000), packages("13.5.37"), "write code for CUDA 13.5"),
    ],
)
def test_why_no_gpu_can_be_used(gpu, monkeypatch, driver, given, part):
    facts = gpu(driver, **given)
    assert part in facts["cuda_missing"]
    # And so for a user who asks for the GPU.
    missing = machine.Machine(cores=1, **facts)
    monkeypatch.setattr("fastmlp.dispatch.planning.detect", lambda: missing)
    model = MLP([2, 1])
    before = model.parameters.copy()
    with pytest.raises(DeviceError, match="device: got 'cuda', wanted one that is here") as caught:
        model.fit(np.ones((4, 2)), np.ones(4), batch_size=2, device="cuda")
    assert part in str(caught.value)
    assert model.parameters.tobytes() == before.tobytes()


def test_packages_whose_version_makes_the_driver_no_trouble(gpu):
    assert gpu(Driver(), **packages("13.5.37", "13.5.37"))["cuda_missing"] is None
    assert gpu(Driver(), **packages("local build"))["cuda_missing"] is None
