"""Networks side by side: each is, bit by bit, the network that it would be alone."""

import copy
import gc
import itertools
import json
import logging
import pickle
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

import fastmlp
from fastmlp import MLP, SGD, Adam, AdamW, Ensemble, RMSprop, schedules
from fastmlp.data import shuffling as orders
from fastmlp.device.machine import detect
from fastmlp.dispatch import planning
from fastmlp.errors import DomainError, DTypeError, NonFiniteTrainingError, ShapeError
from fastmlp.training import hyper_parameters
from fastmlp_kernels import cpu, reference
from fastmlp_kernels.algebra.optimizers import RULE_START
from fastmlp_kernels.cpu.members import SideBySideProgram
from fastmlp_kernels.cpu.program import FusedProgram
from fastmlp_kernels.cpu.team import Team
from fastmlp_kernels.problem import BATCHES, STATUS, STOP, Machine, Problem
from tests.machines import team
from tests.samples import Sample, epoch_order, poison, sample

RNG = np.random.default_rng(8)
# Not a multiple of the batch size: the last mini-batch is smaller.
X = RNG.normal(size=(70, 5)).astype(np.float32)
Y = np.sin(X[:, :2] * 2).astype(np.float32)
LABELS = RNG.integers(0, 3, 70)
ZEROS = np.where(RNG.random((70, 5)) < 0.8, 0, X).astype(np.float32)

TASKS = {
    "regression": (([5, 7, 2], "relu"), Y, SGD(0.1, momentum=0.9)),
    "binary": (
        ([5, 7, 2], ["silu", "sigmoid"], "binary_cross_entropy"),
        abs(Y),
        Adam(0.01, weight_decay=0.01),
    ),
    "labels": (([5, 20, 3], "gelu", "softmax_cross_entropy"), LABELS, AdamW(0.01)),
    "counts": (([5, 7, 3], ["tanh", "exp"], "poisson"), np.eye(3)[LABELS], RMSprop(0.01)),
    "one layer": (([5, 2], "relu", "huber"), Y, SGD(0.1)),
}


def ensemble_of(chain, members=3, **more):
    """Return an ensemble; `chain` is sizes, activations and a loss, as an MLP takes them."""
    return Ensemble(chain[0], members, *chain[1:], **more)


@pytest.fixture(params=[1, 2, 5], ids=lambda count: f"{count} threads")
def threads(request, monkeypatch):
    """Have programs use a number of threads, whatever they are predicted to cost."""
    monkeypatch.setattr(planning, "machine_with", lambda threads: team(request.param))
    return request.param


def assert_same_member(ensemble, member, model):
    """Check that a member of an ensemble is a model, with its state, bit by bit."""
    found = ensemble[member]
    np.testing.assert_array_equal(found.parameters, model.parameters)
    np.testing.assert_array_equal(found._state.slots, model._state.slots)
    for name in ("steps", "epochs", "rule", "seed"):
        assert getattr(found._state, name) == getattr(model._state, name), name
    if model.history is not None:
        for name in ("loss", "penalty", "learning_rate", "validation_loss", "validation_score"):
            expected = getattr(model.history, name)
            np.testing.assert_array_equal(getattr(found.history, name), expected, err_msg=name)
        assert len(found.history) == len(model.history)


def fit_both(chain, optimizer, members=3, inputs=X, y=Y, dtype="float32", reduction="mean", **more):
    """Train an ensemble, and each of its networks alone; check that they are the same."""
    ensemble = ensemble_of(chain, members, seed=4, dtype=dtype, reduction=reduction)
    ensemble.fit(inputs, y, optimizer=optimizer, **more)
    for member in range(members):
        own = optimizer[member] if isinstance(optimizer, list) else optimizer
        model = MLP(*chain, seed=4 + member, dtype=dtype, reduction=reduction)
        start = model.parameters.copy()
        model.fit(inputs, y, optimizer=own, **more)
        assert not np.array_equal(model.parameters, start)
        assert_same_member(ensemble, member, model)
    return ensemble


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("task", TASKS)
def test_members_are_the_networks_that_they_would_be_alone(threads, task, dtype):
    chain, y, optimizer = TASKS[task]
    validation = (X[:9], y[:9])
    ensemble = fit_both(
        chain, optimizer, y=y, dtype=dtype, epochs=3, batch_size=16, validation_data=validation
    )
    assert len({parameters.tobytes() for parameters in ensemble.parameters}) == 3


