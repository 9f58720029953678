"""CUDA kernels. Importing this package imports no Numba: `build` does, when a program is made."""

from fastmlp_kernels.cuda import fused_cost, resident_cost
from fastmlp_kernels.problem import Kernel, Machine, Problem, Program


def launches(problem: Problem, library: bool = False) -> int:
    """Return the kernels that an epoch of `cuda.layered` launches, or replays.

    `library` says whether cuBLASLt computes the products.
    """
    layers = len(problem.sizes) - 1
    # Gather, loss, the check, the update; and backward-data for all layers but the first.
    around, backward = 4, layers - 1
    if library:
        # A layer's product, bias and activation; slope and sums, weight gradient.
        return problem.batches * (around + 4 * layers + backward)
    # The tiles fuse all but the slope of the last layer into their products.
    last = problem.training_activations[-1] != "identity"
    return problem.batches * (around + 2 * layers + backward + last)


def _supports(problem: Problem, machine: Machine) -> str | None:
    if problem.members > 1:
        return "it trains one network at a time"
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


def _build_fused(problem: Problem, machine: Machine) -> Program:
    from fastmlp_kernels.cuda.fused_program import FusedProgram

    return FusedProgram(problem, machine)


KERNELS = (
    Kernel("cuda.layered", "cuda", _supports, _cost, _build),
    Kernel("cuda.fused", "cuda", fused_cost.supports, fused_cost.cost, _build_fused),
    Kernel("cuda.resident", "cuda", resident_cost.supports, resident_cost.cost, _build_resident),
)
