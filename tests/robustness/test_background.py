"""Work that nobody waits for: done in order, by one thread, which leaves nothing behind."""

import itertools
import subprocess
import sys
import threading
import time

import pytest

from fastmlp_kernels import background
from tests.robustness.attacks import (
    Tally,
    assert_withstood,
    begin,
    nobody_stays,
    own_threads,
    run_attack,
)
from tests.robustness.test_interruptions import Stepper


def _ended():
    deadline = time.monotonic() + 60
    # In this order: a piece that has been taken is at work.
    while (background._pieces or background._at_work) and time.monotonic() < deadline:
        time.sleep(0.001)
    return not (background._pieces or background._at_work)


def test_pieces_are_done_in_order_by_one_thread_that_is_no_daemon():
    assert _ended()
    done, go = [], threading.Event()

    def piece(number):
        def work():
            go.wait(60)
            done.append((number, threading.current_thread()))

        return work

    # A daemon's threads are daemons too, where nobody says otherwise.
    def give():
        for number in range(20):
            background.later(piece(number))

    giver = threading.Thread(target=give, daemon=True)
    giver.start()
    giver.join(60)
    assert not done
    go.set()
    assert _ended()
    assert [number for number, _ in done] == list(range(20))
    (thread,) = {thread for _, thread in done}
    assert not thread.daemon
    background.later(lambda: done.append(None))
    assert _ended() and len(done) == 21


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_piece_that_fails_stops_no_later_one():
    assert _ended()
    done, threads = [], []

    def fail():
        threads.append(threading.current_thread())
        raise ValueError

    background.later(fail)
    assert _ended()
    # Its exception is this test's, and no later one's.
    threads[0].join(60)
    background.later(lambda: done.append(1))
    assert _ended() and done == [1]


def test_nothing_is_done_where_no_thread_starts(monkeypatch):
    def refuse(*given, **keywords):
        raise RuntimeError("can't start new thread")

    assert _ended()
    done = []
    with monkeypatch.context() as patch:
        patch.setattr(background.threading, "Thread", refuse)
        background.later(lambda: done.append(1))
        assert _ended()
    background.later(lambda: done.append(2))
    assert _ended() and done == [2]


def attack_the_asking():
    """Interrupt `later` wherever signals are heard: the next piece is done, nobody stays behind."""
    stepper, tally = Stepper(), Tally()
    for place in itertools.count():
        begin(f"place {place}")
        if not stepper.call(lambda: background.later(lambda: None), KeyboardInterrupt, place):
            break
        done = threading.Event()
        background.later(done.set)
        tally.check("the next piece", done.wait(20), stepper.where)
        tally.check("the end", _ended(), stepper.where)
    # One that never begins would keep the process from its end.
    tally.check("nobody stays", nobody_stays() and not own_threads(begun=False))
    return tally


@pytest.mark.skipif(sys.platform == "win32", reason="attacks are for POSIX")
def test_an_interrupt_of_who_asks_keeps_no_later_piece_from_being_done():
    assert_withstood(run_attack(attack_the_asking))


def test_a_process_ends_after_the_piece_at_work(child_environment):
    program = (
        "import time\n"
        "from fastmlp_kernels.background import later\n"
        "for k in range(1000):\n"
        "    later(lambda k=k: (time.sleep(0.2), print(k, flush=True)))\n"
        "time.sleep(0.1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=child_environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    # One, or two on a machine that is slow.
    assert 1 <= len(done.stdout.split()) < 10
