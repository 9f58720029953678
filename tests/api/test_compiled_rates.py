"""The learning rate of a handle: read and set, from Python and from compiled functions."""

from dataclasses import replace

import numba
import numpy as np
import pytest

from fastmlp import MLP, SGD, Adagrad, Adam, AdamW, DomainError, DTypeError, RMSprop
from fastmlp.schedules import LinearDecay
from fastmlp.training.hyper_parameters import numbers_by_rate
from fastmlp_kernels.algebra import OPTIMIZERS, hyper_table
from fastmlp_kernels.algebra.optimizers import HYPER_WIDTH

RATES = (0.03, 0.001, 0.02, 0.02, 0.0)


@numba.njit(nogil=True)
def train(net, X, y, rates, losses, seen):
    for k in range(len(rates)):
        net.learning_rate = rates[k]
        losses[k], seen[k] = net.step(X, y), net.learning_rate


@numba.njit(nogil=True)
def descend(net, gradient, rate):
    net.learning_rate = rate
    net.apply(gradient)


@numba.njit
def rate_of(net):
    return net.learning_rate


@numba.njit
def set_rate(net, rate):
    net.learning_rate = rate


def set_in_python(net, rate):
    net.learning_rate = rate


OPTIMIZERS_TRIED = {
    "SGD": SGD(0.5),
    "momentum": SGD(0.5, momentum=0.9),
    "velocity": SGD(0.5, momentum=0.9, nesterov=True, rate_in_velocity=True),
    "Adam": Adam(0.5, clip_norm=0.05),
    "efficient Adam": Adam(0.5, epsilon_hat=True),
    "AdamW": AdamW(0.5, weight_decay=0.1),
    "RMSprop": RMSprop(0.5, weight_decay=0.1),
    "Adagrad": Adagrad(0.5),
    "rates by layer": AdamW(0.5, layer_rates=(0, 0.3)),
}
optimizers = pytest.mark.parametrize(
    "optimizer", OPTIMIZERS_TRIED.values(), ids=OPTIMIZERS_TRIED.keys()
)


def data(model):
    rng = np.random.default_rng(3)
    X = rng.normal(size=(19, model.sizes[0])).astype(model.dtype)
    return X, rng.normal(size=(19, model.sizes[-1])).astype(model.dtype)


def step_with(model, optimizer, rate, X, y):
    """Take a step of a model at a rate, which an optimizer's own cannot be if it is 0."""
    schedule = LinearDecay(1.0, steps=1) if rate == 0 else rate
    return model.step(X, y, replace(optimizer, learning_rate=schedule))


@optimizers
def test_steps_at_rates_that_are_set_are_those_of_optimizers_that_have_them(optimizer):
    model, losses, seen = MLP([6, 9, 2], "tanh", seed=1, dropout=0.2), *np.zeros((2, len(RATES)))
    X, y = data(model)
    net = model.compiled(optimizer=optimizer, max_steps=20)
    for _ in range(2):
        train(net, X, y, np.array(RATES), losses, seen)
        assert seen.tolist() == list(RATES)
        for rate, loss in zip(RATES, losses, strict=True):
            assert step_with(model, optimizer, rate, X, y) == loss
    parameters = np.zeros_like(model.parameters)
    net.get_parameters(parameters)
    assert parameters.tobytes() == model.parameters.tobytes()


@optimizers
def test_so_are_those_in_float64_to_a_rounding(optimizer):
    model = MLP([6, 9, 2], "tanh", dtype="float64", seed=1)
    X, y = data(model)
    net, parameters = model.compiled(optimizer=optimizer), np.zeros_like(model.parameters)
    for rate in RATES:
        net.learning_rate = rate
        loss = net.step(X, y)
        assert np.isclose(loss, step_with(model, optimizer, rate, X, y), rtol=1e-13, atol=0)
    net.get_parameters(parameters)
    np.testing.assert_allclose(parameters, model.parameters, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_the_numbers_of_every_rule_lie_on_a_line_over_the_rate(name):
    from fastmlp import optimizers as classes

    row = OPTIMIZERS[name]
    known = {each.rule: each for each in OPTIMIZERS_TRIED.values()}
    known["nesterov"] = SGD(0.5, momentum=0.9, nesterov=True)
    known["velocity"] = SGD(0.5, momentum=0.9, rate_in_velocity=True)
    optimizer = known[name] if name in known else getattr(classes, row.public.name)()
    optimizer = replace(optimizer, layer_rates=None, weight_decay=0.1)
    problem = MLP([3, 2], dtype="float64").template
    _, columns, bases, slopes = numbers_by_rate(optimizer, problem, 5, 40)
    assert set(columns) <= set(range(HYPER_WIDTH))
    for rate in (0.0, 1e-3, 0.37):
        settings = {**optimizer.settings, "learning_rate": rate}
        wanted = hyper_table(row, settings, 5, 40, np.float64)
        found = hyper_table(row, optimizer.settings, 5, 40, np.float64)
        found[:, columns] = bases + rate * slopes
        np.testing.assert_allclose(found[:, 6:], wanted[:, 6:], rtol=2e-15, atol=0)


def test_a_gradient_is_applied_at_the_rate():
    model = MLP([6, 9, 2], "tanh", seed=1)
    gradient = np.random.default_rng(0).normal(size=len(model.parameters)).astype("f4")
    net, parameters = model.compiled(optimizer=SGD(0.5)), np.zeros_like(model.parameters)
    descend(net, gradient, 0.25)
    net.get_parameters(parameters)
    np.testing.assert_array_equal(parameters, model.parameters - np.float32(0.25) * gradient)


def test_the_rate_is_the_optimizers_until_it_is_set_and_then_stays():
    model = MLP([6, 9, 2], "tanh", seed=1)
    X, y = data(model)
    schedule = LinearDecay(1e-2, steps=8)
    net = model.compiled(optimizer=Adam(schedule), max_steps=8)
    for step in range(4):
        assert rate_of(net) == net.learning_rate == schedule(step)
        net.step(X, y)
    set_rate(net, 3)
    assert rate_of(net) == net.learning_rate == 3.0
    net.step(X, y)
    net.push()
    net.pull()
    assert rate_of(net) == net.learning_rate == 3.0
    assert model.compiled(optimizer=Adam(1e-2)).learning_rate == 1e-2


@pytest.mark.parametrize("rate", [-1e-3, np.inf, np.nan], ids=str)
def test_what_is_no_rate_is_refused_and_changes_nothing(rate):
    net = MLP([6, 9, 2], seed=1).compiled(optimizer=Adam(1e-2))
    with pytest.raises(ValueError, match="learning_rate: wanted a finite number"):
        set_rate(net, rate)
    with pytest.raises(DomainError, match=r"learning_rate: got .*, wanted a finite number >= 0"):
        set_in_python(net, rate)
    with pytest.raises(DTypeError, match="learning_rate: got '0.1'"):
        set_in_python(net, "0.1")
    assert net.learning_rate == 1e-2


def test_a_busy_handle_keeps_its_rate():
    net = MLP([6, 9, 2], seed=1).compiled(optimizer=Adam(1e-2))
    net._record["busy"] = 1
    for call in (lambda: set_rate(net, 0.5), lambda: rate_of(net)):
        with pytest.raises(RuntimeError, match="another thread"):
            call()
    net._record["busy"] = 0
    assert net.learning_rate == 1e-2
