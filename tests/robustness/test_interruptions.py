"""Exceptions at any moment: Ctrl-C, SIGTERM as SystemExit, errors of handlers, want of memory.

After each of them the counts of steps and epochs agree with the parameters, bit by bit, and the
next call on the same model is right.
"""

import contextlib
import functools
import itertools
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

import fastmlp
from fastmlp.training.interrupts import run_interruptibly
from tests.robustness.attacks import (
    Tally,
    assert_withstood,
    begin,
    bits,
    in_teams,
    nobody_stays,
    own_threads,
    run_attack,
    tries,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="timers and signals of POSIX")

ROWS, BATCH, EPOCHS, MEMBERS = 24, 8, 2, 3
BATCHES = ROWS // BATCH
OPTIMIZER = {"learning_rate": 1e-3}
FIT = {"epochs": EPOCHS, "batch_size": BATCH, "shuffle": False}


class OfAHandler(BaseException):
    """What a signal handler of a user's own might raise."""


EXCEPTIONS = (KeyboardInterrupt, SystemExit, OfAHandler, MemoryError)


def rows():
    """Return X and y, contiguous and of the model's dtype."""
    generator = np.random.default_rng(0)
    X = generator.normal(size=(ROWS, 12)).astype(np.float32)
    return X, generator.integers(0, 5, ROWS).astype(np.float32)


def new_model(ensemble=False):
    """Return a model that has been trained a little: the optimizer has a state."""
    arguments = ([12, 16, 5], "relu", "softmax_cross_entropy")
    if ensemble:
        model = fastmlp.Ensemble(arguments[0], MEMBERS, *arguments[1:], seed=1)
    else:
        model = fastmlp.MLP(*arguments, seed=1)
    fit(model)
    return model


def fit(model):
    model.fit(*rows(), optimizer=fastmlp.Adam(**OPTIMIZER), **FIT)


def steps(model):
    X, y = rows()
    rule = fastmlp.Adam(**OPTIMIZER)
    for number in range(EPOCHS * BATCHES):
        part = slice(number % BATCHES * BATCH, (number % BATCHES + 1) * BATCH)
        model.step(X[part], y[part], rule)


def fit_with_company(model):
    """Fit with everything that may happen between two epochs."""
    X, y = rows()
    model.fit(
        X,
        y,
        optimizer=fastmlp.Adam(**OPTIMIZER),
        validation_data=(X, y),
        callbacks=lambda event: event.model.predict(X) is None,
        **FIT,
    )


def predict(model):
    X, _ = rows()
    for count in (ROWS, 3, 17):
        model.predict(X[:count])


def evaluate(model):
    model.evaluate(*rows())


def value_and_grad(model):
    X, y = rows()
    for count in (ROWS, 9):
        model.value_and_grad(X[:count], y[:count])


def fit_ensemble(model):
    fit(model)


OPERATIONS = {
    "fit": fit,
    "fit with company": fit_with_company,
    "step": steps,
    "predict": predict,
    "evaluate": evaluate,
    "value_and_grad": value_and_grad,
    "Ensemble.fit": fit_ensemble,
    "Ensemble.predict": predict,
}


def answers(model):
    """Return what a model gives, as bits: predictions, a gradient, and a whole fit more."""
    X, y = rows()
    found = [bits(model.predict(X)), bits(model.predict(X[:5])), bits(*model.evaluate(X, y)[:2])]
    if isinstance(model, fastmlp.MLP):
        loss, gradients = model.value_and_grad(X, y)
        found.append(bits(loss, gradients.flat))
    fit(model)
    return [*found, bits(model.parameters)]


