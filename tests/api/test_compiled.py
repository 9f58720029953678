"""Handles: networks that functions compiled by Numba call, with the bits of the methods."""

import copy
import ctypes
import gc
import importlib
import pickle
import subprocess
import sys
import threading
import time
import weakref

import numba
import numpy as np
import pytest
from numba.core.errors import TypingError
from numba.core.runtime import _nrt_python, rtsys

from fastmlp import (
    MLP,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    BusyError,
    CallOrderError,
    DomainError,
    DTypeError,
    GaussianNLL,
    Huber,
    NonFiniteTrainingError,
    RMSprop,
    ShapeError,
)
from fastmlp.schedules import CosineDecay
from fastmlp.training.hyper_parameters import numbers_of_steps
from fastmlp_kernels.problem import Machine
from tests import ROOT
from tests.machines import HOST

# Rows of the batches of a run: odd to tiles and blocks, a full one, and one row; 59 in all.
BATCHES = (7, 32, 1, 19)


@numba.njit(nogil=True)
def train(net, X, y, starts, losses):
    for k in range(len(starts) - 1):
        first, last = starts[k], starts[k + 1]
        losses[k] = net.step(X[first:last], y[first:last])


@numba.njit(nogil=True)
def train_weighted(net, X, y, weights, starts, losses):
    for k in range(len(starts) - 1):
        first, last = starts[k], starts[k + 1]
        losses[k] = net.step(X[first:last], y[first:last], weights[first:last])


@numba.njit(nogil=True)
def predict(net, X, out):
    net.predict(X, out)


@numba.njit(nogil=True)
def predict_rows(net, X, out):
    for k in range(len(X)):
        net.predict(X[k], out[k])


@numba.njit(nogil=True)
def gradient_of(net, X, y, gradient):
    return net.value_and_grad(X, y, gradient)


@numba.njit(nogil=True)
def step_by_hand(net, X, dyhat, out, gradient, dX):
    net.forward(X, out)
    net.backward(dyhat, gradient, dX)
    net.apply(gradient)


@numba.njit(nogil=True)
def parameters_of(net, out):
    net.get_parameters(out)


@numba.njit(nogil=True)
def use_for(net, x, out, count):
    for _ in range(count):
        net.predict(x, out)


def sample(model, rows=59, labels=False, seed=3):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, model.sizes[0])).astype(model.dtype)
    if labels:
        return X, rng.integers(0, model.sizes[-1], rows)
    columns = model.template.target_columns
    y = rng.uniform(0.1, 0.9, (rows, columns))
    if model.activations[-1] == "identity" and "softmax" in model.loss_name:
        y /= y.sum(axis=1, keepdims=True)
    return X, y.astype(model.dtype)


def starts():
    return np.cumsum([0, *BATCHES])


CASES = {
    "regression": (([4, 8, 1], "tanh"), {}, Adam(1e-2), False),
    "float64": (([4, 8, 1], "tanh"), {"dtype": "float64"}, Adam(1e-2), False),
    "two layers of panels": (([70, 40, 3], "relu", "squared_error"), {}, SGD(0.05), False),
    "one layer": (([5, 1], ["sigmoid"], "binary_cross_entropy"), {}, RMSprop(1e-2), False),
    "one unit first": (([40, 1, 3], "tanh"), {"reduction": "sum"}, SGD(1e-3), False),
    "fused output": (([6, 9, 2], ["gelu", "sigmoid"], "binary_cross_entropy"), {}, AdamW(), False),
    "labels": (([6, 9, 5], "silu", "softmax_cross_entropy"), {}, Adam(1e-2), True),
    "one-hot": (
        ([6, 9, 5], "elu", "softmax_cross_entropy"),
        {"dtype": "float64"},
        Adagrad(),
        False,
    ),
    "velocity": (
        ([6, 9, 5], "softplus", Huber(0.5)),
        {"reduction": "batch_mean"},
        SGD(0.01, momentum=0.9, nesterov=True, rate_in_velocity=True),
        False,
    ),
    "variances": (([6, 9, 4], "relu", GaussianNLL()), {}, Adam(1e-3), False),
    "limit of the norm": (([6, 9, 2], "relu"), {}, Adam(1e-2, clip_norm=0.05), False),
    "limit of elements": (([6, 9, 2], "relu"), {}, SGD(0.1, clip_value=0.01), False),
    "rates by layer": (([6, 9, 2], "relu"), {}, Adam(1e-2, layer_rates=(0, 1)), False),
    "dropout": (([6, 9, 33, 2], "relu"), {"dropout": [0.5, 0.2]}, Adam(1e-2), False),
    "schedule": (([6, 9, 2], "relu"), {}, Adam(CosineDecay(1e-2, steps=9)), False),
}
cases = pytest.mark.parametrize(
    ("shape", "rest", "optimizer", "labels"), CASES.values(), ids=CASES.keys()
)


