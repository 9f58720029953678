"""`cpu.layered`: layer after layer over the whole mini-batch, an epoch in one compiled call."""

from typing import Any, NamedTuple

import numpy as np

from fastmlp_kernels.algebra import ACTIVATIONS, HYPER_WIDTH, LOSSES, OPTIMIZERS
from fastmlp_kernels.compile import kernel
from fastmlp_kernels.cpu.activation import activation_backward, activation_forward
from fastmlp_kernels.cpu.gather import gather_rows
from fastmlp_kernels.cpu.linear import linear_backward, linear_forward, weight_gradient
from fastmlp_kernels.cpu.loss import check_finite, loss_and_gradient, predict_rows, sum_losses
from fastmlp_kernels.cpu.update import update
from fastmlp_kernels.problem import (
    BATCHES,
    CONTROL_WORDS,
    STATUS,
    STOP,
    Problem,
    parameter_layout,
)

# Columns of the chain table, one row a layer; offsets are in elements.
FAN_IN, FAN_OUT, WEIGHT, BIAS, ACTIVATION, Z_START, A_START = range(7)


class Workspace(NamedTuple):
    """Every array that a step writes beside parameters, state and losses; allocated once."""

    inputs: np.ndarray
    targets: np.ndarray
    row_losses: np.ndarray
    stored: np.ndarray
    delta: np.ndarray
    next_delta: np.ndarray
    gradient: np.ndarray


def chain_table(problem: Problem) -> tuple[np.ndarray, int]:
    """Return the chain table of int64[layers, 7], and the elements that `stored` needs."""
    chain = np.zeros((len(problem.sizes) - 1, 7), dtype=np.int64)
    end = 0
    layout = parameter_layout(problem.sizes)
    names = zip(layout, problem.training_activations, problem.keeps_input, strict=True)
    for row, (layer, activation, keeps_input) in zip(chain, names, strict=True):
        size = problem.batch_size * layer.fan_out
        a_start = end + size if keeps_input else end
        code = ACTIVATIONS.code(activation)
        row[:] = (
            layer.fan_in,
            layer.fan_out,
            layer.weight.start,
            layer.bias.start,
            code,
            end,
            a_start,
        )
        end = a_start + size
    return chain, end


@kernel
def _matrix(flat, start, rows, columns):
    return flat[start : start + rows * columns].reshape(rows, columns)


@kernel
def forward_chain(parameters, X, chain, rows, workspace):
    """Run every layer on `rows` rows of `X`, keeping what `backward_chain` needs."""
    batch = workspace.row_losses.size
    A = X
    for layer in range(chain.shape[0]):
        fan_in, fan_out = chain[layer, FAN_IN], chain[layer, FAN_OUT]
        W = _matrix(parameters, chain[layer, WEIGHT], fan_in, fan_out)
        bias = chain[layer, BIAS]
        Z = _matrix(workspace.stored, chain[layer, Z_START], batch, fan_out)
        out = _matrix(workspace.stored, chain[layer, A_START], batch, fan_out)
        b = parameters[bias : bias + fan_out]
        linear_forward(A, W, b, chain[layer, ACTIVATION], rows, Z, out)
        A = out
    return A


@kernel
def backward_chain(parameters, X, chain, rows, accumulate, gradient, workspace, input_gradient):
    """Turn ``workspace.delta`` (dA of the last layer) into the gradient of every parameter.

    `input_gradient` is dtype[batch, in], or has no rows when it is not wanted.
    """
    batch = workspace.row_losses.size
    delta, next_delta = workspace.delta, workspace.next_delta
    for layer in range(chain.shape[0] - 1, -1, -1):
        fan_in, fan_out = chain[layer, FAN_IN], chain[layer, FAN_OUT]
        weight, bias = chain[layer, WEIGHT], chain[layer, BIAS]
        dZ = _matrix(delta, 0, batch, fan_out)
        Z = _matrix(workspace.stored, chain[layer, Z_START], batch, fan_out)
        A = _matrix(workspace.stored, chain[layer, A_START], batch, fan_out)
        activation_backward(Z, A, chain[layer, ACTIVATION], rows, dZ)
        below = X
        if layer > 0:
            below = _matrix(workspace.stored, chain[layer - 1, A_START], batch, fan_in)
        dW = _matrix(gradient, weight, fan_in, fan_out)
        weight_gradient(below, dZ, rows, accumulate, dW, gradient[bias : bias + fan_out])
        W = _matrix(parameters, weight, fan_in, fan_out)
        if layer > 0:
            linear_backward(dZ, W, rows, _matrix(next_delta, 0, batch, fan_in))
        elif input_gradient.shape[0] > 0:
            linear_backward(dZ, W, rows, input_gradient)
        delta, next_delta = next_delta, delta


