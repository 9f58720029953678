"""Every CUDA kernel, with the types and the block that it is launched with: what can be compiled.

A group of kernels is a function that yields them. What a group needs and does not find is a line in
the answer of `missing`, and its kernels are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from fastmlp_kernels.problem import DTYPES


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
    from fastmlp_kernels.cuda.layered import Kernels, Tiles, build

    tiles = Tiles()
    kernels = build(tiles)
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
    mask = types.Array(types.uint8, 1, "C")
    return {
        "activation_forward": (matrix, number, number, matrix),
        "activation_backward": (matrix, matrix, number, number, matrix),
        "linear_forward": (matrix, matrix, vector, number, number, matrix, matrix),
        "linear_backward": (matrix, matrix, number, matrix),
        "weight_gradient": (matrix, matrix, number, number, matrix, vector),
        "loss_and_gradient": (matrix, matrix, number, number, vector, number, vector, matrix),
        "sum_losses": (vector, number, vector, number, indices),
        "check_finite": (vector, number, indices),
        "predict_rows": (matrix, number, number),
        "update": (*[vector] * 4, mask, number, matrix, number, indices),
        "sum_squares": (vector, mask, vector, number),
        "gather_rows": (matrix, indices, number, number, matrix),
    }[name]


GROUPS: dict[str, Callable[[], Iterator[Compiled]]] = {"cuda.layered": layered}


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