@cases
def test_compiled_functions_have_the_bits_of_the_methods(shape, rest, optimizer, labels):
    model, losses = MLP(*shape, seed=1, **rest), np.zeros(len(BATCHES), rest.get("dtype", "f4"))
    X, y = sample(model, labels=labels)
    net = model.compiled(optimizer=optimizer, max_steps=50, labels=labels)
    out = np.full((len(X), net.outputs), np.nan, model.dtype)
    predict(net, X, out)
    assert out.tobytes() == model.predict(X).tobytes()
    for _ in range(3):
        train(net, X, y, starts(), losses)
        for loss, first, last in zip(losses, starts(), starts()[1:], strict=False):
            assert model.step(X[first:last], y[first:last], optimizer) == loss
    parameters = np.zeros_like(model.parameters)
    parameters_of(net, parameters)
    assert parameters.tobytes() == model.parameters.tobytes()
    assert net.steps == model._state.steps
    predict_rows(net, X, out)
    assert out.tobytes() == model.predict(X).tobytes()


@pytest.mark.parametrize("name", HOST)
@pytest.mark.parametrize("sizes", [[4, 8, 1], [70, 40, 3], [40, 1, 35]], ids=str)
def test_a_row_has_the_same_bits_on_every_instruction_set(monkeypatch, name, sizes):
    machine = Machine(cores=1, instruction_set=name)
    for module in ("fastmlp.compiled.exchange", "fastmlp.dispatch.planning"):
        importlib.import_module(module)
        monkeypatch.setattr(f"{module}.machine_with", lambda threads: machine)
    for activation in ("relu", "gelu"):
        model = MLP(sizes, activation, seed=1)
        X, y = sample(model)
        net, out = model.compiled(), np.zeros((len(X), sizes[-1]), "f4")
        assert net.step(X[:32], y[:32]) == model.step(X[:32], y[:32])
        for part in (out[:0], out):
            net.predict(X[: len(part)], part)
        assert out.tobytes() == model.predict(X).tobytes()
        predict_rows(net, X, out)
        assert out.tobytes() == model.predict(X).tobytes()


@cases
def test_gradients_have_the_bits_of_the_methods(shape, rest, optimizer, labels):
    model = MLP(*shape, seed=1, **rest)
    X, y = sample(model, 19, labels)
    dyhat = np.random.default_rng(0).normal(size=(19, model.sizes[-1])).astype(model.dtype)
    net = model.compiled(optimizer=optimizer, max_steps=50, labels=labels)
    gradient = np.full_like(model.parameters, np.nan)
    out, dX = np.zeros_like(dyhat), np.zeros_like(X)
    loss, wanted = model.value_and_grad(X, y)
    assert gradient_of(net, X, y, gradient) == loss
    assert gradient.tobytes() == wanted.flat.tobytes()
    for _ in range(3):
        outputs = model.forward(X)
        model.zero_grad()
        wanted_dX = model.backward(dyhat)
        flat = model.gradients.flat.copy()
        model.apply(optimizer)
        gradient[:] = 0
        step_by_hand(net, X, dyhat, out, gradient, dX)
        assert out.tobytes() == outputs.tobytes()
        assert gradient.tobytes() == flat.tobytes()
        assert dX.tobytes() == wanted_dX.tobytes()
    net.get_parameters(gradient)
    assert gradient.tobytes() == model.parameters.tobytes()
    loss, wanted = model.value_and_grad(X, y)
    assert gradient_of(net, X, y, gradient) == loss
    assert gradient.tobytes() == wanted.flat.tobytes()


