"""Callbacks, early stopping, and fits that go on where they stopped."""

import copy
import itertools
import pickle
import time

import numpy as np
import pytest

from fastmlp import MLP, SGD, Adam, CSVLogger, EarlyStopping, EpochEnd, WeightAverage
from fastmlp.callbacks import Patience
from fastmlp.errors import DomainError, DTypeError, UnknownNameError
from fastmlp.metrics import METRICS, monitors
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
    for name in ("loss", "penalty", "validation_loss", "validation_score", "epoch_seconds"):
        seen = [getattr(event, name) for event in events]
        expected = getattr(history, name.removeprefix("epoch_"))
        assert seen == expected.tolist() and len(set(seen)) == 3, name
    expected = [0.01 * 0.5 ** (step / 3) for step in (2, 5, 8)]
    assert [event.learning_rate for event in events] == pytest.approx(expected)
    assert history.learning_rate.tolist() == [event.learning_rate for event in events]


def test_the_seconds_of_an_event_are_those_since_the_fit_began():
    events = []

    def slowly(event):
        events.append(event)
        time.sleep(0.01)

    began = time.perf_counter()
    fresh().fit(X, Y, epochs=4, batch_size=20, callbacks=slowly)
    spent = time.perf_counter() - began
    seconds = [event.seconds for event in events]
    # Each holds the callbacks before it, and the last one nearly the whole fit.
    assert all(later - before >= 0.01 for before, later in itertools.pairwise(seconds))
    assert 0.03 <= seconds[-1] <= spent
    assert all(0 < event.epoch_seconds < event.seconds for event in events)


def test_a_limit_of_time_stops_a_fit_as_it_reads():
    slow = [lambda event: time.sleep(0.02), lambda event: event.seconds > 0.05]
    # No epoch of this network takes as long.
    assert len(fresh().fit(X, Y, epochs=500, batch_size=60, callbacks=slow)) <= 4


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


def stopping_by_hand(values, patience, tolerance, relative=False):
    """Return the epoch after which to stop, and the best one, counted from 1."""
    best, best_epoch, waited = np.inf, 0, 0
    for epoch, value in enumerate(values, start=1):
        margin = tolerance * abs(best) if relative and epoch > 1 else tolerance
        waited = 0 if value < best - margin else waited + 1
        if value < best:
            best, best_epoch = value, epoch
        if waited >= patience:
            return epoch, best_epoch
    return len(values), best_epoch


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("monitor", [None, "loss", "validation_score"])
@pytest.mark.parametrize(("patience", "tolerance"), [(1, 0.0), (3, 1e-3), (2, 0.5)])
def test_early_stopping_by_hand(monitor, patience, tolerance, relative):
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
    last, best = stopping_by_hand(watched, patience, tolerance, relative)
    rule = EarlyStopping(patience, tolerance, monitor, relative=relative)
    model = fresh()
    history = model.fit(X, Y, epochs=40, early_stopping=rule, **arguments)
    assert (len(history), history.best_epoch) == (last, best)
    assert np.array_equal(model.parameters, parameters[best - 1])
    kept = fresh()
    rule = EarlyStopping(patience, tolerance, monitor, restore_best=False, relative=relative)
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


def test_early_stopping_does_not_depend_on_the_scale_of_the_loss():
    """An absolute tolerance ends a fit at once whose losses are of the order of 1e-8."""
    lengths = []
    for scale in (1.0, 2.0**-14):
        model = MLP([5, 1], ["identity"], dtype="float64")
        model.parameters = scale * model.parameters
        arguments = {"epochs": 300, "batch_size": 60, "optimizer": SGD(0.05)}
        lengths.append(len(model.fit(X, scale * Y, early_stopping=True, **arguments)))
    assert lengths[0] == lengths[1] and 20 < lengths[0] < 300


def observed(rule, values):
    """Return how often each value was waited on: 0 where it counted as an improvement."""
    patience, found = Patience(rule, monitors(["validation"], [METRICS["r2"]])), []
    for epoch, value in enumerate(values, start=1):
        patience.observe(epoch, value, None)
        found.append(patience.waited)
    return found, patience.best_epoch


@pytest.mark.parametrize(
    ("scores", "waited", "best"),
    [
        # Negative scores, such as the R2 of a network that has learnt nothing yet.
        ([-2.0, -1.9, -1.6, -1.5], [0, 1, 0, 1], 4),
        # From 0 and through it: every improvement counts.
        ([0.0, 1e-12, 1e-9], [0, 0, 0], 3),
        ([-1.0, 0.0, 1e-12], [0, 0, 0], 3),
        # What is not finite improves nothing, and anything finite on it.
        ([float("nan"), -float("inf"), -5.0, float("nan"), -4.0], [1, 2, 0, 1, 0], 5),
    ],
)
def test_what_counts_as_an_improvement(scores, waited, best):
    rule = EarlyStopping(100, 0.1, "validation_score", restore_best=False)
    assert observed(rule, scores) == (waited, best)


BAD = [
    ({"callbacks": 3}, DTypeError, "callbacks: got 3"),
    ({"callbacks": [3]}, DTypeError, "callbacks: got 3"),
    ({"callbacks": EarlyStopping()}, DTypeError, "is given as early_stopping="),
    ({"callbacks": EarlyStopping}, DTypeError, "the class .* is given as early_stopping="),
    ({"callbacks": [CSVLogger]}, DTypeError, "got the class CSVLogger, .* call it: CSVLogger"),
    ({"callbacks": WeightAverage}, DTypeError, "got the class WeightAverage, wanted an object"),
    ({"callbacks": type("Own", (WeightAverage,), {})}, DTypeError, "got the class Own"),
    ({"resume": ""}, DomainError, "resume: got '', wanted the path of a file"),
    ({"resume": "."}, DomainError, "resume: got '.', wanted the path of a file"),
    ({"early_stopping": EarlyStopping}, DTypeError, "got the class EarlyStopping"),
    ({"early_stopping": 5}, DTypeError, "early_stopping: got 5"),
    (
        {"early_stopping": EarlyStopping(monitor="validation_loss")},
        DomainError,
        "monitor: got 'validation_loss' without validation_data",
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
    with pytest.raises(DomainError, match="tolerance: got nan"):
        EarlyStopping(tolerance=float("nan"))
    with pytest.raises(DTypeError, match="tolerance: got '1e-4'"):
        EarlyStopping(tolerance="1e-4")
    with pytest.raises(DTypeError, match="restore_best: got 'yes'"):
        EarlyStopping(restore_best="yes")
    with pytest.raises(DTypeError, match="relative: got 1"):
        EarlyStopping(relative=1)
    assert EarlyStopping(monitor="val_loss").monitor == "validation_loss"
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
