"""Predictions: blocks of rows that threads claim, and the ways in which they read weights."""

from dataclasses import replace

import numpy as np
import pytest

from fastmlp_kernels.cpu import program as module
from fastmlp_kernels.cpu.program import FusedProgram
from fastmlp_kernels.cpu.simd import instruction_set as instruction_set_of
from fastmlp_kernels.cpu.team import GONE, LISTENING
from fastmlp_kernels.problem import DTYPES, Problem
from tests.machines import HOST, team
from tests.samples import poison, sample

# Layers that fill panels, that do not, and of one output; ReLU in tiles and a leaf.
PROBLEMS = {
    "edges": Problem((5, 37, 64, 3), ("relu", "tanh", "identity"), "half_squared_error"),
    "whole panels": Problem((64, 32, 64), ("relu", "identity"), "half_squared_error"),
    "one output": Problem((33, 17, 1), ("sigmoid", "identity"), "half_squared_error"),
    "several blocks of weights": Problem((1100, 24, 5), ("relu", "identity"), "half_squared_error"),
    "fused": Problem((9, 40, 10), ("relu", "sigmoid"), "binary_cross_entropy"),
}
ROWS = 300


def case(name, dtype, batch_size=64):
    """Return a problem, its parameters, and rows to predict."""
    problem = replace(PROBLEMS[name], dtype=dtype, batch_size=batch_size, rows=batch_size)
    generator = np.random.default_rng(0)
    X = generator.normal(0, 1, (ROWS, problem.sizes[0])).astype(dtype)
    return problem, sample(problem).parameters, X


def predicted(program, parameters, X, link=True, **options):
    """Return the outputs, and whether all of X was finite."""
    out = np.full((len(X), program.problem.sizes[-1]), np.nan, X.dtype)
    good = program.predict(parameters, X, out, link, **options)
    return out, good


def one_by_one(problem, parameters, X, link=True):
    """Return the outputs of a forward pass of a full batch at a time: nothing is claimed there."""
    program = FusedProgram(problem, team(1))
    size = problem.batch_size
    out = np.empty((len(X), problem.sizes[-1]), X.dtype)
    for start in range(0, len(X), size):
        part = np.ascontiguousarray(X[start : start + size])
        into = np.empty((len(part), out.shape[1]), X.dtype)
        program.forward(parameters, part, into)
        out[start : start + size] = into
    return out


@pytest.mark.parametrize("instruction_set", HOST)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_any_number_of_rows_has_the_bits_of_a_forward_pass(name, dtype, instruction_set):
    """Few rows read the weights where they are, more copy blocks of them or have all in panels."""
    problem, parameters, X = case(name, dtype)
    expected = FusedProgram(problem, team(1, instruction_set))
    whole = np.empty((64, problem.sizes[-1]), dtype)
    expected.forward(parameters, X[:64].copy(), whole)
    for threads in (1, 3):
        program = FusedProgram(problem, team(threads, instruction_set))
        poison(program)
        for rows in (1, 2, 3, 5, 6, 7, 13, 31, 32, 33, 47, 64, 1, 64):
            found, good = predicted(program, parameters, X[:rows].copy(), link=False)
            assert good and found.tobytes() == whole[:rows].tobytes(), (threads, rows)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("name", "batch_size"),
    [*(("edges", size) for size in (1, 3, 20, 256)), ("several blocks of weights", 256)],
)
def test_rows_beyond_the_workspace_take_turns_in_it(name, batch_size, threads):
    problem, parameters, X = case(name, "float32", batch_size)
    expected = one_by_one(problem, parameters, X)
    program = FusedProgram(problem, team(threads))
    for rows in (1, 19, 78, 79, 299, 300):
        found, good = predicted(program, parameters, X[:rows])
        assert good and found.tobytes() == expected[:rows].tobytes(), rows


