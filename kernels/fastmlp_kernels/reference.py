"""`reference`: the training step in NumPy, for reading and for checking the kernels against.

It calls the algebra's plain functions uncompiled, one scalar at a time, so it is slow and small:
in float64 it is the oracle of every test. It shares no loop with the compiled kernels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastmlp_kernels.algebra import ACTIVATIONS, LOSSES, OPTIMIZERS, loss_rule
from fastmlp_kernels.algebra.dropout import is_kept, row_key, threshold_of
from fastmlp_kernels.algebra.optimizers import (
    BIAS_DECAY,
    CLIP_NORM,
    CLIP_VALUE,
    DROPOUT_KEY,
    HYPER_WIDTH,
    RULE_START,
    WEIGHT_DECAY,
    clip_scale,
)
from fastmlp_kernels.contract import check_epoch
from fastmlp_kernels.problem import (
    BATCHES,
    CONTROL_WORDS,
    STATUS,
    STOP,
    Kernel,
    Machine,
    Problem,
    Program,
    parameter_layout,
)

# A scalar rule called from Python, in round figures: ReLU takes 0.14 microseconds and gelu_tanh 2.1
# (2-core AMD EPYC, 2026-11-23); the products are NumPy's.
SCALAR_SECONDS = 1e-6


def elementwise(function: Callable, *arrays: np.ndarray) -> np.ndarray:
    """Apply a scalar function to arrays of one shape, in their dtype."""
    # Iterating over a NumPy array gives NumPy scalars, which keep float64 arithmetic in float64;
    # Python floats are "weak", and a float32 constant would pull them down to float32.
    values = map(function, *(array.ravel() for array in arrays))
    first = arrays[0]
    return np.fromiter(values, dtype=first.dtype, count=first.size).reshape(first.shape)


def keep_masks(problem: Problem, hyper: np.ndarray, rows: int, first: int = 0) -> list[np.ndarray]:
    """Return what each hidden layer's activation is multiplied by in a step of so many rows.

    `first` is the place of the first of them in the whole batch.
    """
    low, high = (int(number) for number in hyper[DROPOUT_KEY : DROPOUT_KEY + 2])
    masks = []
    for layer, rate in enumerate(problem.dropout):
        keys = [row_key(low, high, layer, first + row) for row in range(rows)]
        units, threshold = range(problem.sizes[layer + 1]), threshold_of(rate)
        kept = [[is_kept(key, unit, threshold) for unit in units] for key in keys]
        masks.append(np.array(kept) * np.array(1 / (1 - rate), problem.dtype))
    return masks


def forward_chain(
    problem: Problem, parameters: np.ndarray, X: np.ndarray, masks: Sequence[np.ndarray] = ()
) -> tuple[list, list]:
    """Return every layer's pre-activation and activation; the activations begin with X.

    `masks`, of `keep_masks`, are applied to what a layer reads, and not to what is returned.
    """
    pre_activations, activations = [], [X]
    names = problem.training_activations
    for index, name in enumerate(names):
        layer = parameter_layout(problem.sizes)[index]
        W = parameters[layer.weight].reshape(layer.fan_in, layer.fan_out)
        below = activations[-1] * masks[index - 1] if masks and index else activations[-1]
        Z = below @ W + parameters[layer.bias]
        pre_activations.append(Z)
        activations.append(elementwise(ACTIVATIONS[name].value, Z))
    return pre_activations, activations


def loss_and_gradient(
    problem: Problem, A: np.ndarray, y: np.ndarray, factors: np.ndarray | None = None
) -> tuple[Any, np.ndarray]:
    """Return the reduced loss of a batch and its derivative by the outputs (or fused logits)."""
    rule = loss_rule(problem.rule)
    dA = np.empty_like(A)
    if factors is None:
        factors = np.full(len(A), problem.scale(len(A)), dtype=A.dtype)
    if rule.by_row:
        losses = np.array([rule.rule(A, y, i, dA) for i in range(len(A))])
    else:
        pairs = [rule.rule(a, t) for a, t in zip(A.ravel(), y.ravel(), strict=True)]
        losses = np.array([loss for loss, _ in pairs]).reshape(A.shape).sum(axis=1)
        dA[...] = np.array([slope for _, slope in pairs]).reshape(A.shape)
    return np.sum(factors * losses, dtype=A.dtype), factors[:, None] * dA


def backward_chain(
    problem: Problem,
    parameters: np.ndarray,
    pre_activations: list,
    activations: list,
    dA: np.ndarray,
    names: tuple[str, ...],
    masks: Sequence[np.ndarray] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradient by the flat parameters and by the inputs."""
    gradient = np.empty_like(parameters)
    layout = parameter_layout(problem.sizes)
    for index in reversed(range(len(layout))):
        layer, slope = layout[index], ACTIVATIONS[names[index]].slope
        dZ = dA * elementwise(slope, pre_activations[index], activations[index + 1])
        keeps = masks[index - 1] if masks and index else 1
        gradient[layer.weight] = ((activations[index] * keeps).T @ dZ).ravel()
        gradient[layer.bias] = dZ.sum(axis=0)
        dA = dZ @ parameters[layer.weight].reshape(layer.fan_in, layer.fan_out).T * keeps
    return gradient, dA


def clipped(problem: Problem, gradient: np.ndarray, hyper: np.ndarray) -> np.ndarray:
    """Return a gradient as the update takes it; see `algebra.optimizers`."""
    if problem.clipping == "none":
        return gradient
    limit = hyper[CLIP_VALUE]
    limited = np.clip(gradient, -limit, limit)
    if problem.clipping == "value":
        return limited
    with np.errstate(over="ignore"):
        squares = np.sum(np.square(limited), dtype=np.float64)
    scale = clip_scale(squares, hyper[CLIP_NORM]) if np.isfinite(squares) else np.nan
    return limited * gradient.dtype.type(scale)


