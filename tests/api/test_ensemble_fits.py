"""Fits of an ensemble: each network stops, is weighted and is told of as it would be alone."""

import csv
import threading

import numpy as np
import pytest

from fastmlp import MLP, SGD, Adam, AdamW, EarlyStopping, Ensemble, History
from fastmlp.data import shuffling as orders
from fastmlp.errors import DomainError, NonFiniteTrainingError, ShapeError
from fastmlp.optimizer_base import Optimizer
from fastmlp.schedules import ExponentialDecay
from tests.api.test_ensemble import assert_same_member
from tests.samples import epoch_order

RNG = np.random.default_rng(14)
# Not a multiple of the batch size: the last mini-batch is smaller.
X = RNG.normal(size=(70, 5)).astype(np.float32)
Y = np.sin(X[:, :1] * 2)
VALIDATION = (X[:20], Y[:20] + 0.3)
CHAIN = [5, 8, 1], "tanh"
COLUMNS = ("loss", "penalty", "learning_rate", "validation_loss", "validation_score")


def ensemble_of(members=5, **more):
    return Ensemble(CHAIN[0], members, CHAIN[1], seed=3, **more)


def alone(member, **more):
    return MLP(*CHAIN, seed=3 + member, **more)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("restore", [True, False])
@pytest.mark.parametrize("monitor", [None, "loss", "validation_score"])
def test_each_network_stops_where_it_would_alone(monitor, restore, threads):
    rule = EarlyStopping(2, 1e-3, monitor, restore_best=restore)
    given = {
        "epochs": 30,
        "batch_size": 16,
        "validation_data": VALIDATION,
        "early_stopping": rule,
        "l2": 0.05,
        "threads": threads,
    }
    # High rates: each network has its own way down, and they stop at different epochs.
    optimizers = [Adam(ExponentialDecay(rate, 0.99)) for rate in (0.3, 0.2, 0.25, 0.02, 0.4)]
    ensemble = ensemble_of()
    history = ensemble.fit(X, Y, optimizer=optimizers, **given)
    lengths = set()
    for member, optimizer in enumerate(optimizers):
        model = alone(member)
        model.fit(X, Y, optimizer=optimizer, **given)
        lengths.add(len(model.history))
        assert_same_member(ensemble, member, model)
        assert ensemble[member].history.best_epoch == model.history.best_epoch
        assert history.best_epoch[member] == model.history.best_epoch
        # And what it would be said to be after that is nothing.
        for name in COLUMNS:
            assert np.isnan(getattr(history, name)[len(model.history) :, member]).all(), name
        assert ensemble.epochs_trained[member] == len(model.history)
    assert len(lengths) > 2 and len(history) == max(lengths)
    # All go on together, each from where it is.
    ensemble.fit(X, Y, epochs=2, batch_size=16, optimizer=Adam(0.01))
    for member, optimizer in enumerate(optimizers):
        model = alone(member)
        model.fit(X, Y, optimizer=optimizer, **given)
        model.fit(X, Y, epochs=2, batch_size=16, optimizer=Adam(0.01))
        assert_same_member(ensemble, member, model)


@pytest.mark.parametrize("members", [1, 3])
def test_a_network_that_never_stops_goes_back_to_its_best(members):
    given = {"epochs": 6, "batch_size": 16, "optimizer": SGD(1.2), "early_stopping": True}
    ensemble, seen = ensemble_of(members), []
    ensemble.fit(X, Y, callbacks=lambda event: seen.append(event.model.parameters.copy()), **given)
    for member in range(members):
        best = ensemble.history.best_epoch[member]
        np.testing.assert_array_equal(ensemble.parameters[member], seen[best - 1][member])
        model = alone(member)
        model.fit(X, Y, **given)
        assert len(model.history) == 6 and model.history.best_epoch < 6
        assert_same_member(ensemble, member, model)


