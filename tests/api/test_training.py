"""Training: the same bits by every road, state, history, interrupts, non-finite numbers."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from fastmlp import MLP, SGD, Adagrad, Adam, AdamW, RMSprop
from fastmlp.data.batches import batch_rows
from fastmlp.data.orders import draw_orders
from fastmlp.dispatch import planning
from fastmlp.errors import NonFiniteTrainingError
from fastmlp.optimizers import by_name
from fastmlp.training.interrupts import run_interruptibly
from fastmlp_kernels import cpu
from fastmlp_kernels.algebra import OPTIMIZERS
from fastmlp_kernels.problem import BATCHES, CONTROL_WORDS, STOP
from tests.samples import epoch_order

RNG = np.random.default_rng(5)
# Not a multiple of the batch size: the last mini-batch is smaller.
X = RNG.normal(size=(70, 5)).astype(np.float32)
Y = np.sin(X[:, :2] * 2).astype(np.float32)
LABELS = RNG.integers(0, 3, 70)

OF_RULE = {
    "sgd": SGD(0.1, weight_decay=0.01),
    "momentum": SGD(0.1, momentum=0.9),
    "nesterov": SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "velocity": SGD(0.1, momentum=0.9, rate_in_velocity=True),
    "nesterov_velocity": SGD(0.1, momentum=0.9, nesterov=True, rate_in_velocity=True),
    "adam": Adam(0.01, weight_decay=0.01),
    "adamw": AdamW(0.01),
    "rmsprop": RMSprop(0.01),
    "adagrad": Adagrad(0.1),
}
for _rule, _optimizer in by_name().items():
    OF_RULE.setdefault(_rule, replace(_optimizer, learning_rate=0.01))
TASKS = {
    "regression": (lambda **more: MLP([5, 7, 2], "relu", **more), Y),
    "sigmoid": (lambda **more: MLP([5, 7, 2], ["sigmoid", "sigmoid"], **more), abs(Y)),
    "binary": (
        lambda **more: MLP([5, 7, 2], ["silu", "sigmoid"], "binary_cross_entropy", **more),
        abs(Y),
    ),
    "labels": (lambda **more: MLP([5, 7, 3], "gelu", "softmax_cross_entropy", **more), LABELS),
    "one-hot": (
        lambda **more: MLP([5, 7, 3], "gelu", "softmax_cross_entropy", **more),
        np.eye(3)[LABELS],
    ),
    "counts": (
        lambda **more: MLP([5, 7, 3], ["tanh", "exp"], "poisson", **more),
        np.eye(3)[LABELS],
    ),
}


def test_every_rule_has_an_optimizer_here():
    assert set(OF_RULE) == set(OPTIMIZERS.names)
    for rule, optimizer in OF_RULE.items():
        assert optimizer.rule == rule
        # The rate comes first, so that it may be given without its name.
        assert type(optimizer)(0.5).learning_rate == 0.5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", OF_RULE)
def test_two_fits_are_one_longer_fit(rule, dtype):
    whole, halves = (MLP([5, 7, 2], dtype=dtype, seed=1) for _ in range(2))
    history = whole.fit(X, Y, epochs=10, batch_size=16, optimizer=OF_RULE[rule])
    first = halves.fit(X, Y, epochs=5, batch_size=16, optimizer=OF_RULE[rule])
    second = halves.fit(X, Y, epochs=5, batch_size=16, optimizer=OF_RULE[rule])
    np.testing.assert_array_equal(whole.parameters, halves.parameters)
    np.testing.assert_array_equal(history.loss, np.concatenate([first.loss, second.loss]))
    assert whole.epochs_trained == halves.epochs_trained == 10
    assert history.loss[-1] < history.loss[0]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rule", OF_RULE)
def test_the_five_parts_are_the_fused_step(rule, task):
    make, y = TASKS[task]
    fused, parts = make(), make()
    for start in range(0, 60, 20):
        batch = slice(start, start + 20)
        expected = fused.step(X[batch], y[batch], OF_RULE[rule])
        parts.forward(X[batch])
        loss = parts.compute_loss(y[batch])
        parts.zero_grad()
        parts.backward()
        parts.apply(OF_RULE[rule])
        assert loss == expected
        np.testing.assert_array_equal(parts.parameters, fused.parameters)
    assert not np.array_equal(parts.parameters, make().parameters)


@pytest.mark.parametrize("task", TASKS)
def test_an_epoch_is_its_steps(task):
    make, y = TASKS[task]
    by_fit, by_steps = make(seed=2), make(seed=2)
    history = by_fit.fit(X, y, epochs=2, batch_size=16, optimizer=Adam(0.01))
    means = []
    for epoch in range(2):
        order = epoch_order(2, epoch, 70)
        parts = np.split(order, range(16, 70, 16))
        losses = [by_steps.step(X[part], y[part], Adam(0.01)) for part in parts]
        means.append(np.average(losses, weights=[len(part) for part in parts]))
    np.testing.assert_array_equal(by_fit.parameters, by_steps.parameters)
    np.testing.assert_allclose(history.loss, means, rtol=1e-12)


@pytest.mark.parametrize("reduction", ["sum", "batch_mean"])
def test_reductions_scale_the_loss_and_the_step(reduction):
    mean, other = MLP([5, 2]), MLP([5, 2], reduction=reduction)
    # Exact: a factor of 2 outputs, or of 2 x 16 elements, is a power of two.
    factor = 32 if reduction == "sum" else 2
    assert other.step(X[:16], Y[:16], SGD(0.5 / factor)) == pytest.approx(
        factor * mean.step(X[:16], Y[:16], SGD(0.5)), rel=1e-6
    )
    np.testing.assert_allclose(mean.parameters, other.parameters, rtol=1e-5, atol=1e-6)


def test_order_is_a_permutation_by_seed_and_epoch():
    orders = np.zeros((2, 2, 50), np.int64)
    draw_orders(orders, (0, 1), (0, 0))
    for order in orders.reshape(4, 50):
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
    assert len({order.tobytes() for order in orders.reshape(4, 50)}) == 4
    np.testing.assert_array_equal(epoch_order(1, 1, 50), orders[1, 1])
    np.testing.assert_array_equal(batch_rows(50, 20), [20, 20, 10])
    np.testing.assert_array_equal(batch_rows(40, 20), [20, 20])


def test_state_belongs_to_the_rule_and_survives_a_new_learning_rate(caplog):
    switched, fresh = MLP([5, 2]), MLP([5, 2])
    switched.fit(X, Y, epochs=1, optimizer=Adam())
    with caplog.at_level(logging.INFO, "fastmlp"):
        switched.step(X, Y, SGD(0.1, momentum=0.9))
    assert "momentum takes over from adam with a fresh state" in caplog.text
    fresh.fit(X, Y, epochs=1, optimizer=Adam())
    fresh.step(X, Y, SGD(0.1))
    # The first step of a fresh momentum is a plain step.
    np.testing.assert_array_equal(switched.parameters, fresh.parameters)

    kept, forgotten = MLP([5, 2]), MLP([5, 2])
    for model in (kept, forgotten):
        model.step(X, Y, SGD(0.1, momentum=0.9))
    forgotten.step(X, Y, SGD(1e-30))
    np.testing.assert_array_equal(kept.parameters, forgotten.parameters)
    kept.step(X, Y, SGD(0.2, momentum=0.9))
    forgotten.step(X, Y, SGD(0.2, momentum=0.9))
    assert not np.array_equal(kept.parameters, forgotten.parameters)


def test_a_bad_batch_stops_training_with_the_last_good_parameters():
    y = Y.copy()
    y[35] = 1e30  # In the third batch of 16, and its square is beyond float32.
    model, expected = MLP([5, 7, 2]), MLP([5, 7, 2])
    for start in (0, 16):
        last = expected.step(X[start : start + 16], y[start : start + 16], Adam())
    with pytest.raises(NonFiniteTrainingError, match="fit: got .* wanted") as caught:
        model.fit(X, y, epochs=3, batch_size=16, optimizer=Adam(), shuffle=False)
    assert (caught.value.epoch, caught.value.batch) == (1, 3)
    assert caught.value.last_loss == last
    assert "batch 3 of 5" in str(caught.value) and "learning rate than 0.001" in str(caught.value)
    np.testing.assert_array_equal(model.parameters, expected.parameters)
    assert len(model.history) == 0 and model.epochs_trained == 0
    # Model and optimizer go on from there, as if the rest of the epoch had never been.
    model.step(X[:16], Y[:16], Adam())
    expected.step(X[:16], Y[:16], Adam())
    np.testing.assert_array_equal(model.parameters, expected.parameters)


@pytest.mark.parametrize("batch_size", [70, 7])
def test_parameters_that_overflow_are_taken_back(batch_size):
    model = MLP([5, 7, 2])
    model.fit(X, Y, epochs=2, batch_size=batch_size)
    before = model.parameters.copy()
    with pytest.raises(NonFiniteTrainingError) as caught:
        model.fit(X, 1e3 * Y, epochs=1, batch_size=batch_size, optimizer=SGD(1e38))
    assert caught.value.epoch == 1
    assert np.isfinite(model.parameters).all()
    if batch_size == 70:
        np.testing.assert_array_equal(model.parameters, before)
    assert model.epochs_trained == 2
    model.fit(X, Y, epochs=1)
    assert model.epochs_trained == 3


def test_a_step_that_is_not_finite_changes_nothing():
    model = MLP([5, 7, 2])
    model.step(X, Y, Adam())
    before = model.parameters.copy()
    with pytest.raises(NonFiniteTrainingError, match="step: got a loss of inf"):
        model.step(X, np.full_like(Y, 1e30), Adam())
    np.testing.assert_array_equal(model.parameters, before)
    # And nothing of it is left in what is kept for the next step.
    expected = MLP([5, 7, 2])
    expected.step(X, Y, Adam())
    assert model.step(X, Y, Adam()) == expected.step(X, Y, Adam())
    np.testing.assert_array_equal(model.parameters, expected.parameters)


def test_an_epoch_that_never_ran_counts_no_steps(monkeypatch):
    calls = []

    def build(problem, machine):
        program = kernel.build(problem, machine)
        epoch = program.epoch

        def failing(*arguments):
            # Preparing may run an epoch of no rows.
            calls.extend([1] * (len(arguments[4]) > 0))
            if len(calls) == 2:
                raise OSError("no more threads")
            epoch(*arguments)

        program.epoch = failing
        return program

    kernel = cpu.KERNELS[0]
    monkeypatch.setattr(planning, "KERNELS", (replace(kernel, build=build),))
    model = MLP([5, 7, 2])
    with pytest.raises(OSError, match="no more threads"):
        model.fit(X, Y, epochs=3, batch_size=7)
    assert len(model.history) == 1 and model._state.steps == 10


INTERRUPTED = """
import json, os, signal, threading, time
import numpy as np
from fastmlp import MLP, SGD

