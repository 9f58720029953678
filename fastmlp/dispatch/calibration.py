"""Measure the constants of the cost model: time a few epochs, and solve the model for them.

The cost model is linear in the seconds of an operation, a byte, a step, a meeting and a thread. The
coefficients of these equations come from the model itself, so they follow when it changes.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastmlp.device.machine import sharing
from fastmlp.dispatch.planning import plan
from fastmlp.state.parameters import aligned_zeros
from fastmlp_kernels.algebra import HYPER_WIDTH
from fastmlp_kernels.algebra.optimizers import RULE_START
from fastmlp_kernels.cpu import epoch_seconds
from fastmlp_kernels.problem import BATCHES, CONTROL_WORDS, Machine, Problem

RUNS = 9
# A measurement is believed if this process got at least this share of the processors that it asked
# for. It never sleeps. Undisturbed it gets nearly all, and beside a busy program on each a half.
LEAST_SHARE = 0.9
# Lower bounds of the constants, in seconds: a petaflop/s, 100 TB/s, and times that no processor
# undercuts. Noise can make the solution of the equations negative.
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


# Products dominate the first, passes over more parameters than a cache holds the second, and the
# costs of a step the third.
ONE_THREAD = (
    _problem((512, 512, 512, 16), 512, 2),
    _problem((2048, 2048, 1), 1, 8),
    _problem((4, 8, 1), 1, 2000),
)
# Starting a thread dominates an epoch of one batch. Meetings dominate an epoch of many.
TWO_THREADS = (_problem((16, 64, 1), 32, 1), _problem((16, 64, 1), 32, 2000))


@dataclass(frozen=True)
class Calibration:
    """The measured constants by name, and the names of those that were raised to their lower bound.

    `share` is the share that this process got of the processors that it asked for.
    """

    constants: dict[str, float]
    raised: tuple[str, ...]
    share: float = 1.0

    @property
    def disturbed(self) -> bool:
        """Whether other programs took so much that the constants cannot be believed."""
        return self.share < LEAST_SHARE


def calibrate(
    machine: Machine, seconds: Callable[[Problem, int], float] | None = None
) -> Calibration:
    """Measure the constants of the CPU kernels.

    Parameters
    ----------
    machine : Machine
        With one core, the constants of meetings and threads are not measured.
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
    """Return the fields of a `Machine` that follow from the seconds of each thing."""
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
    """Return how often an epoch pays for what a constant measures."""
    free: dict[str, Any] = {
        each: math.inf if each in RATES else 0.0 for each in (*ALONE, *TOGETHER)
    }
    return epoch_seconds(problem, replace(machine, **{**free, name: 1.0}), threads)


def _team_seconds(
    problem: Problem, machine: Machine, timed: Callable[[Problem, int], float]
) -> float:
    """Return the seconds that two threads take beyond their shares of the work."""
    free = sharing(machine, 2)
    share = epoch_seconds(problem, free, 2) / epoch_seconds(problem, free, 1)
    return timed(problem, 2) - share * timed(problem, 1)


class EpochTimer:
    """``timer(problem, threads)``: the median time of an epoch of the CPU's kernel.

    Attributes
    ----------
    share : float
        The least share, over all problems, that this process got of the processors that it asked
        for. A share is the processor time, divided by the clock's time and the threads; at most 1.
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
        # An epoch of one batch waits for its second thread to start. No other program causes that.
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
    # So small that parameters hardly move in a thousand steps. It takes as long as any other rate.
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
