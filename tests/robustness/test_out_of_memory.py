"""Want of memory: a clean error, a model that is as it was, and the next small call works."""

import resource
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import fastmlp
from tests.robustness.attacks import (
    Tally,
    assert_withstood,
    begin,
    bits,
    in_teams,
    linux,
    run_attack,
    tries,
)

pytestmark = linux

MEGABYTE = 2**20


def address_space():
    """Return the bytes of address space in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def state_bits(model):
    state = model._state
    return bits(state.parameters, state.slots, state.steps, state.epochs), state.rule


def small(model):
    """Return what small calls of a model give."""
    X = np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32)
    y = np.ascontiguousarray(X[:, :2])
    found = bits(model.predict(X))
    model.fit(X, y, epochs=2, batch_size=5, optimizer=fastmlp.Adam(1e-3))
    return found, bits(model.parameters)


def attack_under_a_limit(ensemble, threads, count):
    """Call with less and less memory to spare: none of the calls may leave anything half done."""
    if threads > 1:
        in_teams(threads)
    generator = np.random.default_rng(1)
    X = generator.normal(size=(60_000, 16)).astype(np.float32)
    y = np.ascontiguousarray(X[:, :2])

    def fresh():
        model = fastmlp.MLP([16, 256, 2]) if not ensemble else fastmlp.Ensemble([16, 256, 2], 3)
        small(model)
        return model

    def fit(model, rule, batch):
        model.fit(X, y, epochs=1, batch_size=batch, optimizer=rule(1e-6))

    calls = {
        "fit": lambda model: fit(model, fastmlp.Adam, 30_000),
        "fit, another optimizer": lambda model: fit(model, fastmlp.RMSprop, 20_000),
        "fit, small batches": lambda model: fit(model, fastmlp.Adam, 64),
        "predict": lambda model: model.predict(X),
        "evaluate": lambda model: model.evaluate(X, y),
    }
    if not ensemble:
        calls["value_and_grad"] = lambda model: model.value_and_grad(X, y)
        calls["step"] = lambda model: model.step(X, y, fastmlp.Adagrad(1e-6))
        calls["forward"] = lambda model: model.forward(X)
    for call in calls.values():
        # Everything is compiled and loaded.
        call(fresh())
    twin = fresh()
    after = small(twin)
    tally = Tally()
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    for name, call in calls.items():
        for number in range(count):
            spare = int(40 * MEGABYTE * 0.4**number)
            begin(f"{name}, {spare} bytes to spare")
            model = fresh()
            before = state_bits(model)
            resource.setrlimit(resource.RLIMIT_AS, (address_space() + spare, unlimited[1]))
            failure = None
            try:
                call(model)
            except BaseException as error:
                failure = error
            finally:
                resource.setrlimit(resource.RLIMIT_AS, unlimited)
            if failure is None:
                tally.note("there was enough")
                continue
            what = f"{type(failure).__name__}: {failure}"
            # A thread's stack is memory too.
            clean = isinstance(failure, MemoryError | fastmlp.FastMLPError) or (
                isinstance(failure, RuntimeError) and "threads" in str(failure)
            )
            tally.check(f"{name}: a clear error", clean, what)
            tally.check(f"{name}: unchanged", state_bits(model) == before, what)
            tally.check(f"{name}: the next small calls", small(model) == after, what)
    return tally


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("ensemble", [False, True], ids=["MLP", "Ensemble"])
def test_calls_with_too_little_memory(ensemble, threads):
    assert_withstood(run_attack(attack_under_a_limit, ensemble, threads, tries(5)))


def attack_without_threads(ensemble):
    """Have the system start no more threads."""
    import threading

    in_teams(3)
    X = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    y = np.ascontiguousarray(X[:, :2])
    model, twin = (
        fastmlp.Ensemble([16, 64, 2], 3) if ensemble else fastmlp.MLP([16, 64, 2]) for _ in "12"
    )
    for each in (model, twin):
        each.fit(X, y, epochs=2, optimizer=fastmlp.Adam(1e-3), threads=1)
    tally, before, start = Tally(), state_bits(model), threading.Thread.start

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    calls = {
        "fit": lambda: model.fit(X, y, epochs=1, optimizer=fastmlp.Adam(1e-3)),
        "fit, another optimizer": lambda: model.fit(X, y, epochs=1, optimizer=fastmlp.RMSprop()),
        "predict": lambda: model.predict(X),
    }
    for name, call in calls.items():
        begin(name)
        threading.Thread.start = refuse
        try:
            call()
            tally.note(f"{name}: done without")
        except RuntimeError as failure:
            tally.check(f"{name}: a clear error", "threads: got" in str(failure), failure)
            tally.check(f"{name}: unchanged", state_bits(model) == before, failure)
        finally:
            threading.Thread.start = start
        if "done without" not in str(tally.other):
            tally.check(f"{name}: it is free again", state_bits(model) == before)
    for each in (model, twin):
        each.parameters = each.parameters * 0.5
        each.fit(X, y, epochs=2, optimizer=fastmlp.Adam(1e-3))
    if not tally.other:
        tally.check("afterwards", state_bits(model) == state_bits(twin))
    return tally


@pytest.mark.parametrize("ensemble", [False, True], ids=["MLP", "Ensemble"])
def test_a_system_that_starts_no_more_threads(ensemble):
    assert_withstood(run_attack(attack_without_threads, ensemble))


def attack_by_diverging_on_much_data(folder, ensemble):
    """Diverge on data that lies in a file, and on data in memory: the error copies neither."""
    rows, tally = 1_000_000, Tally()
    size = rows * 64 * 4
    X = np.memmap(Path(folder) / "X", np.float32, "w+", shape=(rows, 64))
    y = np.zeros((rows, 1), np.float32)
    X[5] = 1e30
    if ensemble:
        model = fastmlp.Ensemble([64, 4, 1], 2)
    else:
        model = fastmlp.MLP([64, 4, 1])
    model.fit(X[10:100], y[10:100], epochs=1)
    before = bits(model.parameters)
    for shuffle in (False, True):
        begin(f"shuffle {shuffle}")
        tracemalloc.start()
        tracemalloc.reset_peak()
        try:
            model.fit(X, y, epochs=1, batch_size=10_000, shuffle=shuffle)
            tally.bad("refused", "it was accepted")
        except fastmlp.NonFiniteTrainingError:
            tally.good("refused")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # A workspace of a batch, and the order of the rows.
        what = f"{peak / 1e6:.0f} MB beside {size / 1e6:.0f}"
        tally.check("memory of the error", peak < 0.5 * size, what)
        tally.check("finite", np.isfinite(model.parameters).all())
        if not shuffle:
            tally.check("the first batch", bits(model.parameters) == before)
    return tally


@pytest.mark.skipif(sys.platform == "win32", reason="the file is held open")
@pytest.mark.parametrize("ensemble", [False, True], ids=["MLP", "Ensemble"])
def test_the_error_of_a_diverging_fit_copies_no_data(tmp_path, ensemble):
    assert_withstood(run_attack(attack_by_diverging_on_much_data, str(tmp_path), ensemble))
