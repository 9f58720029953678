"""`cuda.layered`: layer after layer over the whole mini-batch, a launch each.

The host enqueues the launches of a whole epoch without waiting for one: losses and status stay on
the device until its end, and a batch that is not finite disarms the updates behind it there.
"""

import contextlib
import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import cuda
from numba.core.errors import NumbaPerformanceWarning

from fastmlp_kernels.algebra import ACTIVATIONS, HYPER_WIDTH, LOSSES, OPTIMIZERS
from fastmlp_kernels.cuda import linear, loss, update
from fastmlp_kernels.cuda.activation import activation_backward, activation_forward
from fastmlp_kernels.cuda.gather import gather_rows
from fastmlp_kernels.cuda.loss import check_finite, loss_and_gradient, predict_rows
from fastmlp_kernels.cuda.memory import DeviceMemory
from fastmlp_kernels.problem import (
    BATCHES,
    CONTROL_WORDS,
    STATUS,
    STOP,
    LayerLayout,
    Problem,
    parameter_layout,
)

# Flat vectors whose views are remembered: parameters, and the gradients of the caller and ours.
REMEMBERED = 4


@dataclass(frozen=True)
class Tiles:
    """Block sizes: `tile` squared threads in a product, `threads` in any other kernel."""

    tile: int = 16
    threads: int = 256


class Kernels(NamedTuple):
    """Every kernel of the program, for one choice of block sizes."""

    activation_forward: Any
    activation_backward: Any
    linear_forward: Any
    linear_backward: Any
    weight_gradient: Any
    loss_and_gradient: Any
    sum_losses: Any
    check_finite: Any
    predict_rows: Any
    update: Any
    sum_squares: Any
    gather_rows: Any


@functools.cache
def build(tiles: Tiles) -> Kernels:
    """Return the kernels for these block sizes; nothing is compiled before a launch."""
    products = linear.build(tiles.tile)
    return Kernels(
        activation_forward=activation_forward,
        activation_backward=activation_backward,
        linear_forward=products.linear_forward,
        linear_backward=products.linear_backward,
        weight_gradient=products.weight_gradient,
        loss_and_gradient=loss_and_gradient,
        sum_losses=loss.build(tiles.threads),
        check_finite=check_finite,
        predict_rows=predict_rows,
        update=update.update,
        sum_squares=update.build(tiles.threads),
        gather_rows=gather_rows,
    )


class Workspace(NamedTuple):
    """Every device array that a step writes beside parameters and state; allocated once."""

    inputs: Any
    targets: Any
    row_losses: Any
    stored: Any
    delta: Any
    next_delta: Any
    gradient: Any
    outputs: Any
    loss_gradient: Any


class Layer(NamedTuple):
    """One layer's place in the workspace; Z is A when the activation keeps its output."""

    layout: LayerLayout
    activation: int
    Z: Any
    A: Any
    dZ: Any


