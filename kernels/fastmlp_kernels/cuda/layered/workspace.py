"""The arrays of `cuda.layered` on the device: what a step writes, and where each layer lies."""

from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.compile import simulated
from fastmlp_kernels.problem import LayerLayout, Problem, parameter_layout

# Elements at whose multiples matrices begin: 256 bytes of float32, all that is ever asked for.
ALIGNED = 64

# Flat vectors whose views are remembered: parameters, and the gradients of the caller and ours.
REMEMBERED = 4


class Workspace(NamedTuple):
    """Every device array that a step writes beside parameters and state; allocated once."""

    inputs: Any
    targets: Any
    loss_sums: Any
    stored: Any
    deltas: Any
    gradient: Any
    outputs: Any
    loss_gradient: Any


class Places(NamedTuple):
    """Where a layer's Z, its A, what dropout leaves of that, and its dZ begin."""

    Z: int
    A: int
    dropped: int
    dZ: int


class Layer(NamedTuple):
    """One layer's place in the workspace; Z is A when the activation keeps its output.

    `dropped` is what dropout leaves of A, or A itself.
    """

    layout: LayerLayout
    activation: int
    Z: Any
    A: Any
    dropped: Any
    dZ: Any
    places: Places


def matrix(flat: Any, start: int, rows: int, columns: int) -> Any:
    """Return a part of a flat device array as a matrix."""
    return flat[start : start + rows * columns].reshape(rows, columns)


class ParameterViews:
    """The views (W, b) of each layer on flat vectors; slicing one costs more than a launch."""

    def __init__(self, problem: Problem) -> None:
        self.layout = parameter_layout(problem.sizes)
        self.remembered: list[tuple[Any, list]] = []

    def of(self, flat: Any) -> list[tuple[Any, Any]]:
        """Return the views on a vector, which are made once while it is in use."""
        for known, views in self.remembered:
            if known is flat:
                return views
        views = [
            (
                matrix(flat, layer.weight.start, layer.fan_in, layer.fan_out),
                flat[layer.bias.start : layer.bias.stop],
            )
            for layer in self.layout
        ]
        self.remembered = [(flat, views), *self.remembered[: REMEMBERED - 1]]
        return views


def address(array: Any) -> int:
    """Return where a device array lies, as a library takes it."""
    return array.ctypes.data if simulated() else array.device_ctypes_pointer.value


def _drops(problem: Problem, index: int) -> bool:
    """Return whether dropout leaves out some outputs of a layer."""
    return index < len(problem.dropout) and problem.dropout[index] > 0


def _places(problem: Problem) -> tuple[list[Places], int, int]:
    """Return where each layer lies, and the lengths of both flat arrays."""
    places, end, delta = [], 0, 0
    for index, width in enumerate(problem.sizes[1:]):
        size = -(-problem.batch_size * width // ALIGNED) * ALIGNED
        # Each is the one before it where it is not an array of its own.
        A = end + size * int(problem.keeps_input[index])
        dropped = A + size * int(_drops(problem, index))
        places.append(Places(end, A, dropped, delta))
        end, delta = dropped + size, delta + size
    return places, end, delta


def allocate(problem: Problem, loss_blocks: int) -> Workspace:
    """Return the workspace of a problem, on the device.

    `loss_blocks` is how many blocks compute the losses of a batch.
    """
    batch, outputs = problem.batch_size, problem.sizes[-1]
    _, stored, deltas = _places(problem)
    dtype = np.dtype(problem.dtype)

    def empty(*shape: int) -> Any:
        return cuda.device_array(shape, dtype)

    return Workspace(
        inputs=empty(batch, problem.sizes[0]),
        targets=empty(batch, problem.target_columns),
        loss_sums=empty(loss_blocks),
        stored=empty(stored),
        deltas=empty(deltas),
        gradient=empty(problem.parameter_count),
        outputs=empty(batch, outputs),
        loss_gradient=empty(batch, outputs),
    )


def layers_of(problem: Problem, work: Workspace) -> list[Layer]:
    """Return each layer's place in the workspace."""
    layers, batch = [], problem.batch_size
    layouts = zip(parameter_layout(problem.sizes), problem.training_activations, strict=True)
    for index, ((layout, name), places) in enumerate(
        zip(layouts, _places(problem)[0], strict=True)
    ):
        Z, A, dropped = (matrix(work.stored, start, batch, layout.fan_out) for start in places[:3])
        A = A if problem.keeps_input[index] else Z
        dropped = dropped if _drops(problem, index) else A
        dZ = matrix(work.deltas, places.dZ, batch, layout.fan_out)
        layers.append(Layer(layout, ACTIVATIONS.code(name), Z, A, dropped, dZ, places))
    return layers


def layer_numbers(problem: Problem) -> np.ndarray:
    """Return uint16[P]: the layer of each parameter, if layers have rates of their own."""
    numbers = np.zeros(problem.parameter_count * problem.layer_rates, np.uint16)
    for index, layer in enumerate(parameter_layout(problem.sizes)):
        numbers[layer.weight.start : layer.bias.stop] = index
    return numbers


def bias_mask(problem: Problem) -> np.ndarray:
    """Return uint8[P]: 1 where the parameter is a bias."""
    mask = np.zeros(problem.parameter_count, np.uint8)
    for layer in parameter_layout(problem.sizes):
        mask[layer.bias] = 1
    return mask
