"""The constants of a GPU, measured: what the costs of the CUDA kernels depend on."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from fastmlp_kernels.compile import cuda_kernel
from fastmlp_kernels.cuda.device.configurations import configured
from fastmlp_kernels.cuda.layered.graphs import recorder
from fastmlp_kernels.cuda.layered.launching import Launches, Tiles
from fastmlp_kernels.cuda.layered.program import LayeredProgram
from fastmlp_kernels.problem import PRECISIONS, Problem

# The names of `Machine` for the rate of products, by precision.
RATES = dict(zip(PRECISIONS, ("gpu_flops", "gpu_tf32_flops", "gpu_bfloat16_flops"), strict=True))
RUNS = 7


class Effort(NamedTuple):
    """How much is run for a measurement: enough to fill a GPU and to outlast its clock's grain."""

    launches: int = 2000
    meetings: int = 20000
    threads: int = 256
    bytes: int = 2**28
    width: int = 4096
    repeats: int = 5


@cuda_kernel
def eight_arrays(a, b, c, d, e, f, g, h):
    """Do nothing: what launching it takes is the launch, with as many arguments as a step's."""


@cuda_kernel
def meet(count, out):
    """Let the threads of a block wait for one another `count` times."""
    for _ in range(count):
        cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        out[0] = count


def _seconds(work: Callable[[], Any]) -> float:
    """Return the median time until what `work` enqueues has ended, after one that compiles."""
    times = []
    for _ in range(RUNS + 1):
        cuda.synchronize()
        started = time.perf_counter()
        work()
        cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def measure(effort: Effort | None = None) -> dict[str, float]:
    """Return the fields of `Machine` that are measured on the current GPU, by name.

    Parameters
    ----------
    effort : Effort, optional
        How much to run; a simulator needs less.
    """
    effort = effort or Effort()
    found = _launches(effort) | _meetings(effort) | _copies(effort)
    for precision, name in RATES.items():
        found[name] = _product_rate(effort, precision)
    return found


def _launches(effort: Effort) -> dict[str, float]:
    """Return the cost of a launch by the host, and of one of a recorded graph."""
    arrays = [cuda.to_device(np.zeros(8, np.float32)) for _ in range(8)]
    launches = Launches(Tiles(threads=effort.threads))

    def enqueue() -> None:
        for _ in range(effort.launches):
            launches.block(eight_arrays, *arrays)

    launch = _seconds(enqueue) / effort.launches
    recording, _ = recorder()
    if recording is None:
        return {"gpu_launch_seconds": launch, "gpu_node_seconds": launch}
    graph, stream = recording.record(launches, enqueue), cuda.stream()
    node = _seconds(lambda: graph.launch(stream)) / effort.launches
    return {"gpu_launch_seconds": launch, "gpu_node_seconds": node}


def _meetings(effort: Effort) -> dict[str, float]:
    out = cuda.to_device(np.zeros(1, np.int64))
    # What a launch takes is in both.
    many, few = (
        _seconds(lambda count=count: configured(meet, 1, effort.threads)(count, out))
        for count in (effort.meetings, 1)
    )
    return {"gpu_meeting_seconds": max(many - few, 1e-9) / effort.meetings}


def _copies(effort: Effort) -> dict[str, float]:
    """Return what copies take: from ordinary memory of the host, as users' arrays lie there."""
    host, small = np.ones(effort.bytes, np.uint8), np.zeros(1, np.float32)
    held, other, little = cuda.to_device(host), cuda.to_device(host), cuda.to_device(small)
    return {
        "gpu_copy_bytes": effort.bytes / _seconds(lambda: held.copy_to_device(host)),
        "gpu_copy_seconds": _seconds(lambda: little.copy_to_host(small)),
        # Read and written.
        "gpu_bytes": 2 * effort.bytes / _seconds(lambda: other.copy_to_device(held)),
    }


def _product_rate(effort: Effort, precision: str) -> float:
    """Return the floating-point operations a second of a wide layer's forward pass."""
    width = effort.width
    problem = Problem(
        (width, width),
        ("identity",),
        "half_squared_error",
        batch_size=width,
        rows=width,
        precision=precision,
    )
    program, generator = LayeredProgram(problem), np.random.default_rng(0)
    parameters, X = (
        program.to_device(generator.normal(0, 1, shape).astype(np.float32))
        for shape in (problem.parameter_count, (width, width))
    )
    out = program.to_device(np.zeros((width, width), np.float32))

    def several() -> None:
        for _ in range(effort.repeats):
            program.forward(parameters, X, out)

    return effort.repeats * 2.0 * width**3 / _seconds(several)
