"""The team of threads: it meets, it ends, it leaves nothing behind, and it fails cleanly."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from fastmlp_kernels.compile import CPU_FLAGS, part
from fastmlp_kernels.cpu.atomics import atomic_add, nanoseconds
from fastmlp_kernels.cpu.intrinsics import set_word, word
from fastmlp_kernels.cpu.program import FusedProgram
from fastmlp_kernels.cpu.tables import BELL, MASK_BYTES, MEETING
from fastmlp_kernels.cpu.team import (
    CALLER,
    COMING,
    GONE,
    LISTENING,
    NEXT_NANOSECONDS,
    SLEEP_NANOSECONDS,
    SLEEPING,
    Team,
    arrives,
    call_team,
    has_done,
    is_called,
    meet,
    settle,
    wait_for_team,
)
from fastmlp_kernels.problem import BATCHES, STOP, Problem
from fastmlp_kernels.shield import start_thread
from tests.machines import team
from tests.samples import sample

# Rows, panels and units of weights for several threads.
PROBLEM = Problem(
    (40, 70, 9),
    ("tanh", "identity"),
    "half_squared_error",
    "adam",
    batch_size=45,
    rows=300,
)


def trained(threads, seed=0):
    """Return an epoch's parameters, state and losses as bytes."""
    data = sample(PROBLEM, seed)
    program = FusedProgram(PROBLEM, team(threads))
    assert program.threads == threads
    program.epoch(*data.arguments())
    assert data.control.tolist() == [0, PROBLEM.batches, 0]
    return data.parameters.tobytes() + data.state.tobytes() + data.losses.tobytes()


def threads_alive():
    return [t.name for t in threading.enumerate() if t.name.startswith("fastmlp-")]


def nobody_stays():
    """Return whether all threads leave by themselves."""
    deadline = time.monotonic() + 30
    while threads_alive() and time.monotonic() < deadline:
        time.sleep(0.001)
    return threads_alive() == []


def together(work, threads):
    """Call ``work(thread)`` in a thread each: one that waits forever fails this test alone."""
    running = [threading.Thread(target=work, args=(k,), daemon=True) for k in range(threads)]
    for each in running:
        each.start()
    for each in running:
        each.join(60)
        assert not each.is_alive(), "a thread still waits"


def _rounds(place, slots, threads, thread, rounds, expected):
    """Count in one's own slot and look at all slots; return how many were not in step."""
    wrong = 0
    for k in range(rounds):
        set_word(slots, thread * 8, k)
        meet(place, expected)
        for other in range(threads):
            wrong += word(slots, other * 8) != k
        meet(place, expected)
    return wrong


# Kept: a thread that still waits when its test has failed reads it.
MEMORY = []


def _places():
    """Return zeroed memory for a meeting and for slots, in cache lines of their own."""
    memory = np.zeros(MEETING.itemsize + 64 * 16, np.uint8)
    MEMORY.append(memory)
    meeting = memory[: MEETING.itemsize].view(MEETING)
    return meeting, memory.ctypes.data, memory.ctypes.data + MEETING.itemsize


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_nobody_leaves_a_meeting_before_all_have_come(threads):
    rounds = part(_rounds, **CPU_FLAGS)
    meeting, place, slots = _places()
    rounds(place, slots, 1, 0, 1, 1)
    wrong = [None] * threads

    def work(thread):
        wrong[thread] = rounds(place, slots, threads, thread, 2000, threads)

    together(work, threads)
    assert wrong == [0] * threads
    # Two meetings a round, and nobody on the way to another.
    assert meeting["arrived"] == 0 and meeting["generation"] == (4000 if threads > 1 else 0)


def test_without_meeting_they_are_out_of_step():
    """The test above can fail: who meets alone does not find the others where it is."""
    meeting, place, slots = _places()
    assert part(_rounds, **CPU_FLAGS)(place, slots, 2, 0, 100, 1) == 99
    assert not meeting["arrived"] and not meeting["generation"]


