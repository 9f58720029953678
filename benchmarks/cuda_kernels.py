"""Every CUDA kernel, with the types and the block that it is launched with: what can be compiled.

A group of kernels is a function that yields them. What a group needs and does not find is a line in
the answer of `missing`, and its kernels are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from fastmlp_kernels.problem import DTYPES, Machine, Problem


class Compiled(NamedTuple):
    """A kernel as it is compiled once.

    Attributes
    ----------
    name : str
    variant : str
        A dtype or a precision.
    function : callable
        The kernel's Python function.
    signature : tuple
        Numba types of its arguments.
    threads, dynamic_shared_bytes : int
        Of a block.
    capability : tuple of int
        The oldest that it is for.
    """

    name: str
    variant: str
    function: Callable[..., Any]
    signature: tuple[Any, ...]
    threads: int
    dynamic_shared_bytes: int = 0
    capability: tuple[int, int] = (7, 5)

    @property
    def title(self) -> str:
        """Name and variant."""
        return f"{self.name} {self.variant}"


def layered() -> Iterator[Compiled]:
    """Yield the kernels of `cuda.layered`."""
    from fastmlp_kernels.cuda.layered.launching import Kernels, Tiles, build

    tiles = Tiles()
    kernels = build(tiles, "softmax_cross_entropy", "softmax_cross_entropy")
    products = ("linear_forward", "linear_backward", "weight_gradient")
    for name in Kernels._fields:
        threads = tiles.tile**2 if name in products else tiles.threads
        for dtype in DTYPES:
            function = getattr(kernels, name).py_func
            yield Compiled(name, dtype, function, layered_signature(name, dtype), threads)


def layered_signature(name: str, dtype: str) -> tuple[Any, ...]:
    """Return the types of a kernel of `cuda.layered`."""
    from numba import types

    real = getattr(types, dtype)
    vector, matrix = types.Array(real, 1, "C"), types.Array(real, 2, "C")
    number, indices = types.int64, types.Array(types.int64, 1, "C")
    mask, places = types.Array(types.uint8, 1, "C"), types.Array(types.int32, 1, "C")
    halves, half_rows = types.Array(types.uint16, 1, "C"), types.Array(types.uint16, 2, "C")
    update = (*[vector] * 4, mask, halves, number, matrix, vector, indices, indices, places, halves)
    rows = (matrix, matrix, indices, number, matrix, matrix, half_rows)
    return {
        "activation_forward": (matrix, number, number, matrix),
        "activation_backward": (matrix, matrix, number, number, matrix),
        "linear_forward": (matrix, matrix, vector, number, number, matrix, matrix),
        "linear_backward": (matrix, matrix, number, number, matrix, matrix, matrix),
        "weight_gradient": (
            *(*[vector] * 3, types.Array(types.int64, 2, "C"), *[number] * 3),
            *(vector, vector, places, indices, indices),
        ),
        "bias_and_activation": (matrix, vector, number, number, matrix, half_rows),
        "slope_and_sums": (
            *(matrix, matrix, number, number, number, matrix),
            *(vector, places, vector, half_rows),
        ),
        "loss_and_gradient": (
            *(matrix, matrix, number, vector, indices, number, matrix),
            *(vector, places, vector, indices),
        ),
        "check_finite": (vector, indices, indices),
        "predict_rows": (matrix, number),
        "update": update,
        "update_and_gather": (*update, *rows),
        "sum_squares": (vector, mask, vector, indices, vector, places),
        "clip_by_norm": (vector, matrix, indices, indices, vector, vector, places),
        "dropout": (
            *(matrix, matrix, number, matrix, indices),
            *(number, number, vector, half_rows),
        ),
        "gather_rows": (*rows[:3], indices, *rows[3:]),
        "round_rows": (matrix, number, half_rows),
    }[name]


# Dtype, precision, and the share that is left out of each hidden layer.
VARIANTS = {
    "float32": ("float32", "float32", 0.0),
    "tf32": ("float32", "tf32", 0.0),
    "bfloat16": ("float32", "bfloat16", 0.0),
    "float64": ("float64", "float32", 0.0),
    "float32, dropout": ("float32", "float32", 0.25),
    "bfloat16, dropout": ("float32", "bfloat16", 0.25),
}
HOPPER = Machine(gpu_capability=(9, 0), gpu_processors=132, gpu_shared_bytes=227 * 1024)


def resident() -> Iterator[Compiled]:
    """Yield the kernel of `cuda.resident` in each precision, for 64-64-10 with Adam."""
    from fastmlp_kernels.cuda.on_chip.chain import rows_in_use
    from fastmlp_kernels.cuda.on_chip.products import TENSOR_CAPABILITY
    from fastmlp_kernels.cuda.resident import kernel as kernels
    from fastmlp_kernels.cuda.resident.cost import THREADS, placement_of

    for variant, (dtype, precision, dropout) in VARIANTS.items():
        problem = Problem(
            sizes=(64, 64, 10),
            activations=("relu", "identity"),
            loss="softmax_cross_entropy",
            labels=True,
            optimizer="adam",
            dtype=dtype,
            precision=precision,
            dropout=(dropout,) if dropout else (),
            batch_size=64,
            rows=64,
        )
        found = placement_of(problem, HOPPER)
        assert not isinstance(found, str), found
        choice = kernels.Choice(
            found.form,
            THREADS,
            rows_in_use(problem),
            problem.optimizer,
            accumulate=found.rows < problem.batch_size,
            state_shared=found.state_shared,
        )
        yield Compiled(
            "resident",
            variant,
            kernels.build(choice).py_func,
            kernels.signature(found.form),
            THREADS,
            found.shared_bytes,
            TENSOR_CAPABILITY if found.form.mixed or precision != "float32" else (7, 5),
        )


def fused() -> Iterator[Compiled]:
    """Yield the kernels of `cuda.fused`, for four hidden layers of 64 and 16,384 rows a batch."""
    from fastmlp_kernels.cuda.fused import kernel as kernels
    from fastmlp_kernels.cuda.fused import step as fused_step
    from fastmlp_kernels.cuda.fused.cost import THREADS, placement_of, plan_of
    from fastmlp_kernels.cuda.on_chip.chain import rows_in_use

    for variant, (dtype, precision, dropout) in VARIANTS.items():
        problem = Problem(
            sizes=(64, 64, 64, 64, 64, 16),
            activations=("relu", "relu", "relu", "relu", "identity"),
            loss="half_squared_error",
            dtype=dtype,
            precision=precision,
            dropout=(dropout,) * 4 if dropout else (),
            batch_size=16384,
            rows=16384,
        )
        found = placement_of(problem, HOPPER)
        if isinstance(found, str):
            continue
        accumulate = plan_of(problem, found.rows).accumulate
        rows = rows_in_use(problem)
        choice = kernels.Choice(found.form, THREADS, rows, accumulate, found.gradient_shared)
        function = kernels.build(choice).py_func
        yield Compiled(
            "tile_gradients",
            variant,
            function,
            kernels.signature(found.form),
            THREADS,
            found.shared_bytes,
            (8, 0) if found.form.mixed or precision != "float32" else (7, 5),
        )
    sums = fused_step.Sums()
    for dtype in DTYPES:
        function = fused_step.build_sums(sums, dtype).py_func
        signature = fused_step.sum_signature(dtype)
        yield Compiled("sum_and_check", dtype, function, signature, sums.threads)


def checks() -> Iterator[Compiled]:
    """Yield the checks of arrays that are on the GPU already."""
    from numba import types

    from fastmlp_kernels.cuda.device import checks as kernels

    flag = types.Array(types.int32, 1, "C")
    for dtype in DTYPES:
        real = getattr(types, dtype)
        vector, matrix = types.Array(real, 1, "C"), types.Array(real, 2, "C")
        signatures = {
            "find_outside": (vector, vector, types.int64, flag),
            "find_bad_sums": (matrix, vector, flag),
        }
        for name, signature in signatures.items():
            yield Compiled(name, dtype, getattr(kernels, name).py_func, signature, kernels.THREADS)


GROUPS: dict[str, Callable[[], Iterator[Compiled]]] = {
    "cuda.layered": layered,
    "cuda.fused": fused,
    "cuda.resident": resident,
    "device arrays": checks,
}


def compiled_kernels() -> Iterator[Compiled]:
    """Yield every kernel that is there."""
    for group in GROUPS.values():
        try:
            yield from group()
        except ImportError:
            continue


def missing() -> dict[str, str]:
    """Return the groups that cannot be listed here, each with the reason."""
    found = {}
    for name, group in GROUPS.items():
        try:
            next(iter(group()))
        except ImportError as error:
            found[name] = str(error)
    return found
