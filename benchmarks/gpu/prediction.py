"""What the GPU cases can take at best, by arithmetic: ``python -m benchmarks.gpu.prediction``.

Nothing here was measured by fastmlp. The figures of an H100 SXM are public ones: a step's products
at the rate that large ones reach, its arrays at the rate that a copy reaches, its kernels at what a
node of a graph takes. Each is a bound from below, and the largest of them binds; real kernels stay
behind every one. docs/gpu.md holds the output until measurements replace it.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import NamedTuple

from benchmarks.cases import GPU_CASES, Case
from benchmarks.tables import NONE, table

PROCESSORS = 132
# Operations a second of large products: 51.5e12 sustained in float32 (issue 4 of gpu-fryer),
# 798e12 of 8192^3 in bfloat16. Peaks: 66.9e12, 494.7e12 (tf32), 989.4e12 (dense).
PRODUCTS = {"float32": 51.5e12, "bfloat16": 798e12}
# mma.sync, which our tiles use, is said to end near 62 % of the peak that wgmma reaches.
OWN_TILES = {"float32": 51.5e12, "bfloat16": 0.62 * 989.4e12}
# A copy on the device, bytes read and written.
BYTES = 3.0e12
# Assumptions of the cost model (`Machine`): a node of a captured graph, and what the threads of a
# block wait for one another.
NODE_SECONDS = 2e-6
MEETING_SECONDS = 5e-8
# Shared memory of a block, bytes.
SHARED = 227 * 1024
WIDEST_FUSED = 128


class Floors(NamedTuple):
    """Seconds of a step that no program of its kind can undercut; None where it cannot run."""

    graph: float
    resident: float | None
    fused: float | None

    @property
    def ours(self) -> float:
        """The lowest: of a graph too, since `cuda.layered` is one."""
        return min(each for each in self if each is not None)


def parameters(case: Case) -> int:
    """Return the parameters of a member."""
    return sum(fan_in * fan_out + fan_out for fan_in, fan_out in pairwise(case.sizes))


def layer_bytes(case: Case, precision: str) -> float:
    """Return the bytes of a step that goes through memory after each layer.

    Forward a layer reads its input and writes its output; backward it reads both again, reads the
    gradient twice and writes one; in bfloat16 all of them have two bytes. Parameters and gradients,
    in float32, are read twice and written twice.
    """
    item = 2.0 if precision == "bfloat16" else 4.0
    rows = sum(case.batch * (3 * fan_in + 4 * fan_out) for fan_in, fan_out in pairwise(case.sizes))
    return case.members * (item * rows + 16.0 * parameters(case))


def fused_bytes(case: Case) -> float:
    """Return the bytes of a step that reads its rows once and keeps all else on the chip."""
    rows = case.batch * (case.sizes[0] + case.sizes[-1])
    return 4.0 * (rows + 4 * case.members * parameters(case))


def launches(case: Case) -> int:
    """Return the kernels of a step that has one for each product and one around it a direction."""
    return 3 * (len(case.sizes) - 1) + 4


def floors(case: Case, precision: str) -> Floors:
    """Return the bounds of a step."""
    flops = case.flops_per_step
    nodes = launches(case) * NODE_SECONDS
    graph = max(flops / PRODUCTS[precision], layer_bytes(case, precision) / BYTES, nodes)
    one = OWN_TILES[precision] / PROCESSORS
    waves = -(-case.members // PROCESSORS)
    resident = None
    # Weights, their gradients and one tile of rows.
    if 4 * (2 * parameters(case) + 32 * 3 * sum(case.sizes)) <= SHARED:
        meetings = (3 * len(case.sizes) + 4) * MEETING_SECONDS
        resident = waves * (flops / case.members / one + meetings)
    fused = None
    if max(case.sizes) <= WIDEST_FUSED and case.members == 1:
        # Its kernel, the reduction of the blocks' gradients and the update.
        fused = max(flops / OWN_TILES[precision], fused_bytes(case) / BYTES, 3 * NODE_SECONDS)
    return Floors(graph, resident, fused)


def micros(seconds: float | None) -> str:
    """Return microseconds, or a dash."""
    return NONE if seconds is None else f"{seconds * 1e6:.3g}"


def rows(precision: str) -> list[list[str]]:
    """Return a line for each case."""
    found = []
    for case in GPU_CASES:
        bound = floors(case, precision)
        times = [micros(each) for each in bound]
        gain = f"{bound.graph / bound.ours:.1f}"
        flops = f"{case.flops_per_step / 1e9:.3g}"
        found.append([f"{case.name}, {case.batch}", precision, flops, *times, gain])
    return found


def markdown() -> str:
    """Return the table."""
    head = ["network, batch", "precision", "GFLOP a step", "a graph, µs", "`cuda.resident`, µs"]
    head += ["`cuda.fused`, µs", "graph over ours, at most"]
    return table(head, [line for precision in PRODUCTS for line in rows(precision)])


def main() -> int:
    """Print the table."""
    print(markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
