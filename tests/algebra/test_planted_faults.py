"""The comparison itself: it passes a correct step, and each of these planted faults fails it."""

import numpy as np
import pytest

from fastmlp_kernels.algebra.optimizers import BIAS_DECAY, RULE_START, WEIGHT_DECAY
from fastmlp_kernels.problem import Problem, parameter_layout
from tests import tolerances
from tests.samples import sample
from tests.tolerances import Bounded, compare

PROBLEM = Problem(
    (6, 7, 5, 3),
    ("relu", "sigmoid", "identity"),
    "half_squared_error",
    "adam",
    "mean",
    "float32",
    batch_size=13,
    rows=13,
)
STEP_NUMBER = 3


def forward(fault, parameters, X):
    """Return the activations of every layer, the inputs first."""
    activations = [X]
    for index, layer in enumerate(parameter_layout(PROBLEM.sizes)):
        W = parameters[layer.weight].reshape(layer.fan_in, layer.fan_out)
        b = parameters[layer.bias]
        A = activations[-1]
        if fault == "last feature dropped":
            A, W = A[:, :-1], W[:-1]
        if fault == "transposed weights":
            W = np.ascontiguousarray(W.T).reshape(W.shape)
        Z = A @ W
        Z += 0 if fault == "bias forgotten" else b
        if fault == "last unit of a tile not computed":
            Z[:, -1] = 0
        if fault == "half precision":
            Z = Z.astype(np.float16).astype(np.float32)
        if index == 0:
            Z = np.maximum(Z, 0.01 * Z) if fault == "leaky instead of plain" else np.maximum(Z, 0)
        elif index == 1:
            Z = (
                (1 + np.tanh(Z)) / 2
                if fault == "sigmoid of twice the argument"
                else 1 / (1 + np.exp(-Z))
            )
        activations.append(Z)
    return activations


def rows_summed(fault, count):
    """Return the rows that a weight gradient sums over."""
    rows = np.arange(count)
    if fault == "last row dropped":
        return rows[:-1]
    return np.append(rows, rows[-1]) if fault == "row counted twice" else rows


def gradient(fault, parameters, activations, y):
    """Return the loss and the flat gradient."""
    error = activations[-1] - y
    scale = np.float32(1 / error.size)
    if fault == "1/N missing":
        scale = np.float32(1)
    if fault == "mean over rows only":
        scale = np.float32(1 / len(error))
    factor = 1 if fault == "wrong factor of the loss" else 0.5
    loss = factor * scale * np.sum(error * error)
    dA = scale * (-error if fault == "sign of the gradient" else error)
    result = np.empty_like(parameters)
    layout = parameter_layout(PROBLEM.sizes)
    for index in (2, 1, 0):
        layer, A, out = layout[index], activations[index], activations[index + 1]
        dZ = dA.copy()
        if index == 1:
            dZ *= out if fault == "sigmoid slope without 1 - a" else out * (1 - out)
        if index == 0:
            dZ *= out >= 0 if fault == "slope of ReLU at zero and below" else out > 0
        rows = rows_summed(fault, len(A))
        if fault == "input row shifted by one":
            A = np.roll(A, 1, axis=0)
        dW = A[rows].T @ dZ[rows]
        if fault == "stale accumulator":
            dW += np.float32(0.001)
        result[layer.weight] = dW.ravel()
        result[layer.bias] = dZ[0] if fault == "bias from one row" else dZ[rows].sum(axis=0)
        W = parameters[layer.weight].reshape(layer.fan_in, layer.fan_out)
        if fault == "backward with transposed weights":
            W = np.ascontiguousarray(W.T).reshape(W.shape)
        dA = dZ @ W.T
    return loss, result


