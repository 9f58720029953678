"""CUDA kernels. Importing this package imports no Numba: `build` does, when a program is made."""

from collections.abc import Callable

from fastmlp_kernels.cuda import costs
from fastmlp_kernels.cuda.fused import cost as fused_cost
from fastmlp_kernels.cuda.resident import cost as resident_cost
from fastmlp_kernels.problem import Kernel, Machine, Problem, Program


def launches(kernel: str, problem: Problem, machine: Machine) -> int:
    """Return the kernels that an epoch launches, or replays from a recording."""
    return LAUNCHES[kernel](problem, machine)


def _supports(problem: Problem, machine: Machine) -> str | None:
    if problem.members > 1:
        return "it trains one network at a time"
    return machine.cuda_missing


def _build(problem: Problem, machine: Machine) -> Program:
    from fastmlp_kernels.cuda.layered.program import LayeredProgram

    return LayeredProgram(problem, machine=machine)


def _build_resident(problem: Problem, machine: Machine) -> Program:
    from fastmlp_kernels.cuda.resident.program import ResidentProgram

    return ResidentProgram(problem, machine)


def _build_fused(problem: Problem, machine: Machine) -> Program:
    from fastmlp_kernels.cuda.fused.program import FusedProgram

    return FusedProgram(problem, machine)


KERNELS = (
    Kernel("cuda.layered", "cuda", _supports, costs.layered_seconds, _build),
    Kernel("cuda.fused", "cuda", fused_cost.supports, fused_cost.cost, _build_fused),
    Kernel("cuda.resident", "cuda", resident_cost.supports, resident_cost.cost, _build_resident),
)

LAUNCHES: dict[str, Callable[[Problem, Machine], int]] = {
    # Counted with cuBLASLt, which a machine with a GPU mostly has.
    "cuda.layered": lambda problem, machine: costs.layered_launches(problem, machine, True),
    "cuda.fused": fused_cost.launches,
    "cuda.resident": resident_cost.launches,
}
