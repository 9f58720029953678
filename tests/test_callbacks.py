"""Callbacks, early stopping, and fits that go on where they stopped."""

import copy
import pickle

import numpy as np
import pytest

from fastmlp import MLP, SGD, Adam, EarlyStopping, EpochEnd
from fastmlp.errors import DomainError, DTypeError, UnknownNameError
from fastmlp.schedules import ExponentialDecay

RNG = np.random.default_rng(4)
X = RNG.normal(size=(60, 5)).astype(np.float32)
Y = np.sin(X[:, :1])
VALIDATION = (X[:20], Y[:20] + 0.3)


def fresh(seed=1):
    return MLP([5, 8, 1], "tanh", seed=seed)


def test_a_callback_sees_each_epoch():
    events = []
    model = fresh()
    history = model.fit(
        X,
        Y,
        epochs=3,
        batch_size=20,
        optimizer=Adam(ExponentialDecay(0.01, 0.5, 3)),
        validation_data=VALIDATION,
        l2=0.1,
        callbacks=events.append,
    )
    assert [event.epoch for event in events] == [1, 2, 3]
    assert [event.step for event in events] == [3, 6, 9]
    assert all(isinstance(event, EpochEnd) and event.model is model for event in events)
    for name in ("loss", "penalty", "validation_loss", "validation_score", "seconds"):
        seen = [getattr(event, name) for event in events]
        assert seen == getattr(history, name).tolist() and len(set(seen)) == 3, name
    expected = [0.01 * 0.5 ** (step / 3) for step in (2, 5, 8)]
    assert [event.learning_rate for event in events] == pytest.approx(expected)
    assert history.learning_rate.tolist() == [event.learning_rate for event in events]


def test_a_callback_that_returns_true_stops_and_all_are_asked():
    calls = []
    stop = [lambda event: event.epoch == 2, lambda event: calls.append(event.epoch)]
    history = fresh().fit(X, Y, epochs=9, callbacks=stop)
    assert len(history) == 2 and calls == [1, 2] and history.best_epoch is None


def test_a_callback_may_use_the_model():
    scores = []
    model = fresh()
    model.fit(X, Y, epochs=2, callbacks=[lambda event: scores.append(event.model.evaluate(X, Y))])
    assert scores[-1] == model.evaluate(X, Y) and scores[0] != scores[1]


def test_an_error_in_a_callback_comes_through_and_leaves_the_epochs_before():
    def fail(event):
        if event.epoch == 2:
            raise KeyError("mine")

    model = fresh()
    with pytest.raises(KeyError, match="mine"):
        model.fit(X, Y, epochs=5, callbacks=fail)
    assert len(model.history) == 2 and model.epochs_trained == 2


def stopping_by_hand(values, patience, tolerance):
    """Return the epoch after which to stop, and the best one, counted from 1."""
    best, best_epoch, waited = np.inf, 0, 0
    for epoch, value in enumerate(values, start=1):
        waited = 0 if value < best - tolerance else waited + 1
        if value < best:
            best, best_epoch = value, epoch
        if waited >= patience:
            return epoch, best_epoch
    return len(values), best_epoch


@pytest.mark.parametrize("monitor", [None, "loss", "validation_score"])
@pytest.mark.parametrize(("patience", "tolerance"), [(1, 0.0), (3, 1e-3), (2, 0.5)])
def test_early_stopping_by_hand(monitor, patience, tolerance):
    arguments = {"batch_size": 20, "optimizer": SGD(0.3), "validation_data": VALIDATION}
    parameters = []
    whole = fresh().fit(
        X,
        Y,
        epochs=40,
        callbacks=lambda event: parameters.append(event.model.parameters.copy()),
        **arguments,
    )
    watched = {
        None: whole.validation_loss,
        "loss": whole.loss,
        "validation_score": -whole.validation_score,
    }[monitor]
    last, best = stopping_by_hand(watched, patience, tolerance)
    rule = EarlyStopping(patience, tolerance, monitor)
    model = fresh()
    history = model.fit(X, Y, epochs=40, early_stopping=rule, **arguments)
    assert (len(history), history.best_epoch) == (last, best)
    assert np.array_equal(model.parameters, parameters[best - 1])
    kept = fresh()
    rule = EarlyStopping(patience, tolerance, monitor, restore_best=False)
    kept.fit(X, Y, epochs=40, early_stopping=rule, **arguments)
    assert np.array_equal(kept.parameters, parameters[last - 1])


def test_early_stopping_watches_loss_and_penalty_together():
    """With a penalty that falls while the loss rises, what is minimised still improves."""
    model = fresh()
    model.parameters = np.zeros_like(model.parameters)
    model.weights[1][...] = 3.0
    rule = EarlyStopping(patience=2, tolerance=0.0, monitor="loss")
    arguments = {"epochs": 12, "batch_size": 60, "optimizer": SGD(0.05), "l2": 20.0}
    history = model.fit(X * 0, Y, early_stopping=rule, **arguments)
    total = history.loss + history.penalty
    assert len(history) == stopping_by_hand(total, 2, 0.0)[0]


BAD = [
    ({"callbacks": 3}, DTypeError, "callbacks: got 3"),
    ({"callbacks": [3]}, DTypeError, "callbacks: got 3"),
    ({"early_stopping": 5}, DTypeError, "early_stopping: got 5"),
    (
        {"early_stopping": EarlyStopping(monitor="validation_loss")},
        DomainError,
        "early_stopping: got monitor='validation_loss' without validation_data",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments_are_refused_before_anything_changes(arguments, error, message):
    model = fresh()
    before = model.parameters.copy()
    with pytest.raises(error, match=message):
        model.fit(X, Y, **arguments)
    assert np.array_equal(model.parameters, before) and model.history is None


def test_bad_settings_of_early_stopping():
    with pytest.raises(DomainError, match="patience: got 0"):
        EarlyStopping(patience=0)
    with pytest.raises(DomainError, match="tolerance: got -1"):
        EarlyStopping(tolerance=-1)
    with pytest.raises(UnknownNameError, match="did you mean 'loss'"):
        EarlyStopping(monitor="los")


COPIES = {
    "itself": lambda model: model,
    "a deep copy": copy.deepcopy,
    "unpickled": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("optimizer", [Adam(0.01), SGD(ExponentialDecay(0.1, 0.9), momentum=0.9)])
def test_a_fit_goes_on_where_one_stopped(optimizer, copied):
    """Stopped by a callback, copied, and resumed: the bits of a fit in one piece."""
    weights = RNG.uniform(0.5, 2, 60)
    arguments = {"batch_size": 16, "optimizer": optimizer, "sample_weight": weights, "l2": 0.01}
    whole, first = fresh(), fresh()
    whole.fit(X, Y, epochs=7, **arguments)
    first.fit(X, Y, epochs=7, callbacks=lambda event: event.epoch == 3, **arguments)
    second = copied(first)
    second.fit(X, Y, epochs=4, **arguments)
    assert second.parameters.tobytes() == whole.parameters.tobytes()
    assert second.epochs_trained == 7
