"""Weights of losses, of either sign, in steps and gradients: as policy gradients need them."""

import numpy as np
import pytest

from fastmlp import MLP, SGD, Adam
from fastmlp.errors import DomainError, DTypeError, NonFiniteTrainingError, ShapeError
from fastmlp_kernels.problem import REDUCTIONS

RNG = np.random.default_rng(11)
ROWS = 9
X = RNG.normal(size=(ROWS, 4))
TARGETS = RNG.normal(size=(ROWS, 3))
ACTIONS = RNG.integers(0, 3, ROWS)
ADVANTAGES = RNG.normal(size=ROWS)
KINDS = {
    "squared": ("half_squared_error", "identity", TARGETS),
    "one output": ("huber", "identity", TARGETS[:, :1]),
    "policy": ("softmax_cross_entropy", "identity", ACTIONS),
    "binary": ("binary_cross_entropy", "sigmoid", (TARGETS > 0).astype(float)),
}


def model_of(kind, reduction="mean", **more):
    loss, output, y = KINDS[kind]
    sizes = [4, 6, 1 if kind == "one output" else 3]
    options = {"dtype": "float64", "reduction": reduction, **more}
    return MLP(sizes, ["tanh", output], loss, **options), y


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_those_of_pytorch(kind, reduction):
    """Of ``(weight * loss).mean()``, with the mean or the sum of that reduction."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    model, y = model_of(kind, reduction)
    loss, gradients = model.value_and_grad(X, y, loss_weight=ADVANTAGES)
    losses = torch.nn.functional
    row_losses = {
        "squared": lambda p, t: losses.mse_loss(p, t, reduction="none") / 2,
        "one output": lambda p, t: losses.huber_loss(p, t, reduction="none"),
        "policy": lambda p, t: losses.cross_entropy(p, t, reduction="none"),
        "binary": lambda p, t: losses.binary_cross_entropy(p, t, reduction="none"),
    }
    module = model.to_torch().double()
    each = row_losses[kind](module(torch.tensor(X)), torch.tensor(y))
    weighted = torch.tensor(ADVANTAGES).reshape(-1, *[1] * (each.ndim - 1)) * each
    divisor = {"mean": weighted.numel(), "batch_mean": ROWS, "sum": 1}[reduction]
    expected = weighted.sum() / divisor
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    theirs = [parameter.grad.numpy() for parameter in module.parameters()]
    for layer in range(2):
        W, b = theirs[2 * layer].T, theirs[2 * layer + 1]
        np.testing.assert_allclose(gradients.weights[layer], W, rtol=1e-10, atol=1e-15)
        np.testing.assert_allclose(gradients.biases[layer], b, rtol=1e-10, atol=1e-15)


def test_a_mean_divides_by_the_rows_whatever_the_signs():
    """So a batch whose advantages are all good is none of a smaller scale."""
    model, y = model_of("policy")
    of_rows = [model.value_and_grad(X[[i]], y[[i]])[1].flat for i in range(ROWS)]
    for weights in (ADVANTAGES, np.abs(ADVANTAGES), 3 * np.abs(ADVANTAGES), np.zeros(ROWS)):
        _, gradients = model.value_and_grad(X, y, loss_weight=weights)
        expected = weights @ np.array(of_rows) / ROWS
        np.testing.assert_allclose(gradients.flat, expected, rtol=1e-10, atol=1e-15)
    ones, _ = model.value_and_grad(X, y, loss_weight=np.ones((ROWS, 1)))
    assert ones == pytest.approx(model.value_and_grad(X, y)[0], rel=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_goes_along_the_gradient_and_its_parts_have_its_bits(kind):
    whole, y = model_of(kind, seed=3)
    parts, _ = model_of(kind, seed=3)
    by_hand = whole.parameters - 0.1 * whole.value_and_grad(X, y, loss_weight=ADVANTAGES)[1].flat
    loss = whole.step(X, y, SGD(0.1), loss_weight=ADVANTAGES)
    np.testing.assert_allclose(whole.parameters, by_hand, rtol=1e-12, atol=1e-15)
    parts.forward(X)
    assert parts.compute_loss(y, loss_weight=ADVANTAGES) == loss
    parts.backward()
    parts.apply(SGD(0.1))
    assert parts.parameters.tobytes() == whole.parameters.tobytes()


def test_a_policy_learns_what_its_rewards_say():
    """REINFORCE on a bandit whose best arm is the sign of the state."""
    policy = MLP([1, 8, 2], "tanh", "softmax_cross_entropy", seed=1)
    generator = np.random.default_rng(0)
    for _ in range(150):
        states = generator.uniform(-1, 1, size=(32, 1)).astype("float32")
        actions = (generator.random(32) < policy.predict(states)[:, 1]).astype(int)
        rewards = np.where(actions == (states[:, 0] > 0), 1.0, -1.0)
        policy.step(states, actions, Adam(0.02), loss_weight=rewards)
    chances = policy.predict(np.array([[-0.5], [0.5]], dtype="float32"))
    assert chances[0, 0] > 0.9 and chances[1, 1] > 0.9


def test_losses_that_cancel_hide_no_overflow():
    """The loss is 0 and the gradient infinite: a look at the parameters alone shows it."""
    model = MLP([1, 1], ["identity"])
    x = np.full((2, 1), 10.0)
    y = np.array([-1.0, 1.0])
    model.parameters = np.zeros(2)
    model.step(0 * x, 0 * y, SGD(1.0))
    before = model.parameters.copy()
    with pytest.raises(NonFiniteTrainingError, match="Nothing was changed"):
        model.step(x, y, SGD(1.0), loss_weight=np.array([1.6e38, -1.6e38]))
    assert model.parameters.tobytes() == before.tobytes()


BAD = [
    ({"loss_weight": np.ones(3)}, ShapeError, r"loss_weight: got shape \(3,\), wanted \(9,\)"),
    ({"loss_weight": np.full(ROWS, np.nan)}, DomainError, "loss_weight: got nan, wanted finite"),
    ({"loss_weight": ["a"] * ROWS}, DTypeError, "loss_weight: got"),
    ({"loss_weight": np.resize([1e38, -1e38], ROWS)}, DomainError, "loss_weight: got weights that"),
    (
        {"loss_weight": ADVANTAGES, "sample_weight": np.ones(ROWS)},
        DomainError,
        "loss_weight: got it beside sample_weight, wanted one of the two",
    ),
    ({"sample_weight": ADVANTAGES}, DomainError, "sample_weight: got -.* given to step as loss_w"),
]


@pytest.mark.parametrize(("weights", "error", "message"), BAD)
def test_bad_weights_are_refused_before_anything_changes(weights, error, message):
    model, y = model_of("policy")
    before = model.parameters.copy()
    model.forward(X)
    for call in (
        lambda: model.step(X, y, Adam(), **weights),
        lambda: model.value_and_grad(X, y, **weights),
        lambda: model.compute_loss(y, **weights),
    ):
        with pytest.raises(error, match=message):
            call()
    assert np.array_equal(model.parameters, before)
