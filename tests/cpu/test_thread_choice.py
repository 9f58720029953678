"""The number of threads of an epoch: by prediction, and by trial where predictions are close."""

from dataclasses import replace

import numpy as np
import pytest

from fastmlp import MLP, explain
from fastmlp.device.machine import detect
from fastmlp_kernels.cpu import best_threads, call_threads, close_threads, epoch_seconds
from fastmlp_kernels.cpu.program import FusedProgram
from fastmlp_kernels.cpu.thread_choice import CLOSE, FIRST_REVIEW, REVIEW, TRIAL, ThreadChoice
from fastmlp_kernels.problem import BATCHES, Machine, Problem
from tests.samples import sample


def run(choice, seconds, epochs):
    """Run epochs that take ``seconds(threads, epoch)``; return the threads of each."""
    chosen = []
    for epoch in range(epochs):
        threads = choice.threads()
        chosen.append(threads)
        choice.took(seconds(threads, epoch))
    return chosen


def test_a_single_candidate_is_taken_without_a_trial():
    assert run(ThreadChoice((4,)), lambda threads, epoch: 1.0, 300) == [4] * 300


@pytest.mark.parametrize(("times", "winner"), [({2: 1.0, 1: 1.5}, 2), ({2: 1.5, 1: 1.0}, 1)])
def test_each_candidate_is_tried_and_the_faster_one_kept(times, winner):
    chosen = run(ThreadChoice((2, 1)), lambda threads, epoch: times[threads], REVIEW)
    assert chosen[: 2 * TRIAL] == [2] * TRIAL + [1] * TRIAL
    assert chosen[2 * TRIAL : FIRST_REVIEW] == [winner] * (FIRST_REVIEW - 2 * TRIAL)
    assert chosen[2 * TRIAL :].count(winner) >= 0.92 * (REVIEW - 2 * TRIAL)
    if winner == 2:
        assert chosen.count(1) == TRIAL


def test_what_a_first_epoch_pays_for_threads_and_caches_does_not_count():
    def seconds(threads, epoch):
        return 100.0 if epoch in (0, TRIAL) else {2: 1.0, 1: 1.5}[threads]

    assert run(ThreadChoice((2, 1)), seconds, 50)[-1] == 2


def test_a_pause_after_the_first_epoch_does_not_count_either():
    def seconds(threads, epoch):
        return 100.0 if threads == 2 and epoch < 2 else {2: 1.0, 1: 1.5}[threads]

    assert run(ThreadChoice((2, 1)), seconds, 50)[-1] == 2


def test_a_machine_that_changes_is_noticed():
    """Two threads are the faster, then for a while the slower: at most a review's epochs later."""
    epochs = 10 * REVIEW

    def seconds(threads, epoch):
        return 1.5 if threads == 1 else 1.0 if epoch < epochs // 2 else 2.0

    chosen = run(ThreadChoice((2, 1)), seconds, epochs)
    assert chosen[epochs // 2 - REVIEW : epochs // 2].count(1) <= 2 * TRIAL
    assert chosen[-REVIEW:].count(2) <= 2 * TRIAL
    assert chosen.count(1) > epochs // 3


@pytest.mark.parametrize("until", [2, 2 * TRIAL, 8 * TRIAL])
def test_other_work_during_a_trial_is_soon_forgotten(until):
    """Two threads are the faster, once the machine is free."""

    def seconds(threads, epoch):
        return 1.5 if threads == 1 else 3.0 if epoch < until else 1.0

    chosen = run(ThreadChoice((2, 1)), seconds, 100)
    assert set(chosen[until + 45 :]) == {2}


def problem(batch_size=64, sizes=(64, 100, 10)):
    activations = ("relu",) * (len(sizes) - 2) + ("identity",)
    return Problem(sizes, activations, "squared_error", batch_size=batch_size, rows=7 * batch_size)


def test_candidates_are_those_with_close_predictions():
    seen = set()
    for size in (8, 32, 64, 128, 512, 2048):
        for machine in (Machine(cores=1), Machine(cores=2), Machine(cores=6)):
            asked = problem(sizes=(size, size, 4))
            found = close_threads(asked, machine)
            best = best_threads(asked, machine)
            assert found[0] == best and len(set(found)) == len(found) <= 2
            seconds = [
                epoch_seconds(asked, machine, count) for count in range(1, machine.cores + 1)
            ]
            if len(found) == 2:
                assert seconds[found[1] - 1] <= CLOSE * min(seconds)
                assert 1 in found
            elif machine.cores > 1 and best > 1:
                assert seconds[0] > CLOSE * min(seconds)
            seen.add((len(found), best == 1))
    assert {(1, True), (1, False), (2, True), (2, False)} <= seen


def test_explain_says_what_a_fit_will_try():
    machine = detect()
    asked = {}
    for width in (8, 64, 100, 256, 1024):
        model = MLP([64, width, 10])
        said = str(explain(model, batch_size=64, rows=448, threads=3))
        template = replace(model.template, batch_size=64, rows=448)
        found = close_threads(template, replace(machine, cores=3))
        asked[len(found)] = said
        if len(found) == 2:
            assert f"a fit tries {found[1]} too and keeps the faster" in said
    assert "a fit tries" not in asked[1] and set(asked) == {1, 2}


def test_a_call_that_starts_threads_wants_more_work_for_them():
    machine = Machine(cores=2)
    found = {
        (best_threads(asked, machine), call_threads(asked, machine))
        for asked in map(problem, (4, 16, 64, 256, 1024))
    }
    assert (2, 1) in found and (2, 2) in found and (1, 2) not in found


def test_a_fit_that_changes_its_threads_has_the_bits_of_one_that_does_not():
    asked = problem(batch_size=32)
    free = Machine(cores=3, cpu_barrier_seconds=0.0, cpu_thread_seconds=0.0, cpu_step_seconds=0.0)
    program, single = FusedProgram(asked, free), FusedProgram(asked, Machine(cores=1))
    assert program.threads == 3
    program._thread_choice = ThreadChoice((3, 1))
    data, alone = sample(asked), sample(asked)
    used = []
    for _ in range(12):
        used.append(program._thread_choice.threads())
        for each, arguments in ((program, data), (single, alone)):
            each.epoch(*arguments.arguments())
            assert arguments.control[BATCHES] == asked.batches
            arguments.control[:] = 0
    assert set(used) == {1, 3}
    assert data.parameters.tobytes() == alone.parameters.tobytes()
    assert np.isfinite(data.losses).all()
