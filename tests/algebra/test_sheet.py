"""Every row of the derivation sheet, by name, through the compiled float64 CPU kernel.

The sheet's network is x -> linear1 (W1, b1) -> z1 -> activation -> z2 -> linear2 (W2, b2) -> z3
-> activation -> yhat. Its formulas are written out here literally, in NumPy, and each gradient
is taken once more by finite differences of the kernel's own loss.
"""

import numpy as np
import pytest

from fastmlp_kernels.algebra import ACTIVATIONS, INITIALIZERS, LOSSES, OPTIMIZERS, hyper_table
from fastmlp_kernels.cpu.program import FusedProgram
from fastmlp_kernels.problem import CONTROL_WORDS, Problem, parameter_layout
from tests import gradients

ROWS, INPUTS, HIDDEN, OUTPUTS = 7, 4, 5, 3
SYSTEMS = {
    "regression": (("relu", "identity"), "half_squared_error"),
    "classification (a)": (("sigmoid", "sigmoid"), "half_squared_error"),
    "classification (b)": (("sigmoid", "sigmoid"), "binary_cross_entropy"),
}
# Both sides are float64, and sums of fewer than ten terms near 1.
EQUAL = {"rtol": 1e-12, "atol": 1e-14}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def sigmoid_slope_of_the_sheet(z):
    return np.exp(-z) / (1 + np.exp(-z)) ** 2


class Sheet:
    """One system of the sheet on random data, and the sheet's formulas for it."""

    def __init__(self, system: str) -> None:
        activations, loss = SYSTEMS[system]
        self.problem = Problem(
            (INPUTS, HIDDEN, OUTPUTS),
            activations,
            loss,
            "sgd",
            "sum",
            "float64",
            batch_size=ROWS,
            rows=ROWS,
        )
        generator = np.random.default_rng(11)
        self.parameters = generator.normal(0, 0.7, self.problem.parameter_count)
        self.x = generator.normal(0, 1, (ROWS, INPUTS))
        self.y = generator.random((ROWS, OUTPUTS))
        first, second = parameter_layout(self.problem.sizes)
        self.parts = {"W1": first.weight, "b1": first.bias, "W2": second.weight, "b2": second.bias}
        W1 = self.parameters[first.weight].reshape(INPUTS, HIDDEN)
        self.W2 = self.parameters[second.weight].reshape(HIDDEN, OUTPUTS)
        self.z1 = self.x @ W1 + self.parameters[first.bias]
        self.z2 = np.maximum(self.z1, 0) if system == "regression" else sigmoid(self.z1)
        self.z3 = self.z2 @ self.W2 + self.parameters[second.bias]
        self.yhat = self.z3 if system == "regression" else sigmoid(self.z3)
        yhat, y = self.yhat, self.y
        if system == "regression":
            self.dl_dyhat = yhat - y
            self.dyhat_dz3 = np.ones_like(self.z3)
            self.dz2_dz1 = np.where(self.z1 > 0, 1.0, 0.0)
            self.loss = np.sum((yhat - y) ** 2 / 2)
        else:
            self.dyhat_dz3 = sigmoid_slope_of_the_sheet(self.z3)
            self.dz2_dz1 = sigmoid_slope_of_the_sheet(self.z1)
        if system == "classification (a)":
            self.dl_dyhat = yhat - y
            self.loss = np.sum((yhat - y) ** 2 / 2)
        if system == "classification (b)":
            self.dl_dyhat = (yhat - y) / (yhat * (1 - yhat))
            self.loss = np.sum(-y * np.log(yhat) - (1 - y) * np.log(1 - yhat))
        self.dl_dz3 = self.dl_dyhat * self.dyhat_dz3

    def gradient(self, name: str) -> np.ndarray:
        """Return dl/dW1, dl/db1, dl/dW2 or dl/db2 as the sheet writes them, summed over rows."""
        dl_dz1 = (self.dl_dz3 @ self.W2.T) * self.dz2_dz1
        rows = range(ROWS)
        return {
            "W1": lambda: sum(np.outer(self.x[i], dl_dz1[i]) for i in rows),
            "b1": lambda: sum(dl_dz1[i] for i in rows),
            "W2": lambda: sum(np.outer(self.z2[i], self.dl_dz3[i]) for i in rows),
            "b2": lambda: sum(self.dl_dz3[i] for i in rows),
        }[name]().ravel()

    def kernel(self, parameters=None):
        """Return the kernel's loss and flat gradient."""
        program = FusedProgram(self.problem)
        parameters = self.parameters if parameters is None else parameters
        flat = np.full_like(self.parameters, np.nan)
        return program.value_and_gradient(parameters, self.x, self.y, flat), flat


def assert_equal(actual, expected):
    assert np.size(expected) > 0 and np.any(np.asarray(expected) != 0)
    np.testing.assert_allclose(actual, expected, **EQUAL)


