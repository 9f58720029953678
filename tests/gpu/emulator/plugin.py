"""A pytest plugin: `numba.cuda` works on an emulated device, and a test fails of what is found.

    python -m pytest -p tests.gpu.emulator.plugin tests/gpu/kernel_cases.py

Beside its options a run has NUMBA_ENABLE_CUDASIM unset or 0.
"""

import pytest

from tests.gpu.emulator.device import POISONS, Device

# Races that the kernels document: what was found, the kernel, and what its line accesses.
INTENDED = [
    # All that write write the same value, and who reads an older one writes it once more.
    ("race", "check_finite", "status[STATUS]"),
    ("race", "weight_gradient", "status[STATUS]"),
    ("race", "sum_and_check", "status"),
    ("race", "find_outside", "found[0]"),
    ("race", "find_bad_sums", "found[0]"),
]


def is_intended(finding):
    """Return whether something that was found is on the list of what is meant to be.

    Of a kernel that NVVM compiles only without lines, the name decides.
    """
    return any(
        finding.what.startswith(what)
        and finding.kernel == kernel
        and (access in finding.source or not finding.source)
        for what, kernel, access in INTENDED
    )


def pytest_addoption(parser):
    group = parser.getgroup("emulated GPU")
    group.addoption("--poison", choices=POISONS, default="nan", help="what unwritten memory holds")
    group.addoption("--warp-seed", type=int, help="run one warp at a time, in a random order")
    group.addoption("--traffic", action="store_true", help="count instructions and transfers")


def pytest_configure(config):
    from numba import cuda

    if not hasattr(cuda, "compile_ptx"):
        raise pytest.UsageError("an emulated GPU compiles PTX: NUMBA_ENABLE_CUDASIM must be 0")
    from tests.gpu.emulator import machine

    seed = config.getoption("--warp-seed")
    config.emulated_device = Device(
        measure=config.getoption("--traffic"),
        random_warps=seed is not None,
        seed=seed or 0,
        poison=POISONS[config.getoption("--poison")],
    )
    machine.install(config.emulated_device)


@pytest.fixture(autouse=True)
def nothing_is_found(request):
    """Fail a test during which the device has found something."""
    findings = request.config.emulated_device.findings
    findings.take()
    yield
    found = [each for each in findings.take() if not is_intended(each)]
    assert not found, "\n".join(map(str, found))


def pytest_terminal_summary(terminalreporter, config):
    device = config.emulated_device
    if device.measure:
        for kernel, counter in device.counts.items():
            for what, count in counter.items():
                terminalreporter.write_line(f"{kernel}: {what}: {count}")
        for name, count in sorted(device.opcodes().items()):
            terminalreporter.write_line(f"{name}: {count}")
