"""The first weights of each layer: its initialiser and its gain."""

import numpy as np
import pytest

from fastmlp import INITIALIZERS, MLP, Ensemble
from fastmlp.errors import DomainError, DTypeError, ShapeError, UnknownNameError

PPO = {"initializer": "orthogonal", "gain": [2**0.5, 2**0.5, 0.01]}
SIZES = [7, 5, 12, 3]


def test_orthogonal_weights_are_orthonormal_times_the_gain():
    """`Q^T Q = gain^2 I` of the columns, or `Q Q^T` where the rows are fewer."""
    model = MLP(SIZES, "tanh", dtype="float64", **PPO)
    for W, gain in zip(model.weights, PPO["gain"], strict=True):
        tall = W if W.shape[0] >= W.shape[1] else W.T
        expected = gain**2 * np.eye(tall.shape[1])
        np.testing.assert_allclose(tall.T @ tall, expected, rtol=0, atol=1e-14 * gain**2)
    assert not any(b.any() for b in model.biases)


def test_orthogonal_weights_have_every_direction_and_sign_alike():
    """Of the uniform distribution, trace and determinant of Q have the means 0, their squares 1.

    By P. Diaconis and M. Shahshahani, J. Applied Probability 31A (1994). With LAPACK's own signs
    the trace of Q is below 0 on average.
    """
    drawn = Ensemble([4, 4], 3000, "tanh", initializer="orthogonal", dtype="float64").weights[0]
    traces, signs = np.trace(drawn, axis1=1, axis2=2), np.linalg.det(drawn)
    # Five standard errors; the fourth moment of a trace is that of the normal distribution, 3.
    assert abs(traces.mean()) < 5 / 3000**0.5
    assert abs((traces**2).mean() - 1) < 5 * (2 / 3000) ** 0.5
    assert abs(signs.mean()) < 5 / 3000**0.5


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 4), (4, 6)])
def test_orthogonal_weights_are_those_of_pytorch(inputs, outputs, monkeypatch):
    """For the same normal numbers, as PyTorch's (outputs, inputs)."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    layer = {"initializer": "orthogonal", "gain": 2, "seed": 3, "dtype": "float64"}
    W = MLP([inputs, outputs], ["tanh"], **layer).weights[0]
    numbers = np.random.Generator(np.random.PCG64(3)).normal(size=(inputs, outputs)).T
    drawn = torch.tensor(numbers.copy())
    monkeypatch.setattr(torch.Tensor, "normal_", lambda self, *_, **__: self.copy_(drawn))
    theirs = torch.nn.init.orthogonal_(torch.empty(outputs, inputs, dtype=torch.float64), 2)
    np.testing.assert_allclose(W, theirs.numpy().T, rtol=0, atol=1e-14)


def test_each_layer_has_its_own_initializer():
    """One that is None is the activation's; a layer's draws follow those of the layers before."""
    of_layers = ["Xavier-Normal", INITIALIZERS["lecun_uniform"], None]
    mixed = MLP(SIZES, "relu", initializer=of_layers, dtype="float64", seed=4)
    generator = np.random.Generator(np.random.PCG64(4))
    spreads = (2 / 12) ** 0.5, (3 / 5) ** 0.5, (6 / 15) ** 0.5
    expected = (
        generator.normal(0, spreads[0], (7, 5)),
        generator.uniform(-spreads[1], spreads[1], (5, 12)),
        # The identity's, at the output: Glorot's.
        generator.uniform(-spreads[2], spreads[2], (12, 3)),
    )
    for W, numbers in zip(mixed.weights, expected, strict=True):
        np.testing.assert_allclose(W, numbers, rtol=1e-14)


def test_a_gain_of_all_layers_multiplies_and_one_changes_no_bit():
    plain, twice = (MLP(SIZES, **more) for more in ({}, {"gain": 2}))
    assert MLP(SIZES, gain=1.0).parameters.tobytes() == plain.parameters.tobytes()
    assert twice.parameters.tobytes() == (2 * plain.parameters).tobytes()
    by_layer = MLP(SIZES, gain=np.array([1, 0, 3.0]))
    assert by_layer.weights[0].tobytes() == plain.weights[0].tobytes()
    assert not by_layer.weights[1].any()
    np.testing.assert_allclose(by_layer.weights[2], 3 * plain.weights[2], rtol=1e-6)


def test_each_network_of_an_ensemble_draws_its_own():
    ensemble = Ensemble(SIZES, 3, "tanh", seed=5, **PPO)
    for member in range(3):
        alone = MLP(SIZES, "tanh", seed=5 + member, **PPO)
        assert ensemble.parameters[member].tobytes() == alone.parameters.tobytes()
    assert not np.array_equal(ensemble.parameters[0], ensemble.parameters[1])


@pytest.mark.parametrize(
    ("more", "error", "part"),
    [
        ({"initializer": ["zeros"] * 2}, ShapeError, "initializer: got 2, wanted 3, one per layer"),
        ({"initializer": [None, "ortogonal", None]}, UnknownNameError, r"initializer\[1\]: got"),
        ({"initializer": 3}, UnknownNameError, "initializer: got 3"),
        ({"gain": [1.0, 2.0]}, ShapeError, "gain: got 2, wanted 3, one per layer"),
        ({"gain": -1.0}, DomainError, "gain: got -1.0"),
        ({"gain": [1.0, float("nan"), 1.0]}, DomainError, r"gain\[1\]: got nan"),
        ({"gain": "big"}, DTypeError, "gain: got 'big', wanted a number or one per layer"),
    ],
)
def test_what_is_no_initializer_or_gain_is_refused(more, error, part):
    with pytest.raises(error, match=part):
        MLP(SIZES, **more)


@pytest.mark.parametrize(("dtype", "gain"), [("float32", 3e38), ("float64", [1.7e308, 1.0])])
def test_a_gain_that_makes_infinite_weights_is_refused(dtype, gain):
    with pytest.raises(DomainError, match=rf"^gain: got \d\S*, which .* in {dtype}, wanted a smal"):
        MLP([1, 32, 1], gain=gain, dtype=dtype)