@pytest.mark.parametrize("reduction", ["mean", "sum", "batch_mean"])
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_weights_and_penalties_are_those_of_single_networks(threads, reduction, l2):
    weights = RNG.uniform(0.2, 2, 70)
    # A whole batch of some order may weigh nothing; most do not.
    weights[::5] = 0
    optimizers = [SGD(rate, weight_decay=0.01) for rate in (1e-3, 2e-3, 3e-3)]
    more = {"epochs": 3, "batch_size": 16, "l2": l2, "reduction": reduction}
    fit_both(TASKS["regression"][0], optimizers, sample_weight=weights, **more)
    found = fit_both(TASKS["regression"][0], optimizers, **more).history
    assert found.penalty.any() == bool(l2)
    labels = TASKS["labels"][0]
    fit_both(labels, AdamW(1e-3), y=LABELS, class_weight="balanced", sample_weight=weights, **more)


def test_a_penalty_beside_a_decay_of_the_rule_s_own():
    """The decays of SGD and of Adam belong to the gradient; that of AdamW does not."""
    for optimizer in (SGD(0.01, weight_decay=0.2), Adam(0.01, weight_decay=0.2), AdamW(0.01)):
        fit_both(TASKS["regression"][0], optimizer, epochs=2, batch_size=16, l2=0.3)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("members", [1, 2, 7])
def test_any_number_of_networks_in_any_order(threads, members, shuffle):
    chain, _, optimizer = TASKS["regression"]
    fit_both(chain, optimizer, members, epochs=2, batch_size=32, shuffle=shuffle)


def test_rates_and_schedules_of_each_network():
    optimizers = [
        Adam(0.01),
        Adam(schedules.ExponentialDecay(0.02, 0.9)),
        Adam(lambda step: 0.01 / (1 + step)),
        Adam(0.03, epsilon_hat=True),
    ]
    fit_both(TASKS["regression"][0], optimizers, 4, epochs=3, batch_size=16)


def test_zeros_are_skipped_as_one_network_skips_them(threads):
    chain = ([5, 64, 2], "tanh")
    problem = Problem((5, 64, 2), ("tanh", "identity"), "half_squared_error", members=2)
    program = SideBySideProgram(problem, team(2))
    arrays = np.zeros((2, problem.parameter_count), np.float32), np.zeros((2, 0, 0), np.float32)
    program.prepare(*arrays, ZEROS, Y)
    assert program.skips and {each.skips for each in program._programs} == {program.skips}
    fit_both(chain, SGD(0.1), inputs=ZEROS, epochs=2, batch_size=32)


