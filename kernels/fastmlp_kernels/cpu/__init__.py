"""CPU kernels. Importing this package imports no Numba: `build` does, when a program is made."""

from fastmlp_kernels.problem import Kernel, Machine, Problem, Program

# What a call costs beside its arithmetic, and a mini-batch beside its products (gather, loss,
# update of each parameter). Estimates, not measured: a calibration is to replace them.
CALL_SECONDS = 5e-6
BATCH_SECONDS = 1e-6
UPDATE_SECONDS = 1e-9


def _supports(problem: Problem, machine: Machine) -> str | None:
    return None


def _cost(problem: Problem, machine: Machine) -> float:
    flops = machine.cpu_flops * (0.5 if problem.dtype == "float64" else 1.0)
    updates = problem.batches * (BATCH_SECONDS + problem.parameter_count * UPDATE_SECONDS)
    return CALL_SECONDS + problem.flops / flops + updates


def _build(problem: Problem, machine: Machine) -> Program:
    from fastmlp_kernels.cpu.layered import LayeredProgram

    return LayeredProgram(problem)


KERNELS = (Kernel("cpu.layered", "cpu", _supports, _cost, _build),)
