"""A machine with an emulated GPU: `numba.cuda`, and what fastmlp detects."""

from tests.gpu.emulator import driver


def install(device):
    """Have this process compute on an emulated device, and fastmlp find it."""
    from fastmlp.device import machine
    from fastmlp_kernels.cuda.device.rates import expected_rates
    from fastmlp_kernels.cuda.layered import cublas, matrix_products

    driver.install(device)
    # Rates of an H100: clock, memory's clock and bus as a driver states them.
    rates = expected_rates(driver.CAPABILITY, driver.PROCESSORS, 1.98e9, 2.6e9, 5120)
    found = {
        "cuda_missing": None,
        "gpu": "emulated",
        "gpu_capability": driver.CAPABILITY,
        "gpu_processors": driver.PROCESSORS,
        "gpu_shared_bytes": driver.MOST_SHARED_BYTES,
        **rates,
    }
    machine.find_gpu = lambda: dict(found)

    def no_library():
        """Stand in for `cublas.connect`: a real library would be given addresses of the host."""
        raise cublas.CublasError("an emulated GPU has the library that a test gives it")

    matrix_products.connect = no_library
