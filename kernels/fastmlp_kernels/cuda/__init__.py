"""CUDA kernels. Importing this package imports no Numba: `build` does, when a program is made."""

from fastmlp_kernels.cuda import resident_cost
from fastmlp_kernels.problem import Kernel, Machine, Problem, Program


def launches(problem: Problem) -> int:
    """Return the kernel launches of an epoch of `cuda.layered`."""
    layers = len(problem.sizes) - 1
    slopes = sum(name != "identity" for name in problem.training_activations)
    # gather X and y, forward each, loss, its sum, slope where there is one, weight gradient each,
    # backward-data for all but the first, the check and the update.
    return problem.batches * (2 + layers + 2 + slopes + layers + (layers - 1) + 2)


def _supports(problem: Problem, machine: Machine) -> str | None:
    return machine.cuda_missing


def _cost(problem: Problem, machine: Machine) -> float:
    flops = machine.gpu_flops * (0.1 if problem.dtype == "float64" else 1.0)
    item = 8 if problem.dtype == "float64" else 4
    copied = item * problem.rows * (problem.sizes[0] + problem.target_columns)
    return (
        problem.flops / flops
        + launches(problem) * machine.gpu_launch_seconds
        + copied / machine.gpu_copy_bytes
    )


def _build(problem: Problem, machine: Machine) -> Program:
    from fastmlp_kernels.cuda.layered import LayeredProgram

    return LayeredProgram(problem)


def _build_resident(problem: Problem, machine: Machine) -> Program:
    from fastmlp_kernels.cuda.resident_program import ResidentProgram

    return ResidentProgram(problem, machine)


KERNELS = (
    Kernel("cuda.layered", "cuda", _supports, _cost, _build),
    Kernel("cuda.resident", "cuda", resident_cost.supports, resident_cost.cost, _build_resident),
)