@pytest.fixture(params=SYSTEMS)
def sheet(request):
    return Sheet(request.param)


@pytest.fixture
def regression():
    return Sheet("regression")


@pytest.fixture
def system_a():
    return Sheet("classification (a)")


@pytest.fixture
def system_b():
    return Sheet("classification (b)")


def kernel_slope(activation: str, z: np.ndarray) -> np.ndarray:
    """Return the slope of an activation as the compiled backward pass applies it.

    A network of one layer with W = 1 and b = 0 has z = x; pulling back an upstream of ones gives
    the slope itself as the gradient by the inputs.
    """
    problem = Problem(
        (1, 1), (activation,), "half_squared_error", dtype="float64", batch_size=z.size, rows=z.size
    )
    program = FusedProgram(problem)
    parameters = np.array([1.0, 0.0])
    column = z.reshape(-1, 1)
    program.forward(parameters, column, np.empty_like(column))
    pulled = np.full_like(column, np.nan)
    program.backward(parameters, np.ones_like(column), np.zeros(2), pulled)
    return pulled.reshape(z.shape)


def test_forward_is_the_chain_of_the_sheet(sheet):
    out = np.full((ROWS, OUTPUTS), np.nan)
    FusedProgram(sheet.problem).forward(sheet.parameters, sheet.x, out)
    assert_equal(out, sheet.yhat)


def test_loss_is_the_loss_of_the_sheet(sheet):
    assert_equal(sheet.kernel()[0], sheet.loss)


def test_regression_dl_dyhat(regression):
    # With identity at the output dl/db2 sums dl/dz3 = dl/dyhat over the rows: take single rows.
    for i in range(ROWS):
        loss_and_slope = [
            LOSSES["half_squared_error"].rule(a, t)
            for a, t in zip(regression.yhat[i], regression.y[i], strict=True)
        ]
        assert_equal([slope for _, slope in loss_and_slope], regression.dl_dyhat[i])
    assert_equal(regression.kernel()[1][regression.parts["b2"]], regression.dl_dyhat.sum(axis=0))


def test_regression_dyhat_dz3_is_one(regression):
    assert_equal(kernel_slope("identity", regression.z3), regression.dyhat_dz3)


def test_regression_dz2_dz1_is_the_step_function(regression):
    assert {0.0, 1.0} == set(regression.dz2_dz1.ravel())
    assert_equal(kernel_slope("relu", regression.z1), regression.dz2_dz1)
    assert kernel_slope("relu", np.array([0.0, -0.0, 1e-300])).tolist() == [0, 0, 1]


def test_classification_a_dl_dyhat(system_a):
    slopes = [
        LOSSES["half_squared_error"].rule(a, t)[1]
        for a, t in zip(system_a.yhat.ravel(), system_a.y.ravel(), strict=True)
    ]
    assert_equal(slopes, system_a.dl_dyhat.ravel())


def test_classification_a_dyhat_dz3(system_a):
    assert_equal(kernel_slope("sigmoid", system_a.z3), system_a.dyhat_dz3)


def test_classification_a_dz2_dz1_has_the_same_form(system_a):
    assert_equal(kernel_slope("sigmoid", system_a.z1), system_a.dz2_dz1)


def test_classification_b_dl_dyhat(system_b):
    slopes = [
        LOSSES["binary_cross_entropy"].rule(a, t)[1]
        for a, t in zip(system_b.yhat.ravel(), system_b.y.ravel(), strict=True)
    ]
    assert_equal(slopes, system_b.dl_dyhat.ravel())


def test_classification_b_fuses_to_yhat_minus_y(system_b):
    assert system_b.problem.fused_output
    assert_equal(system_b.dl_dz3, system_b.yhat - system_b.y)
    gradient = system_b.kernel()[1]
    assert_equal(gradient[system_b.parts["b2"]], (system_b.yhat - system_b.y).sum(axis=0))


def test_classification_b_dyhat_dz3_and_dz2_dz1(system_b):
    assert_equal(kernel_slope("sigmoid", system_b.z3), system_b.dyhat_dz3)
    assert_equal(kernel_slope("sigmoid", system_b.z1), system_b.dz2_dz1)


@pytest.mark.parametrize("part", ["W1", "b1", "W2", "b2"])
def test_gradients_in_closed_form(sheet, part):
    assert_equal(sheet.kernel()[1][sheet.parts[part]], sheet.gradient(part))