@pytest.mark.parametrize("labels", [False, True], ids=["targets", "labels"])
def test_weighted_losses_have_the_bits_of_the_methods(labels):
    model = MLP([6, 9, 5], "tanh", "softmax_cross_entropy", seed=1)
    X, y = sample(model, labels=labels)
    weights, losses = np.random.default_rng(1).normal(size=len(X)), np.zeros(len(BATCHES))
    net = model.compiled(optimizer="adam", labels=labels)
    train_weighted(net, X, y, weights, starts(), losses)
    for loss, first, last in zip(losses, starts(), starts()[1:], strict=False):
        part = slice(first, last)
        assert model.step(X[part], y[part], "adam", loss_weight=weights[part]) == loss
    net.push(overwrite=True)
    assert net.steps == model._state.steps == len(BATCHES)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_methods_do_the_same_from_python(dtype):
    shape = [6, 9, 5], "tanh", "softmax_cross_entropy"
    model, other = MLP(*shape, seed=1, dtype=dtype), MLP(*shape, seed=1, dtype=dtype)
    X, y = sample(model, 32, labels=True)
    net, again = model.compiled(optimizer="adam"), other.compiled(optimizer="adam")
    losses, weights = np.zeros(1, dtype), np.random.default_rng(1).normal(size=32)
    gradients, outs = np.zeros((2, net.parameter_count), dtype), np.zeros((2, 32, 5), dtype)
    dX = np.zeros((2, 32, 6), dtype)
    train(net, X, y, np.array([0, 32]), losses)
    assert again.step(X, y) == losses[0]
    train_weighted(net, X, y, weights, np.array([0, 32]), losses)
    assert again.step(X, y, weights) == losses[0]
    loss = gradient_of(net, X, y, gradients[0])
    assert again.value_and_grad(X, y, gradients[1]) == loss
    step_by_hand(net, X, X[:, :5].copy(), outs[0], gradients[0], dX[0])
    again.forward(X, outs[1])
    again.backward(X[:, :5].copy(), gradients[1], dX[1])
    again.apply(gradients[1])
    for pair in gradients, outs, dX:
        assert pair[0].tobytes() == pair[1].tobytes()
    for each, out in zip((net, again), outs, strict=True):
        each.predict(X, out)
        each.set_parameters(gradients[0])
        each.predict(X[0], out[0])
    assert outs[0].tobytes() == outs[1].tobytes()
    assert outs[0][0].tobytes() != outs[0][1].tobytes()


@pytest.mark.parametrize("jit", [numba.njit, lambda function: function], ids=["compiled", "Python"])
def test_parameters_that_are_set_are_those_of_the_next_call(jit):
    model, other = (MLP([6, 33, 2], "tanh", seed=seed) for seed in (1, 2))
    X, y = sample(model, 32)
    net, out = model.compiled(), np.zeros((32, 2), "f4")
    set_parameters = jit(lambda net, values: net.set_parameters(values))
    net.step(X, y)
    set_parameters(net, other.parameters)
    net.predict(X, out)
    assert out.tobytes() == other.predict(X).tobytes()
    set_parameters(net, model.parameters)
    net.predict(X[0], out[0])
    assert out[0].tobytes() == model.predict(X[:1]).tobytes()
    net.push()
    assert net.step(X, y) == model.step(X, y)


def test_a_row_is_a_vector_or_a_matrix_of_one_row():
    model = MLP([4, 8, 1], seed=1)
    X, y = sample(model, 5)
    net, out = model.compiled(), np.zeros(1, "f4")
    predict(net, X[:1], out)
    assert out[0] == model.predict(X[:1])[0, 0]

    @numba.njit
    def step(net, x, y):
        return net.step(x, y)

    assert step(net, X[0], y[0]) == model.step(X[:1], y[:1])
    assert step(net, X, y[:, 0].astype("f8")) == model.step(X, y)


def test_the_model_takes_what_the_handle_has_learnt_and_fits_on():
    model, other = (MLP([4, 8, 1], "tanh", seed=1) for _ in range(2))
    X, y = sample(model)
    optimizer, losses = Adam(1e-2), np.zeros(len(BATCHES))
    with model.compiled(optimizer=optimizer) as net:
        train(net, X, y, starts(), losses)
        assert model._state.steps == 0
    for first, last in zip(starts(), starts()[1:], strict=False):
        other.step(X[first:last], y[first:last], optimizer)
    for each in (model, other):
        each.fit(X, y, epochs=2, optimizer=optimizer)
    assert model.parameters.tobytes() == other.parameters.tobytes()
    assert model._state.steps == other._state.steps
    # The handle goes on from there as well.
    net.pull()
    train(net, X, y, starts(), losses)
    net.push()
    for first, last in zip(starts(), starts()[1:], strict=False):
        other.step(X[first:last], y[first:last], optimizer)
    assert model.parameters.tobytes() == other.parameters.tobytes()