def adam(fault, parameters, g, state, hyper):
    """Return the updated parameters and state."""
    decay = np.empty_like(parameters)
    for layer in parameter_layout(PROBLEM.sizes):
        decay[layer.weight], decay[layer.bias] = hyper[WEIGHT_DECAY], hyper[BIAS_DECAY]
    rate, beta1, _, beta2, _, correction, epsilon, _ = hyper[RULE_START:]
    if fault == "first moment not corrected":
        rate = rate * np.float32(1 - 0.9**STEP_NUMBER)
    if fault == "second moment not corrected":
        correction = np.float32(1)
    if fault == "biases decay as weights do":
        decay[...] = hyper[WEIGHT_DECAY]
    g = g if fault == "weight decay forgotten" else g + decay * parameters
    m = beta1 * state[0] + (1 - beta1) * g
    v = beta2 * state[1] + (1 - beta2) * (np.abs(g) if fault == "gradient not squared" else g * g)
    sign = 1 if fault == "step up the gradient" else -1
    moved = parameters + sign * rate * m / (np.sqrt(v) * correction + epsilon)
    return moved.astype(np.float32), np.stack([m, v])


FAULTS = [
    "last feature dropped",
    "transposed weights",
    "bias forgotten",
    "last unit of a tile not computed",
    "half precision",
    "leaky instead of plain",
    "sigmoid of twice the argument",
    "1/N missing",
    "mean over rows only",
    "wrong factor of the loss",
    "sign of the gradient",
    "sigmoid slope without 1 - a",
    "slope of ReLU at zero and below",
    "last row dropped",
    "row counted twice",
    "input row shifted by one",
    "stale accumulator",
    "bias from one row",
    "backward with transposed weights",
    "first moment not corrected",
    "second moment not corrected",
    "weight decay forgotten",
    "biases decay as weights do",
    "gradient not squared",
    "step up the gradient",
]


def run(fault):
    """Compare a NumPy step in float32 with the oracle; return the largest share of a bound."""
    data = sample(PROBLEM, seed=5, spare_rows=0)
    hyper = data.hyper[0].copy()
    hyper[RULE_START] = 0.01 / (1 - 0.9**STEP_NUMBER)
    hyper[RULE_START + 5] = (1 - 0.999**STEP_NUMBER) ** -0.5
    state = np.abs(np.random.default_rng(1).normal(0, 0.1, data.state.shape)).astype(np.float32)
    oracle = tolerances.step(PROBLEM, data.parameters, data.X, data.y)
    expected = tolerances.updated(PROBLEM, data.parameters, oracle.gradient, state, hyper)
    activations = forward(fault, data.parameters, data.X)
    loss, flat = gradient(fault, data.parameters, activations, data.y)
    parameters, state = adam(fault, data.parameters, flat, state, hyper)
    ratios = [
        compare(activations[-1], oracle.outputs, "outputs"),
        compare(loss, oracle.loss, "loss"),
        compare(flat, oracle.gradient, "gradient"),
        compare(parameters, expected[0], "parameters"),
        compare(state[0], expected[1][0], "first moment"),
        compare(state[1], expected[1][1], "second moment"),
    ]
    return max(ratios)


def test_correct_step_passes_and_uses_part_of_its_bound():
    assert 0.001 < run(None) < 1


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(fault):
    with pytest.raises(AssertionError, match="beyond their bound"):
        run(fault)


def test_every_fault_is_planted():
    """A misspelt name would plant nothing, and the test above would then have failed."""
    assert len(FAULTS) == len(set(FAULTS)) >= 20


VALUES = np.linspace(1, 2, 8)


@pytest.mark.parametrize(
    ("value", "error", "reason"),
    [
        (np.zeros(0), np.zeros(0), "no elements"),
        (np.zeros(8), np.ones(8), "zero"),
        (np.ones(8), np.zeros(8), "the same"),
        (np.full(8, np.nan), np.zeros(8), "not finite"),
        (VALUES, VALUES, "the bound is"),
        (VALUES, np.full(8, np.inf), "not finite"),
    ],
)
def test_vacuous_comparison_fails(value, error, reason):
    with pytest.raises(AssertionError, match=reason):
        compare(value, Bounded(value, error))


def test_wrong_shape_and_nan_fail():
    oracle = Bounded(VALUES, np.full(8, 1e-6))
    assert compare(VALUES + 5e-7, oracle) == pytest.approx(0.5, abs=0.01)
    with pytest.raises(AssertionError, match=r"\(7,\), not \(8,\)"):
        compare(VALUES[:7], oracle)
    poisoned = VALUES.copy()
    poisoned[3] = np.nan
    with pytest.raises(AssertionError, match="1 of 8"):
        compare(poisoned, oracle)
