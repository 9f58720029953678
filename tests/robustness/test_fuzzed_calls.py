"""Random sequences of public calls with good and bad arguments.

A refusal is an error of the library, or the user's own exception, and changes nothing: parameters
and the optimizer's state have the same bits, and the next good call gives what it gives to a twin
that saw the good calls alone. ``FASTMLP_ATTACKS=5`` makes 100,000 calls.
"""

import copy
import functools
import pickle
import random

import numpy as np
import pytest

import fastmlp
from tests.robustness.attacks import Tally, assert_withstood, begin, bits, run_attack, tries

CALLS = 20_000
ROWS = 24


class OfTheUser(Exception):
    """What a schedule or a callback of a user raises."""


def failing_schedule(step):
    raise OfTheUser


def failing_callback(event):
    raise OfTheUser


KINDS = {
    "labels": (([6, 9, 4], "relu", "softmax_cross_entropy"), {}),
    "probabilities": (([6, 8, 3], "gelu", "softmax_cross_entropy"), {"dtype": "float64"}),
    "regression": (([6, 7, 5, 2], "tanh"), {"reduction": "sum"}),
    "binary": (([6, 5, 1], ["relu", "sigmoid"], "binary_cross_entropy"), {}),
}


def data(kind, generator, rows):
    X = generator.normal(size=(rows, 6))
    if kind == "labels":
        return X, generator.integers(0, 4, rows)
    if kind == "probabilities":
        return X, generator.dirichlet(np.ones(3), rows)
    if kind == "binary":
        return X, generator.integers(0, 2, rows).astype(float)
    return X, generator.normal(size=(rows, 2))


def fresh(kind):
    arguments, settings = KINDS[kind]
    return fastmlp.MLP(*arguments, seed=7, **settings)


@functools.cache
def first_parameters(kind):
    return fresh(kind).parameters


def state_bits(model):
    """Return everything that a refusal must not change."""
    state = model._state
    return bits(state.parameters, state.slots), state.steps, state.epochs, state.rule


def optimizers(chance):
    """Return optimizers that train: few, so that a state is often carried on."""
    return chance.choice(
        [
            None,
            fastmlp.SGD(1e-3),
            fastmlp.SGD(1e-3, momentum=0.9),
            fastmlp.Adam(1e-3),
            fastmlp.Adam(1e-3),
            fastmlp.Adam(lambda step: 1e-3 / (1 + step)),
            fastmlp.AdamW(1e-3, weight_decay=0.01),
            fastmlp.RMSprop(1e-3),
            fastmlp.Adagrad(1e-3),
        ]
    )


def layouts(chance, X):
    """Return the same numbers in another layout."""
    way = chance.randrange(6)
    if way == 0:
        return np.asfortranarray(X)
    if way == 1:
        return X.astype(np.float32).astype(np.float64).tolist()
    if way == 2:
        return np.repeat(X, 2, axis=0)[::2]
    if way == 3:
        frozen = X.copy()
        frozen.flags.writeable = False
        return frozen
    return X.astype(np.float32) if way == 4 else X


# Good training calls: each takes the model, and does the same to its twin.


def good_fit(chance, kind, generator):
    rows = chance.choice([1, 2, ROWS, 17])
    X, y = data(kind, generator, rows)
    arguments = {
        "epochs": chance.randint(1, 3),
        "batch_size": chance.randint(1, rows),
        "optimizer": optimizers(chance),
        "shuffle": chance.random() < 0.7,
        "threads": chance.choice([None, None, 1, 2]),
    }
    if chance.random() < 0.3:
        arguments["sample_weight"] = generator.uniform(0.1, 2, rows)
    if chance.random() < 0.2:
        arguments["l2"] = 1e-3
    if chance.random() < 0.3:
        arguments["validation_data"] = data(kind, generator, 9)
        arguments["early_stopping"] = chance.choice([None, True, fastmlp.EarlyStopping(patience=1)])
    if chance.random() < 0.2:
        arguments["callbacks"] = lambda event: event.epoch == 2
    return lambda model: model.fit(X, y, **arguments)


