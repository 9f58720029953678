"""Clipped gradients and layers' own rates, against PyTorch and from one call to the other."""

import dataclasses

import numpy as np
import pytest

from fastmlp import MLP, SGD, Adam, AdamW, Ensemble, NonFiniteTrainingError, clip_gradients
from fastmlp.errors import DomainError, DTypeError, ShapeError, UnknownKeywordError

GENERATOR = np.random.default_rng(0)
# Wider than a panel, rows that do not divide, a layer of one unit.
SIZES = [5, 40, 7, 1]
X = GENERATOR.normal(size=(70, 5))
Y = 3 * np.sin(X[:, :1])
LIMITS = [{"clip_norm": 0.05}, {"clip_value": 0.01}, {"clip_norm": 0.05, "clip_value": 0.01}]


def network(seed=0, **rest):
    return MLP(SIZES, "tanh", seed=seed, **{"dtype": "float64", **rest})


def fitted(optimizer, **rest):
    model = network()
    model.fit(X, Y, epochs=2, batch_size=16, optimizer=optimizer, shuffle=False, **rest)
    return model.parameters.copy()


def by_torch(optimizer_of, clip, rates=None):
    torch = pytest.importorskip("torch")
    module = network().to_torch()
    layers = [each for each in module if isinstance(each, torch.nn.Linear)]
    factors = rates or [1.0] * len(layers)
    groups = [
        {"params": list(layer.parameters()), "lr": 0.1 * factor}
        for layer, factor in zip(layers, factors, strict=True)
    ]
    optimizer = optimizer_of(torch)(groups)
    inputs, targets = torch.from_numpy(X), torch.from_numpy(Y)
    for _ in range(2):
        for start in range(0, len(X), 16):
            optimizer.zero_grad()
            part = slice(start, start + 16)
            # fastmlp's default loss is half of this.
            (0.5 * torch.nn.functional.mse_loss(module(inputs[part]), targets[part])).backward()
            if "clip_value" in clip:
                torch.nn.utils.clip_grad_value_(module.parameters(), clip["clip_value"])
            if "clip_norm" in clip:
                torch.nn.utils.clip_grad_norm_(module.parameters(), clip["clip_norm"])
            optimizer.step()
    return np.concatenate(
        [
            np.r_[each.weight.detach().numpy().T.ravel(), each.bias.detach().numpy()]
            for each in layers
        ]
    )


@pytest.mark.parametrize("clip", LIMITS)
def test_clipping_agrees_with_torch(clip):
    ours = fitted(SGD(0.1, momentum=0.9, weight_decay=0.01, **clip))
    theirs = by_torch(
        lambda torch: lambda groups: torch.optim.SGD(groups, momentum=0.9, weight_decay=0.01), clip
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13)
    assert np.abs(ours - fitted(SGD(0.1, momentum=0.9, weight_decay=0.01))).max() > 1e-3