def test_another_rule_starts_afresh(caplog):
    model = MLP([4, 8, 1], "tanh", seed=1)
    X, y = sample(model, 7)
    model.step(X, y, "adam")
    twin = copy.deepcopy(model)
    with model.compiled(optimizer=SGD(0.1, momentum=0.9)) as net:
        assert net.steps == 0
        train(net, X, y, np.array([0, 7]), np.zeros(1))
    assert "momentum takes over from adam" in caplog.text
    twin.step(X, y, SGD(0.1, momentum=0.9))
    assert model.parameters.tobytes() == twin.parameters.tobytes()
    assert model._state.steps == 1


def test_a_changed_model_is_not_overwritten_unless_asked():
    model = MLP([4, 8, 1], seed=1)
    X, y = sample(model, 7)
    net = model.compiled()
    model.step(X, y)
    changed = model.parameters.copy()
    net.push()
    assert model.parameters.tobytes() == changed.tobytes(), "nothing was learnt"
    net.step(X, y)
    net.step(X, y)
    with pytest.raises(CallOrderError, match="push: got a model that has changed"):
        net.push()
    assert model.parameters.tobytes() == changed.tobytes()
    net.push(overwrite=True)
    assert model.parameters.tobytes() != changed.tobytes()
    assert model._state.steps == 2


def test_a_fit_keeps_the_handle_out():
    model = MLP([4, 8, 1], seed=1)
    X, y = sample(model, 7)
    net = model.compiled()
    net.step(X, y)
    refused = []

    def callback(event):
        try:
            net.push()
        except BusyError as error:
            refused.append(error)

    model.fit(X, y, epochs=1, callbacks=callback)
    assert len(refused) == 1


