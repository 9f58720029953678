"""What `cuda.resident` can run, in what form, and what an epoch would take: plain arithmetic."""

from fastmlp_kernels.cuda.costs import copy_seconds
from fastmlp_kernels.cuda.on_chip.cost import (
    PHASE_MEETINGS,
    THREADS,
    block_rate,
    busy,
    dropout_seconds,
    forms,
)
from fastmlp_kernels.cuda.on_chip.placement import Placement, place
from fastmlp_kernels.problem import Machine, Problem

# Predicted time of a launch: the host sees a request to stop between two, and what it does there
# takes some tens of microseconds.
LAUNCH_SECONDS = 0.05


def placement_of(problem: Problem, machine: Machine) -> Placement | str:
    """Return where the network lies in a block's shared memory, or why it does not fit.

    The form is that of the placement: the first of those that fit which keeps all threads busy,
    else the one of the smallest tiles, which also needs least memory.
    """
    found: Placement | str = ""
    for form in forms(problem, machine):
        found = place(problem, form, THREADS, machine.gpu_shared_bytes)
        if isinstance(found, Placement) and (form.mixed or busy(problem, form, found.rows)):
            return found
    return found


def supports(problem: Problem, machine: Machine) -> str | None:
    """Return why the kernel cannot run the problem, or None."""
    if machine.cuda_missing:
        return machine.cuda_missing
    found = placement_of(problem, machine)
    return found if isinstance(found, str) else None


def batch_seconds(problem: Problem, machine: Machine) -> float:
    """Return the predicted seconds of a mini-batch of one network."""
    found = placement_of(problem, machine)
    if isinstance(found, str):
        return float("inf")
    tiles = -(-problem.batch_size // found.rows)
    layers = len(problem.sizes) - 1
    # Of each tile the rows, each layer forward and backward, the loss; the check, the update.
    phases = tiles * (2 * layers + 2) + 1
    flops = problem.flops / (problem.members * problem.rows) * problem.batch_size
    seconds = flops / block_rate(found.form, problem, machine)
    seconds += dropout_seconds(problem, machine, problem.batch_size)
    return seconds + phases * PHASE_MEETINGS * machine.gpu_meeting_seconds


def batches_a_launch(problem: Problem, machine: Machine) -> int:
    """Return how many batches a launch takes on."""
    return max(1, int(LAUNCH_SECONDS / batch_seconds(problem, machine)))


def launches(problem: Problem, machine: Machine) -> int:
    """Return the launches of an epoch."""
    return -(-problem.batches // batches_a_launch(problem, machine))


def cost(problem: Problem, machine: Machine) -> float:
    """Return the predicted seconds of an epoch, copies included."""
    waves = -(-problem.members // machine.gpu_processors)
    return (
        problem.batches * batch_seconds(problem, machine) * waves
        + launches(problem, machine) * machine.gpu_launch_seconds
        + copy_seconds(problem, machine)
    )
