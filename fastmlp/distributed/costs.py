"""What a step costs on several ranks, so that a fit is not made slower by more of them."""

import time
from dataclasses import dataclass, replace

import numpy as np

from fastmlp.distributed.ranks import HALVING_BYTES, Ranks
from fastmlp_kernels.cpu import best_threads, epoch_seconds
from fastmlp_kernels.problem import Machine, Problem

# Of a message between two ranks of one machine: what it takes beside its bytes, and bytes a second.
# Of each part of a batch and of each batch: Python's share. (mpich 5.0 by mpi4py 4.1, messages of
# 26 KB to 7 MB; 2-core AMD EPYC, Zen 3, 2026-11-29.)
MESSAGE_SECONDS, MESSAGE_BYTES = 1e-5, 5e9
SHARD_SECONDS, BATCH_SECONDS = 2.5e-5, 3e-5
# A gain that is less than this is no gain: ranks wait for the slowest of them.
WORTHWHILE = 1.2
# How often a sum is measured.
SUMS = 10


@dataclass(frozen=True)
class ParallelCost:
    """What a step of a data-parallel fit takes.

    Attributes
    ----------
    ranks, shards : int
    seconds : float
        Predicted, of a step on all ranks.
    sum_seconds : float
        Of it, the sum of the gradient over the ranks.
    measured : bool
        Whether the sum was measured, or computed from constants.
    alone_seconds : float
        Predicted, of the same step without a communicator.
    """

    ranks: int
    shards: int
    seconds: float
    sum_seconds: float
    measured: bool
    alone_seconds: float

    @property
    def gain(self) -> float:
        """How many times as fast the ranks are as one process."""
        return self.alone_seconds / self.seconds

    @property
    def pays(self) -> bool:
        """Whether the ranks are faster than one process by more than a little."""
        return self.gain >= WORTHWHILE


def sum_seconds(
    size: int,
    ranks: int,
    latency: float = MESSAGE_SECONDS,
    bandwidth: float = MESSAGE_BYTES,
) -> float:
    """Return what a sum of so many bytes takes, by `Ranks.sum`.

    Parameters
    ----------
    size, ranks : int
        Bytes of the vector; a power of two.
    latency, bandwidth : float
        Seconds of a message without bytes, and bytes a second.
    """
    rounds = ranks.bit_length() - 1
    if size < HALVING_BYTES:
        return rounds * (latency + size / bandwidth)
    return 2 * (rounds * latency + (1 - 1 / ranks) * size / bandwidth)


def parallel_cost(
    problem: Problem,
    machine: Machine,
    own: Machine,
    ranks: int,
    shards: int,
    measured: float | None = None,
) -> ParallelCost:
    """Return what a step costs.

    Parameters
    ----------
    problem : Problem
        Its `batch_size` is that of all ranks together.
    machine, own : Machine
        What one process would have, and what each rank has.
    ranks, shards : int
    measured : float, optional
        Seconds of a sum of the gradient.
    """
    size = problem.parameter_count * (4 if problem.dtype == "float32" else 8)
    rows = -(-problem.batch_size // shards)
    parts = shards // ranks
    updating = size * (2 + 2 * problem.slots) / own.cpu_bytes
    # A tree's additions, of own parts and of those that are received.
    adding = (parts + ranks.bit_length() - 2) * 3 * size / own.cpu_bytes
    part = max(0.0, _step(problem, rows, own) - updating)
    reducing = sum_seconds(size, ranks) if measured is None else measured
    # A measured sum has its additions.
    adding -= 0.0 if measured is None else (ranks.bit_length() - 1) * 3 * size / own.cpu_bytes
    beside = BATCH_SECONDS + parts * SHARD_SECONDS + updating + max(0.0, adding)
    alone = _step(problem, problem.batch_size, machine)
    total = parts * part + beside + reducing
    return ParallelCost(ranks, shards, total, reducing, measured is not None, alone)


def _step(problem: Problem, rows: int, machine: Machine) -> float:
    """Return the seconds of a step on so many rows."""
    one = replace(problem, rows=rows, batch_size=rows)
    return epoch_seconds(one, machine, best_threads(one, machine))


def measured_sum(ranks: Ranks, problem: Problem) -> float:
    """Return the seconds of a sum of a gradient, which all ranks take part in: the slowest rank's.

    Of a few sums the shortest one counts, as in the others a rank may have had to wait.
    """
    values = np.zeros(problem.parameter_count, dtype=problem.dtype)
    took = []
    for _ in range(SUMS):
        # A sum of one number ends when the last rank has come: all begin together.
        ranks.sum(np.zeros(1))
        started = time.perf_counter()
        ranks.sum(values)
        took.append(time.perf_counter() - started)
    slowest = np.zeros(ranks.size)
    slowest[ranks.rank] = min(took)
    ranks.sum(slowest)
    return float(slowest.max())
