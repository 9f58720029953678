"""The lock of a model: calls of handlers at any line, readers in turn, forked children."""

import os
import sys
import threading

import numpy as np
import pytest

from fastmlp import MLP, BusyError
from fastmlp.state.locking import ModelLock

X = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
Y = X[:, :2].copy()
CALLS = {
    "step": lambda model: model.step(X, Y),
    "fit": lambda model: model.fit(X, Y, epochs=2),
    "predict": lambda model: model.predict(X),
    "apply": lambda model: model.apply(),
}


def call_at_line(number, work, handler):
    """Do work and call a handler at the line that is executed as this one; return how many were."""
    seen = 0

    def trace(frame, event, argument):
        nonlocal seen
        if "fastmlp" not in frame.f_code.co_filename:
            return None
        if event == "line":
            seen += 1
            if seen == number:
                sys.settrace(None)
                handler()
                sys.settrace(trace)
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    return seen


@pytest.mark.parametrize("inner", CALLS)
@pytest.mark.parametrize("outer", CALLS)
def test_a_handler_may_call_the_model_at_any_line(outer, inner):
    """It gets its answer or a refusal, and nobody waits for ever."""
    model = MLP([3, 4, 2], seed=0)
    # Another thread was the last to change the model, as the handler must not conclude from that.
    other = threading.Thread(target=CALLS["step"], args=(model,))
    other.start()
    other.join()
    CALLS[outer](model)
    refused = []

    def handler():
        try:
            CALLS[inner](model)
        except BusyError:
            refused.append(inner)

    lines = call_at_line(0, lambda: CALLS[outer](model), handler)
    for number in range(1, lines + 1, max(1, lines // 150)):
        try:
            call_at_line(number, lambda: CALLS[outer](model), handler)
        except BusyError:
            refused.append(outer)
        assert not model._state.lock.active and not model._state.lock.fitting.locked()
    assert np.isfinite(model.parameters).all()
    # In the middle of a change there is nothing else to do.
    assert refused or outer == "predict"


def test_a_waiting_reader_gets_its_turn_between_changes():
    lock, changes, copies = ModelLock(), [], []
    stop = threading.Event()

    def write():
        while not stop.is_set():
            lock.change("change", changes.append, 1)

    writers = [threading.Thread(target=write, daemon=True) for _ in range(2)]
    for thread in writers:
        thread.start()
    for _ in range(50):
        lock.copied("read", lambda: copies.append(len(changes)))
    stop.set()
    for thread in writers:
        thread.join(60)
        assert not thread.is_alive()
    assert len(copies) == 50 and not lock.active


def test_a_change_within_a_fit_is_refused_and_an_epoch_is_not():
    lock = ModelLock()

    def fit():
        for method in (lock.change, lock.fit):
            with pytest.raises(BusyError, match="a fit is training"):
                method("step", lambda: None)
        return lock.epoch(lambda: lock.fitting.locked())

    assert lock.fit("fit", fit) and not lock.fitting.locked()
    assert lock.change("step", lambda: 5) == 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_the_parameters_of_a_whole_epoch(child_python, child_environment):
    import subprocess

    source = """
import os, sys, threading, time
import numpy as np
from fastmlp import MLP, Adam
X = np.random.default_rng(0).normal(size=(4000, 64)).astype(np.float32)
y = X[:, :4].copy()
model, same = (MLP([64, 256, 256, 4], seed=1, ) for _ in range(2))
model.threads = same.threads = 1
arguments = dict(batch_size=50, optimizer=Adam(1e-3))
bounds = {same.parameters.tobytes(): 0}
for epoch in range(1, 9):
    same.fit(X, y, epochs=1, **arguments)
    bounds[same.parameters.tobytes()] = epoch
fit = threading.Thread(target=lambda: model.fit(X, y, epochs=8, **arguments))
fit.start()
wrong = forks = 0
while fit.is_alive() and forks < 12:
    time.sleep(0.005)
    pid = os.fork()
    if pid == 0:
        epoch = bounds.get(model.parameters.tobytes(), -1)
        good = epoch >= 0 and model.epochs_trained == epoch
        good = good and model._state.steps == 80 * epoch
        model.fit(X[:100], y[:100], epochs=1, **arguments)
        os._exit(0 if good else 1)
    wrong += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    forks += 1
fit.join()
print(forks, wrong)
"""
    result = subprocess.run(
        [child_python, "-W", "ignore", "-c", source],
        env=child_environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    forks, wrong = map(int, result.stdout.split())
    assert forks > 3 and wrong == 0