def test_callbacks_stop_networks_one_by_one():
    events, seen = [], []

    def stop(event):
        seen.append(event.model.parameters.copy())
        return np.array([event.epoch == 2, False, event.epoch == 4])

    ensemble = ensemble_of(3)
    given = {"batch_size": 16, "optimizer": SGD(0.1)}
    history = ensemble.fit(X, Y, epochs=6, callbacks=[events.append, stop], l2=0.1, **given)
    assert history.best_epoch is None and [event.epoch for event in events] == [1, 2, 3, 4, 5, 6]
    assert all(event.model is ensemble for event in events)
    assert [event.step.tolist() for event in events[1:5]] == [
        [10, 10, 10],
        [10, 15, 15],
        [10, 20, 20],
        [10, 25, 20],
    ]
    for name in ("loss", "penalty", "learning_rate"):
        told = np.array([getattr(event, name) for event in events])
        np.testing.assert_array_equal(told, getattr(history, name))
        assert np.isnan(told).sum(axis=0).tolist() == [4, 0, 2]
    for member, epochs in enumerate((2, 6, 4)):
        model = alone(member)
        model.fit(X, Y, epochs=epochs, l2=0.1, **given)
        assert_same_member(ensemble, member, model)
        np.testing.assert_array_equal(seen[epochs - 1][member], model.parameters)


def test_an_answer_for_all_networks_stops_the_fit():
    for answer in (True, np.ones(3, bool), np.True_, "yes"):
        ensemble = ensemble_of(3)
        history = ensemble.fit(X, Y, epochs=5, callbacks=lambda event, answer=answer: answer)
        assert len(history) == 1 and ensemble.epochs_trained.tolist() == [1, 1, 1]
    for answer in (None, False, np.zeros(3, bool), 0):
        history = ensemble_of(3).fit(X, Y, epochs=2, callbacks=lambda event, answer=answer: answer)
        assert len(history) == 2
    with pytest.raises(ShapeError, match=r"callbacks: got an answer of shape \(2,\), wanted True"):
        ensemble_of(3).fit(X, Y, callbacks=lambda event: np.ones(2, bool))
    assert len(alone(0).fit(X, Y, epochs=5, callbacks=lambda event: np.array([True]))) == 1


def test_a_failure_leaves_those_that_had_stopped_as_they_are_alone():
    """They went back to their best parameters when they stopped, and not when all have."""
    rates = [SGD(3.0), SGD(0.01), SGD(lambda step: 0.01 if step < 40 else 1e38)]
    given = {"epochs": 30, "batch_size": 16, "early_stopping": EarlyStopping(1, 0.0)}
    ensemble, model = ensemble_of(3), alone(0)
    with pytest.raises(NonFiniteTrainingError, match="members 2;"):
        ensemble.fit(X, Y, optimizer=rates, **given)
    model.fit(X, Y, optimizer=rates[0], **given)
    assert model.history.best_epoch < len(model.history) < 8
    assert_same_member(ensemble, 0, model)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_rows_may_have_weights_of_their_own_for_each_network(reduction, l2):
    weights = RNG.uniform(0.1, 2, (3, 70))
    weights[1, ::3] = 0
    given = {"epochs": 3, "batch_size": 16, "l2": l2, "optimizer": SGD(0.005, weight_decay=0.1)}
    ensemble = ensemble_of(3, reduction=reduction)
    ensemble.fit(X, Y, sample_weight=weights, **given)
    for member in range(3):
        model = alone(member, reduction=reduction)
        model.fit(X, Y, sample_weight=weights[member], **given)
        assert_same_member(ensemble, member, model)


