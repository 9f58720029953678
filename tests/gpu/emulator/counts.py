"""Instructions that a warp executes for a batch of `cuda.resident`: ``python -m`` this module.

Counted on an emulated GPU, as the difference between epochs of two batches and of one, so that
what a launch does once is left out.
"""

from fastmlp_kernels.cuda.resident.program import ResidentProgram
from fastmlp_kernels.problem import Machine, Problem
from tests.gpu.emulator import driver
from tests.gpu.emulator.device import MOST_SHARED_BYTES, Device
from tests.samples import sample

MACHINE = Machine(
    cuda_missing=None,
    gpu_capability=driver.CAPABILITY,
    gpu_processors=driver.PROCESSORS,
    gpu_shared_bytes=MOST_SHARED_BYTES,
)
# Sizes, rows of a batch, precision. Hidden layers are ReLU, the optimizer is SGD.
NETWORKS = {
    "16-64-1 float32": ((16, 64, 1), 32, "float32"),
    "64-64-10 float32": ((64, 64, 10), 64, "float32"),
    "64-64-10 bfloat16": ((64, 64, 10), 64, "bfloat16"),
}


def problem_of(name, batches):
    """Return a network's problem for an epoch of so many batches."""
    sizes, batch, precision = NETWORKS[name]
    loss = "half_squared_error" if sizes[-1] == 1 else "softmax_cross_entropy"
    return Problem(
        sizes,
        ("relu", "identity"),
        loss,
        "sgd",
        dtype="float32",
        batch_size=batch,
        rows=batch * batches,
        precision=precision,
    )


def count(device, name, batches):
    """Return the warp instructions of an epoch of so many batches, in one launch."""
    problem = problem_of(name, batches)
    program, data = ResidentProgram(problem, MACHINE), sample(problem, seed=1)
    arrays = (data.parameters, data.state, data.X, data.y)
    held = [program.to_device(array) for array in arrays]
    device.executed.clear()
    program.epoch(*held, data.order, data.hyper, data.losses, data.control, None, None)
    assert program.resident_launches == 1
    return sum(
        len(ptx.blocks[place]) * times
        for (kernel, ptx, place), times in device.executed.items()
        if kernel == "resident"
    )


def main():
    """Print each network and what a batch of it takes."""
    device = Device(watch=False, measure=True)
    driver.install(device)
    for name in NETWORKS:
        print(f"{name}: {count(device, name, 2) - count(device, name, 1)}")


if __name__ == "__main__":
    main()