def test_looking_ahead_changes_nothing(monkeypatch):
    """However many orders and hyper-parameters are made at once, beside the epochs or not."""
    chain = TASKS["regression"][0]
    optimizers = [Adam(0.01), Adam(0.02), Adam(schedules.CosineDecay(0.03, 40))]
    found = []
    for ahead in (1, 2 * 3 * 70, 10**6):
        monkeypatch.setattr(orders, "ROWS_AHEAD", ahead)
        monkeypatch.setattr(hyper_parameters, "FIRST_STEPS_AHEAD", ahead // 28)
        monkeypatch.setattr(hyper_parameters, "STEPS_AHEAD", ahead // 14)
        for threads in (1, 2):
            ensemble = ensemble_of(chain)
            more = {"epochs": 7, "batch_size": 16, "l2": 0.1, "threads": threads}
            ensemble.fit(X, Y, optimizer=optimizers, **more)
            found.append(ensemble.parameters.tobytes())
    assert len(set(found)) == 1
    model = MLP(*chain, seed=2)
    model.fit(X, Y, epochs=7, batch_size=16, l2=0.1, optimizer=optimizers[2])
    assert_same_member(ensemble, 2, model)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("ahead", [1, 100, 10**6])
def test_orders_are_those_of_each_network_s_seed_and_epoch(monkeypatch, threads, ahead):
    monkeypatch.setattr(orders, "ROWS_AHEAD", ahead)
    first, seeds = [0, 5, 2], (3, 4, 2**64 - 1)
    drawn = orders.Orders(seeds, first, 11, 7, shuffle=True, threads=threads)
    try:
        for epoch in range(7):
            found = drawn.next()
            drawers = {each.name for each in threading.enumerate() if "orders" in each.name}
            assert len(drawers) <= (min(threads, 3) if threads > 1 and ahead < 7 * 33 else 0)
            assert found.shape == (3, 11) and found.dtype == np.int64 and found.flags.c_contiguous
            for member, seed in enumerate(seeds):
                expected = epoch_order(seed, first[member] + epoch, 11)
                np.testing.assert_array_equal(found[member], expected)
    finally:
        drawn.close()
    still = orders.Orders((3, 4), first, 11, 6, shuffle=False, threads=threads)
    np.testing.assert_array_equal(still.next(), np.tile(np.arange(11), (2, 1)))
    assert still.next() is still.next()
    assert not [each for each in threading.enumerate() if "orders" in each.name]


def test_two_fits_are_one_longer_fit():
    chain, _, optimizer = TASKS["regression"]
    whole, halves = ensemble_of(chain), ensemble_of(chain)
    history = whole.fit(X, Y, epochs=6, batch_size=16, optimizer=optimizer)
    first = halves.fit(X, Y, epochs=2, batch_size=16, optimizer=optimizer)
    second = halves.fit(X, Y, epochs=4, batch_size=16, optimizer=optimizer)
    np.testing.assert_array_equal(whole.parameters, halves.parameters)
    np.testing.assert_array_equal(history.loss, np.concatenate([first.loss, second.loss]))
    assert whole.epochs_trained.tolist() == halves.epochs_trained.tolist() == [6, 6, 6]


def test_another_optimizer_starts_afresh(caplog):
    chain = TASKS["regression"][0]
    ensemble, model = ensemble_of(chain), MLP(*chain, seed=1)
    with caplog.at_level(logging.INFO, "fastmlp"):
        for optimizer in (Adam(0.01), SGD(0.1, momentum=0.9), SGD(0.05, momentum=0.9)):
            ensemble.fit(X, Y, epochs=2, optimizer=optimizer)
            model.fit(X, Y, epochs=2, optimizer=optimizer)
    assert "momentum takes over from adam with a fresh state" in caplog.text
    assert_same_member(ensemble, 1, model)


def test_a_member_is_a_copy_that_goes_on_alone():
    chain, _, optimizer = TASKS["regression"]
    ensemble, model = ensemble_of(chain, seed=7), MLP(*chain, seed=9)
    ensemble.fit(X, Y, epochs=2, optimizer=optimizer)
    before = ensemble.parameters.copy()
    found = ensemble[-1]
    found.fit(X, Y, epochs=2, optimizer=optimizer)
    model.fit(X, Y, epochs=4, optimizer=optimizer)
    np.testing.assert_array_equal(found.parameters, model.parameters)
    np.testing.assert_array_equal(ensemble.parameters, before)
    assert found.seed == 9 and repr(found) == repr(model)
    # And the ensemble goes on as if it had never been asked.
    ensemble.fit(X, Y, epochs=2, optimizer=optimizer)
    np.testing.assert_array_equal(ensemble.parameters[2], model.parameters)
    assert len(ensemble) == 3
    for each, parameters in zip(ensemble, ensemble.parameters, strict=True):
        assert isinstance(each, MLP)
        np.testing.assert_array_equal(each.parameters, parameters)
        assert not np.shares_memory(each.parameters, parameters)


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_an_ensemble_begins_as_its_networks_do(precision):
    more = {"dtype": "float32", "reduction": "sum", "precision": precision}
    ensemble = Ensemble([5, 6, 3], 3, "tanh", "huber", seed=11, initializer="he_normal", **more)
    for member, found in enumerate(ensemble):
        model = MLP([5, 6, 3], "tanh", "huber", seed=11 + member, initializer="he_normal", **more)
        np.testing.assert_array_equal(found.parameters, model.parameters)
        assert repr(found) == repr(model)
    assert ensemble.template == replace(model.template, members=3)


def test_copies_go_on_with_the_same_bits():
    chain, _, optimizer = TASKS["binary"]
    ensemble = ensemble_of(chain, seed=2)
    ensemble.threads = 2
    ensemble.fit(X, abs(Y), epochs=2, optimizer=optimizer)
    copies = [pickle.loads(pickle.dumps(ensemble)), copy.deepcopy(ensemble)]
    ensemble.fit(X, abs(Y), epochs=2, optimizer=optimizer)
    for each in copies:
        assert each.parameters.ctypes.data % 64 == 0 and each.threads == 2
        assert len(each.history) == 2 and repr(each) == repr(ensemble)
        each.fit(X, abs(Y), epochs=2, optimizer=optimizer)
        np.testing.assert_array_equal(each.parameters, ensemble.parameters)
        np.testing.assert_array_equal(each.predict(X), ensemble.predict(X))


def test_what_is_printed_makes_the_same_ensemble():
    ensemble = ensemble_of(TASKS["labels"][0], 5, seed=3, dtype="float64", reduction="sum")
    made = eval(repr(ensemble), {"Ensemble": Ensemble})
    assert repr(made) == repr(ensemble) and made.template == ensemble.template
    np.testing.assert_array_equal(made.parameters, ensemble.parameters)
    assert "precision='tf32'" in repr(Ensemble([2, 1], precision="tf32"))


@pytest.mark.parametrize("rows", [1, 6, 70])
def test_predictions_and_evaluations_are_those_of_the_networks(rows):
    chain, y, optimizer = TASKS["labels"]
    ensemble = ensemble_of(chain)
    ensemble.fit(X, y, epochs=2, optimizer=optimizer)
    found = ensemble.predict(X[:rows])
    alone = np.array([each.predict(X[:rows]) for each in ensemble])
    assert found.shape == (3, rows, 3) and found.dtype == np.float32
    np.testing.assert_array_equal(found, alone)
    mean, spread = ensemble.predict_mean(X[:rows]), ensemble.predict_spread(X[:rows])
    assert mean.dtype == spread.dtype == np.float32
    np.testing.assert_allclose(mean, alone.astype(np.float64).mean(axis=0), rtol=1e-7)
    np.testing.assert_allclose(spread, alone.astype(np.float64).std(axis=0), rtol=1e-7, atol=1e-12)
    assert spread.min() > 0
    np.testing.assert_array_equal(ensemble.predict(X[:rows], kernel="cpu.fused", threads=1), alone)
    results = ensemble.evaluate(X[:rows], y[:rows])
    for member, model in enumerate(ensemble):
        expected = model.evaluate(X[:rows], y[:rows])
        assert (results.loss[member], results.score[member]) == expected[:2]
    assert results.metric == "accuracy" and results.loss.shape == results.score.shape == (3,)


def test_parameters_may_be_set():
    ensemble = ensemble_of(TASKS["regression"][0])
    values = RNG.normal(size=ensemble.parameters.shape)
    ensemble.parameters = values
    np.testing.assert_array_equal(ensemble[1].parameters, values[1].astype(np.float32))
    with pytest.raises(ShapeError, match="parameters: got shape"):
        ensemble.parameters = values[0]
    ensemble.parameters[2, 3] = np.nan
    with pytest.raises(DomainError, match="parameters: got 1 non-finite"):
        ensemble.fit(X, Y)


def test_the_history_has_a_column_for_each_network():
    ensemble = ensemble_of(TASKS["regression"][0])
    assert ensemble.history is None
    history = ensemble.fit(X, Y, epochs=4, validation_data=(X[:20], Y[:20]))
    assert ensemble.history is history and len(history) == 4
    names = ("loss", "penalty", "learning_rate", "validation_loss", "validation_score")
    assert {getattr(history, name).shape for name in names} == {(4, 3)}
    assert history.seconds.shape == (4,) and history.members == 3
    assert history.rows_per_second == pytest.approx(4 * 3 * 70 / history.seconds.sum())
    last = ensemble.evaluate(X[:20], Y[:20])
    np.testing.assert_array_equal(history.validation_loss[-1], last.loss)
    np.testing.assert_array_equal(history.validation_score[-1], last.score)
    assert "4 epochs of 3 networks on cpu.fused: loss" in repr(history)
    assert "validation r2" in history.line()
    share = history.member(1)
    assert share.seconds.sum() == pytest.approx(history.seconds.sum() / 3)
    empty = fastmlp.History("cpu.fused", "cpu", "r2", 70, 3)
    assert empty and len(empty) == 0 and empty.loss.shape == (0, 3)
    assert empty.rows_per_second == 0 and "0 epochs of 3 networks" in repr(empty)


def test_one_network_that_fails_stops_alone(threads):
    chain = TASKS["regression"][0]
    rates = [0.01, 1e38, 0.02, 3e38, 0.03]
    optimizers = [SGD(rate, momentum=0.5) for rate in rates]
    ensemble = ensemble_of(chain, 5)
    ensemble.fit(X, Y, epochs=1, batch_size=16, optimizer=SGD(0.01, momentum=0.5))
    match = r"epoch 1 of 2 of 5 networks \(members 1, 3; the first in batch 2 of 5\)"
    with pytest.raises(NonFiniteTrainingError, match=match) as caught:
        ensemble.fit(X, Y, epochs=3, batch_size=16, optimizer=optimizers)
    assert caught.value.members == (1, 3)
    assert (caught.value.epoch, caught.value.batch) == (1, 2)
    assert "learning rates than 1e+38" in str(caught.value)
    assert ensemble.epochs_trained.tolist() == [2, 1, 2, 1, 2]
    assert len(ensemble.history) == 0 and np.isfinite(ensemble.parameters).all()
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.members == (1, 3) and again.last_loss == caught.value.last_loss is not None
    models, decaying = [], SGD(schedules.ExponentialDecay(0.02, 0.9), momentum=0.5)
    for member, optimizer in enumerate(optimizers):
        model = MLP(*chain, seed=member)
        model.fit(X, Y, epochs=1, batch_size=16, optimizer=SGD(0.01, momentum=0.5))
        if member in (1, 3):
            with pytest.raises(NonFiniteTrainingError):
                model.fit(X, Y, epochs=1, batch_size=16, optimizer=optimizer)
        else:
            model.fit(X, Y, epochs=1, batch_size=16, optimizer=optimizer)
        model.history = None
        assert_same_member(ensemble, member, model)
        models.append(model)
    # All go on, each with its own number of steps and of the epoch.
    for each in (*models, ensemble):
        each.parameters = np.clip(each.parameters, -1, 1)
        each.fit(X, Y, epochs=2, batch_size=16, optimizer=decaying)
    for member, model in enumerate(models):
        assert_same_member(ensemble, member, model)


def test_parameters_that_overflow_are_taken_back(monkeypatch):
    """In the last batch: only a look at all parameters sees it."""
    monkeypatch.setattr(orders, "ROWS_AHEAD", 1)
    chain = TASKS["regression"][0]
    ensemble, model = ensemble_of(chain), MLP(*chain, seed=2)
    optimizers = [SGD(0.01), SGD(1e38), SGD(0.01)]
    ensemble.fit(X, Y, epochs=1, batch_size=70)
    model.fit(X, Y, epochs=1, batch_size=70)
    before = ensemble.parameters.copy()
    with pytest.raises(NonFiniteTrainingError, match="1 of 3 networks .members 1;") as caught:
        ensemble.fit(X, 1e3 * Y, epochs=3, batch_size=70, optimizer=optimizers)
    model.fit(X, 1e3 * Y, epochs=1, batch_size=70, optimizer=optimizers[2])
    assert caught.value.members == (1,)
    np.testing.assert_array_equal(ensemble.parameters[1], before[1])
    np.testing.assert_array_equal(ensemble.parameters[2], model.parameters)
    # The error holds on to the fit, whose thread has ended all the same.
    assert not [each for each in threading.enumerate() if "orders" in each.name]
    assert ensemble.epochs_trained.tolist() == [2, 1, 2]
    assert ensemble._state.steps.tolist() == [2, 1, 2]


def calls_of_an_epoch(members, **more):
    """Return how many functions Python calls in one more epoch of a fit."""
    ensemble = ensemble_of(TASKS["regression"][0], members)
    optimizers = [SGD(0.01 / (1 + member)) for member in range(members)]
    more = {"optimizer": optimizers, "shuffle": False, "threads": 1, "progress": False, **more}
    seen = [0]

    def count(frame, event, argument):
        seen[0] += event in ("call", "c_call")

    # The first fit plans; each one looks ahead once.
    found = []
    for epochs in (1, 1, 6):
        # A collection of garbage calls what has nothing to do with the epoch.
        gc.disable()
        seen[0] = 0
        sys.setprofile(count)
        try:
            ensemble.fit(X, Y, epochs=epochs, **more)
        finally:
            sys.setprofile(None)
            gc.enable()
        found.append(seen[0])
    return (found[2] - found[1]) / 5


@pytest.mark.parametrize("more", [{}, {"sample_weight": abs(X[:, 0]), "l2": 0.1}])
def test_an_epoch_costs_no_python_for_each_network(more):
    few, many = (calls_of_an_epoch(members, **more) for members in (4, 40))
    assert 50 < few < 500 and abs(many - few) < 10


PROBLEM = Problem(
    (40, 70, 9), ("tanh", "identity"), "half_squared_error", "adam", batch_size=45, rows=300
)
WIDE = Problem(
    (9, 6, 2), ("exp", "identity"), "huber", "sgd", dtype="float64", batch_size=7, rows=30
)


def samples(problem, members, **more):
    """Return an epoch's arguments of each network, of one X and y, and those of all together."""
    alone = [sample(problem, seed, **more) for seed in range(members)]
    for each in alone:
        each.X, each.y = alone[0].X, alone[0].y
    together = []
    for name in vars(alone[0]):
        arrays = [getattr(each, name) for each in alone]
        whole = arrays[0] is None or name in ("X", "y")
        together.append(arrays[0] if whole else np.array(arrays))
    return alone, Sample(*together)


def trained_alone(problem, alone):
    """Train each network by itself."""
    program = FusedProgram(problem, team(1))
    for each in alone:
        program.epoch(*each.arguments())


def assert_same_samples(together, alone, names=("parameters", "state", "losses", "control")):
    for name in names:
        for member, each in enumerate(alone):
            found = getattr(together, name)[member]
            assert found.tobytes() == getattr(each, name).tobytes(), (name, member)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("problem", [PROBLEM, WIDE], ids=["panels", "narrow"])
def test_a_program_of_several_networks_gives_the_bits_of_each(problem, threads):
    members = 5
    several = replace(problem, members=members)
    alone, together = samples(problem, members, weighted=True, penalized=True)
    untouched = together.copy()
    program = cpu.KERNELS[0].build(several, team(threads))
    assert isinstance(program, SideBySideProgram) and program.at_once == min(threads, members)
    program.prepare(together.parameters, together.state, together.X, together.y, True, True)
    for each in program._programs:
        poison(each)
    for _ in range(3):
        program.epoch(*together.arguments())
        trained_alone(problem, alone)
        names = ("parameters", "state", "losses", "control", "squares")
        assert_same_samples(together, alone, names)
        assert (together.control == [0, problem.batches, 0]).all()
        for each in (*alone, together):
            each.control[...] = 0
    for name in ("X", "y", "order", "hyper", "factors"):
        np.testing.assert_array_equal(getattr(together, name), getattr(untouched, name))


def test_single_calls_between_epochs_are_those_of_one_network():
    problem = replace(PROBLEM, members=4)
    alone, together = samples(PROBLEM, 4)
    program, single = SideBySideProgram(problem, team(2)), FusedProgram(PROBLEM, team(1))
    view, X = together.parameters[0], together.X[:20]
    out, expected = (np.empty((20, 9), np.float32) for _ in range(2))
    for _ in range(3):
        program.epoch(*together.arguments())
        program.forward(view, X, out)
        single.forward(view, X, expected)
        np.testing.assert_array_equal(out, expected)
        trained_alone(PROBLEM, alone)
        for each in (*alone, together):
            each.control[...] = 0
    assert_same_samples(together, alone)


def test_networks_stop_and_fail_each_for_themselves():
    members = 6
    problem = replace(PROBLEM, members=members)
    alone, together = samples(PROBLEM, members)
    for member in (1, 4):
        together.control[member, STOP] = alone[member].control[STOP] = 1
    # One whose weights are not finite, and one that takes too large a step in its third batch.
    together.parameters[0, 7] = alone[0].parameters[7] = np.nan
    together.hyper[3, 2, RULE_START] = alone[3].hyper[2, RULE_START] = 1e38
    before = together.copy()
    program = SideBySideProgram(problem, team(2))
    program.epoch(*together.arguments())
    trained_alone(PROBLEM, alone)
    assert_same_samples(together, alone)
    assert together.control[:, STATUS].tolist() == [1, 0, 0, 4, 0, 0]
    for member in (0, 1, 4):
        np.testing.assert_array_equal(together.parameters[member], before.parameters[member])
    assert together.control[2].tolist() == together.control[5].tolist() == [0, 7, 0]


def test_all_networks_stop_after_whole_batches():
    members, batches = 3, 100_000
    problem = replace(PROBLEM, members=members, rows=batches * PROBLEM.batch_size)
    _, together = samples(PROBLEM, members)
    together.order = np.resize(together.order, (members, problem.rows))
    width = together.hyper.shape[-1]
    together.hyper = np.resize(together.hyper[:, :1], (members, batches, width))
    together.losses = np.full((members, batches), np.nan, np.float32)
    start = together.copy()
    program = SideBySideProgram(problem, team(2))
    fit = threading.Thread(target=program.epoch, args=together.arguments(), daemon=True)
    fit.start()
    while together.control[:, BATCHES].sum() < 20 and fit.is_alive():
        time.sleep(0)
    together.control[:, STOP] = 1
    fit.join(60)
    assert not fit.is_alive()
    finished = together.control[:, BATCHES]
    # Two threads: one of the networks had no turn.
    assert finished.sum() >= 20 and finished.min() == 0 and finished.max() < batches
    for member, count in enumerate(finished):
        assert np.isfinite(together.losses[member, :count]).all()
        assert np.isnan(together.losses[member, count:]).all()
        own = [start.parameters[member], start.state[member]]
        losses, control = np.zeros(count, np.float32), np.zeros(3, np.int64)
        if count:
            rows = int(count) * PROBLEM.batch_size
            alone = FusedProgram(replace(PROBLEM, rows=rows), team(1))
            rest = start.order[member, :rows], start.hyper[member, :count], losses, control
            alone.epoch(*own, start.X, start.y, *rest)
        assert together.parameters[member].tobytes() == own[0].tobytes()


@pytest.mark.parametrize("startable", [0, 1])
def test_a_thread_that_cannot_be_started_fails_the_call_alone(monkeypatch, startable):
    problem = replace(PROBLEM, members=4)
    alone, together = samples(PROBLEM, 4)
    before = together.copy()
    program = SideBySideProgram(problem, team(3))
    start, started, asked = threading.Thread.start, [], itertools.count()

    def fail_later(thread):
        if next(asked) >= startable:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_later)
    with pytest.raises(RuntimeError, match="threads: got 3, wanted no more than"):
        program.epoch(*together.arguments())
    monkeypatch.undo()
    assert_same_samples(together, samples(PROBLEM, 4)[0])
    assert together.parameters.tobytes() == before.parameters.tobytes()
    program.epoch(*together.arguments())
    trained_alone(PROBLEM, alone)
    assert_same_samples(together, alone)


def nobody_stays():
    """Return whether all threads leave by themselves."""
    deadline = time.monotonic() + 30
    while [each for each in threading.enumerate() if each.name.startswith("fastmlp-")]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def test_an_interrupt_before_an_epoch_lets_everybody_go(monkeypatch):
    problem = replace(PROBLEM, members=4)
    alone, together = samples(PROBLEM, 4)
    program = SideBySideProgram(problem, team(3))

    def interrupted(self, work, threads, before_start):
        for thread in range(threads - 1):
            self._start(work, thread, [])
        raise KeyboardInterrupt

    monkeypatch.setattr(Team, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        program.epoch(*together.arguments())
    monkeypatch.undo()
    assert nobody_stays()
    assert_same_samples(together, alone)
    program.epoch(*together.arguments())
    trained_alone(PROBLEM, alone)
    assert_same_samples(together, alone)


def test_threads_stay_for_the_next_epoch():
    problem = replace(PROBLEM, members=4)
    _, together = samples(PROBLEM, 4)
    program = SideBySideProgram(problem, team(3))
    threads = set()
    for _ in range(50):
        program.epoch(*together.arguments())
        together.control[...] = 0
        threads |= {each.ident for each in threading.enumerate() if "fastmlp-" in each.name}
    # On a machine that is busy some leave between two epochs all the same.
    assert len(threads) < 50
    assert nobody_stays()


def test_the_cost_is_that_of_each_network_shared_by_threads():
    machine = Machine(cores=4, cpu_thread_seconds=1e-3)
    one = replace(PROBLEM, rows=30_000)
    seconds = cpu.epoch_seconds(one, machine, 1)
    many = replace(one, members=12)
    assert many.flops == 12 * one.flops
    assert cpu.epoch_seconds(many, machine, 1) == pytest.approx(12 * seconds)
    assert cpu.epoch_seconds(many, machine, 4) == pytest.approx(3 * seconds + 3e-3)
    two = replace(one, members=2)
    assert cpu.epoch_seconds(two, machine, 4) == pytest.approx(seconds + 1e-3)
    assert cpu.best_threads(many, machine) == 4 and cpu.best_threads(two, machine) == 2
    assert cpu.close_threads(many, machine) == (4,)
    tiny = replace(PROBLEM, members=2, rows=45)
    assert cpu.best_threads(tiny, machine) == 1


def test_a_plan_says_that_they_are_side_by_side():
    ensemble = ensemble_of(([16, 64, 1],), 132)
    ensemble.threads = 2
    found = fastmlp.explain(ensemble, batch_size=32, rows=2048)
    assert found.kernel == "cpu.fused" and found.threads == 2
    assert "132 networks side by side, each 16-64-1, half_squared_error" in str(found)
    assert found.rejected["reference"] == "it trains one network at a time"
    alone = fastmlp.explain(ensemble[0], batch_size=32, rows=2048)
    assert found.seconds == pytest.approx(132 / 2 * alone.seconds, rel=0.05)
    assert "side by side" not in str(alone)
    with pytest.raises(fastmlp.DeviceError, match="one network at a time"):
        ensemble.fit(X[:, :1].repeat(16, 1), Y[:, :1], kernel="reference")
    kernel = reference.KERNEL
    assert kernel.supports(replace(ensemble.template, members=1), detect()) is None
    history = ensemble.fit(X[:, :1].repeat(16, 1), Y[:, :1], epochs=1, kernel="cpu.fused")
    assert history.kernel == "cpu.fused" and history.device == "cpu"


BAD = {
    "no members": (lambda e: Ensemble([5, 2], 0), DomainError, "members: got 0, wanted a whole"),
    "half": (lambda e: Ensemble([5, 2], 2.5), DTypeError, "members: got 2.5, wanted a whole"),
    "seed": (
        lambda e: Ensemble([5, 2], 3, seed=2**64 - 2),
        DomainError,
        "seed: got .*has the next",
    ),
    "sizes": (lambda e: Ensemble([5], 3), ShapeError, r"sizes: got \[5\], wanted at least two"),
    "columns": (lambda e: e.fit(X[:, :4], Y), ShapeError, r"X: got shape \(70, 4\), wanted"),
    "rows": (lambda e: e.fit(X, Y[:-1]), ShapeError, "y: got 69 rows, wanted 70"),
    "batch": (lambda e: e.fit(X, Y, batch_size=71), DomainError, "batch_size: got 71, .*rows of X"),
    "epochs": (lambda e: e.fit(X, Y, epochs=0), DomainError, "epochs: got 0, wanted"),
    "optimizer": (lambda e: e.fit(X, Y, optimizer=0.1), DTypeError, "optimizer: got 0.1"),
    "one of them": (
        lambda e: e.fit(X, Y, optimizer=[SGD(), SGD(), 3]),
        DTypeError,
        "optimizer: got 3, wanted an object",
    ),
    "too few": (
        lambda e: e.fit(X, Y, optimizer=[SGD(), SGD()]),
        ShapeError,
        "optimizer: got 2 of them, wanted one, or 3, one for each network",
    ),
    "rules": (
        lambda e: e.fit(X, Y, optimizer=[SGD(), Adam(), Adam()]),
        DomainError,
        "optimizer: got the rules sgd, adam, wanted one rule for all networks",
    ),
    "pair": (
        lambda e: e.fit(X, Y, validation_data=X),
        DTypeError,
        r"validation_data: got ndarray, wanted a pair \(X, y\)",
    ),
    "validation": (
        lambda e: e.fit(X, Y, validation_data=(X[:3], Y[:2])),
        ShapeError,
        "validation y: got 2 rows, wanted 3",
    ),
    "weights": (
        lambda e: e.fit(X, Y, sample_weight=np.ones(3)),
        ShapeError,
        r"sample_weight: got shape \(3,\)",
    ),
    "l2": (lambda e: e.fit(X, Y, l2=-1), DomainError, "l2: got -1, wanted a finite number"),
    "threads": (lambda e: e.fit(X, Y, threads=0), DomainError, "threads: got 0, wanted"),
    "shuffle": (lambda e: e.fit(X, Y, shuffle="no"), DTypeError, "shuffle: got 'no', wanted True"),
    "device": (lambda e: e.predict(X, device="tpu"), ValueError, "device: got 'tpu'"),
    "kernel": (lambda e: e.fit(X, Y, kernel="cpu"), ValueError, "kernel: got 'cpu'"),
    "inputs": (lambda e: e.predict_mean(X[:, :2]), ShapeError, "X: got shape"),
    "metric": (lambda e: e.evaluate(X, Y, "f1"), ValueError, "metric: got 'f1'"),
    "member": (lambda e: e[3], IndexError, "member: got 3, wanted a whole number from 0 to 2"),
    "below": (lambda e: e[-4], IndexError, "member: got -4, wanted"),
    "slice": (lambda e: e[:2], DTypeError, "member: got slice.*, wanted a whole number"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case):
    call, error, match = BAD[case]
    ensemble = ensemble_of(TASKS["regression"][0])
    before = ensemble.parameters.copy()
    with pytest.raises(error, match=match):
        call(ensemble)
    np.testing.assert_array_equal(ensemble.parameters, before)
    assert ensemble.epochs_trained.tolist() == [0, 0, 0] and ensemble.history is None


INTERRUPTED = """
import json, os, signal, threading, time
import numpy as np
from fastmlp import Ensemble, SGD

X = np.random.default_rng(0).normal(size=(500_000, 16)).astype(np.float32)
ensemble = Ensemble([16, 64, 1], 4)
ensemble.fit(X[:64], X[:64, :1], epochs=1)
before = ensemble.parameters.copy()
steps = ensemble._state.steps.copy()

def interrupt():
    while not any(each.name == "fastmlp-epoch" for each in threading.enumerate()):
        time.sleep(0.001)
    time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
try:
    ensemble.fit(X, X[:, :1], epochs=1000, batch_size=16, optimizer=SGD(1e-3))
    outcome = "finished"
except KeyboardInterrupt:
    outcome = "interrupted"
after = ensemble.parameters.copy()
time.sleep(0.05)
print(json.dumps({
    "outcome": outcome,
    "still": bool((after == ensemble.parameters).all()),
    "finite": bool(np.isfinite(after).all()),
    "changed": (after != before).any(axis=1).tolist(),
    "steps": (ensemble._state.steps - steps).tolist(),
    "epochs": ensemble.epochs_trained.tolist(),
    "history": len(ensemble.history),
    "threads": [each.name for each in threading.enumerate() if "orders" in each.name],
}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send itself Ctrl-C")
@pytest.mark.usefixtures("interrupts_heard")
def test_an_interrupt_stops_all_networks_between_two_batches(child_python, child_environment):
    done = subprocess.run(
        [child_python, "-c", INTERRUPTED],
        capture_output=True,
        text=True,
        env=child_environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["outcome"] == "interrupted" and result["threads"] == []
    assert result["still"] and result["finite"] and result["history"] == 0
    batches = 500_000 // 16
    assert any(result["changed"]) and min(result["steps"]) < batches
    for changed, steps, epochs in zip(
        result["changed"], result["steps"], result["epochs"], strict=True
    ):
        assert changed == (steps > 0) and epochs == 1 + (steps == batches)


def test_a_fit_without_a_step_keeps_the_state_of_the_other_optimizer():
    inputs, targets = np.ones((8, 3), np.float32), np.ones((8, 1), np.float32)
    ensemble, same = (Ensemble([3, 4, 1], 2) for _ in range(2))
    for each in (ensemble, same):
        each.fit(inputs, targets, epochs=3, optimizer=Adam(1e-3))
    with pytest.raises(NonFiniteTrainingError):
        ensemble.fit(inputs, 1e30 * targets, epochs=1, optimizer=SGD(1.0))
    for each in (ensemble, same):
        each.fit(inputs, targets, epochs=1, optimizer=Adam(1e-3))
    np.testing.assert_array_equal(ensemble.parameters, same.parameters)
    assert ensemble._state.steps.tolist() == [4, 4]