@kernel
def epoch(
    parameters, first, second, X, y, order, hyper, losses, control, chain, workspace, codes, scales
):
    """Train on every mini-batch of `order` once; see `Program.epoch`.

    Parameters
    ----------
    parameters, first, second : dtype[P], read and written
        `first` and `second` are the optimizer's state, empty where its rule has none.
    X : dtype[n, in]; y : dtype[n, target_columns]; order : int64[rows]; hyper : dtype[batches, 6]
        Read; C-contiguous.
    losses : dtype[batches]; control : int64[3]
        Written, and read for the stop flag.
    chain : int64[layers, 7], read
        See `chain_table`.
    workspace : Workspace, written
        Distinct from everything else.
    codes : (int, int)
        Positions of the loss rule and of the optimizer.
    scales : (dtype, dtype)
        Factor of the loss of a full batch, and of the last.

    Notes
    -----
    Cost: ``Problem.flops``; nothing is allocated. Aliasing: none of the arrays overlap.
    Accuracy: that of its parts. Source: the derivation sheet's training step.
    """
    batch_size = workspace.row_losses.size
    for batch in range(losses.size):
        if control[STOP] != 0:
            return
        start = batch * batch_size
        rows = min(batch_size, order.size - start)
        scale = scales[0] if rows == batch_size else scales[1]
        gather_rows(X, order, start, rows, workspace.inputs)
        gather_rows(y, order, start, rows, workspace.targets)
        A = forward_chain(parameters, workspace.inputs, chain, rows, workspace)
        dA = _matrix(workspace.delta, 0, batch_size, A.shape[1])
        loss_and_gradient(A, workspace.targets, codes[0], rows, scale, workspace.row_losses, dA)
        sum_losses(workspace.row_losses, rows, losses, batch, control)
        gradient = workspace.gradient
        backward_chain(
            parameters, workspace.inputs, chain, rows, 0, gradient, workspace, workspace.inputs[:0]
        )
        check_finite(gradient, batch, control)
        update(parameters, gradient, first, second, codes[1], hyper, batch, control)
        if control[STATUS] != 0:
            return
        control[BATCHES] = batch + 1