@pytest.mark.parametrize(
    "optimizer", [Adam(1e-2), AdamW(1e-2, beta2=0.9), RMSprop(), SGD(0.1, momentum=0.5)], ids=str
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_numbers_that_last_are_those_of_every_later_step(optimizer, dtype):
    problem = MLP([4, 8, 1], dtype=dtype).template
    for first in (1, 1000, 60_000):
        table, lasting = numbers_of_steps(optimizer, problem, first, None, 0)
        assert lasting
        later = optimizer.hyper(first, len(table) + 3000, dtype)
        assert table.tobytes() == later[: len(table)].tobytes()
        assert (later[len(table) :] == table[-1]).all()


def test_steps_beyond_the_table_of_a_constant_rate_go_on():
    model, optimizer = MLP([4, 8, 1], seed=1), Adam(1e-3, beta1=0.5, beta2=0.6)
    X, y = sample(model, 7)
    net = model.compiled(optimizer=optimizer)
    for _ in range(200):
        assert net.step(X, y) == model.step(X, y, optimizer)
    assert net.steps == 200


@pytest.mark.parametrize("cause", ["schedule", "dropout", "slow"])
def test_numbers_that_change_for_ever_need_a_number_of_steps(cause):
    optimizer = Adam(CosineDecay(0.1, steps=5)) if cause == "schedule" else Adam()
    optimizer = Adam(beta2=0.99999) if cause == "slow" else optimizer
    model = MLP([4, 8, 1], dropout=0.1 if cause == "dropout" else 0.0, seed=1)
    X, y = sample(model, 7)
    with pytest.raises(DomainError, match="max_steps: got None with"):
        model.compiled(optimizer=optimizer)
    net = model.compiled(optimizer=optimizer, max_steps=3)
    for _ in range(3):
        assert net.step(X, y) == model.step(X, y, optimizer)
    before = np.zeros(net.parameter_count, "f4")
    net.get_parameters(before)
    with pytest.raises(DomainError, match="step: got more steps than"):
        net.step(X, y)
    with pytest.raises(ValueError, match="got more steps than"):
        train(net, X, y, np.array([0, 7]), np.zeros(1))
    net.push(overwrite=True)
    assert model._state.steps == 3
    assert model.parameters.tobytes() == before.tobytes()


def test_threads_with_handles_of_their_own_have_the_same_bits():
    model = MLP([6, 33, 33, 2], "tanh", seed=1)
    X, y = sample(model)
    reference = model.compiled(optimizer="adam")
    nets = [model.compiled(optimizer="adam") for _ in range(4)]
    losses = np.zeros((5, len(BATCHES)))

    def work(net, losses):
        for _ in range(50):
            train(net, X, y, starts(), losses)

    threads = [threading.Thread(target=work, args=each) for each in zip(nets, losses, strict=False)]
    for each in threads:
        each.start()
    work(reference, losses[4])
    for each in threads:
        each.join()
    found = np.zeros((5, reference.parameter_count), "f4")
    for net, out in zip((*nets, reference), found, strict=True):
        net.get_parameters(out)
    assert (found == found[4]).all()
    assert (losses == losses[4]).all()


@numba.njit(nogil=True)
def count_refusals(net, X, y, out, turns):
    refused = 0
    for _ in range(turns):
        try:
            net.step(X, y)
        except Exception:
            refused += 1
        try:
            net.predict(X, out)
        except Exception:
            refused += 1
    return refused


def test_two_threads_with_one_handle_get_an_error_and_no_step_is_torn():
    model = MLP([6, 33, 33, 2], "tanh", seed=1)
    X, y = sample(model, 32)
    net, turns = model.compiled(optimizer=SGD(1e-3)), 2000
    outs, refused = np.zeros((3, 32, 2), "f4"), []
    count_refusals(net, X, y, outs[0], 0)

    def work(out):
        refused.append(count_refusals(net, X, y, out, turns))

    threads = [threading.Thread(target=work, args=(out,)) for out in outs]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    # As many steps as were taken, whoever took them, give the same parameters.
    taken = net.steps
    assert 0 < taken <= 3 * turns
    for _ in range(taken):
        model.step(X, y, SGD(1e-3))
    found = np.zeros(net.parameter_count, "f4")
    net.get_parameters(found)
    assert found.tobytes() == model.parameters.tobytes()


def test_a_busy_handle_refuses_every_call():
    model = MLP([4, 8, 1], dtype="float64", seed=1)
    X, y = sample(model, 7)
    net, gradient, out = model.compiled(), np.zeros(model.parameters.size), np.full((7, 1), 5.0)
    net.step(X, y)
    predict(net, X, out)
    function, integrand = net.c_function, net.integrand
    out[:] = 5.0
    net._record["busy"] = 1
    calls = (
        lambda: net.predict(X, out),
        lambda: net.forward(X, out),
        lambda: net.backward(out, gradient),
        lambda: net.value_and_grad(X, y, gradient),
        lambda: net.step(X, y),
        lambda: net.apply(gradient),
        lambda: net.set_parameters(gradient),
        lambda: net.get_parameters(gradient),
        lambda: net.steps,
        net.push,
        net.pull,
        lambda: net.learning_rate,
        lambda: setattr(net, "learning_rate", 0.5),
    )
    for call in calls:
        with pytest.raises(BusyError, match="another thread"):
            call()
    compiled = (
        lambda: predict(net, X, out),
        lambda: train(net, X, y, np.array([0, 7]), np.zeros(1)),
        lambda: gradient_of(net, X, y, gradient),
        lambda: step_by_hand(net, X, out, out, gradient, X),
        lambda: parameters_of(net, gradient),
    )
    for call in compiled:
        with pytest.raises(RuntimeError, match="another thread"):
            call()
    pointer = ctypes.POINTER(ctypes.c_double)
    places = X.ctypes.data_as(pointer), out.ctypes.data_as(pointer)
    assert function(*places) == 1
    assert np.isnan(integrand(4, places[0]))
    assert (out == 5.0).all() and not gradient.any()
    net._record["busy"] = 0
    assert [each.place for each in net._numbers] == [net._record["numbers"].item()]
    assert function(*places) == 0
    model.step(X, y)
    assert net.step(X, y) == model.step(X, y), "with the rates from before the pull"


WRONG = {
    "columns of X": lambda net, X, y, out, flat: net.predict(X[:, :3].copy(), out),
    "rows of out": lambda net, X, y, out, flat: net.predict(X, out[:5]),
    "columns of out": lambda net, X, y, out, flat: net.predict(X, np.zeros((7, 2), "f4")),
    "a vector for rows": lambda net, X, y, out, flat: net.predict(X[:, 0].copy(), out),
    "gaps in X": lambda net, X, y, out, flat: net.predict(np.zeros((7, 8), "f4")[:, ::2], out),
    "gaps in out": lambda net, X, y, out, flat: net.predict(X, np.zeros((7, 3), "f4")[:, 1:2]),
    "too many rows": lambda net, X, y, out, flat: net.step(
        np.zeros((33, 4), "f4"), np.zeros((33, 1))
    ),
    "no rows": lambda net, X, y, out, flat: net.step(X[:0], y[:0]),
    "rows of y": lambda net, X, y, out, flat: net.step(X, y[:5]),
    "columns of y": lambda net, X, y, out, flat: net.step(X, np.zeros((7, 2), "f4")),
    "weights": lambda net, X, y, out, flat: net.step(X, y, np.ones(6)),
    "gradient": lambda net, X, y, out, flat: net.value_and_grad(X, y, flat[1:]),
    "gradient of apply": lambda net, X, y, out, flat: net.apply(flat[1:]),
    "parameters": lambda net, X, y, out, flat: net.get_parameters(flat[1:]),
    "values": lambda net, X, y, out, flat: net.set_parameters(flat[1:]),
    "rows of dyhat": lambda net, X, y, out, flat: net.backward(out[:5], flat),
    "columns of dyhat": lambda net, X, y, out, flat: net.backward(np.zeros((7, 2), "f4"), flat),
    "dX": lambda net, X, y, out, flat: net.backward(out, flat, np.zeros((7, 3), "f4")),
    "forward before backward": lambda net, X, y, out, flat: net.backward(out, flat),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_shape_is_refused_and_nothing_is_written(name):
    model = MLP([4, 8, 1], seed=1)
    X, y = sample(model, 7)
    net, flat, out = model.compiled(), np.zeros(model.parameters.size, "f4"), np.zeros((7, 1), "f4")
    for call in (WRONG[name], numba.njit(WRONG[name])):
        with pytest.raises((ValueError, CallOrderError)):
            call(net, X, y, out, flat)
    assert not flat.any() and not out.any()
    net.predict(X, out)
    assert out.tobytes() == model.predict(X).tobytes(), "the handle is free and as it was"


def test_any_other_call_ends_a_forward_pass():
    model = MLP([4, 8, 1], seed=1)
    X, y = sample(model, 7)
    net, flat, out = model.compiled(), np.zeros(model.parameters.size, "f4"), np.zeros((7, 1), "f4")
    for call in (
        lambda: net.predict(X, out),
        lambda: net.predict(X[0], out[0]),
        lambda: net.step(X, y),
        lambda: net.value_and_grad(X, y, flat),
        lambda: net.apply(flat),
        lambda: net.set_parameters(flat),
        net.pull,
    ):
        net.forward(X, out)
        call()
        with pytest.raises(CallOrderError, match="forward"):
            net.backward(out, flat)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda net, X, out: net.predict(X.astype(np.float64), out),
        lambda net, X, out: net.predict(X, 1),
        lambda net, X, out: net.step(X, None),
        lambda net, X, out: net.get_parameters(out),
    ],
    ids=["dtype", "a number", "no targets", "a matrix"],
)
def test_a_wrong_type_is_refused_where_it_is_compiled(wrong):
    net, X, out = MLP([4, 8, 1]).compiled(), np.zeros((7, 4), "f4"), np.zeros((7, 1), "f4")
    with pytest.raises(TypingError, match="wanted (an array of|numbers)"):
        numba.njit(wrong)(net, X, out)