def good_step(chance, kind, generator):
    rows = chance.choice([1, 5, ROWS])
    X, y = data(kind, generator, rows)
    rule = optimizers(chance)
    signed = {"loss_weight": generator.normal(size=len(X))} if chance.random() < 0.3 else {}
    return lambda model: model.step(X, y, rule, **signed)


def good_parts(chance, kind, generator):
    X, y = data(kind, generator, chance.choice([1, 6, ROWS]))
    rule = optimizers(chance)

    def work(model):
        model.zero_grad()
        model.forward(X)
        model.compute_loss(y)
        model.backward()
        model.apply(rule)

    return work


def good_assignment(chance, kind, generator):
    scale, layer = chance.uniform(0.5, 0.99), chance.randrange(2)

    def work(model):
        if layer:
            model.parameters = model.parameters * scale
        else:
            model.weights[layer] = model.weights[layer] * scale
            model.biases[layer] *= scale

    return work


def diverging(chance, kind, generator):
    X, y = data(kind, generator, ROWS)
    start, rule = first_parameters(kind), fastmlp.SGD(chance.choice([1e20, 1e30]))

    def work(model):
        try:
            model.fit(X * 1e6, y, epochs=2, batch_size=8, optimizer=rule)
        except fastmlp.NonFiniteTrainingError:
            assert np.isfinite(model.parameters).all()
        model.parameters = start

    return work


TRAININGS = (good_fit, good_fit, good_step, good_step, good_parts, good_assignment, diverging)


def reads(chance, kind, generator):
    """Return a call that changes nothing."""
    X, y = data(kind, generator, chance.choice([1, 3, ROWS, 130]))
    given = layouts(chance, X)
    return chance.choice(
        [
            lambda model: model.predict(given),
            lambda model: model.predict(X, threads=2),
            lambda model: model.evaluate(given, y),
            lambda model: model.value_and_grad(given, y),
            lambda model: (model.forward(X), model.compute_loss(y), model.backward()),
            lambda model: copy.deepcopy(model).step(X, y),
            lambda model: pickle.loads(pickle.dumps(model)).fit(X, y, epochs=1, batch_size=1),
            lambda model: (repr(model), repr(model.history), repr(model.weights)),
        ]
    )


def spoilt(chance, X):
    """Return X with something wrong in it."""
    way = chance.randrange(9)
    if way < 3:
        worse = X.copy()
        worse[chance.randrange(len(X)), chance.randrange(6)] = (np.nan, np.inf, -np.inf)[way]
        return worse
    return [
        X[:, :5],
        np.hstack([X, X]),
        X[:, :, None],
        X.astype(str),
        X.astype(object) * 1j,
        [[1.0, 2.0], [3.0]],
    ][way - 3]


def spoilt_targets(chance, kind, y):
    """Return targets that no loss of this kind takes."""
    ways = [y[:-1], np.concatenate([y, y]), np.full_like(np.asarray(y, float), np.nan)]
    ways += [y.astype(str), y[:, None, None] if y.ndim == 1 else y[:, :, None]]
    if kind == "labels":
        ways += [y + 4, y - 9, y + 0.5, np.where(y == y[0], 2**40, y)]
    if kind == "probabilities":
        ways += [y * 2, y - 1]
    if kind == "binary":
        ways += [y + 1.5, y - 2.0]
    if kind == "regression":
        ways += [y[:, :1], np.where(y == y[0], np.inf, y)]
    return chance.choice(ways)