X = np.random.default_rng(0).normal(size=(400_000, 16)).astype(np.float32)
model = MLP([16, 64, 1], seed=0)
model.fit(X[:64], X[:64, :1], epochs=1)
before = model.parameters.copy()
steps = model._state.steps

def interrupt():
    while not any(each.name == "fastmlp-epoch" for each in threading.enumerate()):
        time.sleep(0.001)
    time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
try:
    model.fit(X, X[:, :1], epochs=1000, batch_size=16, optimizer=SGD(1e-3))
    outcome = "finished"
except KeyboardInterrupt:
    outcome = "interrupted"
after = model.parameters.copy()
time.sleep(0.05)
print(json.dumps({
    "outcome": outcome,
    "still": bool((after == model.parameters).all()),
    "finite": bool(np.isfinite(after).all()),
    "changed": bool((after != before).any()),
    "steps": model._state.steps - steps,
    "epochs": model.epochs_trained,
    "history": len(model.history),
}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send itself Ctrl-C")
@pytest.mark.usefixtures("interrupts_heard")
def test_an_interrupt_stops_an_epoch_between_two_batches(child_python, child_environment):
    done = subprocess.run(
        [child_python, "-c", INTERRUPTED],
        capture_output=True,
        text=True,
        env=child_environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["outcome"] == "interrupted"
    assert result["still"] and result["finite"] and result["changed"]
    assert 0 < result["steps"] < 400_000 // 16
    assert result["epochs"] == 1 and result["history"] == 0


def test_a_long_epoch_reports_and_passes_its_error_on():
    control = np.zeros(CONTROL_WORDS, dtype=np.int64)
    ran_in, seen = [], []

    def work():
        ran_in.append(threading.current_thread())
        control[BATCHES] = 7
        while not seen:
            time.sleep(0.001)
        raise ValueError("from the epoch")

    with pytest.raises(ValueError, match="from the epoch"):
        run_interruptibly(work, control, 1.0, seen.append)
    assert ran_in[0] is not threading.main_thread() and seen[-1] == 7
    with pytest.raises(ValueError, match="from the epoch"):
        run_interruptibly(work, control, 1e-6, seen.append)
    assert ran_in[1] is threading.main_thread()


def test_an_error_while_waiting_stops_the_epoch():
    control = np.zeros(CONTROL_WORDS, dtype=np.int64)
    stopped = threading.Event()

    def work():
        while not control[STOP]:
            stopped.wait(0.001)
        stopped.set()

    def waiting(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(work, control, 1.0, waiting)
    assert stopped.is_set()


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send itself Ctrl-C")
@pytest.mark.usefixtures("interrupts_heard")
def test_an_interrupt_waits_for_the_batch_that_is_running():
    control = np.zeros(CONTROL_WORDS, dtype=np.int64)
    finished = threading.Event()

    def work():
        os.kill(os.getpid(), signal.SIGINT)
        while not control[STOP]:
            time.sleep(0.001)
        time.sleep(0.2)
        finished.set()

    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(work, control, 1.0, lambda done: None)
    assert finished.is_set()


def test_fit_works_outside_the_main_thread():
    model, same = MLP([5, 7, 2]), MLP([5, 7, 2])
    thread = threading.Thread(target=lambda: model.fit(X, Y, epochs=2))
    thread.start()
    thread.join()
    same.fit(X, Y, epochs=2)
    np.testing.assert_array_equal(model.parameters, same.parameters)