def test_nothing_is_written_to_a_read_only_array():
    net, X, out = MLP([4, 8, 1]).compiled(), np.zeros((7, 4), "f4"), np.zeros((7, 1), "f4")
    out.flags.writeable = X.flags.writeable = False
    with pytest.raises(TypingError, match="that can be written to"):
        predict(net, X, out)
    with pytest.raises(DTypeError, match="read-only"):
        net.predict(X, out)
    predict(net, X, np.zeros((7, 1), "f4"))


@pytest.mark.parametrize("label", [-1, 5, 2**62, 1.5, np.nan], ids=str)
def test_a_label_of_no_class_is_refused(label):
    model = MLP([6, 9, 5], "tanh", "softmax_cross_entropy", seed=1)
    X, y = sample(model, 7, labels=True)
    y = y.astype(type(label))
    y[3] = label
    net, losses = model.compiled(), np.zeros(1)
    with pytest.raises(ValueError, match="label"):
        train(net, X, y, np.array([0, 7]), losses)
    with pytest.raises(ValueError):
        net.step(X, y)
    assert net.steps == 0


def test_a_step_that_is_not_finite_changes_nothing():
    model = MLP([4, 8, 1], seed=1)
    X, y = sample(model, 7)
    net, flat = model.compiled(optimizer="adam"), np.zeros(model.parameters.size, "f4")
    y[3] = np.inf
    with pytest.raises(DomainError, match="y: got"):
        net.step(X, y)
    with pytest.raises(FloatingPointError, match="got a loss or a gradient"):
        train(net, X, y, np.array([0, 7]), np.zeros(1))
    flat[5] = np.nan
    with pytest.raises(NonFiniteTrainingError, match="apply: got"):
        net.apply(flat)
    with pytest.raises(DomainError, match="values: got"):
        net.set_parameters(flat)
    net.get_parameters(flat)
    assert flat.tobytes() == model.parameters.tobytes()
    assert net.steps == 0