def refusals(chance, kind, generator):
    """Return a call that is refused before it changes anything."""
    rows = ROWS
    X, y = data(kind, generator, rows)
    bad_X, bad_y = spoilt(chance, X), spoilt_targets(chance, kind, y)
    schedules = [
        failing_schedule,
        lambda step: None,
        lambda step: float("nan") + step,
        lambda step: "fast",
        lambda step: np.ones(3),
        lambda step: -1.0 + 0 * step,
    ]
    rule = chance.choice([fastmlp.SGD, fastmlp.Adam, fastmlp.RMSprop])
    bad_arguments = [
        {"epochs": chance.choice([0, -1, 1.5, True, None, "3"])},
        {"batch_size": chance.choice([0, -3, 2.5, "all", rows + 1])},
        {"optimizer": chance.choice([3, SyntaxError, [], "no such rule"])},
        {"sample_weight": chance.choice([np.ones(3), -np.ones(rows), np.full(rows, np.nan), "x"])},
        {"l2": chance.choice([-1.0, float("nan"), "much", True])},
        {"validation_data": chance.choice([3, (X,), (X, bad_y), (bad_X, y)])},
        {"early_stopping": chance.choice(["yes", 3])},
        {"early_stopping": fastmlp.EarlyStopping(monitor="validation_loss")},
        {"callbacks": chance.choice([3, "say", [3]])},
        {"device": chance.choice(["tpu", 5, b"cpu"])},
        {"kernel": chance.choice(["cpu.none", 5, [], {}])},
        {"threads": chance.choice([0, -1, 1.5, "two", True])},
        {"optimizer": rule(chance.choice(schedules))},
        {"optimizer": rule(chance.choice(schedules)), "epochs": 2, "l2": 0.1},
    ]
    bad = chance.choice(bad_arguments)
    a_place = {name: bad[name] for name in ("device", "kernel", "threads") if name in bad}
    parameters = first_parameters(kind)
    ways = [
        lambda model: model.fit(X, y, **{"batch_size": rows, **bad}),
        lambda model: model.fit(X, y, **{"batch_size": 7, **bad}),
        lambda model: model.fit(bad_X, y, batch_size=1),
        lambda model: model.fit(X, bad_y, batch_size=1),
        lambda model: model.step(bad_X, y),
        lambda model: model.step(X, bad_y, fastmlp.Adagrad(1e-3)),
        lambda model: model.step(X, y, rule(chance.choice(schedules))),
        lambda model: model.step(X, y, sample_weight=-np.ones(rows)),
        lambda model: model.step(X, y, loss_weight=np.full(rows, np.nan)),
        lambda model: model.predict(bad_X),
        lambda model: model.predict(X, **(a_place or {"kernel": "none"})),
        lambda model: model.evaluate(X, bad_y),
        lambda model: model.evaluate(X, y, "no such metric"),
        lambda model: model.value_and_grad(bad_X, y),
        lambda model: copy.deepcopy(model).backward(),
        lambda model: (model.forward(X), model.compute_loss(bad_y)),
        lambda model: (model.forward(X), model.backward(X)),
        lambda model: setattr(model, "parameters", parameters[:-1]),
        lambda model: setattr(model, "parameters", parameters * np.nan),
        lambda model: setattr(model, "parameters", ["a"] * parameters.size),
        lambda model: setattr(model, "weights", [1.0]),
        lambda model: setattr(model, "weights", [parameters] * len(model.weights)),
        lambda model: model.weights.__setitem__(0, np.nan * model.weights[0]),
        lambda model: model.weights.__setitem__(slice(None), 3.0),
        lambda model: model.biases.__setitem__(0, "b"),
        lambda model: setattr(model, "threads", chance.choice([0, 1.5, "x"])),
        lambda model: (model.gradients.flat.fill(np.inf), model.apply(fastmlp.Adam(1e-3))),
        lambda model: fastmlp.MLP([6, 0, 2]),
        lambda model: fastmlp.MLP([6, 5, 2], "no such activation"),
        lambda model: rule(-1.0),
    ]
    return chance.choice(ways)


def attempt(call, model, state, tally, number):
    """Make a call that is to be refused; return whether everything is as it was."""
    before, what = state(model), f"call {number}, line {call.__code__.co_firstlineno}"
    try:
        call(model)
    except (fastmlp.FastMLPError, OfTheUser):
        tally.good("refused")
    except Exception as raw:
        tally.bad("refused", f"{what}: {type(raw).__name__}: {raw}")
    else:
        tally.bad("refused", f"{what}: it was accepted")
    same = state(model) == before
    tally.check("unchanged", same, what)
    return same


