"""CPU kernels. Importing this package imports no Numba: `build` does, when a program is made."""

import importlib
import math
from dataclasses import replace

from fastmlp_kernels.cpu.thread_choice import CLOSE
from fastmlp_kernels.problem import Kernel, Machine, Problem, Program
from fastmlp_kernels.shield import shield

# What starting a thread costs, in wake-ups of one that stays: 0.2 ms here. Three times that, as
# most of these calls are predictions, a third of the work of the epoch whose time is predicted.
STARTING = 60
# What calling one that waits costs a prediction, in the same unit.
CALLING = 0.3


def _supports(problem: Problem, machine: Machine) -> str | None:
    return None


def epoch_seconds(problem: Problem, machine: Machine, threads: int) -> float:
    """Return the predicted seconds of an epoch on a number of threads: a roofline.

    Arithmetic at the rate of the products; each activation is written and read once in either
    direction, each parameter, its state, its gradient and two copies once a step. Threads share the
    arithmetic alone: what they move they also take from one another's caches. Networks side by side
    share nothing: each is trained by one thread.
    """
    if problem.members > 1:
        alone = epoch_seconds(replace(problem, members=1), machine, 1)
        at_once = min(threads, problem.members)
        return problem.members * alone / at_once + (at_once - 1) * machine.cpu_thread_seconds
    item = 8 if problem.dtype == "float64" else 4
    units = sum(problem.sizes)
    moved = item * (
        4 * problem.rows * units
        + problem.batches * problem.parameter_count * (4 + 2 * problem.slots)
    )
    flops = machine.cpu_flops * (4 / item)
    seconds = problem.flops / flops / threads + moved / machine.cpu_bytes
    seconds += problem.batches * machine.cpu_step_seconds
    if threads > 1:
        seconds += problem.batches * 2 * machine.cpu_barrier_seconds
        seconds += (threads - 1) * machine.cpu_thread_seconds
    return seconds


def best_threads(problem: Problem, machine: Machine) -> int:
    """Return the number of threads with the lowest predicted time."""
    return min(
        range(1, machine.cores + 1), key=lambda count: epoch_seconds(problem, machine, count)
    )


def close_threads(problem: Problem, machine: Machine) -> tuple[int, ...]:
    """Return the best number of threads, then another whose predicted time is close to its.

    The other is one thread, or the best of several where one is predicted to be best. Networks side
    by side never wait for each other, so that more threads are faster wherever they are predicted
    to be.
    """
    best = best_threads(problem, machine)
    if problem.members > 1:
        return (best,)
    others = range(2, machine.cores + 1) if best == 1 else range(1, 2)
    seconds = {count: epoch_seconds(problem, machine, count) for count in (best, *others)}
    other = min(others, key=seconds.__getitem__, default=best)
    if other == best or seconds[other] > CLOSE * seconds[best]:
        return (best,)
    return best, other


def call_threads(problem: Problem, machine: Machine) -> int:
    """Return the number of threads of a call that none like it need follow: they are started."""
    started = replace(machine, cpu_thread_seconds=STARTING * machine.cpu_thread_seconds)
    return best_threads(problem, started)


def team_rows(problem: Problem, machine: Machine) -> tuple[float, float]:
    """Return how many rows take as long to predict as calling a thread, and as starting one."""
    item = 8 if problem.dtype == "float64" else 4
    row = 2.0 * problem.parameter_count / (machine.cpu_flops * 4 / item)
    row += 2.0 * item * sum(problem.sizes) / machine.cpu_bytes
    return tuple(cost * machine.cpu_thread_seconds / row for cost in (CALLING, STARTING / 3))


def prediction_threads(rows: int, called: float, most: int) -> int:
    """Return on how many threads so many rows are predicted.

    `called` are the rows that calling a thread costs. Shares and calls of t threads take rows / t
    and called * t: their sum is least at the square root of rows / called.
    """
    return most if rows >= called * most * most else max(1, round(math.sqrt(rows / called)))


def _cost(problem: Problem, machine: Machine) -> float:
    return epoch_seconds(problem, machine, best_threads(problem, machine))


_loaded = False


def _load() -> None:
    global _loaded
    importlib.import_module("fastmlp_kernels.cpu.program")
    importlib.import_module("fastmlp_kernels.cpu.members")
    _loaded = True


def _build(problem: Problem, machine: Machine) -> Program:
    if not _loaded:
        # An import that an interrupt leaves half done can not be done again in this process.
        shield(_load)
    if problem.members > 1:
        from fastmlp_kernels.cpu.members import SideBySideProgram

        return SideBySideProgram(problem, machine)
    from fastmlp_kernels.cpu.program import FusedProgram

    return FusedProgram(problem, machine)


KERNELS = (Kernel("cpu.fused", "cpu", _supports, _cost, _build),)