def test_parameters_that_are_not_finite_do_not_reach_the_model():
    model = MLP([4, 8, 1], seed=1)
    X, y = sample(model, 7)
    before = model.parameters.copy()
    net = model.compiled(optimizer=SGD(3e38))
    net.step(X, y + 1e3)
    with pytest.raises(NonFiniteTrainingError, match="push: got parameters"):
        net.push()
    assert model.parameters.tobytes() == before.tobytes()


def test_a_handle_outlives_its_model():
    model = MLP([4, 8, 1], seed=1)
    X, y = sample(model, 7)
    wanted, net, gone = model.predict(X), model.compiled(), weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    out = np.zeros((7, 1), "f4")
    predict(net, X, out)
    assert out.tobytes() == wanted.tobytes()
    net.step(X, y)
    net.push()


def test_a_function_in_c_keeps_its_handle():
    model = MLP([4, 8, 2], "tanh", seed=1)
    X, _ = sample(model, 7)
    net = model.compiled()
    function, gone = net.c_function, weakref.ref(net)
    assert ctypes.cast(function, ctypes.c_void_p).value == net.address
    del net
    gc.collect()
    assert gone() is not None
    out, pointer = np.zeros((7, 2), "f4"), ctypes.POINTER(ctypes.c_float)
    for x, into in zip(X, out, strict=True):
        assert function(x.ctypes.data_as(pointer), into.ctypes.data_as(pointer)) == 0
    assert out.tobytes() == model.predict(X).tobytes()
    del function
    gc.collect()
    assert gone() is None


def test_compiled_functions_call_the_address_as_well():
    model = MLP([4, 8, 2], "tanh", seed=1)
    X, _ = sample(model, 7)
    signature = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    net = model.compiled()
    function = signature(net.address)

    @numba.njit
    def call(X, out):
        for k in range(len(X)):
            function(X[k].ctypes, out[k].ctypes)

    out = np.zeros((7, 2), "f4")
    call(X, out)
    assert out.tobytes() == model.predict(X).tobytes()


def test_scipy_integrates_a_network():
    integrate = pytest.importorskip("scipy.integrate")
    scipy = pytest.importorskip("scipy")
    line = MLP([1, 8, 1], "tanh", dtype="float64", seed=1)
    found, _ = integrate.quad(scipy.LowLevelCallable(line.compiled().integrand), -1, 1)
    wanted, _ = integrate.quad(lambda x: line.predict([[x]])[0, 0], -1, 1)
    assert found == wanted
    plane = MLP([2, 8, 1], "tanh", dtype="float64", seed=1)
    area = [[-1, 1], [0, 2]]
    found, _ = integrate.nquad(scipy.LowLevelCallable(plane.compiled().integrand), area)
    x, weights = np.polynomial.legendre.leggauss(40)
    points = np.stack(np.meshgrid(x, x + 1, indexing="ij"), -1).reshape(-1, 2)
    wanted = np.outer(weights, weights).ravel() @ plane.predict(points)[:, 0]
    assert abs(found - wanted) < 1e-9


def test_scipy_solves_the_equation_of_a_network():
    integrate = pytest.importorskip("scipy.integrate")
    model = MLP([2, 8, 2], "tanh", dtype="float64", seed=1)
    net = model.compiled()

    @numba.njit
    def slope(t, u, net):
        out = np.empty(2)
        net.predict(u, out)
        return out

    begin = np.array([1.0, 0.0])
    options = {"t_span": (0, 2), "y0": begin, "rtol": 1e-8}
    found = integrate.solve_ivp(lambda t, u: slope(t, u, net), **options)
    wanted = integrate.solve_ivp(lambda t, u: model.predict(u[None])[0], **options)
    assert found.y.tobytes() == wanted.y.tobytes()


def test_an_integrand_is_a_number_in_float64():
    with pytest.raises(DTypeError, match="integrand: got a network in float32"):
        _ = MLP([1, 8, 1]).compiled().integrand
    with pytest.raises(ShapeError, match="integrand: got 2 outputs"):
        _ = MLP([1, 8, 2], dtype="float64").compiled().integrand


def test_a_handle_is_not_copied():
    net = MLP([4, 8, 1]).compiled()
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(DTypeError, match="pickle: got a compiled handle"):
            attempt(net)


