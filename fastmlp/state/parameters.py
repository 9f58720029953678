"""Parameters: one flat aligned vector, and views of it by layer."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastmlp.errors import DomainError, DTypeError, ShapeError
from fastmlp.state.finite import all_finite
from fastmlp_kernels.problem import LayerLayout

Array = NDArray[Any]

# A cache line, and the widest vector register.
ALIGNMENT = 64


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return zeros whose first element lies at a multiple of `ALIGNMENT` bytes."""
    wanted = np.dtype(dtype)
    size = math.prod(shape) * wanted.itemsize
    buffer = np.zeros(size + ALIGNMENT, dtype=np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + size].view(wanted).reshape(shape)


def initialize(
    vector: Array,
    layout: Sequence[LayerLayout],
    initializers: Sequence[Any],
    seed: int,
    gains: Sequence[float],
) -> None:
    """Draw the weights of each layer by its initialiser, times its gain; set the biases to zero.

    Raises
    ------
    DomainError
        If a gain is so large that weights are infinite.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    vector[:] = 0
    for layer, initializer, gain in zip(layout, initializers, gains, strict=True):
        # Drawn in float64 for every dtype, so that a seed means the same network in both.
        weights = _draw(initializer, layer.fan_in, layer.fan_out, generator)
        with np.errstate(over="ignore"):
            vector[layer.weight] = gain * weights.ravel()
        if not all_finite(vector[layer.weight]):
            raise DomainError(
                f"gain: got {gain:g}, which makes infinite weights of {layer.fan_in} inputs and "
                f"{layer.fan_out} outputs in {vector.dtype}, wanted a smaller one"
            )


def _draw(
    initializer: Any, fan_in: int, fan_out: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return float64[fan_in, fan_out]."""
    deviation = math.sqrt(initializer.variance(fan_in, fan_out))
    shape = fan_in, fan_out
    if initializer.distribution == "uniform":
        limit = math.sqrt(3.0) * deviation
        return generator.uniform(-limit, limit, shape)
    if initializer.distribution == "normal":
        return generator.normal(0.0, deviation, shape)
    drawn = generator.normal(size=shape)
    tall = drawn if fan_in >= fan_out else drawn.T
    Q, R = np.linalg.qr(tall)
    # LAPACK's signs depend on the draw. Those of R's diagonal in their place make the distribution
    # uniform: F. Mezzadri, Notices of the AMS 54 (2007), and torch.nn.init.orthogonal_.
    Q *= np.where(np.diagonal(R) < 0, -1.0, 1.0)
    return Q if fan_in >= fan_out else Q.T


def aligned(array: Array) -> Array:
    """Return a copy whose first element lies at a multiple of `ALIGNMENT` bytes."""
    result = aligned_zeros(array.shape, array.dtype)
    result[...] = array
    return result


class ParameterViews(Sequence[Array]):
    """Views of a flat vector, one per layer. Assigning to an element copies into the view."""

    def __init__(
        self,
        argument: str,
        views: Iterable[Array],
        change: Callable[[str, Callable[[], None]], None] | None = None,
    ) -> None:
        self._argument = argument
        self._views = tuple(views)
        # Runs a function while nobody else changes the model: see `ModelLock.change`.
        self._change = change

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self._views)

    @overload
    def __getitem__(self, index: int) -> Array: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Array]: ...
    def __getitem__(self, index: int | slice) -> Array | Sequence[Array]:
        """Return the view of a layer."""
        return self._views[index]

    def __setitem__(self, index: int | slice, values: Any) -> None:
        """Copy `values` into the view of a layer; a slice takes an array for each layer."""
        if isinstance(index, slice):
            self.assign(values, range(len(self))[index])
            return
        view, number = self._views[index], range(len(self))[index]
        # ``views[i] += x`` has changed the view already, and assigns it to itself.
        self._write([] if values is view else [(view, self._check(number, values))])

    def assign(self, values: Any, layers: Sequence[int] | None = None) -> None:
        """Check one array for each layer, then copy them all; by default to all layers."""
        places = range(len(self)) if layers is None else layers
        try:
            given = list(values)
        except TypeError:
            raise DTypeError(
                f"{self._argument}: got {type(values).__name__}, wanted {len(places)} arrays, one "
                "per layer"
            ) from None
        if len(given) != len(places):
            raise ShapeError(
                f"{self._argument}: got {len(given)} arrays, wanted {len(places)}, one per layer"
            )
        checked = [
            (self._views[index], self._check(index, each).copy())
            for index, each in zip(places, given, strict=True)
        ]
        self._write(checked)

    def _write(self, pairs: list[tuple[Array, Array]]) -> None:
        def write() -> None:
            for view, values in pairs:
                view[...] = values

        if self._change is None:
            write()
        else:
            self._change(self._argument, write)

    def _check(self, index: int, values: Any) -> Array:
        return check_values(f"{self._argument}[{index}]", values, self._views[index])

    def __repr__(self) -> str:
        shapes = ", ".join(str(view.shape) for view in self._views)
        return f"<{self._argument} of {len(self)} layers: {shapes}>"


def check_values(argument: str, values: Any, like: Array) -> Array:
    """Return `values` as finite numbers of the shape and dtype of `like`."""
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "fiu":
            raise TypeError
        with np.errstate(over="ignore"):
            array = array.astype(like.dtype)
    except (TypeError, ValueError):
        raise DTypeError(
            f"{argument}: got {type(values).__name__} that is no array of numbers, "
            f"wanted shape {like.shape} of {like.dtype}"
        ) from None
    if array.shape != like.shape:
        raise ShapeError(f"{argument}: got shape {array.shape}, wanted {like.shape}")
    check_finite_values(argument, array)
    return array


def check_finite_values(argument: str, array: Array) -> None:
    """Refuse parameters that are infinite or NaN."""
    if not all_finite(array):
        count = int((~np.isfinite(array)).sum())
        raise DomainError(f"{argument}: got {count} non-finite values, wanted finite numbers")


def weight_views(vector: Array, layout: Sequence[LayerLayout]) -> list[Array]:
    """Return the weight matrices in a flat vector, or of several networks' along the last axis."""
    networks = vector.shape[:-1]
    shapes = [(*networks, each.fan_in, each.fan_out) for each in layout]
    pairs = zip(layout, shapes, strict=True)
    return [vector[..., each.weight].reshape(shape) for each, shape in pairs]


def bias_views(vector: Array, layout: Sequence[LayerLayout]) -> list[Array]:
    """Return the bias vectors in a flat vector, or of several networks' along the last axis."""
    return [vector[..., each.bias] for each in layout]