class Expected:
    """What a model of so many steps holds and gives: that of a fresh one which took them."""

    def __init__(self, blob):
        self._blob = blob
        self._first = pickle.loads(blob)
        self._ensemble = not isinstance(self._first, fastmlp.MLP)
        self.known = {}

    def _start(self, member):
        model = pickle.loads(self._blob)
        return model[member] if self._ensemble else model

    @functools.cache  # noqa: B019  as long as the attack
    def after(self, count, member=None):
        """Return the parameters and the optimizer's state after so many more steps, as bits."""
        model = self._start(member)
        X, y = rows()
        for number in range(count):
            part = slice(number % BATCHES * BATCH, (number % BATCHES + 1) * BATCH)
            model.step(X[part], y[part], fastmlp.Adam(**OPTIMIZER))
        return bits(model.parameters, model._state.slots)

    @functools.cache  # noqa: B019
    def given(self, count):
        """Return the answers of a single model after so many more steps."""
        model = self._start(None)
        X, y = rows()
        for number in range(count):
            part = slice(number % BATCHES * BATCH, (number % BATCHES + 1) * BATCH)
            model.step(X[part], y[part], fastmlp.Adam(**OPTIMIZER))
        return answers(model)

    def check(self, model, operation, tally, kind):
        """Compare a model that was interrupted with its counts, and with a fresh one."""
        state, first = model._state, self._first._state
        trained = np.atleast_1d(state.steps - first.steps)
        epochs = np.atleast_1d(state.epochs - first.epochs)
        parameters, slots = np.atleast_2d(state.parameters), state.slots
        slots = slots if self._ensemble else slots[None]
        counts = f"{trained} steps, {epochs} epochs"
        for member in range(len(trained)):
            mine = bits(parameters[member], slots[member])
            right = mine == self.after(int(trained[member]), member if self._ensemble else None)
            tally.check(f"{kind}: parameters", right, f"not those of {counts}")
        if "fit" in operation:
            tally.check(f"{kind}: epochs", (epochs == trained // BATCHES).all(), counts)
        elif operation != "step":
            tally.check(f"{kind}: unchanged", not trained.any() and not epochs.any(), counts)
        if not self._ensemble:
            tally.check(f"{kind}: the next calls", answers(model) == self.given(int(trained[0])))
            return
        members = list(model)
        found = answers(model)
        right = found[0] == bits(np.stack([each.predict(rows()[0]) for each in members]))
        for each in members:
            fit(each)
        right = right and found[-1] == bits(np.stack([each.parameters for each in members]))
        tally.check(f"{kind}: the next calls", right)


def began_as(failure, raised):
    """Return whether an exception was raised while another one was on its way."""
    # The standard library's locks make a RuntimeError of some.
    while failure is not None:
        if isinstance(failure, raised):
            return True
        failure = failure.__cause__ or failure.__context__
    return False


class Interrupter:
    """Raises an exception in the main thread some time after it was armed, once."""

    def __init__(self):
        self.armed = None
        signal.signal(signal.SIGALRM, self._heard)

    def _heard(self, number, frame):
        raised, self.armed = self.armed, None
        if raised is not None:
            raise raised

    def call(self, work, raised, delay):
        """Call `work`; return whether it was interrupted."""
        try:
            try:
                self.armed = raised
                signal.setitimer(signal.ITIMER_REAL, max(delay, 1e-6))
                work()
            finally:
                self.armed = None
                signal.setitimer(signal.ITIMER_REAL, 0)
        except raised:
            return True
        except Exception as failure:
            if began_as(failure, raised):
                return True
            raise
        return False


def prepared(operation, threads):
    """Return a trained model as a pickle, and how long the operation takes when it is warm."""
    if threads > 1:
        in_teams(threads)
    model = new_model(operation.startswith("Ensemble"))
    blob = pickle.dumps(model)
    for _ in range(3):
        started = time.perf_counter()
        OPERATIONS[operation](model)
        seconds = time.perf_counter() - started
    answers(model)
    return blob, seconds


def attack_at_random_moments(operation, threads, count, limit):
    """Interrupt an operation at random moments, on models that are warm and that are not."""
    blob, seconds = prepared(operation, threads)
    # Other moments for each number of threads: the lines of Python are the same.
    expected, tally, chance = Expected(blob), Tally(), random.Random(threads)
    interrupter, raised = Interrupter(), itertools.cycle(EXCEPTIONS[:3])
    until = time.monotonic() + limit
    for number in range(count):
        if time.monotonic() > until and number >= 30:
            break
        exception, warm = next(raised), number % 3 > 0
        model = pickle.loads(blob)
        if warm:
            OPERATIONS[operation](model)
            model._state = pickle.loads(blob)._state
        begin(f"{operation}, {threads} threads, try {number}, {exception.__name__}, warm {warm}")
        delay = chance.random() * seconds * (1.1 if warm else 2)
        hit = interrupter.call(lambda model=model: OPERATIONS[operation](model), exception, delay)
        tally.note("interrupted" if hit else "finished before")
        expected.check(model, operation, tally, "interrupted" if hit else "finished")
    tally.check("nobody stays", nobody_stays(), lambda: f"{own_threads()}")
    return tally


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_interrupts_at_random_moments(operation, threads):
    found = run_attack(attack_at_random_moments, operation, threads, tries(1000), 1.6 * tries(1))
    assert_withstood(found)
    assert found["noted"]["interrupted"] >= 5


# CPython hears signals after calls, when a function begins and when a loop goes on.
# Places in other files than these are those of NumPy and of the caller's own arguments.
FILES = ("fastmlp", "threading.py", "contextlib.py", "<string>")
HEARS = ("CALL", "CALL_FUNCTION_EX", "CALL_KW", "RESUME", "JUMP_BACKWARD")


class Stepper:
    """Raises an exception at the n-th place in the main thread where CPython hears signals."""

    def __init__(self):
        self._places = {}

    def _hearing(self, code):
        """Return the offsets of a function's operations before which a signal may be heard."""
        import dis

        found, heard = set(), False
        if not any(name in code.co_filename for name in FILES):
            return found
        for each in dis.get_instructions(code):
            if each.opname == "CACHE":
                continue
            if heard:
                found.add(each.offset)
            heard = each.opname in HEARS
        return found

    def _trace(self, frame, event, argument):
        """Trace the operations of a function that begins, where a signal may be heard in it."""
        code = frame.f_code
        places = self._places.get(code)
        if places is None:
            places = self._places[code] = self._hearing(code)
        if self._left < 0 or not places:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False

        def operation(frame, event, argument):
            if event == "return":
                # What follows in the caller is the same place once more: nothing is heard there.
                self._returned = True
            elif event == "opcode":
                returned, self._returned = self._returned, False
                if not returned and frame.f_lasti in places:
                    self._left -= 1
                    if self._left < 0:
                        self.where = f"{code.co_filename}:{frame.f_lineno}"
                        raise self._raised
            return operation

        return operation

    def call(self, work, raised, place):
        """Call `work`; return whether it was interrupted: not if it has fewer places."""
        self._left, self._raised, self._returned, self.where = place, raised, False, ""
        try:
            sys.settrace(self._trace)
            try:
                work()
            finally:
                sys.settrace(None)
        except raised:
            return True
        except Exception as failure:
            if began_as(failure, raised):
                return True
            raise
        finally:
            self.reached = place - self._left
        return self._left < 0


def attack_at_every_place(operation, threads, limit):
    """Interrupt an operation at one place after another where CPython hears signals."""
    blob, _ = prepared(operation, threads)
    expected, tally, stepper = Expected(blob), Tally(), Stepper()
    raised, until = itertools.cycle(EXCEPTIONS), time.monotonic() + limit

    def new(warm):
        model = pickle.loads(blob)
        if warm:
            # The model's programs, tables and teams are there.
            OPERATIONS[operation](model)
            model._state = pickle.loads(blob)._state
        return model

    for kind, warm in (("warm", True), ("cold", False)):
        model = new(warm)
        stepper.call(lambda model=model: OPERATIONS[operation](model), KeyboardInterrupt, 10**9)
        places = list(range(stepper.reached))
        # All of them if there is time, and else some of everywhere.
        random.Random(threads).shuffle(places)
        for place in places:
            if time.monotonic() > until:
                break
            model = new(warm)
            begin(f"{operation}, {threads} threads, {kind}, place {place} of {len(places)}")
            hit = stepper.call(
                lambda model=model: OPERATIONS[operation](model), next(raised), place
            )
            print("interrupted at", stepper.where, flush=True)
            tally.note(f"{kind}, interrupted" if hit else f"{kind}, finished before")
            expected.check(model, operation, tally, f"{kind}, {stepper.where.split('/')[-1]}")
        until += limit
    tally.check("nobody stays", nobody_stays(), lambda: f"{own_threads()}")
    found = tally.result()
    found["noted"]["threads that never begin"] = len(own_threads(begun=False))
    found["tried"] = {"places": sum(tally.other.values())}
    return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_interrupts_wherever_signals_are_heard(operation, threads):
    limit = 1.3 * tries(1)
    found = run_attack(attack_at_every_place, operation, threads, limit)
    assert_withstood(found, at_least=3)


def attack_the_wait():
    """Interrupt the wait for a worker at each of its places: that exception comes out, no other."""
    stepper, tally, caught = Stepper(), Tally(), []

    def work():
        time.sleep(0.02)

    def waits():
        try:
            run_interruptibly(work, np.zeros((1, 8), np.int64), 1.0)
        except BaseException as failure:
            caught.append(type(failure))
            raise

    for place in itertools.count():
        caught.clear()
        if not stepper.call(waits, OfAHandler, place):
            break
        tally.check("the exception", caught in ([], [OfAHandler]), f"{caught} at {stepper.where}")
    return tally


def test_what_a_handler_raises_leaves_the_wait_as_it_is():
    assert_withstood(run_attack(attack_the_wait), at_least=5)


def attack_by_two_signals(ensemble, rounds, times):
    """Send several signals, whose handlers raise, to a process in the midst of a long fit."""
    generator = np.random.default_rng(0)
    X = generator.normal(size=(60_000, 16)).astype(np.float32)
    tally = Tally()

    class Heard(SystemExit):
        pass

    def terminate(number, frame):
        raise Heard(128 + number)

    signal.signal(signal.SIGTERM, terminate)
    for number in range(rounds):
        begin(f"round {number}")
        if ensemble:
            model = fastmlp.Ensemble([16, 256, 256, 1], 2, seed=number)
        else:
            model = fastmlp.MLP([16, 256, 256, 1], seed=number)
        model.fit(X[:64], X[:64, :1], epochs=1)
        left = threading.Event()

        def kill(left=left):
            time.sleep(0.15)
            for _ in range(times):
                if left.is_set():
                    return
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)

        killer = threading.Thread(target=kill, daemon=True)
        caught = False
        try:
            killer.start()
            # Batches that are long: the later signals come while the present one is finished.
            model.fit(X, X[:, :1], epochs=50, batch_size=30_000, optimizer=fastmlp.SGD(1e-3))
        except Heard:
            left.set()
            caught = True
        # Later signals may fall here: they are those of this function, not of the fit.
        while True:
            try:
                after = model.parameters.copy()
                still_there = [each.name for each in own_threads()]
                time.sleep(0.3)
                break
            except Heard:
                continue
        with contextlib.suppress(Heard):
            killer.join()
        tally.check("stopped", caught, "it finished")
        same = bits(after) == bits(model.parameters)
        tally.check("nobody trains any more", same, f"{still_there}")
        tally.check("finite", np.isfinite(after).all())
        tally.check("nobody stays", nobody_stays(), f"{still_there}")
    return tally


@pytest.mark.parametrize("times", [2, 10])
@pytest.mark.parametrize("ensemble", [False, True], ids=["MLP", "Ensemble"])
def test_nothing_trains_after_a_fit_that_was_interrupted_several_times(ensemble, times):
    assert_withstood(run_attack(attack_by_two_signals, ensemble, tries(3), times))


def attack_long_calls(name, count):
    """Interrupt a call of some hundred milliseconds, or seconds, soon after it has begun.

    Only a ratio is compared, within one process: how soon a call ends that is interrupted after a
    tenth of its time.
    """
    generator = np.random.default_rng(0)
    X = generator.normal(size=(16_000, 64)).astype(np.float32)
    model = fastmlp.MLP([64, 512, 512, 4], seed=0)
    y = np.ascontiguousarray(X[:, :4])
    calls = {
        "predict": lambda: model.predict(X),
        "evaluate": lambda: model.evaluate(X, y)[:1],
        "value_and_grad": lambda: model.value_and_grad(X, y)[0],
    }
    call, tally, interrupter, least = calls[name], Tally(), Interrupter(), 1.0
    call()
    started = time.perf_counter()
    whole = bits(call())
    seconds = time.perf_counter() - started
    for number in range(count):
        begin(f"{name}, try {number}")
        started = time.perf_counter()
        hit = interrupter.call(call, KeyboardInterrupt, 0.1 * seconds)
        took = time.perf_counter() - started
        if hit:
            least = min(least, took / seconds)
        tally.check("the next call", bits(call()) == whole)
    # Of several, as the machine may be busy.
    tally.check("it ended soon", least < 0.5, f"after {least} of its time")
    return tally


@pytest.mark.parametrize("name", ["predict", "evaluate", "value_and_grad"])
def test_long_calls_end_soon_after_an_interrupt(name):
    assert_withstood(run_attack(attack_long_calls, name, tries(3)))


FIRST_HALF_SECOND = """
import signal, sys, time
def heard(number, frame):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, heard)
import numpy as np
X = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)

def work():
    from fastmlp import MLP
    model = MLP([8, 16, 2], seed=0)
    model.fit(X, X[:, :2], epochs=2)
    return model.predict(X)

signal.setitimer(signal.ITIMER_REAL, float(sys.argv[1]))
try:
    work()
    signal.setitimer(signal.ITIMER_REAL, 0)
    print("finished before")
except KeyboardInterrupt:
    print("interrupted")
print(work().sum())
"""


def test_an_interrupt_while_everything_is_loaded(child_python, child_environment):
    """Modules are imported when they are first needed: half of one must not stay behind."""

    def run(seconds):
        command = [child_python, "-X", "faulthandler", "-c", textwrap.dedent(FIRST_HALF_SECOND)]
        return subprocess.run(
            [*command, str(seconds)],
            capture_output=True,
            text=True,
            env=child_environment,
            timeout=120,
        )

    started = time.perf_counter()
    whole = run(60.0)
    longest = time.perf_counter() - started
    assert whole.returncode == 0, whole.stderr
    chance, outcomes = random.Random(0), []
    for _ in range(tries(5)):
        seconds = 0.02 + chance.random() * 0.6 * longest
        done = run(seconds)
        assert done.returncode == 0, (seconds, done.stdout, done.stderr[-3000:])
        outcome, total = done.stdout.split("\n")[:2]
        assert total == whole.stdout.split("\n")[1]
        outcomes.append(outcome)
    assert "interrupted" in outcomes