def _call(bells, counts, others, thread):
    """Count a call of a thread in its own word, as the compiled calls of programs are made."""
    if thread == CALLER:
        if not call_team(bells, others):
            return False
        atomic_add(counts + others * 8, 1)
        wait_for_team(bells, others)
        return True
    if arrives(bells, thread):
        while is_called(bells, thread, NEXT_NANOSECONDS, 0):
            atomic_add(counts + thread * 8, 1)
            has_done(bells, thread)
    return True


class Counted:
    """A team whose calls count how often each thread took part."""

    def __init__(self, threads):
        self.call = part(_call, **CPU_FLAGS)
        self.bells = np.zeros(threads, BELL)
        self.counts, self.threads = np.zeros(threads, np.int64), threads
        self.team, self.started = Team(self.bells), 0
        MEMORY.append((self.bells, self.counts))

    def work(self, thread):
        bells, counts = self.bells.ctypes.data, self.counts.ctypes.data
        return self.call(bells, counts, self.threads - 1, thread)

    def count_start(self):
        self.started += 1

    def run(self):
        self.team.run(self.work, self.threads, self.count_start)

    @property
    def states(self):
        return self.bells["state"][1:]


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_each_thread_works_once_a_call(threads):
    counted = Counted(threads)
    for calls in range(1, 200):
        counted.run()
        assert counted.counts.tolist() == [calls] * threads
    assert counted.started >= 1
    assert nobody_stays() and not counted.states.any()


def test_nobody_is_called_unless_all_are_there():
    counted = Counted(4)
    counted.states[:] = [LISTENING, LISTENING, GONE]
    assert not counted.work(CALLER)
    assert counted.states.tolist() == [LISTENING, LISTENING, GONE]
    assert not counted.counts.any()