@pytest.mark.parametrize("optimizer", [SGD(0.05, weight_decay=0.2), AdamW(0.01, weight_decay=0.2)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_weights_of_one_change_no_penalty_and_no_decay(optimizer, reduction):
    given = {"epochs": 3, "batch_size": 16, "l2": 0.1, "optimizer": optimizer}
    for make in (ensemble_of, lambda **more: alone(0, **more)):
        plain, weighted = make(reduction=reduction), make(reduction=reduction)
        plain.fit(X, Y / 70, **given)
        weighted.fit(X, Y / 70, sample_weight=np.ones(70), **given)
        np.testing.assert_allclose(weighted.parameters, plain.parameters, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(weighted.history.penalty, plain.history.penalty, rtol=1e-5)


def test_weights_by_network_and_class():
    labels, chain = RNG.integers(0, 3, 70), ([5, 8, 3], "tanh", "softmax_cross_entropy")
    weights = RNG.uniform(0.1, 2, (2, 70))
    given = {"epochs": 2, "batch_size": 16, "class_weight": "balanced"}
    ensemble = Ensemble(chain[0], 2, *chain[1:])
    ensemble.fit(X, labels, sample_weight=weights, **given)
    for member in range(2):
        model = MLP(*chain, seed=member)
        model.fit(X, labels, sample_weight=weights[member], **given)
        assert_same_member(ensemble, member, model)


@pytest.mark.parametrize(
    ("weights", "error", "match"),
    [
        (np.ones((2, 70)), ShapeError, r"got shape \(2, 70\), wanted \(70,\).* or \(3, 70\)"),
        (np.ones((70, 3)), ShapeError, r"got shape \(70, 3\), wanted"),
        (np.array([np.ones(70), np.zeros(70), np.ones(70)]), DomainError, "got only zeros"),
        (np.full((3, 70), 1e37), DomainError, "weights that sum to 7e.38"),
        (-np.ones((3, 70)), DomainError, "got -1.0, wanted finite numbers >= 0"),
    ],
)
def test_bad_weights_of_networks_are_refused(weights, error, match):
    ensemble = ensemble_of(3)
    with pytest.raises(error, match=match):
        ensemble.fit(X, Y, sample_weight=weights)
    assert ensemble.history is None
    # A single network has one weight a row.
    with pytest.raises(ShapeError, match=r"wanted \(70,\), one for each row of X$"):
        alone(0).fit(X, Y, sample_weight=np.ones((1, 70)))


@pytest.mark.parametrize("members", [1, 3])
def test_layers_are_views_of_all_networks(members):
    ensemble = ensemble_of(members)
    assert ensemble.parameters.shape == (members, 57)
    assert [each.shape for each in ensemble.weights] == [(members, 5, 8), (members, 8, 1)]
    assert [each.shape for each in ensemble.biases] == [(members, 8), (members, 1)]
    for member in range(members):
        for ours, theirs in (("weights", "weights"), ("biases", "biases")):
            for layer, expected in zip(
                getattr(ensemble, ours), getattr(alone(member), theirs), strict=True
            ):
                np.testing.assert_array_equal(layer[member], expected)
    ensemble.weights[1][:] = 2
    ensemble.biases[0] = np.full((members, 8), 3)
    ensemble.biases[1] += 1
    assert (ensemble.parameters[:, -9:-1] == 2).all() and (ensemble.parameters[:, -1] == 1).all()
    assert (ensemble[members - 1].biases[0] == 3).all()
    ensemble.parameters *= 2
    assert (ensemble.weights[1] == 4).all()
    with pytest.raises(ShapeError, match=r"weights\[1\]: got shape \(8, 1\), wanted"):
        ensemble.weights[1] = np.ones((8, 1))
    facts = (ensemble.sizes, ensemble.activations, ensemble.loss_name, ensemble.reduction)
    assert facts == ((5, 8, 1), ("tanh", "identity"), "half_squared_error", "mean")


def test_an_ensemble_of_one_is_a_network_with_an_axis():
    ensemble, model = ensemble_of(1), alone(0)
    given = {"epochs": 2, "batch_size": 16, "validation_data": VALIDATION}
    for each in (ensemble, model):
        each.fit(X, Y, **given)
    assert_same_member(ensemble, 0, model)
    for name in COLUMNS:
        column = getattr(ensemble.history, name)
        assert column.shape == (2, 1)
        np.testing.assert_array_equal(column[:, 0], getattr(model.history, name))
    np.testing.assert_array_equal(ensemble.predict(X), model.predict(X)[None])
    assert ensemble.predict(X[:0]).shape == (1, 0, 1)
    found, expected = ensemble.evaluate(X, Y), model.evaluate(X, Y)
    assert (found.loss.tolist(), found.score.tolist()) == ([expected.loss], [expected.score])
    assert ensemble.epochs_trained.tolist() == [2]


def test_the_file_of_an_ensemble_has_a_line_for_each_epoch_of_each_network(tmp_path):
    stop = lambda event: np.array([event.epoch == 1, False])  # noqa: E731
    history = ensemble_of(2).fit(X, Y, epochs=3, validation_data=VALIDATION, callbacks=stop)
    history.to_csv(tmp_path / "history.csv")
    with (tmp_path / "history.csv").open() as file:
        lines = list(csv.DictReader(file))
    places = [(int(line["epoch"]), int(line["member"])) for line in lines]
    assert places == [(1, 0), (1, 1), (2, 1), (3, 1)]
    for line, (epoch, member) in zip(lines, places, strict=True):
        assert float(line["loss"]) == history.loss[epoch - 1, member]
        assert float(line["validation_r2"]) == history.validation_score[epoch - 1, member]
    assert "penalty" not in lines[0]
    assert "nan" not in history.line() and history.rows_per_second == pytest.approx(
        4 * 70 / history.seconds.sum()
    )
    assert history.member(0).seconds[0] == history.seconds[0] / 2
    assert history.member(1).seconds.tolist() == [history.seconds[0] / 2, *history.seconds[1:]]


def test_orders_are_drawn_beside_a_long_fit_of_one_network_too(monkeypatch):
    monkeypatch.setattr(orders, "ROWS_AHEAD", 150)
    names, model, plain = set(), alone(0), alone(0)

    def note(event):
        names.update(each.name for each in threading.enumerate() if "orders" in each.name)

    model.fit(X, Y, epochs=7, batch_size=16, threads=2, callbacks=note)
    plain.fit(X, Y, epochs=7, batch_size=16, threads=1)
    assert len(names) == 1 and model.parameters.tobytes() == plain.parameters.tobytes()
    assert not [each for each in threading.enumerate() if "orders" in each.name]


@pytest.mark.parametrize("startable", [0, 1])
def test_orders_are_drawn_without_threads_where_none_start(monkeypatch, startable):
    monkeypatch.setattr(orders, "ROWS_AHEAD", 70)
    drawn = orders.Orders([0, 1, 2], [4, 5, 6], 11, 9, shuffle=True, threads=3)
    start, started = threading.Thread.start, []

    def fail_later(thread):
        if len(started) >= startable:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_later)
    for epoch in range(9):
        found = drawn.next()
        for member in range(3):
            expected = epoch_order(member, 4 + member + epoch, 11)
            np.testing.assert_array_equal(found[member], expected)
    drawn.close()


def test_a_fit_that_may_stop_early_draws_few_orders_ahead(monkeypatch):
    drawn = []
    draw = orders.draw_orders
    monkeypatch.setattr(orders, "draw_orders", lambda *a: drawn.append(len(a[0])) or draw(*a))
    alone(0).fit(X, Y, epochs=10_000, callbacks=lambda event: event.epoch == 6, threads=1)
    assert drawn == [1, 2, 4]


def test_a_history_that_nobody_stopped_is_told_by_its_mean_and_range():
    history = History("cpu.fused", "cpu", "r2", 70, 3)
    history.record(np.array([1.0, np.nan, 3.0]), 1.0, np.zeros(3), np.zeros(3))
    losses, scores = np.array([2.0, np.nan, 4.0]), np.array([0.25, np.nan, 0.75])
    history.record_validation({("validation", "loss"): losses, ("validation", "r2"): scores})
    assert history.line() == (
        "loss 2 (1 to 3), validation loss 3 (2 to 4), validation r2 0.5000 (0.2500 to 0.7500)"
    )


def test_the_rate_of_each_network_is_asked_of_schedules_alone(monkeypatch):
    asked, rates = [], Optimizer.rates
    monkeypatch.setattr(Optimizer, "rates", lambda self, *a: asked.append(self) or rates(self, *a))
    optimizers = [SGD(0.01), SGD(ExponentialDecay(0.02, 0.9)), SGD(0.03)]
    history = ensemble_of(3).fit(X, Y, epochs=3, batch_size=70, optimizer=optimizers)
    np.testing.assert_allclose(history.learning_rate[:, 1], 0.02 * 0.9 ** np.arange(3))
    assert history.learning_rate[:, ::2].tolist() == 3 * [[0.01, 0.03]]
    # Those of the tables aside, one for each epoch.
    assert len(asked) == 3 + 3