def attack_with_random_calls(kind, seed, count):
    """Make random calls of a model, and the good ones of its twin."""
    chance, generator = random.Random(seed), np.random.default_rng(seed)
    model, twin, tally = fresh(kind), fresh(kind), Tally()
    for number in range(count):
        draw = chance.random()
        if number % 500 == 0:
            begin(f"{kind}, seed {seed}, call {number}")
        if draw < 0.12:
            make = chance.choice(TRAININGS)
            call = make(chance, kind, generator)
            for each in (model, twin):
                call(each)
            right = state_bits(model) == state_bits(twin)
            tally.check("training", right, f"call {number}: {make.__name__}")
            tally.check("finite", np.isfinite(model.parameters).all(), f"call {number}")
            if not right:
                return tally
        elif draw < 0.35:
            before = state_bits(model)
            reads(chance, kind, generator)(model)
            tally.check("read", state_bits(model) == before, f"call {number}")
        elif not attempt(refusals(chance, kind, generator), model, state_bits, tally, number):
            model = copy.deepcopy(twin)
    return tally


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", KINDS)
def test_random_calls(kind, seed):
    count = tries(CALLS) // (2 * len(KINDS))
    assert_withstood(run_attack(attack_with_random_calls, kind, seed, count, seconds=240.0))


ENSEMBLE = ([6, 8, 3], 3, "relu", "softmax_cross_entropy")


def ensemble_bits(ensemble):
    """Return everything of an ensemble that a refusal must not change."""
    held = ensemble._state
    return bits(held.parameters, held.slots, held.steps, held.epochs), held.rule


def reads_of_ensembles(chance, X, y):
    return chance.choice(
        [
            lambda ensemble: ensemble.predict(X),
            lambda ensemble: ensemble.predict_spread(X),
            lambda ensemble: ensemble.evaluate(X, y),
            lambda ensemble: ensemble[chance.randrange(3)],
            lambda ensemble: pickle.loads(pickle.dumps(ensemble)),
        ]
    )


def refusals_of_ensembles(chance, X, y):
    bad_X, bad_y = spoilt(chance, X), spoilt_targets(chance, "labels", y)
    one = {"batch_size": 1}
    not_numbers = fastmlp.RMSprop(lambda step: np.nan + step)
    return chance.choice(
        [
            lambda ensemble: ensemble.predict(bad_X),
            lambda ensemble: ensemble.fit(bad_X, y, **one),
            lambda ensemble: ensemble.fit(X, bad_y, **one),
            lambda ensemble: ensemble.evaluate(X, bad_y),
            lambda ensemble: ensemble.fit(X, y, epochs=0, **one),
            lambda ensemble: ensemble.fit(X, y, optimizer=[fastmlp.SGD(0.1)], **one),
            lambda ensemble: ensemble.fit(X, y, optimizer=fastmlp.Adagrad(failing_schedule), **one),
            lambda ensemble: ensemble.fit(X, y, optimizer=not_numbers, **one),
            lambda ensemble: ensemble["first"],
            lambda ensemble: setattr(ensemble, "parameters", np.zeros(3)),
            lambda ensemble: setattr(ensemble, "threads", 0),
        ]
    )


def attack_an_ensemble_with_random_calls(seed, count):
    """Make random calls of an ensemble, and the good ones of its twin."""
    chance, generator = random.Random(seed), np.random.default_rng(seed)
    ensemble, twin = (fastmlp.Ensemble(*ENSEMBLE, seed=2) for _ in range(2))
    tally = Tally()
    for number in range(count):
        if number % 500 == 0:
            begin(f"ensemble, seed {seed}, call {number}")
        rows = chance.choice([1, 7, ROWS])
        X, y = generator.normal(size=(rows, 6)), generator.integers(0, 3, rows)
        draw = chance.random()
        if draw < 0.12:
            settings = {"epochs": chance.randint(1, 2), "batch_size": chance.randint(1, rows)}
            rule = optimizers(chance)
            for each in (ensemble, twin):
                each.fit(X, y, optimizer=rule, **settings)
            same = ensemble_bits(ensemble) == ensemble_bits(twin)
            tally.check("training", same, f"call {number}")
        elif draw < 0.35:
            before = ensemble_bits(ensemble)
            reads_of_ensembles(chance, X, y)(ensemble)
            tally.check("read", ensemble_bits(ensemble) == before, f"call {number}")
        else:
            call = refusals_of_ensembles(chance, X, y)
            if not attempt(call, ensemble, ensemble_bits, tally, number):
                ensemble = copy.deepcopy(twin)
    return tally


def test_random_calls_of_an_ensemble():
    count = tries(CALLS) // 10
    assert_withstood(run_attack(attack_an_ensemble_with_random_calls, 0, count, seconds=240.0))
