"""Parameters: one flat aligned vector, views of it by layer, and what training adds to it."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastmlp.errors import DomainError, DTypeError, ShapeError
from fastmlp_kernels.problem import LayerLayout

logger = logging.getLogger("fastmlp")

Array = NDArray[Any]

FRESH_STATE = "optimizer: %s takes over from %s with a fresh state; its steps are counted from 0"
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
    vector: Array, layout: Sequence[LayerLayout], initializers: Sequence[Any], seed: int
) -> None:
    """Draw the weights of each layer by its initialiser; set the biases to zero."""
    generator = np.random.Generator(np.random.PCG64(seed))
    vector[:] = 0
    for layer, initializer in zip(layout, initializers, strict=True):
        deviation = math.sqrt(initializer.variance(layer.fan_in, layer.fan_out))
        count = layer.fan_in * layer.fan_out
        # Drawn in float64 for every dtype: a seed then means the same network in both.
        if initializer.distribution == "uniform":
            limit = math.sqrt(3.0) * deviation
            vector[layer.weight] = generator.uniform(-limit, limit, count)
        else:
            vector[layer.weight] = generator.normal(0.0, deviation, count)


class ParameterViews(Sequence[Array]):
    """Views of a flat vector, one per layer. Assigning to an element copies into the view."""

    def __init__(
        self,
        argument: str,
        views: Iterable[Array],
        changed: Callable[[], None] | None = None,
    ) -> None:
        self._argument = argument
        self._views = tuple(views)
        self._changed = changed

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
        """Copy `values` into the view of a layer, or one array each into those of a slice."""
        if isinstance(index, slice):
            self.assign(values, range(len(self))[index])
            return
        view = self._views[index]
        # ``views[i] += x`` has changed the view already and assigns it to itself.
        if values is not view:
            view[...] = self._check(index % len(self), values)
        if self._changed is not None:
            self._changed()

    def assign(self, values: Any, layers: Sequence[int] | None = None) -> None:
        """Copy one array a layer, once all of them have been checked; by default to all layers."""
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
            self._check(index, each).copy() for index, each in zip(places, given, strict=True)
        ]
        for index, each in zip(places, checked, strict=True):
            self[index] = each

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
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise DomainError(f"{argument}: got {count} non-finite values, wanted finite numbers")
    return array


def weight_views(vector: Array, layout: Sequence[LayerLayout]) -> list[Array]:
    """Return the weight matrices in a flat vector."""
    return [vector[each.weight].reshape(each.fan_in, each.fan_out) for each in layout]


def bias_views(vector: Array, layout: Sequence[LayerLayout]) -> list[Array]:
    """Return the bias vectors in a flat vector."""
    return [vector[each.bias] for each in layout]


@dataclass(eq=False)
class Snapshot:
    """Copies of what an epoch changes: see `TrainingState`."""

    parameters: Array
    slots: Array
    steps: int


@dataclass(eq=False)
class TrainingState:
    """Everything that training changes.

    Attributes
    ----------
    parameters : ndarray
        dtype[P]
    seed : int
        Of the order of the rows, with `epochs`.
    epochs, steps : int
        Finished epochs of all fits; steps taken with the present optimizer's state.
    rule : str or None
        The optimizer's rule that `slots`, dtype[slots, P], belong to.
    """

    parameters: Array
    seed: int
    epochs: int = 0
    steps: int = 0
    rule: str | None = None
    slots: Array = field(default_factory=lambda: np.zeros((0, 0)))

    def prepare(self, rule: str, slots: int) -> None:
        """Make sure that the optimizer's state is that of `rule`: another one starts afresh."""
        if rule == self.rule:
            return
        if self.rule is not None and self.steps:
            logger.warning(FRESH_STATE, rule, self.rule)
        self.slots = aligned_zeros((slots, self.parameters.size), self.parameters.dtype)
        self.rule, self.steps = rule, 0

    def snapshot(self) -> "Snapshot":
        """Return copies of what an epoch changes."""
        return Snapshot(self.parameters.copy(), self.slots.copy(), self.steps)

    def save(self, snapshot: "Snapshot") -> None:
        """Bring a snapshot of the same optimizer up to date."""
        snapshot.parameters[...], snapshot.slots[...] = self.parameters, self.slots
        snapshot.steps = self.steps

    def restore(self, snapshot: "Snapshot") -> None:
        """Go back to a snapshot of the same optimizer."""
        self.parameters[...], self.slots[...] = snapshot.parameters, snapshot.slots
        self.steps = snapshot.steps

    def realign(self) -> None:
        """Restore the alignment, which copying and unpickling do not keep."""
        for name in ("parameters", "slots"):
            array = getattr(self, name)
            aligned = aligned_zeros(array.shape, array.dtype)
            aligned[...] = array
            setattr(self, name, aligned)
