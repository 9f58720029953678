"""What a data-parallel step costs: measured on two ranks, and simulated for many.

``python -m benchmarks.data_parallel`` starts two ranks by mpiexec, each with one thread, and prints
three tables for docs/guide/distributed.md. The first is measured here. The others are simulated:
all ranks compute, some a little longer than others, and exchange in rounds with partners, over a
network whose latency and bandwidth are arguments. The third is of sums beside the computing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fastmlp import MLP, Adam
from fastmlp.dispatch.planning import readable_time
from fastmlp.distributed import DataParallel, rows_of_rank
from fastmlp.distributed.communicators import as_communicator
from fastmlp.distributed.ranks import HALVING_BYTES, Ranks

# A step of one network takes some tenths of a millisecond, of another a tenth of a second.
CASES = (
    ("small", (32, 64, 64, 4), 256, 40),
    ("medium", (256, 512, 512, 16), 256, 10),
    ("large", (784, 1024, 1024, 10), 1024, 2),
)
REPEATS = 5
RANKS = (16, 256, 4096)
# Shares of a step by which ranks differ: those of the slowest of many are what counts.
SPREAD = 0.03


@dataclass(frozen=True)
class Network:
    """A network between machines: seconds of a message without bytes, and bytes a second."""

    latency: float
    bandwidth: float


def measure() -> list[dict[str, float]]:
    """Return, on a rank, the seconds of a step: alone, on all ranks; and of its sum."""
    from mpi4py import MPI

    world, found = MPI.COMM_WORLD, []
    for _, sizes, batch_size, batches in CASES:
        rows, generator = batch_size * batches, np.random.default_rng(0)
        X = generator.standard_normal((rows, sizes[0]), dtype=np.float32)
        y = generator.standard_normal((rows, sizes[-1]), dtype=np.float32)
        own = rows_of_rank(rows, world.rank, world.size)
        options = {"epochs": 2, "batch_size": batch_size, "optimizer": Adam(1e-3), "threads": 1}
        times: dict[str, list[float]] = {"alone": [], "together": [], "sum": []}
        ranks, summed = (
            Ranks(as_communicator(world)),
            np.zeros(MLP(sizes).parameters.size, np.float32),
        )
        for _ in range(REPEATS):
            # In turns, so that a change of the machine's speed meets both.
            model = MLP(sizes)
            parallel = DataParallel(world)
            history = model.fit(X[own], y[own], communicator=parallel, progress=False, **options)
            times["together"].append(history.seconds.min() / batches)
            world.Barrier()
            if world.rank == 0:
                history = MLP(sizes).fit(X, y, progress=False, **options)
                times["alone"].append(history.seconds.min() / batches)
            for _ in range(10):
                world.Barrier()
                started = time.perf_counter()
                ranks.sum(summed)
                times["sum"].append(time.perf_counter() - started)
        found.append({name: float(np.median(each or [0.0])) for name, each in times.items()})
    return found


def step_seconds(computing: float, size: int, ranks: int, network: Network) -> float:
    """Return the simulated seconds of a step of many ranks.

    Parameters
    ----------
    computing : float
        Mean seconds that a rank computes.
    size : int
        Bytes of the gradient.
    ranks : int
        A power of two.
    network : Network
    """
    return float(after_sum(clocks_of(computing, ranks), size, network).max())


def clocks_of(computing: float, ranks: int) -> NDArray[np.float64]:
    """Return the seconds that each rank computes."""
    generator = np.random.default_rng(ranks)
    return computing * (1 + SPREAD * np.abs(generator.standard_normal(ranks)))


def after_sum(clocks: NDArray[np.float64], size: int, network: Network) -> NDArray[np.float64]:
    """Return when each rank has the sum of so many bytes, given when each one begins."""
    ranks, numbers = len(clocks), np.arange(len(clocks))
    bits = [1 << k for k in range(ranks.bit_length() - 1)]
    if size < HALVING_BYTES:
        rounds = [(bit, size) for bit in bits]
    else:
        halves = [(bit, size >> (k + 1)) for k, bit in enumerate(bits)]
        rounds = halves + halves[::-1]
    for bit, sent in rounds:
        # A pair begins when the later of both has come.
        clocks = np.maximum(clocks, clocks[numbers ^ bit])
        clocks += network.latency + sent / network.bandwidth
    return clocks


def overlapped_seconds(
    computing: float, sizes: tuple[int, ...], ranks: int, network: Network
) -> float:
    """Return the least seconds of a step whose sums begin before its computing ends.

    All layers but the first are summed while the gradient of the first is computed, by a network
    that takes nothing of the processors.
    """
    products = [inputs * outputs for inputs, outputs in pairwise(sizes)]
    # What is left then: the slope behind the first layer, and the first layer's gradient. Nobody
    # needs a slope before the first layer.
    left = (products[0] + products[1]) / (3 * sum(products) - products[0])
    first = 4 * (products[0] + sizes[1])
    rest = 4 * sum((inputs + 1) * outputs for inputs, outputs in pairwise(sizes)) - first
    clocks = clocks_of(computing, ranks)
    summed = after_sum(clocks * (1 - left), rest, network)
    return float(after_sum(np.maximum(clocks, summed), first, network).max())


def least_computing(size: int, ranks: int, network: Network) -> float:
    """Return the seconds that a rank has to compute for half of its time to be computing."""
    low, high = 1e-7, 1e3
    for _ in range(60):
        middle = (low * high) ** 0.5
        enough = middle / step_seconds(middle, size, ranks, network) >= 0.5
        low, high = (low, middle) if enough else (middle, high)
    return high


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table of Markdown."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def report(measured: list[dict[str, float]], network: Network) -> str:
    """Return both tables."""
    parts = [MLP(sizes).parameters.size for _, sizes, _, _ in CASES]
    first, second, third = [], [], []
    for (_, sizes, batch_size, _), count, found in zip(CASES, parts, measured, strict=True):
        name, size = "-".join(map(str, sizes)), 4 * count
        times = [readable_time(found[key]) for key in ("alone", "together", "sum")]
        gain = found["alone"] / found["together"]
        first.append([name, f"{batch_size:,}", f"{count:,}", *times, f"{gain:.2f}"])
        # Weak scaling: each rank computes what one does here.
        row, gains = [name], [name]
        for ranks in RANKS:
            seconds = step_seconds(found["alone"], size, ranks, network)
            rows = batch_size * least_computing(size, ranks, network) / found["alone"]
            share = found["alone"] / seconds
            row += [f"{share:.0%}", f"{max(1, round(rows)):,}"]
            overlapped = overlapped_seconds(found["alone"], sizes, ranks, network)
            gains.append(f"{seconds / overlapped:.3f}")
        second.append(row)
        third.append(gains)
    head = ["network", "batch", "parameters", "one process", "two ranks", "of it the sum", "gain"]
    many = [text for ranks in RANKS for text in (f"{ranks:,} ranks", "rows from which it pays")]
    words = (
        "Simulated: each rank has a machine of its own, and as many rows of a batch as the whole "
        f"batch above. A message takes {readable_time(network.latency)} and "
        f"{network.bandwidth / 1e9:g} GB a second, and ranks differ by {SPREAD:.0%}. The table has "
        "the share of a step that is computing, and the rows of a batch on each rank from which "
        "that share is a half."
    )
    more = (
        "How many times as fast a step is at most if all layers but the first are summed while "
        "the gradient of the first is computed:"
    )
    tables = table(head, first), table(["network", *many], second)
    gain = table(["network", *(f"{ranks:,} ranks" for ranks in RANKS)], third)
    return f"{tables[0]}\n{words}\n\n{tables[1]}\n{more}\n\n{gain}"


def main() -> int:
    """Measure, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency", type=float, default=1e-5, help="seconds of a message")
    parser.add_argument("--bandwidth", type=float, default=1e10, help="bytes a second")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.rank:
        from mpi4py import MPI

        found = measure()
        if MPI.COMM_WORLD.rank == 0:
            print(json.dumps(found))
        return 0
    mpiexec = shutil.which("mpiexec", path=str(sys.prefix) + "/bin") or shutil.which("mpiexec")
    if mpiexec is None:
        raise SystemExit("mpiexec: not found; pip install mpich mpi4py")
    line = [mpiexec, "-n", "2", sys.executable, "-m", "benchmarks.data_parallel", "--rank"]
    ran = subprocess.run(line, stdout=subprocess.PIPE, check=True, text=True)
    print(report(json.loads(ran.stdout), Network(asked.latency, asked.bandwidth)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