def test_a_part_is_taken_by_one_thread():
    """A thread that was given up, and comes late, finds its part taken and goes."""
    counted = Counted(2)
    counted.states[0] = COMING
    threads = [threading.Thread(target=counted.work, args=(0,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert counted.states[0] == GONE and not counted.counts.any()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("at", [0, 1])
def test_an_interrupt_while_threads_start_leaves_nobody_waiting(monkeypatch, moment, at):
    """Also where a thread never came to be: the next call has it started after a while."""
    counted, starts = Counted(3), []

    def interrupted(*arguments):
        starts.append(arguments)
        if len(starts) == at + 1 and moment == "before":
            raise KeyboardInterrupt
        start_thread(*arguments)
        if len(starts) == at + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr("fastmlp_kernels.cpu.team.start_thread", interrupted)
    monkeypatch.setattr("fastmlp_kernels.cpu.team.REPEAT_SECONDS", 0.2)
    with pytest.raises(KeyboardInterrupt):
        counted.run()
    assert nobody_stays() and not counted.counts.any()
    counted.run()
    assert counted.counts.tolist() == [1, 1, 1]
    assert nobody_stays()


class Clock:
    """Time that goes by only where somebody sleeps."""

    def __init__(self):
        self.now, self.slept = 0.0, 0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.slept += 1


def test_calls_that_miss_the_threads_send_for_them_and_let_them_come_once(monkeypatch):
    """A call here and there does neither, and no row of calls waits twice."""
    clock, sent = Clock(), []
    monkeypatch.setattr("fastmlp_kernels.cpu.team.time", clock)
    bells = np.zeros(2, dtype=BELL)
    waiting = Team(bells)
    for state, waits in ((COMING, 1e-3), (LISTENING, 0.0), (COMING, 1e-3)):
        bells["state"][1] = state
        clock.now += 1.0
        for place in range(9):
            before, asked = clock.now, len(sent)
            waiting.miss(lambda: sent.append(clock.now))
            assert len(sent) == asked + (place > 0)
            waited = clock.now - before
            assert waited == pytest.approx(waits if place == 3 else 0.0, abs=1e-4), place
            clock.now += 0.4e-3
    clock.now, asked = clock.now + 1.0, len(sent)
    for _ in range(5):
        waiting.miss(lambda: sent.append(clock.now))
        clock.now += 1.1e-3
    assert len(sent) == asked


def test_a_thread_leaves_by_the_clock():
    """And not after some number of turns, which take long where processors are busy."""

    def waited(bells, loyalty):
        since = nanoseconds()
        called = is_called(bells, 0, loyalty, 0)
        return -1 if called else nanoseconds() - since

    counted, wait = Counted(2), part(waited, **CPU_FLAGS)
    for loyalty in (NEXT_NANOSECONDS, 50 * NEXT_NANOSECONDS):
        counted.states[0] = LISTENING
        assert wait(counted.bells.ctypes.data, loyalty) >= loyalty
        assert counted.states[0] == GONE


ONLY_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can")


def _asleep(counted):
    """Wait until all other threads sleep."""
    deadline = time.monotonic() + 30
    while (counted.states != SLEEPING).any():
        assert time.monotonic() < deadline, f"states {counted.states}"
        if (counted.states == GONE).all():
            counted.run()
        time.sleep(0.001)


@ONLY_LINUX
@pytest.mark.parametrize("threads", [2, 4])
def test_a_thread_that_sleeps_is_woken_by_a_call(threads):
    """No other one is started, and each call finds all of them."""
    counted, took = Counted(threads), []
    counted.run()
    for _ in range(5):
        _asleep(counted)
        before, started, begun = counted.counts.copy(), counted.started, time.monotonic_ns()
        assert counted.work(CALLER)
        took.append(time.monotonic_ns() - begun)
        assert (counted.counts == before + 1).all() and counted.started == started
    # None woke by its own clock.
    assert min(took) < SLEEP_NANOSECONDS / 4
    assert nobody_stays() and not counted.states.any()


@ONLY_LINUX
def test_a_call_that_finds_one_thread_missing_leaves_the_sleeping_ones_to_the_next():
    counted = Counted(3)
    counted.run()
    _asleep(counted)
    counted.states[1] = GONE
    assert not counted.work(CALLER)
    counted.states[1] = SLEEPING
    before = counted.counts.copy()
    assert counted.work(CALLER)
    assert (counted.counts == before + 1).all()
    assert nobody_stays() and not counted.states.any()


@ONLY_LINUX
def test_a_thread_that_sleeps_takes_no_time_of_a_processor():
    counted = Counted(2)
    counted.run()
    _asleep(counted)
    spent, begun = time.process_time(), time.monotonic()
    while counted.states[0] == SLEEPING and time.monotonic() - begun < 1e-9 * SLEEP_NANOSECONDS:
        time.sleep(0.02)
    assert time.process_time() - spent < 0.5 * (time.monotonic() - begun)
    assert nobody_stays()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux places threads")
def test_a_thread_says_where_it_runs_only_when_it_is_elsewhere():
    """Saying so is a call of the system: 5 us, as long as a small step."""
    places = np.zeros((2, MASK_BYTES), dtype=np.uint8)
    before = os.sched_getaffinity(0)
    move = part(lambda places: settle(places, CALLER), **CPU_FLAGS)
    try:
        here = max(before)
        os.sched_setaffinity(0, {here})
        for number in (here, min(before)):
            places[:] = 0
            for row, allowed in zip(places, (before, {number}), strict=True):
                for each in allowed:
                    row[each // 8] |= 1 << each % 8
            move(places.ctypes.data)
            # What it says last is that any processor will do.
            assert os.sched_getaffinity(0) == ({here} if number == here else before)
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("startable", [0, 1, 3])
def test_a_thread_that_cannot_be_started_fails_the_call_alone(monkeypatch, startable):
    """Nobody waits for a thread that never comes, and the program works afterwards."""
    data = sample(PROBLEM)
    before = data.copy()
    program = FusedProgram(PROBLEM, team(5))
    start, started, asked = threading.Thread.start, [], itertools.count()

    def fail_later(thread):
        if next(asked) >= startable:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_later)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        program.epoch(*data.arguments())
    monkeypatch.undo()
    assert len(started) == startable
    for thread in started:
        # It is started by another thread, which may not have come that far.
        assert thread._started.wait(30)
        thread.join(30)
        assert not thread.is_alive()
    for name in ("parameters", "state", "X", "y", "order", "hyper", "losses", "control"):
        assert getattr(data, name).tobytes() == getattr(before, name).tobytes(), name
    program.epoch(*data.arguments())
    found = data.parameters.tobytes() + data.state.tobytes() + data.losses.tobytes()
    assert found == trained(1)


def test_teams_at_the_same_time_do_not_disturb_each_other():
    """Programs of several Python threads, each with a team of its own."""
    alone = [trained(1, seed) for seed in range(4)]
    assert len(set(alone)) == 4
    found = [[] for _ in alone]
    start = threading.Barrier(len(alone))

    def fit(seed):
        start.wait(60)
        for _ in range(5):
            found[seed].append(trained(2 + seed % 2, seed))

    fits = [threading.Thread(target=fit, args=(seed,), daemon=True) for seed in range(len(alone))]
    for thread in fits:
        thread.start()
    for thread in fits:
        thread.join(120)
        assert not thread.is_alive()
    assert found == [[bits] * 5 for bits in alone]
    assert nobody_stays()


def test_threads_stay_for_the_next_epoch_and_leave_after_a_while(monkeypatch):
    """The same threads run epoch after epoch; later ones are new; the bits are always the same."""
    monkeypatch.setattr(threading.Thread, "start", counted := Counting(threading.Thread.start))
    expected = sample(PROBLEM)
    single = FusedProgram(PROBLEM, team(1))
    data, program = expected.copy(), FusedProgram(PROBLEM, team(3))
    for _ in range(200):
        single.epoch(*expected.arguments())
        expected.control[:] = 0
    for _ in range(200):
        program.epoch(*data.arguments())
        data.control[:] = 0
    # Not 400: on a machine that is busy some leave between two epochs all the same.
    assert 2 <= counted.calls < 200
    assert data.parameters.tobytes() == expected.parameters.tobytes()
    assert nobody_stays()
    before = counted.calls
    program.epoch(*data.arguments())
    assert counted.calls == before + 2
    assert nobody_stays()


class Counting:
    """A method that counts its calls."""

    def __init__(self, method):
        self.method, self.calls = method, 0

    def __get__(self, owner, kind):
        def call(*arguments):
            self.calls += 1
            return self.method(owner, *arguments)

        return call


def test_other_calls_between_two_epochs_do_not_disturb_who_stays():
    data, alone = sample(PROBLEM), sample(PROBLEM)
    program, single = FusedProgram(PROBLEM, team(3)), FusedProgram(PROBLEM, team(1))
    rows = PROBLEM.batch_size
    out, expected = (np.empty((rows, PROBLEM.sizes[-1]), PROBLEM.dtype) for _ in range(2))
    for _ in range(50):
        for made, arguments, result in ((program, data, out), (single, alone, expected)):
            made.epoch(*arguments.arguments())
            arguments.control[:] = 0
            made.forward(arguments.parameters, arguments.X[:rows], result)
        assert out.tobytes() == expected.tobytes()
    assert data.parameters.tobytes() == alone.parameters.tobytes()


def test_an_interrupt_before_a_call_leaves_the_program_as_it_was(monkeypatch):
    data, program = sample(PROBLEM), FusedProgram(PROBLEM, team(3))
    before = data.copy()
    run = Team.run

    def interrupted(self, work, threads, before_start):
        for thread in range(threads - 1):
            if self._states[thread + 1] == GONE:
                self._start(work, thread, [])
        raise KeyboardInterrupt

    for staying in (False, True):
        if staying:
            program.epoch(*data.arguments())
            data = before.copy()
        monkeypatch.setattr(Team, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            program.epoch(*data.arguments())
        monkeypatch.setattr(Team, "run", run)
        assert data.parameters.tobytes() == before.parameters.tobytes()
    program.epoch(*data.arguments())
    assert data.control[BATCHES] == PROBLEM.batches
    assert nobody_stays()


def long_epoch(batches):
    """Return an epoch that revisits few rows, so that it is long and small."""
    data = sample(PROBLEM, spare_rows=0)
    problem = Problem(**{**vars(PROBLEM), "rows": batches * PROBLEM.batch_size})
    data.order = np.resize(data.order, problem.rows)
    data.hyper = np.repeat(data.hyper[:1], batches, axis=0)
    data.losses = np.full(batches, np.nan, problem.dtype)
    return problem, data


@pytest.mark.parametrize("after", [1, 7, 60])
def test_a_stopped_team_has_done_whole_batches(after):
    problem, data = long_epoch(200_000)
    whole = data.copy()
    program = FusedProgram(problem, team(3))
    assert program.threads == 3
    program.prepare(data.parameters, data.state, data.X, data.y)
    fit = threading.Thread(target=program.epoch, args=data.arguments(), daemon=True)
    fit.start()
    while data.control[BATCHES] < after and fit.is_alive():
        time.sleep(0)
    data.control[STOP] = 1
    fit.join(60)
    assert not fit.is_alive() and nobody_stays()
    finished = int(data.control[BATCHES])
    assert after <= finished < problem.batches
    assert np.isfinite(data.losses[:finished]).all() and np.isnan(data.losses[finished:]).all()
    whole.losses, whole.hyper = whole.losses[:finished], whole.hyper[:finished]
    whole.order = whole.order[: finished * problem.batch_size]
    shorter = replace(problem, rows=len(whole.order))
    FusedProgram(shorter, team(1)).epoch(*whole.arguments())
    for name in ("parameters", "state"):
        assert getattr(data, name).tobytes() == getattr(whole, name).tobytes(), name
    assert data.losses[:finished].tobytes() == whole.losses.tobytes()


PROLOGUE = """
import hashlib, json, os, sys, threading
import tests.cpu.test_team as cases
def digest(threads, seed=0):
    return hashlib.sha256(cases.trained(threads, seed)).hexdigest()
"""

MANY = """
print(json.dumps([digest(1), digest(4 * os.cpu_count())]))
"""

ONE_PROCESSOR = """
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
assert len(os.sched_getaffinity(0)) == 1
print(json.dumps([digest(1), digest(4)]))
"""

FORK = """
def in_child(work=lambda: digest(3)):
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(theirs, work().encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        found = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return found
results = [digest(1), digest(3), in_child(), digest(3)]
# With threads that still stay for the parent's next epoch.
data, program = cases.sample(cases.PROBLEM), cases.FusedProgram(cases.PROBLEM, cases.team(3))
program.epoch(*data.arguments())
data.control[:] = 0
def again():
    program.epoch(*data.arguments())
    return hashlib.sha256(data.parameters.tobytes()).hexdigest()
results_again = [in_child(again), again()]
assert results_again[0] == results_again[1], results_again
# And while another thread's team is at work.
problem, data = cases.long_epoch(1_000_000)
program = cases.FusedProgram(problem, cases.team(2))
fit = threading.Thread(target=program.epoch, args=data.arguments())
fit.start()
while data.control[cases.BATCHES] < 3:
    pass
results.append(in_child())
assert fit.is_alive()
data.control[cases.STOP] = 1
fit.join()
print(json.dumps(results))
"""


@pytest.mark.parametrize(
    "script",
    [
        MANY,
        pytest.param(ONE_PROCESSOR, marks=pytest.mark.skipif(sys.platform != "linux", reason="")),
        pytest.param(FORK, marks=pytest.mark.skipif(sys.platform == "win32", reason="")),
    ],
    ids=["many more threads than processors", "one processor", "forked"],
)
def test_a_team_ends_and_is_right(script, child_environment):
    """In a process of its own: one that waits forever is ended, and fails the test."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROLOGUE + script],
        env=child_environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    digests = json.loads(result.stdout.splitlines()[-1])
    assert len(digests) >= 2 and len(set(digests)) == 1