def test_rates_of_layers_agree_with_torch():
    rates = (0.0, 0.5, 2.0)
    ours = fitted(AdamW(0.1, weight_decay=0.3, layer_rates=rates))
    theirs = by_torch(
        lambda torch: lambda groups: torch.optim.AdamW(groups, weight_decay=0.3), {}, rates
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("optimizer", [SGD(0.1), Adam(0.01)])
def test_what_is_not_reached_changes_no_bit(optimizer):
    free = fitted(optimizer)
    limited = dataclasses.replace(optimizer, clip_norm=1e9, clip_value=1e9)
    assert fitted(limited).tobytes() == free.tobytes()
    same = dataclasses.replace(optimizer, layer_rates=[1, 1, 1])
    assert fitted(same).tobytes() == free.tobytes()


def test_a_frozen_layer_keeps_its_parameters():
    model = network()
    before = model.parameters.copy()
    model.fit(X, Y, epochs=2, optimizer=Adam(0.01, weight_decay=0.1, layer_rates=[0, 1, 0]), l2=0.1)
    changed = model.parameters != before
    layers = model.weights[0].size + 40, model.weights[1].size + 7, 8
    first, second, third = np.split(changed, np.cumsum(layers)[:2])
    assert not first.any() and second.all() and not third.any()


def test_a_velocity_does_not_move_a_frozen_layer():
    model, optimizer = network(), SGD(0.01, momentum=0.9, rate_in_velocity=True)
    model.fit(X, Y, epochs=1, optimizer=optimizer)
    before = model.weights[0].copy()
    frozen = dataclasses.replace(optimizer, layer_rates=[0, 1, 1])
    model.fit(X, Y, epochs=1, optimizer=frozen)
    assert model.weights[0].tobytes() == before.tobytes()


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_no_bit(threads):
    optimizer = Adam(0.01, clip_norm=0.05, clip_value=0.01, layer_rates=[1, 0.5, 2])
    assert fitted(optimizer, threads=threads).tobytes() == fitted(optimizer, threads=1).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("clip", LIMITS)
def test_the_parts_of_a_step_give_the_bits_of_the_whole(clip, dtype):
    optimizer = Adam(0.05, layer_rates=[1, 0.5, 2], **clip)
    whole, parts, epoch = (network(dtype=dtype) for _ in range(3))
    for _ in range(3):
        whole.step(X, Y, optimizer)
        parts.forward(X)
        parts.compute_loss(Y)
        parts.zero_grad()
        parts.backward()
        parts.apply(optimizer)
    assert parts.parameters.tobytes() == whole.parameters.tobytes()
    epoch.fit(X, Y, epochs=3, batch_size=70, optimizer=optimizer, shuffle=False)
    assert epoch.parameters.tobytes() == whole.parameters.tobytes()


def test_networks_of_an_ensemble_are_clipped_each_by_its_own_limit():
    optimizers = [
        SGD(0.1, clip_norm=0.05),
        SGD(0.1),
        SGD(0.1, clip_value=0.01, layer_rates=[0, 1, 2]),
    ]
    many = Ensemble(SIZES, 3, activations="tanh", dtype="float64")
    alone = [many[member] for member in range(3)]
    rest = {"epochs": 2, "batch_size": 16, "shuffle": False}
    many.fit(X, Y, optimizer=optimizers, **rest)
    for model, optimizer, parameters in zip(alone, optimizers, many.parameters, strict=True):
        model.fit(X, Y, optimizer=optimizer, **rest)
        np.testing.assert_allclose(model.parameters, parameters, rtol=1e-13, atol=1e-15)


def test_a_norm_that_is_not_finite_is_refused():
    model = network(dtype="float32")
    before = model.parameters.copy()
    model.gradients.flat[:] = 3e38
    with pytest.raises(NonFiniteTrainingError, match="apply"):
        model.apply(SGD(0.1, clip_norm=1.0))
    # The loss is finite, and so is each element of the gradient.
    large = 2.2e19 * np.ones((8, 1), np.float32)
    with pytest.raises(NonFiniteTrainingError):
        model.fit(X[:8], large, epochs=1, optimizer=SGD(0.1, clip_norm=1.0))
    assert model.parameters.tobytes() == before.tobytes()


def test_bad_limits_and_rates_are_refused():
    for bad in (0, -1, np.inf, np.nan):
        with pytest.raises(DomainError, match="clip_norm: got .*wanted a finite number > 0"):
            Adam(clip_norm=bad)
    with pytest.raises(DTypeError, match="clip_value: got '1', wanted a number"):
        SGD(clip_value="1")
    with pytest.raises(DTypeError, match="layer_rates: got 0.1, wanted a sequence"):
        SGD(layer_rates=0.1)
    for bad in (np.array(0.5), np.ma.masked, b"x", bytearray(b"x")):
        with pytest.raises(DTypeError, match="layer_rates: got .*, wanted a sequence"):
            Adam(layer_rates=bad)
    with pytest.raises(DomainError, match=r"layer_rates\[1\]: got -1"):
        SGD(layer_rates=[1, -1])
    model = network()
    for call in (
        lambda: model.fit(X, Y, optimizer=SGD(layer_rates=[1, 1])),
        lambda: model.step(X, Y, SGD(layer_rates=[1, 1])),
        lambda: model.apply(SGD(layer_rates=[1, 1])),
    ):
        with pytest.raises(ShapeError, match="layer_rates: got 2, wanted 3"):
            call()


def test_gradients_of_several_models_have_one_norm():
    torch = pytest.importorskip("torch")
    models = [network(seed) for seed in range(2)]
    held = [GENERATOR.normal(size=model.parameters.shape) for model in models]
    tensors = [torch.nn.Parameter(torch.zeros(each.shape, dtype=torch.float64)) for each in held]
    for model, flat, tensor in zip(models, held, tensors, strict=True):
        model.gradients.flat[:] = flat
        tensor.grad = torch.from_numpy(flat.copy())
    torch.nn.utils.clip_grad_value_(tensors, 0.9)
    wanted = torch.nn.utils.clip_grad_norm_(tensors, 0.5)
    norm = clip_gradients([model.gradients for model in models], norm=0.5, value=0.9)
    assert norm == pytest.approx(float(wanted), rel=1e-14)
    for model, tensor in zip(models, tensors, strict=True):
        np.testing.assert_allclose(model.gradients.flat, tensor.grad.numpy(), rtol=1e-13)
    one = models[0].gradients
    before = one.flat.copy()
    assert clip_gradients(one, norm=1e9) == pytest.approx(np.linalg.norm(before), rel=1e-14)
    assert one.flat.tobytes() == before.tobytes()
    one.flat[0] = np.inf
    assert clip_gradients(one, norm=0.5) == np.inf and one.flat[1] == before[1]
    with pytest.raises(DTypeError, match=r"gradients\[0\]: got ndarray, wanted Gradients"):
        clip_gradients([before], norm=1.0)
    with pytest.raises(DomainError, match="norm: got -1"):
        clip_gradients(one, norm=-1)
    for bad, name in ((models[0], "MLP"), (None, "NoneType")):
        with pytest.raises(DTypeError, match=rf"^gradients: got {name}, wanted Gradients"):
            clip_gradients(bad, norm=0.5)
    with pytest.raises(UnknownKeywordError, match="clip_gradients: got an unknown keyword 'max_n"):
        clip_gradients(one, max_norm=0.5)


def test_gradients_that_are_given_twice_count_once():
    model, other = network(0), network(1)
    for each in (model, other):
        each.gradients.flat[:] = 1.0
    several = [model.gradients, model.gradients, other.gradients]
    assert clip_gradients(several, norm=0.5) == pytest.approx((2 * len(model.parameters)) ** 0.5)
    assert model.gradients.flat.tobytes() == other.gradients.flat.tobytes()
    both = np.concatenate([model.gradients.flat, other.gradients.flat])
    assert np.linalg.norm(both) == pytest.approx(0.5, rel=1e-5)
