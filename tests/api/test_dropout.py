"""Dropout: the same outputs are left out whoever computes, and gradients are those of PyTorch."""

import numpy as np
import pytest

from fastmlp import MLP, SGD, Adam, Ensemble, load
from fastmlp.errors import DomainError, DTypeError, ShapeError
from fastmlp_kernels.algebra.dropout import is_kept, row_key, step_keys, threshold_of
from fastmlp_kernels.algebra.optimizers import DROPOUT_KEY
from fastmlp_kernels.problem import Problem
from fastmlp_kernels.reference import keep_masks

GENERATOR = np.random.default_rng(0)
# Wider than a panel, and a hidden layer of one unit.
SIZES, RATES = [5, 40, 33, 1, 2], (0.5, 0.0, 0.2)
X = GENERATOR.normal(size=(37, 5))
Y = GENERATOR.normal(size=(37, 2))


def network(**rest):
    settings = {"activations": "gelu", "dtype": "float64", "dropout": RATES, "seed": 3}
    return MLP(SIZES, **{**settings, **rest})


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_agrees_with_torch_under_the_same_masks(activation, dtype):
    torch = pytest.importorskip("torch")
    model = network(activations=activation, dtype=dtype)
    layers = [each for each in model.to_torch() if isinstance(each, torch.nn.Linear)]
    problem = Problem(tuple(SIZES), ("identity",) * 4, "squared_error", dropout=RATES)
    hyper = np.zeros(DROPOUT_KEY + 2)
    hyper[DROPOUT_KEY:] = step_keys(3, 1, 1)[0]
    masks = keep_masks(problem, hyper, len(X))
    assert 0.4 < np.mean(masks[0] == 0) < 0.6 and np.all(masks[1] == 1)
    value = {"relu": torch.relu, "tanh": torch.tanh, "gelu": torch.nn.functional.gelu}[activation]
    number = getattr(torch, dtype)
    out = torch.from_numpy(X).to(number)
    for layer, mask in zip(layers, [*masks, None], strict=True):
        out = layer(out)
        if mask is not None:
            out = value(out) * torch.from_numpy(mask).to(number)
    loss = 0.5 * torch.nn.functional.mse_loss(out, torch.from_numpy(Y).to(number))
    loss.backward()
    before = model.parameters.copy()
    found = model.step(X, Y, SGD(1.0))
    gradient = np.concatenate(
        [np.r_[each.weight.grad.numpy().T.ravel(), each.bias.grad.numpy()] for each in layers]
    )
    bound = {"float32": 3e-6, "float64": 1e-14}[dtype]
    np.testing.assert_allclose(before - model.parameters, gradient, rtol=0, atol=bound)
    np.testing.assert_allclose(found, loss.item(), rtol=bound)


def test_shares_are_those_asked_for_and_places_are_independent():
    threshold = threshold_of(0.3)
    keys = step_keys(0, 1, 40).astype(np.int64).tolist()
    kept = np.array(
        [
            [
                [is_kept(row_key(*key, layer, row), unit, threshold) for unit in range(16)]
                for row in range(16)
                for layer in range(2)
            ]
            for key in keys
        ]
    )
    # 20,480 draws: a standard deviation of a share is 0.0032.
    assert abs(kept.mean() - 0.7) < 0.013
    for axis in range(3):
        # Neighbours along an axis are not alike.
        one, other = np.moveaxis(kept, axis, 0)[:-1], np.moveaxis(kept, axis, 0)[1:]
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.03
        deviation = np.sqrt(0.7 * 0.3 / kept.shape[axis])
        assert np.abs(kept.mean(axis=axis) - 0.7).max() < 5.5 * deviation


@pytest.mark.parametrize("sizes", [SIZES, [300, 200, 8, 8, 2]])
def test_the_number_of_threads_changes_no_bit(sizes):
    rows = GENERATOR.normal(size=(37, sizes[0]))
    ends = set()
    for threads in (1, 2, 3):
        model = MLP(sizes, "gelu", dtype="float32", dropout=RATES)
        model.fit(rows, Y, epochs=3, batch_size=16, optimizer=Adam(0.01), threads=threads)
        ends.add(model.parameters.tobytes())
    assert len(ends) == 1