class LayeredProgram:
    """The `Program` of `cpu.layered`: its workspace, and the calls into compiled code."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.dtype = np.dtype(problem.dtype)
        self.chain, stored = chain_table(problem)
        batch, widest = problem.batch_size, max(problem.sizes[1:])
        self.workspace = Workspace(
            inputs=self._zeros(batch, problem.sizes[0]),
            targets=self._zeros(batch, problem.target_columns),
            row_losses=self._zeros(batch),
            stored=self._zeros(stored),
            delta=self._zeros(batch * widest),
            next_delta=self._zeros(batch * widest),
            gradient=self._zeros(problem.parameter_count),
        )
        self.codes = (problem.rule_code, OPTIMIZERS.code(problem.optimizer))
        self.output = ACTIVATIONS.code(problem.activations[-1])
        last = problem.rows - (problem.batches - 1) * problem.batch_size
        self.scales = (self._scale(batch), self._scale(last))
        self.control = np.zeros(CONTROL_WORDS, dtype=np.int64)
        self.one_loss = self._zeros(1)
        self.rows = 0
        self.inputs = self.workspace.inputs

    def _zeros(self, *shape: int) -> np.ndarray:
        return np.zeros(shape, dtype=self.dtype)

    def _scale(self, rows: int) -> Any:
        # A Python float would be a float64 to Numba, and turn the loss kernel into float64.
        return self.dtype.type(self.problem.scale(rows))

    def _state(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        none = self.workspace.gradient[:0]
        return (state[0] if len(state) > 0 else none), (state[1] if len(state) > 1 else none)

    def to_device(self, array: np.ndarray) -> np.ndarray:
        """Return the array itself."""
        return array

    def to_host(self, array: np.ndarray, out: np.ndarray) -> None:
        """Copy, unless it is the same array."""
        if array is not out:
            out[...] = array

    def prepare(self, parameters, state, X, y):
        """See `Program.prepare`: an epoch of no batches."""
        order, hyper = np.empty(0, dtype=np.int64), self._zeros(0, HYPER_WIDTH)
        self.epoch(parameters, state, X, y, order, hyper, self.one_loss[:0], self.control)

    def epoch(self, parameters, state, X, y, order, hyper, losses, control):
        """See `Program.epoch`."""
        first, second = self._state(state)
        epoch(
            parameters,
            first,
            second,
            X,
            y,
            order,
            hyper,
            losses,
            control,
            self.chain,
            self.workspace,
            self.codes,
            self.scales,
        )

    def forward(self, parameters, X, out):
        """See `Program.forward`."""
        self.rows, self.inputs = len(X), X
        A = forward_chain(parameters, X, self.chain, self.rows, self.workspace)
        if self.problem.fused_output:
            activation_forward(A, self.output, self.rows, out)
        else:
            out[...] = A[: self.rows]

    def loss(self, y):
        """See `Program.loss`."""
        outputs = self.problem.sizes[-1]
        start, batch = self.chain[-1, A_START], self.problem.batch_size
        A = self.workspace.stored[start : start + batch * outputs].reshape(batch, outputs)
        dA = self.workspace.delta[: batch * outputs].reshape(batch, outputs)
        losses = self.workspace.row_losses
        loss_and_gradient(A, y, self.codes[0], self.rows, self._scale(self.rows), losses, dA)
        self.control[:] = 0
        sum_losses(losses, self.rows, self.one_loss, 0, self.control)
        self.loss_gradient = dA.copy()
        return float(self.one_loss[0])

    def backward(self, parameters, upstream, gradient, input_gradient):
        """See `Program.backward`."""
        rows, outputs = self.rows, self.problem.sizes[-1]
        delta = self.workspace.delta[: rows * outputs].reshape(rows, outputs)
        if upstream is None:
            delta[...] = self.loss_gradient[:rows]
        else:
            delta[...] = upstream
            if self.problem.fused_output:
                start = self.chain[-1, A_START]
                Z = self.workspace.stored[start : start + rows * outputs].reshape(rows, outputs)
                A = np.empty_like(Z)
                activation_forward(Z, self.output, rows, A)
                activation_backward(Z, A, self.output, rows, delta)
        backward_chain(
            parameters,
            self.inputs,
            self.chain,
            rows,
            1,
            gradient,
            self.workspace,
            input_gradient,
        )

    def value_and_gradient(self, parameters, X, y, gradient):
        """See `Program.value_and_gradient`."""
        self.rows, self.inputs = len(X), X
        forward_chain(parameters, X, self.chain, self.rows, self.workspace)
        loss = self.loss(y)
        none = self.workspace.inputs[:0]
        backward_chain(parameters, X, self.chain, self.rows, 0, gradient, self.workspace, none)
        return loss

    def update(self, parameters, gradient, state, hyper):
        """See `Program.update`."""
        first, second = self._state(state)
        self.control[:] = 0
        update(parameters, gradient, first, second, self.codes[1], hyper, 0, self.control)

    def predict(self, parameters, X, out, link):
        """See `Program.predict`."""
        loss = LOSSES.code(self.problem.loss)
        for start in range(0, len(X), self.problem.batch_size):
            part = out[start : start + self.problem.batch_size]
            self.forward(parameters, X[start : start + self.problem.batch_size], part)
            if link:
                predict_rows(part, loss, len(part))