@contextlib.contextmanager
def _small_grids_allowed() -> Iterator[None]:
    """Silence Numba's advice on grids that do not fill the GPU: small networks have them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Grid size", NumbaPerformanceWarning)
        yield


def _matrix(flat: Any, start: int, rows: int, columns: int) -> Any:
    return flat[start : start + rows * columns].reshape(rows, columns)


class LayeredProgram:
    """The `Program` of `cuda.layered`: its workspace on the device, and the launches."""

    def __init__(self, problem: Problem, tiles: Tiles | None = None) -> None:
        self.memory = DeviceMemory()
        self.problem = problem
        self.tiles = tiles or Tiles()
        self.kernels = build(self.tiles)
        self.dtype = np.dtype(problem.dtype)
        self.layout = parameter_layout(problem.sizes)
        self.workspace = self._workspace()
        self.layers = self._layers()
        self.rule = problem.rule_code
        self.optimizer = OPTIMIZERS.code(problem.optimizer)
        self.output = ACTIVATIONS.code(problem.activations[-1])
        self.identity = ACTIVATIONS.code("identity")
        self.order = cuda.device_array(problem.rows, np.int64)
        self.hyper = self._empty(problem.batches, HYPER_WIDTH)
        self.losses = self._empty(problem.batches)
        self.squares = self._empty(problem.batches)
        self.biases = cuda.to_device(self._bias_mask())
        self.scales: dict[int, Any] = {}
        self.status = cuda.device_array(CONTROL_WORDS, np.int64)
        # Never written: single steps have no earlier batch that could have failed.
        self.finite = cuda.to_device(np.zeros(CONTROL_WORDS, np.int64))
        self.one_loss = self._empty(1)
        self.no_state = self._empty(0)
        self.remembered: list[tuple[Any, list]] = []
        self.rows = 0
        self.inputs = self.workspace.inputs

    def _empty(self, *shape: int) -> Any:
        return cuda.device_array(shape, self.dtype)

    def _workspace(self) -> Workspace:
        problem = self.problem
        batch, outputs, widest = problem.batch_size, problem.sizes[-1], max(problem.sizes[1:])
        units = zip(problem.sizes[1:], problem.keeps_input, strict=True)
        return Workspace(
            inputs=self._empty(batch, problem.sizes[0]),
            targets=self._empty(batch, problem.target_columns),
            row_losses=self._empty(batch),
            stored=self._empty(sum(batch * width * (2 if both else 1) for width, both in units)),
            delta=self._empty(batch * widest),
            next_delta=self._empty(batch * widest),
            gradient=self._empty(problem.parameter_count),
            outputs=self._empty(batch, outputs),
            loss_gradient=self._empty(batch, outputs),
        )

    def _layers(self) -> list[Layer]:
        problem, work, batch = self.problem, self.workspace, self.problem.batch_size
        layers, end = [], 0
        names = zip(self.layout, problem.training_activations, problem.keeps_input, strict=True)
        for index, (layout, name, keeps_input) in enumerate(names):
            width = layout.fan_out
            Z = A = _matrix(work.stored, end, batch, width)
            end += batch * width
            if keeps_input:
                A = _matrix(work.stored, end, batch, width)
                end += batch * width
            # The last layer's is `delta`; the two take turns from there down.
            above = len(self.layout) - 1 - index
            dZ = _matrix((work.delta, work.next_delta)[above % 2], 0, batch, width)
            layers.append(Layer(layout, ACTIVATIONS.code(name), Z, A, dZ))
        return layers

    def _bias_mask(self) -> np.ndarray:
        mask = np.zeros(self.problem.parameter_count, np.uint8)
        for layer in self.layout:
            mask[layer.bias] = 1
        return mask

    def _factors(self, rows: int, given: np.ndarray | None) -> Any:
        """Return the factors of the rows, or the reduction's for a batch of so many, on the GPU."""
        if given is not None:
            return self.to_device(given)
        if rows not in self.scales:
            self.scales[rows] = cuda.to_device(np.array([self.problem.scale(rows)], self.dtype))
        return self.scales[rows]

    def _state(self, state: Any) -> tuple[Any, Any]:
        slots = self.problem.slots
        return (
            state[0] if slots > 0 else self.no_state,
            state[1] if slots > 1 else self.no_state,
        )

    def _views(self, flat: Any) -> list[tuple[Any, Any]]:
        """Return (W, b) of each layer; slicing a device array costs more than a launch."""
        for known, views in self.remembered:
            if known is flat:
                return views
        views = [
            (
                _matrix(flat, layer.weight.start, layer.fan_in, layer.fan_out),
                flat[layer.bias.start : layer.bias.stop],
            )
            for layer in self.layout
        ]
        self.remembered = [(flat, views), *self.remembered[: REMEMBERED - 1]]
        return views

    def _over(self, kernel: Any, count: int, *arguments: Any) -> None:
        """Launch with a thread for each of `count` elements."""
        threads = self.tiles.threads
        kernel[-(-count // threads), threads](*arguments)

    def _product(self, kernel: Any, rows: int, columns: int, *arguments: Any) -> None:
        """Launch with a block for each tile of a result of rows by columns."""
        tile = self.tiles.tile
        # Rows along x: the other axes of a grid end at 65535 blocks.
        kernel[(-(-rows // tile), -(-columns // tile)), (tile, tile)](*arguments)

    def _copy_rows(self, source: Any, rows: int, out: Any) -> None:
        count = rows * out.shape[1]
        self._over(self.kernels.activation_forward, count, source, self.identity, rows, out)

    def to_device(self, array: np.ndarray) -> Any:
        """Return the array on the GPU; one that is there already is not copied."""
        return self.memory.to_device(array)

    def to_host(self, array: Any, out: np.ndarray) -> None:
        """Copy a device array, once all that was enqueued before is done."""
        self.memory.to_host(array, out)

    def _forward_chain(self, parameters: Any, X: Any, rows: int) -> Any:
        """Run every layer on `rows` rows of `X`, keeping what `_backward_chain` needs."""
        A = X
        for layer, (W, b) in zip(self.layers, self._views(parameters), strict=True):
            arguments = (A, W, b, layer.activation, rows, layer.Z, layer.A)
            self._product(self.kernels.linear_forward, rows, layer.layout.fan_out, *arguments)
            A = layer.A
        return A

    def _backward_chain(self, parameters, X, rows, accumulate, gradient, input_gradient) -> None:
        """Turn the last layer's dZ, which holds dA, into the gradient of every parameter."""
        weights, slots = self._views(parameters), self._views(gradient)
        kernels = self.kernels
        for index in range(len(self.layers) - 1, -1, -1):
            layer, (W, _), (dW, db) = self.layers[index], weights[index], slots[index]
            fan_in, fan_out = layer.layout.fan_in, layer.layout.fan_out
            if layer.activation != self.identity:
                arguments = (layer.Z, layer.A, layer.activation, rows, layer.dZ)
                self._over(kernels.activation_backward, rows * fan_out, *arguments)
            below = X if index == 0 else self.layers[index - 1].A
            arguments = (below, layer.dZ, rows, accumulate, dW, db)
            self._product(kernels.weight_gradient, fan_in, fan_out, *arguments)
            dA = input_gradient if index == 0 else self.layers[index - 1].dZ
            if dA is not None:
                self._product(kernels.linear_backward, rows, fan_in, layer.dZ, W, rows, dA)

    def _batch(self, parameters, first, second, X, y, batch: int, factors, penalized) -> None:
        """Enqueue everything that one mini-batch of an epoch takes."""
        kernels, work, problem = self.kernels, self.workspace, self.problem
        start = batch * problem.batch_size
        rows = min(problem.batch_size, problem.rows - start)
        for source, out in ((X, work.inputs), (y, work.targets)):
            arguments = (source, self.order, start, rows, out)
            self._over(kernels.gather_rows, rows * out.shape[1], *arguments)
        A = self._forward_chain(parameters, work.inputs, rows)
        dA = self.layers[-1].dZ
        own = self._factors(rows, factors)
        arguments = (A, work.targets, self.rule, rows, own, start, work.row_losses, dA)
        self._over(kernels.loss_and_gradient, rows, *arguments)
        arguments = (work.row_losses, rows, self.losses, batch, self.status)
        kernels.sum_losses[1, self.tiles.threads](*arguments)
        gradient, count = work.gradient, problem.parameter_count
        self._backward_chain(parameters, work.inputs, rows, 0, gradient, None)
        self._over(kernels.check_finite, count, gradient, batch, self.status)
        if penalized:
            arguments = (parameters, self.biases, self.squares, batch)
            kernels.sum_squares[1, self.tiles.threads](*arguments)
        vectors = (parameters, gradient, first, second, self.biases)
        arguments = (self.optimizer, self.hyper, batch, self.status)
        self._over(kernels.update, count, *vectors, *arguments)

    def prepare(self, parameters, state, X, y, weighted=False, penalized=False):
        """See `Program.prepare`. The first launches compile; one of nothing would be an error."""

    def epoch(
        self, parameters, state, X, y, order, hyper, losses, control, factors=None, squares=None
    ):
        """See `Program.epoch`; ``control[BATCHES]`` is written at the end alone.

        The GPU may be hundreds of launches behind the host: a stop takes effect after the batches
        that are enqueued by then.
        """
        first, second = self._state(state)
        self.order.copy_to_device(order)
        self.hyper.copy_to_device(hyper)
        self.status.copy_to_device(np.zeros(CONTROL_WORDS, np.int64))
        on_device = None if factors is None else self.to_device(factors)
        enqueued = 0
        with _small_grids_allowed():
            while enqueued < losses.size and control[STOP] == 0:
                chosen = (on_device, squares is not None)
                self._batch(parameters, first, second, X, y, enqueued, *chosen)
                enqueued += 1
        # The first wait of the epoch.
        status = int(self.status.copy_to_host()[STATUS])
        losses[:enqueued] = self.losses.copy_to_host()[:enqueued]
        if squares is not None:
            squares[:enqueued] = self.squares.copy_to_host()[:enqueued]
        control[BATCHES] = status - 1 if status else enqueued
        control[STATUS] = status

    def forward(self, parameters, X, out):
        """See `Program.forward`."""
        self.rows, self.inputs = len(X), X
        code = self.output if self.problem.fused_output else self.identity
        with _small_grids_allowed():
            A = self._forward_chain(parameters, X, self.rows)
            arguments = (A, code, self.rows, out)
            count = self.rows * self.problem.sizes[-1]
            self._over(self.kernels.activation_forward, count, *arguments)

    def loss(self, y, factors=None):
        """See `Program.loss`."""
        work, rows, A = self.workspace, self.rows, self.layers[-1].A
        own = self._factors(rows, factors)
        arguments = (A, y, self.rule, rows, own, 0, work.row_losses, work.loss_gradient)
        # Of no use here, but `sum_losses` notes a loss that is not finite in it.
        self.status.copy_to_device(np.zeros(CONTROL_WORDS, np.int64))
        with _small_grids_allowed():
            self._over(self.kernels.loss_and_gradient, rows, *arguments)
            arguments = (work.row_losses, rows, self.one_loss, 0, self.status)
            self.kernels.sum_losses[1, self.tiles.threads](*arguments)
        return float(self.one_loss.copy_to_host()[0])

    def backward(self, parameters, upstream, gradient, input_gradient):
        """See `Program.backward`."""
        rows, last, kernels = self.rows, self.layers[-1], self.kernels
        with _small_grids_allowed():
            if upstream is None:
                self._copy_rows(self.workspace.loss_gradient, rows, last.dZ)
            else:
                self._copy_rows(upstream, rows, last.dZ)
                if self.problem.fused_output:
                    count, A = rows * self.problem.sizes[-1], self.workspace.outputs
                    arguments = (last.Z, self.output, rows, A)
                    self._over(kernels.activation_forward, count, *arguments)
                    arguments = (last.Z, A, self.output, rows, last.dZ)
                    self._over(kernels.activation_backward, count, *arguments)
            wanted = input_gradient if input_gradient.shape[0] > 0 else None
            self._backward_chain(parameters, self.inputs, rows, 1, gradient, wanted)

    def value_and_gradient(self, parameters, X, y, gradient, factors=None):
        """See `Program.value_and_gradient`."""
        self.rows, self.inputs = len(X), X
        with _small_grids_allowed():
            self._forward_chain(parameters, X, self.rows)
        value = self.loss(y, factors)
        with _small_grids_allowed():
            self._copy_rows(self.workspace.loss_gradient, self.rows, self.layers[-1].dZ)
            self._backward_chain(parameters, X, self.rows, 0, gradient, None)
        return value

    def update(self, parameters, gradient, state, hyper):
        """See `Program.update`."""
        first, second = self._state(state)
        vectors = (parameters, gradient, first, second, self.biases)
        arguments = (self.optimizer, self.to_device(hyper), 0, self.finite)
        with _small_grids_allowed():
            count = self.problem.parameter_count
            self._over(self.kernels.update, count, *vectors, *arguments)

    def predict(self, parameters, X, out, link):
        """See `Program.predict`."""
        code, batch = LOSSES.code(self.problem.loss), self.problem.batch_size
        for start in range(0, len(X), batch):
            part = out[start : start + batch]
            self.forward(parameters, X[start : start + batch], part)
            if link:
                with _small_grids_allowed():
                    self._over(self.kernels.predict_rows, len(part), part, code, len(part))