def test_steps_have_the_bits_of_an_epoch_and_the_reference_the_numbers():
    ours, steps, oracle = (network() for _ in range(3))
    rest = {"epochs": 2, "batch_size": 16, "shuffle": False, "optimizer": Adam(0.01)}
    ours.fit(X, Y, **rest)
    for _ in range(2):
        for start in range(0, 37, 16):
            steps.step(X[start : start + 16], Y[start : start + 16], Adam(0.01))
    assert steps.parameters.tobytes() == ours.parameters.tobytes()
    oracle.fit(X, Y, kernel="reference", **rest)
    np.testing.assert_allclose(ours.parameters, oracle.parameters, rtol=1e-9, atol=1e-12)


def test_only_training_leaves_out():
    model, plain = network(), network(dropout=0)
    plain.parameters = model.parameters
    assert model.predict(X).tobytes() == plain.predict(X).tobytes()
    assert model.evaluate(X, Y) == plain.evaluate(X, Y)
    assert model.value_and_grad(X, Y)[0] == plain.value_and_grad(X, Y)[0]
    assert model.step(X, Y) != plain.step(X, Y)
    assert repr(plain) == repr(MLP(SIZES, "gelu", dtype="float64", seed=3))


def test_networks_of_an_ensemble_leave_out_their_own():
    many = Ensemble(SIZES, 2, activations="gelu", dtype="float64", dropout=RATES, seed=3)
    alone = [many[member] for member in range(2)]
    many.fit(X, Y, epochs=2, batch_size=16, optimizer=Adam(0.01))
    for model, parameters in zip(alone, many.parameters, strict=True):
        assert model.dropout == RATES
        model.fit(X, Y, epochs=2, batch_size=16, optimizer=Adam(0.01))
        assert model.parameters.tobytes() == parameters.tobytes()


def test_a_file_knows_the_shares(tmp_path):
    model = network()
    model.fit(X, Y, epochs=1)
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.dropout == RATES and repr(again) == repr(model)
    for each in (model, again):
        each.fit(X, Y, epochs=1)
    assert again.parameters.tobytes() == model.parameters.tobytes()


def test_a_share_just_below_1_keeps_next_to_nothing():
    nearly = np.nextafter(1, 0)
    assert threshold_of(nearly) == 1
    model, oracle = (network(dropout=[nearly, 0, 0]) for _ in range(2))
    model.fit(X, Y, epochs=1, optimizer=Adam(0.01))
    oracle.fit(X, Y, epochs=1, optimizer=Adam(0.01), kernel="reference")
    np.testing.assert_allclose(model.parameters, oracle.parameters, rtol=1e-9, atol=1e-12)


def test_bad_shares_are_refused():
    for bad in (1, -0.1, np.nan):
        with pytest.raises(DomainError, match=r"dropout: got .*, wanted a number in \[0, 1\)"):
            network(dropout=bad)
    with pytest.raises(DomainError, match=r"dropout\[2\]: got 2"):
        network(dropout=[0, 0, 2])
    with pytest.raises(ShapeError, match="dropout: got 2 numbers, wanted 3"):
        network(dropout=[0.1, 0.2])
    with pytest.raises(DTypeError, match="dropout"):
        network(dropout="half")
    for bad in (None, np.ma.masked, b"half"):
        with pytest.raises(DTypeError, match=r"^dropout: got .* one for each hidden layer"):
            network(dropout=bad)
    for bad in (0.5, np.array(0.5)):
        with pytest.raises(DomainError, match=r"^dropout: got 0.5 with no hidden layer, wanted 0,"):
            MLP([4, 1], dropout=bad)


def test_an_array_without_an_axis_is_a_number():
    assert network(dropout=np.array(0.25)).dropout == network(dropout=0.25).dropout
