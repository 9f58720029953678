"""Each instruction of `fastmlp_kernels.cuda.instructions.intrinsics` against NumPy, on random data.

What a simulator cannot tell: whether the machine's fragments lie where `fragments` says. The
kernels are one warp each, and run in the simulator as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu.steps import Context, Skipped

LANES = 32
TENSOR_CORES = (8, 0)
SPECIAL = (0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, 3.3895e38, 1.00390625, 1.01171875)


class Wrong(Exception):
    """The machine computes something else than NumPy."""


def run(context: Context) -> None:
    """Check one after the other."""
    kernels()
    for name, check in CHECKS.items():
        context.attempt(name, check)


@functools.cache
def kernels() -> dict[str, Any]:
    """Return the kernels; the module with the instructions is imported here."""
    try:
        from benchmarks.gpu.instruction_kernels import moving, multiplying
    except ImportError as error:
        raise Skipped(f"fastmlp has no intrinsics ({error})") from error
    return {**multiplying(), **moving()}


def launch(name: str, *arguments: Any) -> None:
    """Run a kernel on one warp; arrays are copied to the device and back."""
    from numba import cuda

    made = [cuda.to_device(a) if isinstance(a, np.ndarray) else a for a in arguments]
    kernels()[name][1, LANES](*made)
    for argument, there in zip(arguments, made, strict=True):
        if isinstance(argument, np.ndarray):
            there.copy_to_host(argument)


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Return float32 numbers as bfloat16 bits: nearest, ties to even; by exact neighbours."""
    below = values.view(np.uint32) >> 16
    above = below + 1

    def number(bits: np.ndarray) -> np.ndarray:
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)

    with np.errstate(all="ignore"):
        wide = values.astype(np.float64)
        # Past the largest number the next one would be 2^128, not an infinity.
        next_up = np.where(np.isinf(number(above)), np.copysign(2.0**128, wide), number(above))
        up, down = np.abs(next_up - wide), np.abs(wide - number(below))
        nearer = (up < down) | ((up == down) & (below % 2 == 1))
        chosen = np.where(np.isfinite(wide) & nearer, above, below)
    return chosen.astype(np.uint16)