@pytest.mark.parametrize("part", ["W1", "b1", "W2", "b2"])
def test_gradients_by_finite_differences(sheet, part):
    distance = np.abs(sheet.z1).min()
    if sheet.problem.activations[0] == "relu":
        # Moving one weight by two steps moves z1 by at most 2 * STEP * max|x|.
        assert distance > 2 * gradients.STEP * max(1, np.abs(sheet.x).max())

    def loss(values):
        parameters = sheet.parameters.copy()
        parameters[sheet.parts[part]] = values
        return sheet.kernel(parameters)[0]

    measured = gradients.gradient(loss, sheet.parameters[sheet.parts[part]])
    gradients.assert_derivative(sheet.kernel()[1][sheet.parts[part]], measured)


@pytest.mark.parametrize("logit", [1e4, -1e4, 88.8, -88.8, 104.0, -104.0, 710.0, -745.2, 0.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_saturation_is_finite(system, dtype, logit):
    activations, loss = SYSTEMS[system]
    problem = Problem((1, 1, 1), activations, loss, "sgd", "sum", dtype, batch_size=2, rows=2)
    # W1 = 0 and W2 = 0, so that z3 is b2 and z1 is b1: both at the extreme.
    parameters = np.array([0, logit, 0, logit], dtype)
    x, y = np.ones((2, 1), dtype), np.array([[0], [1]], dtype)
    flat = np.full(4, np.nan, dtype)
    value = FusedProgram(problem).value_and_gradient(parameters, x, y, flat)
    assert np.isfinite(value) and np.isfinite(flat).all()
    if system == "classification (b)":
        yhat = 0.0 if logit < -80 else 1.0 if logit > 80 else 0.5
        assert flat[3] == pytest.approx((yhat - 0) + (yhat - 1), abs=1e-30)
        wrong_side = abs(logit) if logit else 2 * np.log(2)
        assert value == pytest.approx(wrong_side, rel=1e-6)


def test_one_training_step_in_five_parts_equals_the_fused_one(sheet):
    rule = OPTIMIZERS["sgd"]
    settings = {"learning_rate": 0.1, "weight_decay": 0.0}
    hyper = hyper_table(rule, settings, 1, 1, "float64")
    state = np.zeros((0, sheet.parameters.size))

    separate, gradient = sheet.parameters.copy(), np.full_like(sheet.parameters, np.nan)
    program = FusedProgram(sheet.problem)
    program.forward(separate, sheet.x, np.empty((ROWS, OUTPUTS)))  # 1: forward
    loss = program.loss(sheet.y)  # 2: loss
    gradient[...] = 0  # 3: zero the gradients
    program.backward(separate, None, gradient, sheet.x[:0])  # 4: backward
    program.update(separate, gradient, state, hyper)  # 5: against the gradient

    fused, losses = sheet.parameters.copy(), np.full(1, np.nan)
    control = np.zeros(CONTROL_WORDS, np.int64)
    FusedProgram(sheet.problem).epoch(
        fused, state, sheet.x, sheet.y, np.arange(ROWS), hyper, losses, control
    )
    assert losses[0] == loss
    assert fused.tobytes() == separate.tobytes()
    assert_equal(
        fused,
        sheet.parameters
        - 0.1 * np.concatenate([sheet.gradient(part) for part in ("W1", "b1", "W2", "b2")]),
    )
    after = sheet.kernel(fused)[0]
    assert after < loss


def first_layer_gradient_norm(activation: str, depth: int) -> float:
    """Return the mean norm of dl/dW1 over seeds, weights drawn by the activation's initialiser."""
    width, rows = 32, 16
    problem = Problem(
        (width,) * (depth + 1),
        (activation,) * (depth - 1) + ("identity",),
        "half_squared_error",
        dtype="float64",
        batch_size=rows,
        rows=rows,
    )
    initializer = INITIALIZERS[ACTIVATIONS[activation].initializer]
    norms = []
    for seed in range(5):
        generator = np.random.default_rng(seed)
        parameters = np.zeros(problem.parameter_count)
        for layer in parameter_layout(problem.sizes):
            spread = initializer.variance(width, width) ** 0.5
            parameters[layer.weight] = generator.normal(0, spread, width * width)
        gradient = np.empty_like(parameters)
        X, y = generator.normal(0, 1, (2, rows, width))
        FusedProgram(problem).value_and_gradient(parameters, X, y, gradient)
        norms.append(np.linalg.norm(gradient[parameter_layout(problem.sizes)[0].weight]))
    return float(np.mean(norms))


def test_why_relu_the_sigmoids_gradient_vanishes_with_depth():
    shallow, deep = 2, 12
    norms = first_layer_gradient_norm
    sigmoid_kept = norms("sigmoid", deep) / norms("sigmoid", shallow)
    relu_kept = norms("relu", deep) / norms("relu", shallow)
    # Each sigmoid layer multiplies the gradient by at most 1/4, ReLU's by 0 or 1.
    assert sigmoid_kept < 4.0 ** -(deep - shallow) * 10
    assert relu_kept > 0.05
    assert relu_kept / sigmoid_kept > 1e4
