"""The arrays of `cuda.layered` on the device: what a step writes, and where each layer lies."""

from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.compile import simulated
from fastmlp_kernels.problem import LayerLayout, Problem, parameter_layout


class Workspace(NamedTuple):
    """Every device array that a step writes beside parameters and state; allocated once."""

    inputs: Any
    targets: Any
    row_losses: Any
    stored: Any
    dropped: Any
    delta: Any
    next_delta: Any
    gradient: Any
    outputs: Any
    loss_gradient: Any


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


def matrix(flat: Any, start: int, rows: int, columns: int) -> Any:
    """Return a part of a flat device array as a matrix."""
    return flat[start : start + rows * columns].reshape(rows, columns)


def address(array: Any) -> int:
    """Return where a device array lies, as a library takes it."""
    return array.ctypes.data if simulated() else array.device_ctypes_pointer.value


def _dropped(problem: Problem) -> list[tuple[int, float]]:
    """Return units and share of each hidden layer that has dropout."""
    pairs = zip(problem.sizes[1:-1], problem.dropout, strict=False)
    return [pair for pair in pairs if pair[1] > 0]


def allocate(problem: Problem) -> Workspace:
    """Return the workspace of a problem, on the device."""
    batch, outputs, widest = problem.batch_size, problem.sizes[-1], max(problem.sizes[1:])
    units = zip(problem.sizes[1:], problem.keeps_input, strict=True)
    dtype = np.dtype(problem.dtype)

    def empty(*shape: int) -> Any:
        return cuda.device_array(shape, dtype)

    return Workspace(
        inputs=empty(batch, problem.sizes[0]),
        targets=empty(batch, problem.target_columns),
        row_losses=empty(batch),
        stored=empty(sum(batch * width * (2 if both else 1) for width, both in units)),
        dropped=empty(batch * sum(units for units, _ in _dropped(problem))),
        delta=empty(batch * widest),
        next_delta=empty(batch * widest),
        gradient=empty(problem.parameter_count),
        outputs=empty(batch, outputs),
        loss_gradient=empty(batch, outputs),
    )


def layers_of(problem: Problem, work: Workspace) -> list[Layer]:
    """Return each layer's place in the workspace."""
    layout, batch = parameter_layout(problem.sizes), problem.batch_size
    layers, end, start = [], 0, 0
    names = zip(layout, problem.training_activations, problem.keeps_input, strict=True)
    for index, (layer, name, keeps_input) in enumerate(names):
        width = layer.fan_out
        Z = A = matrix(work.stored, end, batch, width)
        end += batch * width
        if keeps_input:
            A = matrix(work.stored, end, batch, width)
            end += batch * width
        # The last layer's is `delta`; the two take turns from there down.
        above = len(layout) - 1 - index
        dZ = matrix((work.delta, work.next_delta)[above % 2], 0, batch, width)
        dropped = A
        if index < len(problem.dropout) and problem.dropout[index] > 0:
            dropped = matrix(work.dropped, start, batch, width)
            start += batch * width
        layers.append(Layer(layer, ACTIVATIONS.code(name), Z, A, dropped, dZ))
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
