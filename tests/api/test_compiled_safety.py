"""Handles in unkind programs: shared by threads, interrupted, given odd arrays."""

import threading

import numba
import numpy as np
import pytest

import fastmlp.compiled
from fastmlp import MLP, SGD, Adam, BusyError, DomainError, DTypeError, ShapeError
from fastmlp.compiled import exchange


def data(model, rows=8):
    generator = np.random.default_rng(0)
    X = generator.normal(size=(rows, model.sizes[0])).astype("float32")
    return X, generator.normal(size=(rows, model.sizes[-1])).astype("float32")


def test_a_loss_is_that_of_the_thread_that_asked():
    model = MLP([4, 64, 1], seed=0)
    X, y = data(model)
    net, wrong, taken = model.compiled(optimizer=SGD(1e-30)), [], [0, 0]
    targets = y, y + 1000
    expected = [model.value_and_grad(X, each)[0] for each in targets]

    def ask(number):
        for _ in range(3000):
            try:
                loss = net.step(X, targets[number])
            except BusyError:
                continue
            taken[number] += 1
            if not np.isclose(loss, expected[number], rtol=1e-4):
                wrong.append(loss)

    threads = [threading.Thread(target=ask, args=(number,)) for number in (0, 1)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong and min(taken) > 10


class Interrupted(BaseException):
    pass


def interrupted_after(monkeypatch, name, call):
    """Call with an exception, as of a signal handler, right after something has been done."""
    done = getattr(fastmlp.compiled.CompiledMLP, name)

    def then_interrupted(self, *arguments):
        done(self, *arguments)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(fastmlp.compiled.CompiledMLP, name, then_interrupted)
        with pytest.raises(Interrupted):
            call()


def test_an_interrupted_pull_has_the_count_of_its_parameters(monkeypatch):
    model = MLP([4, 8, 1], seed=0)
    X, y = data(model)
    net = model.compiled(optimizer=Adam(1e-2))
    for _ in range(5):
        net.step(X, y)
    net.push()
    interrupted_after(monkeypatch, "_write", net.pull)
    assert net.steps == 5
    net.step(X, y)
    net.push()
    assert model._state.steps == 6


@pytest.mark.parametrize("place", [1, 2])
def test_a_push_after_an_interrupted_one_is_taken(monkeypatch, place):
    """The interrupt falls after the model was told, or after it was given the parameters."""
    model = MLP([4, 8, 1], seed=0)
    X, y = data(model)
    net, calls, real = model.compiled(optimizer=Adam(1e-2)), [], exchange.at_once
    net.step(X, y)

    def then_interrupted(*arguments):
        real(*arguments)
        calls.append(arguments)
        if len(calls) == place:
            raise Interrupted

    monkeypatch.setattr(exchange, "at_once", then_interrupted)
    with pytest.raises(Interrupted):
        net.push()
    net.push()
    held = np.empty_like(model.parameters)
    net.get_parameters(held)
    assert model.parameters.tobytes() == held.tobytes()
    assert model._state.steps == net.steps == 1


@numba.njit
def weighted_step(net, X, y, weights):
    return net.step(X, y, weights)


def test_weights_of_any_stride_are_those_of_their_rows():
    model = MLP([4, 8, 1], seed=0)
    X, y = data(model, 4)
    weights = np.arange(1.0, 9.0)[::-2]
    loss = weighted_step(model.compiled(), X, y, weights)
    assert loss == model.compiled().step(X, y, weights.copy())


def test_targets_are_refused_as_those_of_a_model_are():
    model = MLP([4, 8, 1], seed=0)
    X, y = data(model, 4)
    net = model.compiled()
    for wrong, error, text in [
        (np.ma.masked_equal([1.0, 2, 3, 99], 99), DomainError, "y: got 1 masked"),
        (np.full(4, 1e39), DomainError, "y: got"),
        ([[1], [1, 2], [3], [4]], ShapeError, "y: got"),
        (np.array(["a", "b", "c", "d"]), DTypeError, "y: got"),
    ]:
        with pytest.raises(error, match=text):
            net.step(X, wrong)
    with pytest.raises(DTypeError, match="x: got MaskedArray"):
        net.predict(np.ma.masked_less(X, 0), np.empty((4, 1), "float32"))
    assert net.steps == 0


@numba.njit
def get_parameters(net, out):
    net.get_parameters(out)


@numba.njit
def set_parameters(net, values):
    net.set_parameters(values)


@pytest.mark.parametrize(
    ("function", "name"), [(get_parameters, "out"), (set_parameters, "values")]
)
def test_a_wrong_length_names_its_argument(function, name):
    net = MLP([4, 8, 1], seed=0).compiled()
    with pytest.raises(ValueError, match=f"{name}: wanted a vector"):
        function(net, np.zeros(3, "float32"))
