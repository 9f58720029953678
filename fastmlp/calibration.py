"""Measuring the constants that costs depend on: a few epochs, timed, and the cost model solved.

The coefficients come from the cost model itself, which is linear in the seconds of an operation, a
byte, a step, a meeting and a thread: whatever terms it has, calibration solves for these.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastmlp.machine import sharing
from fastmlp.parameters import aligned_zeros
from fastmlp.planning import plan
from fastmlp_kernels.algebra import HYPER_WIDTH
from fastmlp_kernels.algebra.optimizers import RULE_START
from fastmlp_kernels.cpu import epoch_seconds
from fastmlp_kernels.problem import BATCHES, CONTROL_WORDS, Machine, Problem

RUNS = 9
# Of the processors that a measurement asks for, what this process must have got for it to be
# believed. It never sleeps, so undisturbed it gets nearly all; beside a program on each, a half.
LEAST_SHARE = 0.9
# What a measurement may say at the least, in seconds: a petaflop/s, 100 TB/s, and times that no
# processor undercuts. Noise can make the solution of the equations negative.
LEAST_SECONDS = {
    "cpu_flops": 1e-15,
    "cpu_bytes": 1e-14,
    "cpu_step_seconds": 1e-8,
    "cpu_barrier_seconds": 1e-8,
    "cpu_thread_seconds": 1e-7,
}
RATES = ("cpu_flops", "cpu_bytes")
ALONE = ("cpu_flops", "cpu_bytes", "cpu_step_seconds")
TOGETHER = ("cpu_barrier_seconds", "cpu_thread_seconds")


def _problem(sizes: tuple[int, ...], batch_size: int, batches: int) -> Problem:
    activations = ("relu",) * (len(sizes) - 2) + ("identity",)
    return Problem(
        sizes,
        activations,
        "half_squared_error",
        batch_size=batch_size,
        rows=batch_size * batches,
    )


# One dominated by products, one by the passes over parameters too many for a cache, one by steps.
ONE_THREAD = (
    _problem((512, 512, 512, 16), 512, 2),
    _problem((2048, 2048, 1), 1, 8),
    _problem((4, 8, 1), 1, 2000),
)
# An epoch of one batch is dominated by starting a thread, one of many batches by the meetings.
TWO_THREADS = (_problem((16, 64, 1), 32, 1), _problem((16, 64, 1), 32, 2000))


@dataclass(frozen=True)
class Calibration:
    """The measured constants by name, and which of them had to be raised to the least value.

    `share` is what this process got of the processors that it asked for while it measured.
    """

    constants: dict[str, float]
    raised: tuple[str, ...]
    share: float = 1.0

    @property
    def disturbed(self) -> bool:
        """Whether other programs have taken so much that the constants are theirs too."""
        return self.share < LEAST_SHARE


def calibrate(
    machine: Machine, seconds: Callable[[Problem, int], float] | None = None
) -> Calibration:
    """Measure the constants of the CPU kernels.

    Parameters
    ----------
    machine : Machine
        With one core, nothing is said of meetings and threads.
    seconds : callable, optional
        ``seconds(problem, threads)`` of an epoch; timed by default.
    """
    timer = EpochTimer(machine)
    timed = timer if seconds is None else seconds
    measured = [timed(problem, 1) for problem in ONE_THREAD]
    found = _solve(machine, ONE_THREAD, 1, ALONE, measured)
    if machine.cores > 1:
        alone = replace(machine, **_constants(found))
        extra = [_team_seconds(problem, alone, timed) for problem in TWO_THREADS]
        found |= _solve(alone, TWO_THREADS, 2, TOGETHER, extra)
    raised = tuple(name for name, each in found.items() if each < LEAST_SECONDS[name])
    return Calibration(_constants(found), raised, timer.share)


def calibrate_gpu(machine: Machine) -> dict[str, float]:
    """Measure the constants of the GPU, by name; none where there is no GPU to be used."""
    if machine.cuda_missing is not None:
        return {}
    # Imports Numba's CUDA target, which a machine without a GPU may not have.
    from fastmlp_kernels.cuda.measuring import measure

    return measure()


def _constants(seconds: dict[str, float]) -> dict[str, Any]:
    """Return the fields of a machine that the seconds of each thing mean."""
    least = {name: max(each, LEAST_SECONDS[name]) for name, each in seconds.items()}
    return {name: 1 / each if name in RATES else each for name, each in least.items()}


def _solve(
    machine: Machine,
    problems: Sequence[Problem],
    threads: int,
    names: tuple[str, ...],
    measured: Sequence[float],
) -> dict[str, float]:
    matrix = [[_coefficient(each, machine, threads, name) for name in names] for each in problems]
    solution = np.linalg.solve(np.array(matrix), np.array(measured))
    return dict(zip(names, solution.tolist(), strict=True))


def _coefficient(problem: Problem, machine: Machine, threads: int, name: str) -> float:
    """Return how often an epoch pays for the thing that a constant is about."""
    free: dict[str, Any] = {
        each: math.inf if each in RATES else 0.0 for each in (*ALONE, *TOGETHER)
    }
    return epoch_seconds(problem, replace(machine, **{**free, name: 1.0}), threads)


def _team_seconds(
    problem: Problem, machine: Machine, timed: Callable[[Problem, int], float]
) -> float:
    """Return what two threads take beyond their shares of the work."""
    free = sharing(machine, 2)
    share = epoch_seconds(problem, free, 2) / epoch_seconds(problem, free, 1)
    return timed(problem, 2) - share * timed(problem, 1)


class EpochTimer:
    """``timer(problem, threads)``: the median time of an epoch of the CPU's kernel.

    Attributes
    ----------
    share : float
        The least that this process got of the processors that it asked for, over all problems: its
        processor time over the time on the clock and its threads, at most 1.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.share = 1.0

    def __call__(self, problem: Problem, threads: int) -> float:
        """Return the median of `RUNS` epochs, after one that is not counted."""
        machine = sharing(self._machine, threads)
        program = plan(problem, "cpu", None, machine).kernel.build(problem, machine)
        arrays = epoch_arrays(problem)
        program.prepare(*arrays[:4])
        times = []
        program.epoch(*arrays)
        busy = time.process_time()
        for _ in range(RUNS):
            started = time.perf_counter()
            program.epoch(*arrays)
            times.append(time.perf_counter() - started)
        busy = time.process_time() - busy
        # An epoch of one batch waits for its second thread to start: nobody else's doing.
        if threads == 1 or problem.batches > 1:
            self.share = min(self.share, busy / (threads * sum(times)))
        if arrays[-1][BATCHES] != problem.batches:
            raise RuntimeError(f"calibrate: an epoch of {problem} ended before its last batch")
        return statistics.median(times)


def epoch_arrays(problem: Problem) -> tuple[Any, ...]:
    """Return the arguments of an epoch that stays finite, in their order."""
    generator = np.random.default_rng(0)
    dtype = problem.dtype
    parameters = aligned_zeros((problem.parameter_count,), dtype)
    parameters[:] = generator.normal(0, 0.01, problem.parameter_count)
    X = generator.normal(size=(problem.rows, problem.sizes[0])).astype(dtype)
    y = np.zeros((problem.rows, problem.target_columns), dtype=dtype)
    hyper = np.zeros((problem.batches, HYPER_WIDTH), dtype=dtype)
    # A rate that moves nothing in a thousand steps, and takes as long as any other.
    hyper[:, RULE_START] = 1e-6
    return (
        parameters,
        aligned_zeros((problem.slots, problem.parameter_count), dtype),
        X,
        y,
        np.arange(problem.rows, dtype=np.int64),
        hyper,
        np.zeros(problem.batches, dtype=dtype),
        np.zeros(CONTROL_WORDS, dtype=np.int64),
    )
