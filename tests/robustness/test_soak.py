"""Long use: memory and threads do not grow, whatever is done again and again.

By default a tenth of what ``FASTMLP_ATTACKS=10`` does: 100,000 steps, 5,000 fits of different
shapes, 2,000 models, 10,000 refused calls, 150 ensembles.
"""

import gc
import multiprocessing
import threading
import time

import numpy as np
import pytest

import fastmlp
from tests.robustness.attacks import (
    Tally,
    assert_withstood,
    in_teams,
    linux,
    own_threads,
    resident_megabytes,
    run_attack,
    tries,
)

pytestmark = linux

# What the allocator may keep for itself, more or less, from one look to the next.
NOISE_MEGABYTES = 8.0


def data(rows, inputs, outputs, seed=0):
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(rows, inputs)).astype(np.float32)
    return X, np.ascontiguousarray(X[:, :1].repeat(outputs, axis=1))


def steps(number, held={}):  # noqa: B006  the model of all steps
    if not held:
        held["model"], held["data"] = fastmlp.MLP([16, 32, 2]), data(32, 16, 2)
        held["rule"] = fastmlp.Adam(1e-4)
    for _ in range(100):
        held["model"].step(*held["data"], held["rule"])


def fits_of_shapes(number, held={}):  # noqa: B006  the model of all fits
    model = held.setdefault("model", fastmlp.MLP([16, 32, 2]))
    rows = 20 + number % 150
    X, y = data(rows, 16, 2)
    model.fit(X, y, epochs=1, batch_size=1 + number % rows, optimizer=fastmlp.SGD(1e-5))
    model.predict(X[: 1 + number % rows])


def models(number):
    model = fastmlp.MLP([4 + number % 7, 8 + number % 50, 2])
    X, y = data(30, model.sizes[0], 2)
    model.fit(X, y, epochs=1, batch_size=10)
    model.predict(X)
    model.evaluate(X, y)


def refused_calls(number, held={}):  # noqa: B006  the model of all calls
    model = held.setdefault("model", fastmlp.MLP([16, 32, 2]))
    X, y = data(40, 16, 2)
    calls = [
        lambda: model.fit(X[:, :3], y),
        lambda: model.fit(X, y[:7]),
        lambda: model.fit(X, y, epochs=0),
        lambda: model.fit(X, y, optimizer=fastmlp.Adam(lambda step: np.nan + step)),
        lambda: model.predict(X * np.nan),
        lambda: model.step(X, y, sample_weight=-np.ones(40)),
        lambda: model.fit(X, y, kernel="no such kernel"),
        lambda: setattr(model, "parameters", X),
    ]
    for call in calls:
        with pytest.raises(fastmlp.FastMLPError):
            call()


def dropped_models(number):
    """Train a model of several megabytes with a team, and drop it at once."""
    model = fastmlp.MLP([64, 512, 512, 4])
    X, y = data(600, 64, 4)
    model.fit(X, y, epochs=2, batch_size=300, optimizer=fastmlp.SGD(1e-5))


def ensembles(number):
    X, y = data(60, 8, 2)
    fastmlp.Ensemble([8, 12, 2], 4, seed=number).fit(X, y, epochs=2, batch_size=20)


WORKS = {
    "steps": (steps, 100, 0),
    "fits of shapes": (fits_of_shapes, 500, 0),
    "models": (models, 200, 0),
    "refused calls": (refused_calls, 125, 0),
    "dropped models": (dropped_models, 60, 2),
    "ensembles": (ensembles, 60, 2),
}


def burn(until):
    while time.time() < until:
        pass


def attack_by_repeating(name, count, threads, seconds):
    """Do the same again and again on a busy machine, and look at memory and threads."""
    if threads:
        in_teams(threads)
    work, tally = WORKS[name][0], Tally()
    context = multiprocessing.get_context("fork")
    busy = [
        context.Process(target=burn, args=(time.time() + seconds,), daemon=True)
        for _ in range(3 if threads else 0)
    ]
    for each in busy:
        each.start()
    for number in range(count // 3 + 1):
        work(number)
    gc.collect()
    first, most = resident_megabytes(), 0
    for number in range(count // 3 + 1, count):
        work(number)
        most = max(most, len(own_threads()))
    gc.collect()
    last = resident_megabytes()
    tally.check("memory", last - first < NOISE_MEGABYTES, f"from {first:.0f} to {last:.0f} MB")
    # Those of a team or two, of which some are just leaving.
    tally.check("threads meanwhile", most <= 8, f"{most}")
    time.sleep(0.5)
    left = threading.active_count()
    tally.check("threads afterwards", left <= 4, f"{left}")
    for each in busy:
        each.kill()
    return tally


@pytest.mark.parametrize("name", WORKS)
def test_memory_and_threads_do_not_grow(name):
    _, count, threads = WORKS[name]
    found = run_attack(attack_by_repeating, name, tries(count), threads, 60.0, seconds=200.0)
    assert_withstood(found)
