"""Processes: forked in the midst of a fit, spawned, of pools, and killed."""

import concurrent.futures
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import fastmlp
from tests.robustness.attacks import (
    Tally,
    assert_withstood,
    begin,
    bits,
    in_teams,
    own_threads,
    run_attack,
    tries,
)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes of POSIX")

ROWS = 2000
CHILD_SECONDS = 20.0


def rows():
    generator = np.random.default_rng(0)
    X = generator.normal(size=(ROWS, 16)).astype(np.float32)
    return X, generator.integers(0, 4, ROWS).astype(np.float32)


def fresh(ensemble=False):
    arguments = "relu", "softmax_cross_entropy"
    if ensemble:
        return fastmlp.Ensemble([16, 96, 64, 4], 3, *arguments, seed=1)
    return fastmlp.MLP([16, 96, 64, 4], *arguments, seed=1)


def fit(model, epochs=2):
    X, y = rows()
    model.fit(X, y, epochs=epochs, batch_size=250, optimizer=fastmlp.Adam(1e-3))
    return model


def in_forked_child(work, seconds=CHILD_SECONDS):
    """Return the bytes that `work` returns in a forked child, or what became of the child."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reads)
            found = work()
            with open(writes, "wb") as pipe:
                pipe.write(found)
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writes)
    deadline = time.monotonic() + seconds
    found = b""
    with open(reads, "rb") as pipe:
        os.set_blocking(reads, False)
        while True:
            part = pipe.read()
            if part:
                found += part
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                found += pipe.read() or b""
                return found if status == 0 else f"ended by {status}"
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return "it hangs"
            time.sleep(0.005)


def attack_by_forking_during_a_fit(threads, ensemble, count):
    """Fork while another thread fits; the child uses the same model, its copy and a new one."""
    if threads > 1:
        in_teams(threads)
    X, _ = rows()
    tally = Tally()
    alone = fit(fresh(ensemble))
    expected = bits(alone.predict(X), alone.parameters)
    start = fresh(ensemble).parameters.copy()

    def fits_the_same(model):
        # The parent's fit is at some epoch: the child's own begins where the first one began.
        model.parameters = start
        model._state = fresh(ensemble)._state
        fit(model)
        return bits(model.predict(X), model.parameters)

    def predicts(model):
        model.predict(X)
        model._state = alone._state
        return bits(model.predict(X), model.parameters)

    def copies(model):
        copied = pickle.loads(pickle.dumps(model))
        copied._state = fresh(ensemble)._state
        fit(copied)
        return bits(copied.predict(X), copied.parameters)

    def fits_a_new_one(model):
        new = fit(fresh(ensemble))
        return bits(new.predict(X), new.parameters)

    works = [fits_the_same, fits_the_same, predicts, copies, fits_a_new_one]
    chance = random.Random(0)
    for number in range(count):
        for work in works:
            begin(f"{work.__name__}, {number}")
            model, stop = fresh(ensemble), threading.Event()
            fit(model)

            def train(model=model, stop=stop):
                while not stop.is_set():
                    fit(model, epochs=20)

            thread = threading.Thread(target=train, daemon=True)
            thread.start()
            time.sleep(0.005 + 0.02 * chance.random())
            tally.note(f"{len(own_threads())} threads at work")
            found = in_forked_child(lambda work=work, model=model: work(model))
            stop.set()
            thread.join()
            what = found if isinstance(found, str) else "other bits"
            tally.check(work.__name__, found == expected, what)
            fit(model)
    return tally


@pytest.mark.parametrize("ensemble", [False, True], ids=["MLP", "Ensemble"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_child_forked_during_a_fit(threads, ensemble):
    assert_withstood(
        run_attack(attack_by_forking_during_a_fit, threads, ensemble, tries(2), seconds=280.0)
    )


def predicted(model):
    """Return what a pool's process makes of a model: predictions, and those after a fit."""
    X, _ = rows()
    before = bits(model.predict(X))
    return before, bits(fit(model).predict(X))


def attack_through_pools(method):
    """Fit here, then in the processes of a pool, then here again."""
    tally = Tally()
    begin(method)
    model = fit(fresh())
    expected = predicted(pickle.loads(pickle.dumps(model)))
    if method == "joblib":
        import joblib

        with joblib.parallel_config(backend="loky", n_jobs=2):
            found = joblib.Parallel()(joblib.delayed(predicted)(model) for _ in range(6))
    else:
        context = multiprocessing.get_context(method)
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            found = list(pool.map(predicted, [model] * 6, timeout=100))
        if method == "fork":
            with context.Pool(2) as pool:
                found += pool.map_async(predicted, [model] * 4).get(timeout=100)
    for each in found:
        tally.check(method, tuple(each) == expected)
    tally.check("afterwards", predicted(model) == expected)
    return tally


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver", "joblib"])
def test_processes_of_pools(method):
    if method == "joblib":
        pytest.importorskip("joblib")
    found = run_attack(attack_through_pools, method, seconds=240.0)
    assert_withstood(found)


def work_until_killed():
    """Train for ever, with new shapes again and again."""
    model, width = fit(fresh()), 3
    print("training", flush=True)
    while True:
        fit(model)
        other = fastmlp.MLP([16, width % 40 + 1, 4], "relu", "softmax_cross_entropy")
        fit(other, epochs=1)
        width += 1


def attack_by_killing(count):
    """Kill a process that loads, compiles or trains, and see that the next one works."""
    tally, chance = Tally(), random.Random(0)
    expected = predicted(fit(fresh()))
    program = "from tests.robustness.test_processes import work_until_killed; work_until_killed()"
    for number in range(count):
        begin(f"kill {number}")
        with subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            if number % 2:
                assert process.stdout.readline() == b"training\n"
            time.sleep(chance.random() * 2.0)
            process.kill()
    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        found = pool.submit(predicted, fit(fresh())).result(timeout=100)
    tally.check("the next process", tuple(found) == expected)
    return tally


def test_a_killed_process_leaves_nothing_that_the_next_one_trips_over():
    assert_withstood(run_attack(attack_by_killing, tries(3), seconds=240.0))