@pytest.mark.parametrize("instruction_set", HOST)
def test_no_claim_ends_with_a_block_of_its_own(instruction_set):
    """A block of one or two rows reads all weights, and takes as long as one of a few."""
    tallest = instruction_set_of(instruction_set).row_tiles[0]
    for rows in (tallest, 16, 24, 32, 33, 48, 64):
        problem, parameters, X = case("edges", "float32", batch_size=rows)
        for threads in (1, 2, 3):
            program = FusedProgram(problem, team(threads, instruction_set))
            predicted(program, parameters, X[:rows].copy())
            step = program.step[0]
            assert step["claim_rows"] == step["own_rows"], (rows, threads)
            # Nobody is given more than an even share and the rest of a tile.
            assert step["claim_rows"] < -(-rows // step["threads"]) + tallest, (rows, threads)


@pytest.mark.parametrize("threads", [1, 3])
def test_pieces_pack_the_weights_once(monkeypatch, threads):
    problem, parameters, X = case("edges", "float32")
    expected, _ = predicted(FusedProgram(problem, team(1)), parameters, X)
    for multiply_adds in (1, 100 * problem.parameter_count):
        monkeypatch.setattr(module, "PIECE", multiply_adds)
        program = FusedProgram(problem, team(threads))
        assert program._piece < ROWS
        found, good = predicted(program, parameters, X)
        assert good and found.tobytes() == expected.tobytes()
    # One after another, as blocks that are converted come: also after one of few rows.
    for sizes in ((200, 100), (10, 290), (290, 10), (20, 10, 270)):
        program, start, unchanged = FusedProgram(problem, team(threads)), 0, False
        for size in sizes:
            part = X[start : start + size]
            found, _ = predicted(program, parameters, part, unchanged=unchanged)
            assert found.tobytes() == expected[start : start + size].tobytes(), sizes
            start, unchanged = start + size, True


def test_other_parameters_are_seen_though_the_array_is_the_same():
    problem, parameters, X = case("edges", "float32")
    program, rows = FusedProgram(problem, team(1)), X[:100]
    for _ in range(3):
        parameters += np.float32(0.01)
        expected, _ = predicted(FusedProgram(problem, team(1)), parameters, rows)
        found, _ = predicted(program, parameters, rows)
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_seen_wherever_it_stands(value, threads):
    problem, parameters, X = case("edges", "float32")
    program = FusedProgram(problem, team(threads))
    for rows in (1, 3, 40, 300):
        for row in {0, rows // 2, rows - 1}:
            for column in (0, 2, 4):
                given = X[:rows].copy()
                given[row, column] = value
                assert not predicted(program, parameters, given)[1], (rows, row, column)
        # And forgotten.
        assert predicted(program, parameters, X[:rows].copy())[1]


def test_outputs_that_overflow_are_no_fault_of_the_rows():
    problem, parameters, X = case("whole panels", "float32")
    found, good = predicted(FusedProgram(problem, team(1)), parameters * np.float32(1e25), X)
    assert good and not np.isfinite(found).all()


def test_threads_that_are_not_there_are_not_waited_for():
    """As after a fork: a bell says that somebody waits for a call, and nobody does."""
    problem, parameters, X = case("edges", "float32")
    expected, _ = predicted(FusedProgram(problem, team(1)), parameters, X)
    program = FusedProgram(problem, team(3))
    program._prepare_team = lambda threads, rows: None
    program._send_for = lambda threads: None
    states = program.constants["bells"]["state"]
    for given in (LISTENING, GONE):
        states[1:] = given
        found, good = predicted(program, parameters, X)
        assert good and found.tobytes() == expected.tobytes()
        assert states.tolist() == [0, given, given, given][: len(states)]


def test_a_team_comes_and_stays_for_the_next_call():
    problem, parameters, X = case("edges", "float32")
    program = FusedProgram(problem, team(3))
    calls = []
    found = module.predict_rows

    def counted(*arguments):
        calls.append(found(*arguments))
        return calls[-1]

    module.predict_rows = counted
    try:
        for _ in range(2000):
            predicted(program, parameters, X)
            if calls[-1] & module.TOGETHER:
                break
    finally:
        module.predict_rows = found
    assert calls[-1] & module.TOGETHER


def test_calls_side_by_side_share_the_threads():
    problem, parameters, X = case("edges", "float32")
    program, threads = FusedProgram(problem, team(4)), []
    found = module.predict_rows
    module.predict_rows = lambda *given: threads.append(given[-1]) or found(*given)
    try:
        for share in (1, 2, 4, 9):
            predicted(program, parameters, X, share=share)
    finally:
        module.predict_rows = found
    assert threads == [4, 2, 1, 1]


def test_another_array_of_parameters_is_taken_up():
    problem, parameters, X = case("edges", "float32")
    other = parameters * np.float32(1.5)
    for rows in (1, 20, ROWS):
        program = FusedProgram(problem, team(1))
        expected, _ = predicted(FusedProgram(problem, team(1)), other, X[:rows])
        predicted(program, parameters, X[:rows])
        # Whoever says that they have not changed means the last ones.
        found, _ = predicted(program, other, X[:rows], unchanged=True)
        assert found.tobytes() == expected.tobytes(), rows
