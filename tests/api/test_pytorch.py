"""To PyTorch and back: equal outputs, its names, and what it cannot have."""

import numpy as np
import pytest

import fastmlp
from fastmlp import MLP, DomainError, ShapeError, from_torch
from fastmlp.pytorch import MODULES
from fastmlp_kernels.algebra import ACTIVATIONS, LOSSES

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
nn = torch.nn

RNG = np.random.default_rng(5)


def chain(number):
    """Return a random network: any depth, widths, activations and dtype."""
    generator = np.random.default_rng(number)
    depth = generator.integers(1, 6)
    sizes = generator.integers(1, 20, depth + 1).tolist()
    activations = generator.choice(list(MODULES), depth).tolist()
    dtype = ["float32", "float64"][number % 2]
    return MLP(sizes, activations, seed=number, dtype=dtype)


def outputs(module, X):
    with torch.no_grad():
        return module(torch.from_numpy(X)).numpy()


def test_an_activation_without_a_module_is_named():
    assert set(MODULES) < set(ACTIVATIONS.names)
    for name in set(ACTIVATIONS.names) - set(MODULES):
        with pytest.raises(DomainError, match=f"to_torch: got activation '{name}', wanted one"):
            MLP([2, 3, 1], [name, "identity"]).to_torch()


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_random_chains_go_there_and_come_back(first):
    for number in range(first, first + 50):
        model = chain(number)
        X = RNG.normal(size=(30, model.sizes[0])).astype(model.dtype) * 3
        module = model.to_torch()
        found, wanted = outputs(module, X), model.forward(X)
        unit = np.finfo(model.dtype).eps
        # Sums in another order, and elementary functions of another library.
        bound = 300 * unit * abs(wanted).max()
        np.testing.assert_allclose(found, wanted, rtol=300 * unit, atol=bound)
        again = from_torch(module)
        assert again.parameters.tobytes() == model.parameters.tobytes()
        assert (again.sizes, again.activations) == (model.sizes, model.activations)
        assert again.dtype == model.dtype


def test_names_are_those_of_pytorch():
    model = MLP([4, 6, 5, 3], ["relu", "identity", "tanh"])
    module, state = model.to_torch(), model.state_dict()
    theirs = module.state_dict()
    assert list(theirs) == list(state)
    for name, array in state.items():
        assert (theirs[name].numpy() == array).all()
    other = MLP([4, 6, 5, 3], ["relu", "identity", "tanh"], seed=9)
    other.load_state_dict(theirs)
    assert other.parameters.tobytes() == model.parameters.tobytes()
    module.load_state_dict({name: torch.from_numpy(each) for name, each in state.items()})
    state["0.weight"][:] = 7
    assert not (model.weights[0] == 7).any()


def test_a_state_that_does_not_fit_changes_nothing():
    model = MLP([4, 6, 3])
    before, state = model.parameters.copy(), model.state_dict()
    bad = [
        {**state, "4.weight": state["0.bias"]},
        {name: each for name, each in state.items() if name != "2.bias"},
        {**state, "0.weight": state["0.weight"].T},
        {**state, "2.bias": np.full(3, np.nan)},
    ]
    for each in bad:
        with pytest.raises(fastmlp.FastMLPError):
            model.load_state_dict(each)
        assert (model.parameters == before).all()
    with pytest.raises(fastmlp.DTypeError, match="state: got list"):
        model.load_state_dict([1])


def test_a_network_trained_there_goes_on_here_and_back():
    X = RNG.normal(size=(64, 4)).astype(np.float32)
    y = (X[:, 0] > 0).astype(int)
    module = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 2), nn.Softmax(-1))
    )
    model = from_torch(module)
    assert model.loss_name == "softmax_cross_entropy"
    np.testing.assert_allclose(model.predict(X), outputs(module, X), rtol=1e-5)
    model.fit(X, y, epochs=30, optimizer=fastmlp.Adam(0.01))
    logits = outputs(model.to_torch(), X)
    assert (logits.argmax(axis=1) == y).mean() > 0.9


def test_what_fastmlp_has_not_is_named():
    cases = {
        "wanted a Linear before it": nn.Sequential(nn.ReLU(), nn.Linear(2, 1)),
        "got no Linear": nn.Sequential(),
        r"got Dropout\(p=0.5.*stay with PyTorch": nn.Sequential(nn.Linear(2, 2), nn.Dropout()),
        r"got LeakyReLU\(negative_slope=0.2\)": nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(0.2)),
        "without bias at '0'": nn.Sequential(nn.Linear(2, 2, bias=False)),
        "got Linear after a Softmax": nn.Sequential(
            nn.Linear(2, 2), nn.Softmax(-1), nn.Linear(2, 2)
        ),
        "got Tanh at '2', wanted a Linear before": nn.Sequential(
            nn.Linear(2, 2), nn.ReLU(), nn.Tanh()
        ),
        "wanted a Linear before it|got Conv1d": nn.Conv1d(1, 1, 1),
    }
    for message, module in cases.items():
        with pytest.raises(DomainError, match=message):
            from_torch(module)
    with pytest.raises(ShapeError, match="of 3 inputs at '1' after one of 2 outputs"):
        from_torch(nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 1)))
    with pytest.raises(fastmlp.DTypeError, match="got float16"):
        from_torch(nn.Linear(2, 2).half())
    with pytest.raises(DomainError, match="with a Softmax at the end"):
        from_torch(nn.Sequential(nn.Linear(2, 2), nn.Softmax(-1)), loss="half_squared_error")


def test_losses_keep_their_name_and_pytorchs_random_numbers_stay():
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    MLP([3, 4, 2]).to_torch()
    assert (torch.rand(3) == wanted).all()
    for loss in LOSSES.names:
        last = next(row.name for row in ACTIVATIONS if LOSSES[loss].refusal(row) is None)
        if last in MODULES:
            module = MLP([3, 2], [last], loss).to_torch()
            assert from_torch(module, loss=loss).loss_name == loss
