"""Ceilings of this GPU and host, each measured: what times face, and what costs are predicted from.

The latter are ``constants``, under the names of `fastmlp_kernels.problem.Machine`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.gpu.steps import Context, Skipped

ACCUMULATORS = 8
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Effort:
    """How much is measured: repetitions of each kind, bytes of a copy, rows of a product."""

    launches: int = 2000
    nodes: int = 1000
    meetings: int = 20000
    loops: int = 20000
    copied: int = 64 * MEBIBYTE
    product: int = 4096


QUICK = Effort(20, 20, 50, 20, MEBIBYTE, 1024)


def run(context: Context) -> None:
    """Measure one after the other; what cannot be measured here does not hide the rest."""
    effort = QUICK if context.quick else Effort()
    context.attempt("constants", constants, context.quick)
    context.attempt("launch", launch_costs, effort)
    context.attempt("block_barrier", block_barrier, effort)
    context.attempt("copies", host_copies, effort)
    context.attempt("tensor_core_loop", tensor_core_loop, effort)
    products = context.attempt("products", products_by_torch, effort)
    context.attempt("memory", memory_copy)
    context.attempt("graph_node", graph_node, effort)
    if products and "skipped" in products:
        print("  without PyTorch no product was measured", flush=True)


def constants(quick: bool) -> dict[str, float]:
    """Return the fields of `Machine` as ``fastmlp calibrate`` measures them."""
    from fastmlp_kernels.cuda import measuring

    little = measuring.Effort(20, 50, bytes=2**16, width=64, repeats=2)
    return measuring.measure(little if quick else None)


def median_of(repeats: int, function: Callable[[], float]) -> float:
    """Return the median of several measurements, after one that warms up."""
    function()
    return float(np.median([function() for _ in range(repeats)]))


def launch_costs(effort: Effort) -> dict[str, float]:
    """Return host seconds of enqueuing a kernel that does nothing, by its number of arrays."""
    from numba import cuda

    from benchmarks.gpu import ceiling_kernels as kernels

    array = cuda.to_device(np.zeros(8, np.float32))
    found = {}
    rows = (
        ("empty", kernels.empty, 0),
        ("1_array", kernels.one, 1),
        ("8_arrays", kernels.eight, 8),
    )
    for name, function, count in rows:
        kernel, arguments = cuda.jit(function), (array,) * count

        def several(kernel: Any = kernel, arguments: tuple[Any, ...] = arguments) -> float:
            cuda.synchronize()
            started = time.perf_counter()
            for _ in range(effort.launches):
                kernel[1, 32](*arguments)
            cuda.synchronize()
            return (time.perf_counter() - started) / effort.launches

        found[name] = median_of(3, several)
    return found


def timed_on_device(launch: Callable[[], None]) -> float:
    """Return the seconds between two events around a launch."""
    from numba import cuda

    first, last = cuda.event(), cuda.event()
    first.record()
    launch()
    last.record()
    last.synchronize()
    return cuda.event_elapsed_time(first, last) / 1e3


def block_barrier(effort: Effort) -> dict[str, float]:
    """Return the seconds of a barrier of a block, by its number of threads."""
    from numba import cuda

    from benchmarks.gpu import ceiling_kernels as kernels

    meet = cuda.jit(kernels.meet_block)
    out = cuda.to_device(np.zeros(1, np.int64))
    found = {}
    for threads in (128, 256, 512, 1024):

        def extra(threads: int = threads) -> float:
            many = timed_on_device(lambda: meet[1, threads](effort.meetings, out))
            few = timed_on_device(lambda: meet[1, threads](1, out))
            return (many - few) / effort.meetings

        found[f"{threads}_threads"] = median_of(3, extra)
    return found


def host_copies(effort: Effort) -> dict[str, float]:
    """Return bytes a second between host and device, and the seconds of the smallest copy."""
    from numba import cuda

    size = effort.copied
    ordinary, pinned = np.zeros(size, np.uint8), cuda.pinned_array(size, np.uint8)
    pinned[:] = 0
    ordinary[:] = 1
    device = cuda.device_array(size, np.uint8)
    small, small_device = np.zeros(1, np.float32), cuda.device_array(1, np.float32)

    def seconds(copy: Callable[[], Any]) -> float:
        cuda.synchronize()
        started = time.perf_counter()
        copy()
        cuda.synchronize()
        return time.perf_counter() - started

    times = {
        "to_device": lambda: device.copy_to_device(ordinary),
        "to_device_pinned": lambda: device.copy_to_device(pinned),
        "to_host": lambda: device.copy_to_host(ordinary),
        "to_host_pinned": lambda: device.copy_to_host(pinned),
    }
    found = {
        f"{name}_bytes_per_second": size / median_of(3, lambda copy=copy: seconds(copy))
        for name, copy in times.items()
    }
    found["smallest_seconds"] = median_of(
        20, lambda: seconds(lambda: small_device.copy_to_host(small))
    )
    return found


def torch_on_gpu() -> Any:
    """Return PyTorch with its GPU, or say why not."""
    try:
        import torch
    except ImportError as error:
        raise Skipped("PyTorch is not installed") from error
    if not torch.cuda.is_available():
        raise Skipped("PyTorch sees no GPU")
    return torch


def torch_seconds(torch: Any, function: Callable[[], Any], repeats: int) -> float:
    """Return the median seconds of a call on the device, by events."""

    def once() -> float:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        function()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3

    return median_of(repeats, once)


def products_by_torch(effort: Effort) -> dict[str, float]:
    """Return operations a second of a large product of random matrices, by precision."""
    torch = torch_on_gpu()
    size = effort.product
    found = {}
    for name, dtype in (("float32", "float32"), ("tf32", "float32"), ("bfloat16", "bfloat16")):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        kind = getattr(torch, dtype)
        A, B = (torch.randn(size, size, device="cuda").to(kind) for _ in range(2))
        out = torch.empty(size, size, device="cuda", dtype=kind)

        def several(A: Any = A, B: Any = B, out: Any = out) -> None:
            for _ in range(10):
                torch.mm(A, B, out=out)

        found[name] = 10 * 2.0 * size**3 / torch_seconds(torch, several, 5)
    torch.backends.cuda.matmul.allow_tf32 = False
    return found


def memory_copy() -> dict[str, float]:
    """Return bytes a second of a copy within the device's memory, read and written."""
    torch = torch_on_gpu()
    free, _ = torch.cuda.mem_get_info()
    size = min(1024 * MEBIBYTE, free // 4)
    source = torch.zeros(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = torch_seconds(torch, lambda: target.copy_(source), 10)
    return {"bytes_per_second": 2 * size / seconds, "bytes": size}


def graph_node(effort: Effort) -> dict[str, float]:
    """Return the seconds of a node of a captured graph: tiny kernels, one after the other."""
    torch = torch_on_gpu()
    number = torch.zeros(1, device="cuda")
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(side):
        number.add_(1)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(effort.nodes):
            number.add_(1)
    return {"seconds": torch_seconds(torch, graph.replay, 10) / effort.nodes, "nodes": effort.nodes}


def tensor_core_loop(effort: Effort) -> dict[str, float]:
    """Return operations a second of mma.sync on registers alone, by precision.

    All multiprocessors compute. It is the ceiling of our own tiles.
    """
    from numba import cuda

    from benchmarks.gpu.instruction_kernels import peak_kernel
    from benchmarks.gpu.instructions import LANES, need_tensor_cores

    need_tensor_cores(simulated=False)
    blocks, threads = 4 * cuda.get_current_device().MULTIPROCESSOR_COUNT, 256
    out = cuda.to_device(np.zeros(blocks * threads, np.float32))
    found = {}
    for name, depth in (("tf32", 8), ("bfloat16", 16)):
        kernel = peak_kernel(name)
        seconds = median_of(
            3,
            lambda kernel=kernel: timed_on_device(
                lambda: kernel[blocks, threads](effort.loops, out)
            ),
        )
        products = blocks * threads / LANES * effort.loops * ACCUMULATORS
        found[name] = products * 2.0 * 16 * 8 * depth / seconds
    return found