class ReferenceProgram:
    """The `Program` of the reference kernel."""

    memory, straight = None, False

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        # Of the step of an epoch; no other call leaves anything out.
        self.masks: list[np.ndarray] = []
        self.control = np.zeros(CONTROL_WORDS, dtype=np.int64)

    def to_device(self, array: np.ndarray) -> np.ndarray:
        """Return the array itself."""
        return array

    def to_host(self, array: np.ndarray, out: np.ndarray) -> None:
        """Copy, unless it is the same array."""
        if array is not out:
            out[...] = array

    def prepare(self, parameters, state, X, y, weighted=False, penalized=False):
        """See `Program.prepare`. Nothing is compiled."""

    def epoch(
        self, parameters, state, X, y, order, hyper, losses, control, factors=None, squares=None
    ):
        """See `Program.epoch`."""
        arrays = (parameters, state, X, y, order, hyper, losses, control, factors, squares)
        check_epoch(self.problem, *arrays)
        gradient = np.empty_like(parameters)
        for batch in range(len(losses)):
            if control[STOP]:
                return
            part = slice(batch * self.problem.batch_size, (batch + 1) * self.problem.batch_size)
            rows, own = order[part], None if factors is None else factors[part]
            given = X[rows], y[rows], gradient, own, (hyper[batch : batch + 1], 0)
            losses[batch] = self.value_and_gradient(parameters, *given)
            if squares is not None:
                squares[batch] = sum(
                    np.square(parameters[layer.weight], dtype=np.float64).sum()
                    for layer in parameter_layout(self.problem.sizes)
                )
            applied = clipped(self.problem, gradient, hyper[batch])
            if not (np.isfinite(losses[batch]) and np.isfinite(applied).all()):
                control[STATUS] = batch + 1
                return
            self.update(parameters, gradient, state, hyper[batch : batch + 1])
            control[BATCHES] = batch + 1

    def forward(self, parameters, X, out):
        """See `Program.forward`."""
        with np.errstate(all="ignore"):
            self.stored = forward_chain(self.problem, parameters, X, self.masks)
            out[...] = self.stored[1][-1]
            if self.problem.fused_output:
                out[...] = elementwise(ACTIVATIONS[self.problem.activations[-1]].value, out)
        self.outputs = out.copy()

    def loss(self, y, factors=None):
        """See `Program.loss`."""
        A = self.stored[1][-1]
        with np.errstate(all="ignore"):
            value, self.loss_gradient = loss_and_gradient(self.problem, A, y, factors)
        return float(value)

    def backward(self, parameters, upstream, gradient, input_gradient):
        """See `Program.backward`."""
        pre_activations, activations = self.stored
        names = self.problem.training_activations
        dA = self.loss_gradient
        if upstream is not None:
            dA, names = upstream, self.problem.activations
            activations = [*activations[:-1], self.outputs]
        with np.errstate(all="ignore"):
            added, dX = backward_chain(
                self.problem, parameters, pre_activations, activations, dA, names, self.masks
            )
        gradient += added
        if len(input_gradient):
            input_gradient[...] = dX

    def value_and_gradient(
        self, parameters, X, y, gradient, factors=None, dropout=None, unchanged=False
    ):
        """See `Program.value_and_gradient`."""
        if dropout is not None:
            hyper, first = dropout
            self.masks = keep_masks(self.problem, hyper[0], len(X), first)
        self.forward(parameters, X, np.empty((len(X), self.problem.sizes[-1]), parameters.dtype))
        loss = self.loss(y, factors)
        gradient[...] = 0
        self.backward(parameters, None, gradient, X[:0])
        self.masks = []
        self.control[STATUS] = not (np.isfinite(loss) and np.isfinite(gradient).all())
        return loss

    def update(self, parameters, gradient, state, hyper):
        """See `Program.update`."""
        rule = OPTIMIZERS[self.problem.optimizer]
        first, second = [*state, *([np.zeros_like(parameters)] * (2 - len(state)))]
        gradient = clipped(self.problem, gradient, hyper[0])
        for index, layer in enumerate(parameter_layout(self.problem.sizes)):
            own = hyper[0, index * HYPER_WIDTH :] if self.problem.layer_rates else hyper[0]
            h = tuple(own[RULE_START:HYPER_WIDTH])
            for part, decay in ((layer.weight, own[WEIGHT_DECAY]), (layer.bias, own[BIAS_DECAY])):
                p, m, v = parameters[part], first[part], second[part]
                rows = zip(p, gradient[part] + decay * p, m, v, strict=True)
                updated = [rule.update(*row, h) for row in rows]
                for target, column in zip((p, m, v), zip(*updated, strict=True), strict=True):
                    target[...] = column

    def predict(self, parameters, X, out, link, share=1, unchanged=False):
        """See `Program.predict`."""
        self.forward(parameters, X, out)
        loss = LOSSES[self.problem.loss]
        if link and loss.link is not None:
            for i in range(len(out)):
                loss.link(out, i)
        return bool(np.isfinite(X).all())


def _supports(problem: Problem, machine: Machine) -> str | None:
    return None if problem.members == 1 else "it trains one network at a time"


def _cost(problem: Problem, machine: Machine) -> float:
    scalars = problem.rows * sum(problem.sizes[1:]) * 2 + problem.batches * problem.parameter_count
    return problem.flops / machine.cpu_flops + scalars * SCALAR_SECONDS


def _build(problem: Problem, machine: Machine) -> Program:
    return ReferenceProgram(problem)


KERNEL = Kernel("reference", "cpu", _supports, _cost, _build)
