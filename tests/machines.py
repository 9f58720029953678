"""Machines that the CPU kernels are tested on: every instruction set that is here, and teams."""

from fastmlp_kernels.cpu.simd import host_instruction_sets
from fastmlp_kernels.problem import Machine

HOST = tuple(each.name for each in host_instruction_sets())


def team(threads: int, instruction_set: str = "") -> Machine:
    """Return a machine on which starting and meeting cost nothing: all its cores are used."""
    return Machine(
        cores=threads,
        cpu_barrier_seconds=0.0,
        cpu_thread_seconds=0.0,
        cpu_step_seconds=0.0,
        instruction_set=instruction_set,
    )


# The first is what users get; odd teams share neither rows nor units of weights evenly.
MACHINES = {name: team(1, name) for name in HOST} | {
    f"{name}, team of 3": team(3, name) for name in (HOST[0], HOST[-1])
}
