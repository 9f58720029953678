"""More shared memory for a block than the 48 KB that CUDA gives unasked."""

from dataclasses import dataclass
from typing import Any

from fastmlp_kernels.compile import simulated
from fastmlp_kernels.cuda.device.configurations import configured

# What every launch may have.
UNASKED_BYTES = 48 * 1024


def allow(kernel: Any, signature: tuple, shared_bytes: int) -> None:
    """Compile a kernel for a signature, and let its launches have that much dynamic shared memory.

    Numba asks for none beyond `UNASKED_BYTES`, and a launch with more then fails as invalid.
    """
    if simulated():
        return
    compiled = kernel.compile(signature)
    if shared_bytes <= UNASKED_BYTES:
        return
    from cuda.bindings import driver

    function = compiled.library.get_cufunc().handle
    if isinstance(function, driver.CUkernel):
        status, function = driver.cuKernelGetFunction(function)
        _check(driver, status, "cuKernelGetFunction")
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    (status,) = driver.cuFuncSetAttribute(function, attribute, shared_bytes)
    _check(driver, status, f"shared memory of {shared_bytes} bytes a block")


def _check(driver: Any, status: Any, what: str) -> None:
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"{what}: got {status.name}")


@dataclass(frozen=True)
class Granted:
    """A kernel whose launches have so many bytes of dynamic shared memory."""

    kernel: Any
    shared_bytes: int

    def __getitem__(self, configuration: tuple) -> Any:
        """Return what launches a grid of blocks on a stream."""
        grid, block, stream = configuration
        return configured(self.kernel, grid, block, stream, self.shared_bytes)
