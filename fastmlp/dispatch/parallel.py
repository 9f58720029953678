"""What ranks would gain, for `explain`."""

import platform
from dataclasses import replace
from numbers import Integral
from typing import Any

from fastmlp.dispatch.planning import readable_time
from fastmlp.distributed.communicators import as_communicator
from fastmlp.distributed.costs import ParallelCost, measured_sum, parallel_cost
from fastmlp.distributed.data_parallel import DataParallel, check_parallel
from fastmlp.distributed.ranks import Ranks
from fastmlp.distributed.shares import check_size
from fastmlp_kernels.problem import Machine, Problem


def cost_of_ranks(given: Any, problem: Problem, machine: Machine) -> ParallelCost:
    """Return what a step costs on ranks, of which there is a number or a communicator."""
    if isinstance(given, Integral) and not isinstance(given, bool):
        count = check_size(given, "ranks")
        shards = max(count, DataParallel.shards)
        return parallel_cost(problem, machine, machine, count, shards)
    parallel = check_parallel(given)
    assert parallel is not None
    ranks = Ranks(as_communicator(parallel.communicator))
    hosts = ranks.gather(platform.node().encode())
    cores = max(1, machine.cores // hosts.count(hosts[ranks.rank]))
    measured = measured_sum(ranks, problem)
    own = replace(machine, cores=cores)
    return parallel_cost(problem, machine, own, ranks.size, parallel.shards, measured)


def about_ranks(cost: ParallelCost) -> str:
    """Return in words what a step costs on ranks, and whether that pays."""
    how = "measured" if cost.measured else "predicted"
    line = (
        f"{cost.ranks} ranks, {cost.shards} shards: predicted {readable_time(cost.seconds)} a "
        f"step, of which {readable_time(cost.sum_seconds)} is the sum of the gradient ({how}); "
        f"{readable_time(cost.alone_seconds)} without a communicator"
    )
    if cost.pays:
        return f"{line}. That is {cost.gain:.1f} x as fast"
    return f"{line}. It does not pay: use one process, or a larger batch_size"
