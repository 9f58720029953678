"""Shielded work: no signal handler tears it, and nobody is left waiting."""

import _thread
import contextvars
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest

from fastmlp_kernels import shield as module
from fastmlp_kernels.shield import shield

# Of a test: whatever hangs is an error that shows where.
SECONDS = 60


class Alarm(BaseException):
    """What the handler of a signal raises in these tests."""


@pytest.fixture
def alarm():
    """Return a function after which a signal handler raises `Alarm` in the main thread."""

    def raise_alarm(number, frame):
        raise Alarm

    def set_alarm(seconds):
        signal.setitimer(signal.ITIMER_REAL, seconds)

    before = signal.signal(signal.SIGALRM, raise_alarm)
    yield set_alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def run(source, environment, *, status=0):
    started = time.monotonic()
    command = [sys.executable, "-X", "faulthandler", "-c", source]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert result.returncode == status, result.stderr[-3000:]
    return result.stdout, time.monotonic() - started


def test_the_result_is_returned_and_the_work_has_a_thread_of_its_own():
    assert shield(lambda: 6 * 7) == 42
    assert shield(threading.current_thread) is not threading.main_thread()


def test_an_exception_is_raised_with_its_own_traceback():
    def fail():
        raise KeyError("given")

    with pytest.raises(KeyError, match="given") as caught:
        shield(fail)
    assert caught.traceback[-1].name == "fail"


def test_another_thread_works_itself():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(shield(threading.current_thread)))
    thread.start()
    thread.join(SECONDS)
    assert seen == [thread]


def test_shields_nest():
    inner, outer = shield(lambda: (shield(threading.current_thread), threading.current_thread()))
    assert inner is outer is not threading.main_thread()


def test_context_variables_are_those_of_the_caller():
    variable = contextvars.ContextVar("variable", default="default")
    variable.set("the caller's")
    assert shield(variable.get) == "the caller's"


@pytest.fixture
def no_collections():
    """Keep the collector from running: what a handler raises in one of its callbacks is lost."""
    collects = gc.isenabled()
    gc.disable()
    yield
    if collects:
        gc.enable()


@pytest.fixture(params=["first", "second"])
def starts(request, monkeypatch):
    """Return what makes the start of a thread raise: of the first, or of the one that it starts."""

    def set_error(error):
        def refuse(*arguments):
            raise error

        if request.param == "first":
            monkeypatch.setattr(_thread, "start_new_thread", refuse)
        else:
            monkeypatch.setattr(threading.Thread, "start", refuse)

    return set_error


@pytest.mark.parametrize("message", ["can't start new thread", "can't create new thread at ..."])
def test_where_no_more_threads_start_the_work_is_done_here(starts, message):
    starts(RuntimeError(message))
    assert shield(threading.current_thread) is threading.main_thread()


def test_an_error_of_a_handler_is_not_taken_for_a_lack_of_threads(monkeypatch):
    def interrupted(*arguments):
        raise RuntimeError("stopped by the handler of a signal")

    monkeypatch.setattr(_thread, "start_new_thread", interrupted)
    worked = []
    with pytest.raises(RuntimeError, match="stopped by"):
        shield(lambda: worked.append(1))
    assert not worked


def test_an_interrupt_is_heard_at_once_and_the_work_goes_on_to_its_end(alarm):
    worked = []

    def work():
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            pass
        worked.append(1)

    alarm(0.2)
    started = time.monotonic()
    with pytest.raises(Alarm):
        shield(work)
    assert time.monotonic() - started < 0.9 and not worked
    deadline = time.monotonic() + SECONDS
    while not worked and time.monotonic() < deadline:
        time.sleep(0.01)
    assert worked == [1]


def test_work_is_done_whole_or_not_at_all_at_whatever_moment_a_handler_raises(
    alarm, no_collections
):
    begun, ended, left, moments = [], [], 0, random.Random(5)

    def work():
        begun.append(1)
        sum(range(500))
        ended.append(1)

    for _ in range(400):
        try:
            alarm(moments.uniform(1e-6, 4e-4))
            shield(work)
            alarm(0)
        except Alarm:
            left += 1
    deadline = time.monotonic() + SECONDS
    while any(thread.name == "fastmlp-shield" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread hangs"
        time.sleep(0.01)
    assert len(begun) == len(ended) >= 400 - left and left > 20
    assert not module._at_work
    assert shield(lambda: "works") == "works"


def test_a_failed_work_leaves_no_reference_cycle(no_collections):
    class Kept:
        pass

    def fail():
        kept = Kept()
        seen.append(weakref.ref(kept))
        raise KeyError

    seen = []
    with pytest.raises(KeyError) as caught:
        shield(fail)
    del caught
    assert seen[0]() is None


ENDS = """
import os, sys, threading, time, _thread
from fastmlp_kernels.shield import shield
def work():
    # Not by a timer: on a busy machine it may fire before the work has begun.
    _thread.interrupt_main()
    time.sleep(1.5)
    print("whole", flush=True)
shield(work)
"""


def test_a_process_ends_after_its_work(child_environment, interrupts_heard):
    stdout, seconds = run(ENDS, child_environment, status=-signal.SIGINT)
    assert stdout == "whole\n" and seconds >= 1.5


AT_THE_END = """
import atexit
from fastmlp_kernels.shield import shield
atexit.register(lambda: print(shield(lambda: "worked"), flush=True))
"""


def test_work_at_the_end_of_the_interpreter_is_done(child_environment):
    assert run(AT_THE_END, child_environment)[0] == "worked\n"


FORKS = """
import os, signal, sys, threading, time
from fastmlp_kernels.shield import shield
lock = threading.Lock()
def work():
    with lock:
        time.sleep(1.5)
def handler(number, frame):
    raise TimeoutError
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    shield(work)
except TimeoutError:
    pass
assert lock.locked()
child = os.fork()
if child == 0:
    # The thread that held it is not here.
    os._exit(0 if lock.acquire(timeout=5) and shield(lambda: True) else 9)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_waits_for_work_that_goes_on(child_environment):
    environment = {**child_environment, "PYTHONWARNINGS": "ignore"}
    assert run(FORKS, environment)[0] == "0\n"


FORKS_INSIDE = """
import os
from fastmlp_kernels.shield import shield
def work():
    child = os.fork()
    if child == 0:
        os._exit(shield(lambda: 7))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(shield(work))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_work_may_fork_itself(child_environment):
    environment = {**child_environment, "PYTHONWARNINGS": "ignore"}
    assert run(FORKS_INSIDE, environment)[0] == "7\n"