def tf32_numbers(values: np.ndarray) -> np.ndarray:
    """Return float32 numbers rounded to 10 bits of fraction, ties away from zero."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(values), rounded, bits).astype(np.uint32).view(np.float32)


def numbers(count: int, seed: int) -> np.ndarray:
    """Return random float32, the first of them special."""
    generator = np.random.default_rng(seed)
    found = (generator.standard_normal(count) * 10.0 ** generator.integers(-4, 4, count)).astype(
        np.float32
    )
    found[: len(SPECIAL)] = SPECIAL[:count]
    return found


def same(what: str, got: np.ndarray, wanted: np.ndarray) -> None:
    """Raise unless two arrays are equal, NaN beside NaN; the sign of a zero counts."""
    if got.dtype.kind == "f":
        equal = (got == wanted) & (np.signbit(got) == np.signbit(wanted))
        equal |= np.isnan(got) & np.isnan(wanted)
    else:
        equal = got == wanted
    if not equal.all():
        first = int(np.flatnonzero(~equal)[0])
        raise Wrong(
            f"{what}: {int((~equal).sum())} of {equal.size} differ, the first at {first}: "
            f"got {got.flat[first]!r}, wanted {wanted.flat[first]!r}"
        )


def product(precision: str, depth: int) -> dict[str, float]:
    """Check D = A B + C of fragments, against float64 products of the rounded operands."""
    from fastmlp_kernels.compile import simulated

    need_tensor_cores(simulated())
    generator = np.random.default_rng(depth)
    A, B, C = (
        generator.standard_normal(shape).astype(np.float32)
        for shape in ((16, depth), (depth, 8), (16, 8))
    )
    if precision == "bfloat16":
        held = [bfloat16_bits(M.ravel()) for M in (A, B)]
        A, B = ((h.astype(np.uint32) << 16).view(np.float32) for h in held)
    else:
        held = [tf32_numbers(M.ravel()) for M in (A, B)]
        A, B = held
    A, B = A.reshape(16, depth).astype(np.float64), B.reshape(depth, 8).astype(np.float64)
    D = np.full(16 * 8, np.nan, np.float32)
    launch(precision, *held, C.ravel(), D)
    # Sums of float32, whose steps the machine may cut off instead of rounding.
    bound = depth * 2.0**-22 * (np.abs(A) @ np.abs(B) + np.abs(C))
    error = np.abs(D.reshape(16, 8) - (A @ B + C))
    if not (error <= bound).all():
        raise Wrong(f"an error of {np.nanmax(error):.3g}, at most {bound.max():.3g} is accepted")
    return {"largest_error": float(error.max()), "accepted": float(bound.max())}


def need_tensor_cores(simulated: bool) -> None:
    """Skip a check on a GPU without tensor cores; the simulator emulates them."""
    if simulated:
        return
    from numba import cuda

    capability = tuple(cuda.get_current_device().compute_capability)
    if capability < TENSOR_CORES:
        raise Skipped(f"needs capability 8.0, the GPU has {capability[0]}.{capability[1]}")


def loads_of_matrices() -> dict[str, Any]:
    """Check ldmatrix, plain and transposed, by the layout of PTX ISA, on rows with a skew."""
    stride = 24
    generator = np.random.default_rng(1)
    source = generator.integers(0, 2**16, 16 * stride).astype(np.uint16)
    plain, transposed = np.zeros(4 * LANES, np.uint32), np.zeros(4 * LANES, np.uint32)
    launch("load_matrix", source, stride, plain, transposed)
    block = source.reshape(16, stride).astype(np.uint32)
    wanted = np.zeros((2, LANES, 4), np.uint32)
    for lane in range(LANES):
        row, pair = lane // 4, 2 * (lane % 4)
        for matrix in range(4):
            # The second matrix is 8 rows further down, the third 8 columns to the right.
            part = block[8 * (matrix % 2) :, 8 * (matrix // 2) :][:8, :8]
            for kind, M in enumerate((part, part.T)):
                wanted[kind, lane, matrix] = M[row, pair] | M[row, pair + 1] << 16
    same("ldmatrix", plain, wanted[0].ravel())
    same("ldmatrix.trans", transposed, wanted[1].ravel())
    return {"registers": int(wanted.size)}


def asynchronous_copies() -> dict[str, Any]:
    """Check that what cp.async has brought is there for other lanes after wait and barrier."""
    need_tensor_cores(_simulated())
    source = np.random.default_rng(2).integers(0, 2**16, 8 * LANES).astype(np.uint16)
    out = np.zeros_like(source)
    launch("copy_async_16", source, out)
    same("cp.async", out, source.reshape(LANES, 8)[::-1].ravel())
    return {"bytes": int(source.nbytes)}


def _simulated() -> bool:
    from fastmlp_kernels.compile import simulated

    return simulated()


def conversions(count: int = 256) -> dict[str, Any]:
    """Check the roundings, on numbers that are special as well."""
    need_tensor_cores(_simulated())
    values = numbers(count, 3)
    half, single = np.zeros(count, np.uint16), np.zeros(count, np.float32)
    pairs, rounded = np.zeros(count, np.uint32), np.zeros(count, np.float32)
    bits = np.zeros(count, np.uint32)
    launch("convert", values, half, single, pairs, rounded, bits)
    wanted = bfloat16_bits(values)

    def number(found: np.ndarray) -> np.ndarray:
        return (found.astype(np.uint32) << 16).view(np.float32)

    same("to_bfloat16", number(half), number(wanted))
    same("from_bfloat16", single, number(wanted))
    same("to_bfloat16_pair, low", number(pairs & 0xFFFF), number(wanted))
    same("to_bfloat16_pair, high", number(pairs >> 16), number(wanted[::-1]))
    same("to_tf32", rounded, tf32_numbers(values))
    # Of a NaN any bits will do.
    kept = ~np.isnan(values)
    same("load_bits", bits[kept], values.view(np.uint32)[kept])
    return {"numbers": count}


def four_at_once() -> dict[str, Any]:
    """Check loads and stores of four numbers."""
    source = numbers(4 * LANES, 4)
    out = np.zeros_like(source)
    launch("four", source, out)
    same("load, store", out, source[::-1].copy())
    return {"numbers": int(source.size)}


CHECKS: dict[str, Callable[[], dict[str, Any]]] = {
    "mma_bfloat16": functools.partial(product, "bfloat16", 16),
    "mma_tf32": functools.partial(product, "tf32", 8),
    "load_matrix_x4": loads_of_matrices,
    "copy_async_16": asynchronous_copies,
    "conversions": conversions,
    "load_store": four_at_once,
}