def test_one_compilation_serves_networks_of_all_shapes():
    nets = [MLP(sizes).compiled() for sizes in ([4, 8, 1], [70, 40, 3])]
    for net in nets:
        predict(net, np.zeros((3, net.inputs), "f4"), np.zeros((3, net.outputs), "f4"))
    assert len({numba.typeof(net) for net in nets}) == 1
    assert numba.typeof(nets[0]) != numba.typeof(MLP([4, 1], dtype="float64").compiled())
    sizes = numba.njit(lambda net: (net.inputs, net.outputs, net.parameter_count))(nets[1])
    assert sizes == (70, 3, MLP([70, 40, 3]).parameters.size)


def test_nothing_is_allocated():
    model = MLP([6, 33, 5], "tanh", "softmax_cross_entropy", seed=1)
    X, y = sample(model, labels=True)
    net, losses, weights = model.compiled(optimizer="adam"), np.zeros(len(BATCHES)), np.ones(len(X))
    out, flat = np.zeros((len(X), 5), "f4"), np.zeros(model.parameters.size, "f4")
    bounds = starts()

    def work():
        train(net, X, y, bounds, losses)
        train_weighted(net, X, y, weights, bounds, losses)
        predict(net, X, out)
        predict_rows(net, X, out)
        gradient_of(net, X[:9], y[:9], flat)
        step_by_hand(net, X[:9], out[:9], out[:9], flat, X[:9])

    work()
    _nrt_python.memsys_enable_stats()
    try:
        before = rtsys.get_allocation_stats()
        work()
        # Numba makes a word for each array that Python gives to a function: 4 + 5 + 2 + 2 + 3 + 5.
        assert rtsys.get_allocation_stats().alloc - before.alloc == 21
    finally:
        _nrt_python.memsys_disable_stats()
    for function in (train, train_weighted, predict, predict_rows, gradient_of, step_by_hand):
        for signature in function.signatures:
            code = function.inspect_llvm(signature)
            name = function.overloads[signature].fndesc.llvm_func_name
            body = code[code.index(f"@{name}(") :].split("\n}\n")[0]
            assert " @Py" not in body and "@NRT_Allocate" not in body


def test_a_call_needs_no_interpreter():
    model = MLP([4, 8, 1], "tanh", seed=1)
    X, y = sample(model, 7)
    net = model.compiled(optimizer="adam")
    count = np.zeros(1, np.int64)

    @numba.njit(nogil=True)
    def loop(net, X, y, count, stop):
        while stop[0] == 0:
            net.step(X, y)
            count[0] += 1

    stop = np.ones(1, np.int64)
    loop(net, X, y, count, stop)
    stop[0] = 0
    other = threading.Thread(target=loop, args=(net, X, y, count, stop))
    other.start()
    while not count[0]:
        time.sleep(0.001)
    # A function of ctypes that does not let go of the interpreter's lock.
    before = count[0]
    ctypes.PyDLL(None).usleep(300_000)
    steps = count[0] - before
    stop[0] = 1
    other.join()
    assert steps > 100


CACHED = """
import sys
import numba, numpy as np
from fastmlp import MLP

@numba.njit(cache=True)
def use(net, X, y, out):
    net.predict(X, out)
    return net.step(X, y)

model = MLP([4, 8, 1], "tanh", seed=1)
X, y = np.ones((7, 4), "f4"), np.ones((7, 1), "f4")
out = np.zeros((7, 1), "f4")
wanted = model.predict(X)
loss = use(model.compiled(optimizer="adam"), X, y, out)
assert (out == wanted).all() and loss == model.step(X, y, "adam")
print(sum(use.stats.cache_hits.values()))
"""


def test_a_users_function_is_cached_on_disk(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(CACHED)
    hits = [
        subprocess.run(
            [sys.executable, str(script)],
            env={"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": "", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for _ in range(2)
    ]
    assert hits == ["0", "1"]


def test_wrong_arguments_are_named():
    model = MLP([4, 8, 1])
    with pytest.raises(DomainError, match="labels: got True with half_squared_error"):
        model.compiled(labels=True)
    for name in ("batch_size", "max_steps"):
        for wrong in (0, -1, 2**70):
            with pytest.raises(DomainError, match=f"{name}: got {wrong}"):
                model.compiled(**{name: wrong})
        with pytest.raises(DTypeError, match=f"{name}: got 1.5"):
            model.compiled(**{name: 1.5})
    with pytest.raises(ShapeError, match="layer_rates: got 1, wanted 2"):
        model.compiled(optimizer=Adam(layer_rates=[1]))
